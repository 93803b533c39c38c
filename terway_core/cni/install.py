"""Puts the plugin and the conflist on the host, and takes exactly these two files away again.

Both are written to a temporary file in their folder, fsynced and renamed, so a runtime that looks at any
moment finds the old file, the new one or none, never half of one. The temporary name has an extension that
libcni does not load.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

from terway_core.cni import plugin
from terway_core.config import Config
from terway_core.errors import InvalidConfig, IOFailure

__all__ = [
    "binary_path",
    "conflist",
    "conflist_path",
    "install",
    "install_binary",
    "install_conflist",
    "remove_binary",
    "remove_conflist",
    "uninstall",
]

#: What a driver's ``terway_conflist`` hook is: it gets the conflist and returns the one to use.
Transform: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]

PLUGIN_TYPE: Final = "terway"
#: The plugin in C, if the package was built with a compiler (``hatch_build.py``).
NATIVE: Final = Path(plugin.__file__).with_name("terway-cni")
#: What ``plugin.c`` holds for us to know it by.
_NATIVE_MARK: Final = b"terway CNI plugin: of terway-core\0"
#: Linux before 5.1 reads no more of a first line (BINPRM_BUF_SIZE is 128 with the NUL).
_MAX_SHEBANG: Final = 127


def conflist(config: Config, transforms: Iterable[Transform] = ()) -> dict[str, Any]:
    """The network configuration list that makes a runtime call our plugin (SPEC.md, section 1).

    :param transforms: the drivers' ``terway_conflist`` hooks, applied one after the other.
    """
    document: dict[str, Any] = {
        "cniVersion": config.cni_version,
        "name": config.network,
        "plugins": [
            {
                "type": PLUGIN_TYPE,
                "socket": str(config.socket.absolute()),
                "spool": str(config.spool.absolute()),
                "capabilities": {"bandwidth": True},
            }
        ],
    }
    for transform in transforms:
        document = transform(document)
    return document


def binary_path(config: Config) -> Path:
    """Where the plugin goes: named after the conflist's ``type``."""
    return config.cni_bin_dir / PLUGIN_TYPE


def conflist_path(config: Config) -> Path:
    """Where the conflist goes. Runtimes take the first name in the folder, hence the number."""
    return config.cni_conf_dir / f"10-{config.network}.conflist"


def install_binary(config: Config, python: str = "") -> bool:
    """Put the plugin in place; False when it was there already.

    It is the one in C if that runs here, else the one in Python.

    :param python: take the one in Python, with this interpreter in its first line. By default that is the one
        which runs this, outside any virtual environment: the plugin needs nothing installed, and it outlives
        the environment.
    :raises IOFailure: a file cannot be written, or one that is not ours is in the way.
    :raises InvalidConfig: the interpreter cannot stand in a first line.
    """
    if not python and _runs(NATIVE):
        return _put(binary_path(config), NATIVE.read_bytes(), 0o755, _is_our_binary)
    python = python or sys._base_executable  # type: ignore[attr-defined]  # what the venv module takes
    shebang = f"#!{python} -IS\n".encode()
    if not os.access(python, os.X_OK) or len(python.split()) != 1 or len(shebang) > _MAX_SHEBANG + 1:
        raise InvalidConfig(
            f"the plugin cannot be run by {python!r}: name an interpreter that exists, by an absolute path "
            f"without white space and of at most {_MAX_SHEBANG - len('#! -IS')} bytes"
        )
    _, _, body = Path(plugin.__file__).read_bytes().partition(b"\n")
    return _put(binary_path(config), shebang + body, 0o755, _is_our_binary)


def remove_binary(config: Config) -> bool:
    """Take the plugin away; False when there is none, or another's. :raises IOFailure: it stays."""
    return _remove(binary_path(config), _is_our_binary)


def install_conflist(config: Config, transforms: Iterable[Transform] = ()) -> bool:
    """Put the conflist in place; False when it was there already. From then on runtimes call the plugin.

    :raises IOFailure: the file cannot be written, or one that is not ours is in the way.
    :raises InvalidConfig: a transform returned what is no conflist with our plugin in it.
    """
    document = conflist(config, transforms)
    try:
        content = json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise InvalidConfig(f"a terway_conflist hook returned what is not JSON: {error}") from error
    if not _is_our_conflist(content):
        raise InvalidConfig("a terway_conflist hook returned no conflist with the terway plugin in it")
    return _put(conflist_path(config), content, 0o644, _is_our_conflist)


def remove_conflist(config: Config) -> bool:
    """Take the conflist away; False when there is none, or another's. :raises IOFailure: it stays."""
    return _remove(conflist_path(config), _is_our_conflist)


def install(config: Config, transforms: Iterable[Transform] = (), python: str = "") -> bool:
    """The plugin, then the conflist that names it. True when anything changed. Raises what either does."""
    return any([install_binary(config, python), install_conflist(config, transforms)])


def uninstall(config: Config) -> bool:
    """The conflist, then the plugin. True when anything was there. Raises what either does."""
    return any([remove_conflist(config), remove_binary(config)])


# /opt/cni/bin/terway and 10-terway.conflist are also the names of Alibaba Cloud's own Terway. Whoever changes
# from one to the other shall do it knowingly, so what is not ours is neither overwritten nor removed.


def _is_our_binary(content: bytes) -> bool:
    if content.startswith(b"\x7fELF"):
        return _NATIVE_MARK in content
    return content.startswith(b"#!") and content.partition(b"\n")[2].startswith(b'"""terway CNI plugin:')


def _is_our_conflist(content: bytes) -> bool:
    try:
        plugins = json.loads(content)["plugins"]
        return any(entry["type"] == PLUGIN_TYPE and "spool" in entry for entry in plugins)
    except (ValueError, TypeError, KeyError):
        return False


def _runs(binary: Path) -> bool:
    """Whether it can be executed: it may be absent, or of another architecture or C library."""
    try:
        done = subprocess.run(
            [binary], env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL, capture_output=True
        )
    except OSError:
        return False
    return done.returncode == 0


def _put(path: Path, content: bytes, mode: int, is_ours: Callable[[bytes], bool]) -> bool:
    try:
        if (current := _read(path)) is not None:
            if not is_ours(current):
                raise IOFailure(f"{path} is not terway-core's file; move it away, then install again")
            if current == content and path.stat().st_mode & 0o7777 == mode:
                return False
        path.parent.mkdir(parents=True, exist_ok=True)
        file, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with open(file, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fchmod(file, mode)
                os.fsync(file)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _fsync_folder(path.parent)
    except OSError as error:
        raise IOFailure(f"{path} cannot be written: {error}") from error
    return True


def _remove(path: Path, is_ours: Callable[[bytes], bool]) -> bool:
    try:
        current = _read(path)
        if current is None or not is_ours(current):
            return False
        path.unlink()
        _fsync_folder(path.parent)
    except OSError as error:
        raise IOFailure(f"{path} cannot be removed: {error}") from error
    return True


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _fsync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
