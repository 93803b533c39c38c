"""The two files that make a runtime call us: put there whole, put there once, taken away alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from terway_core.cni import install as installer
from terway_core.cni import plugin
from terway_core.cni.install import (
    binary_path,
    conflist,
    conflist_path,
    install,
    install_binary,
    install_conflist,
    remove_binary,
    remove_conflist,
    uninstall,
)
from terway_core.config import Config
from terway_core.errors import InvalidConfig, IOFailure
from tests.unit.cni_program import NATIVE, PLUGIN, compile_c


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    """The plugin in C, as a wheel has it."""
    binary = tmp_path_factory.mktemp("native") / "terway-cni"
    compile_c(PLUGIN.with_suffix(".c"), binary, NATIVE)
    return binary


@pytest.fixture(params=["python", "c"])
def kind(request, native: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the package was built with."""
    monkeypatch.setattr(installer, "NATIVE", native if request.param == "c" else Path("/absent"))
    return request.param


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        cni_bin_dir=tmp_path / "opt/cni/bin",
        cni_conf_dir=tmp_path / "etc/cni/net.d",
        state_dir=tmp_path / "state",
        run_dir=tmp_path / "run",
        network="podnet",
        cni_version="0.4.0",
    )


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_conflist(config: Config, tmp_path: Path) -> None:
    assert conflist(config) == {
        "cniVersion": "0.4.0",
        "name": "podnet",
        "plugins": [
            {
                "type": "terway",
                "socket": f"{tmp_path}/run/terway.sock",
                "spool": f"{tmp_path}/state/spool",
                "capabilities": {"bandwidth": True},
            }
        ],
    }


def test_conflist_has_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin runs in the runtime's working directory."""
    monkeypatch.chdir(tmp_path)
    entry = conflist(Config(state_dir=Path("state"), run_dir=Path("run")))["plugins"][0]
    assert (entry["socket"], entry["spool"]) == (f"{tmp_path}/run/terway.sock", f"{tmp_path}/state/spool")


def chain(name: str):
    def add(document):
        return {**document, "plugins": [*document["plugins"], {"type": name}]}

    return add


def test_drivers_chain_plugins_in_order(config: Config) -> None:
    assert [p["type"] for p in conflist(config, [chain("tuning"), chain("cilium-cni")])["plugins"]] == [
        "terway",
        "tuning",
        "cilium-cni",
    ]
    install_conflist(config, iter([chain("tuning")]))
    assert json.loads(conflist_path(config).read_text())["plugins"][1] == {"type": "tuning"}


def test_install_puts_two_files(config: Config, tmp_path: Path) -> None:
    assert install(config)
    assert files(tmp_path) == {"opt/cni/bin/terway", "etc/cni/net.d/10-podnet.conflist"}
    assert binary_path(config).stat().st_mode & 0o7777 == 0o755
    assert conflist_path(config).stat().st_mode & 0o7777 == 0o644
    assert json.loads(conflist_path(config).read_text()) == conflist(config)


@pytest.mark.parametrize("kind", ["python"], indirect=True)
def test_installed_plugin_is_the_source_with_another_first_line(config: Config, kind: str) -> None:
    install_binary(config)
    first, rest = binary_path(config).read_text().split("\n", 1)
    assert rest == Path(plugin.__file__).read_text().split("\n", 1)[1]
    interpreter, argument = first.removeprefix("#!").split(" ")
    assert argument == "-IS"
    # Not the virtual environment's: it may be removed or rebuilt while pods still have to be deleted.
    assert not Path(interpreter).is_relative_to(sys.prefix) or sys.prefix == sys.base_prefix
    # A runtime executes it without a PATH that leads to our Python.
    done = subprocess.run(
        [binary_path(config)], env={"CNI_COMMAND": "VERSION"}, input=b"", capture_output=True
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["supportedVersions"] == list(plugin.VERSIONS)


@pytest.mark.parametrize("kind", ["c"], indirect=True)
def test_plugin_in_c_is_preferred(config: Config, native: Path, kind: str) -> None:
    install_binary(config, sys._base_executable)
    assert binary_path(config).read_bytes().startswith(b"#!")
    assert install_binary(config)
    assert binary_path(config).read_bytes() == native.read_bytes()
    assert not install_binary(config)


@pytest.mark.parametrize(
    "content", [b"\x7fELF of another machine", b"#!/bin/false\n", b"#!/absent/interpreter\n"]
)
def test_plugin_in_c_that_does_not_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(content)
    broken.chmod(0o755)
    monkeypatch.setattr(installer, "NATIVE", broken)
    install_binary(config)
    assert b"terway CNI plugin:" in binary_path(config).read_bytes()


def test_installed_pair_finds_the_spool_of_the_settings(config: Config, kind: str) -> None:
    """What libcni makes of a conflist: the plugin's entry, plus name and cniVersion, less capabilities."""
    install(config)
    document = json.loads(conflist_path(config).read_text())
    (entry,) = document["plugins"]
    del entry["capabilities"]
    netconf = {**entry, "name": document["name"], "cniVersion": document["cniVersion"]}
    environment = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0"}
    done = subprocess.run([binary_path(config)], env=environment, input=json.dumps(netconf).encode())
    assert done.returncode == 0
    assert len(list(config.spool.iterdir())) == 1


def test_second_install_changes_nothing(config: Config) -> None:
    install(config)

    def written() -> list[tuple[int, int]]:
        stats = [path.stat() for path in (binary_path(config), conflist_path(config))]
        return [(stat.st_ino, stat.st_mtime_ns) for stat in stats]  # reading changes st_atime

    before = written()
    assert not install(config)
    assert written() == before


def test_install_mends_content_and_mode(config: Config, tmp_path: Path, kind: str) -> None:
    install(config)
    binary, wanted = binary_path(config), binary_path(config).read_bytes()
    binary.write_bytes(wanted + b"# an older version of ours\n")
    binary.chmod(0o644)
    conflist_path(config).write_text(json.dumps(conflist(config) | {"cniVersion": "0.3.0"}))
    assert install(config)
    assert binary.read_bytes() == wanted
    assert binary.stat().st_mode & 0o7777 == 0o755
    assert json.loads(conflist_path(config).read_text()) == conflist(config)
    binary.chmod(0o700)
    assert install_binary(config)
    assert not install_binary(config)
    assert files(tmp_path) == {"opt/cni/bin/terway", "etc/cni/net.d/10-podnet.conflist"}


def test_replacing_does_not_disturb_who_reads(config: Config) -> None:
    """A file that is written in place would be seen half, or could not be executed (ETXTBSY)."""
    install_conflist(config)
    with conflist_path(config).open() as old:
        assert install_conflist(config, [chain("tuning")])
        assert json.load(old) == conflist(config)


def test_the_two_come_and_go_apart(config: Config, tmp_path: Path) -> None:
    assert install_binary(config)
    assert files(tmp_path) == {"opt/cni/bin/terway"}
    assert install_conflist(config)
    assert remove_conflist(config)
    assert files(tmp_path) == {"opt/cni/bin/terway"}
    assert remove_binary(config)
    assert files(tmp_path) == set()


def test_uninstall_takes_exactly_its_own(config: Config, tmp_path: Path) -> None:
    install(config)
    (config.cni_bin_dir / "loopback").write_text("")
    (config.cni_conf_dir / "10-podnet.conflist.bak").write_text("")
    assert uninstall(config)
    assert files(tmp_path) == {"opt/cni/bin/loopback", "etc/cni/net.d/10-podnet.conflist.bak"}
    assert not uninstall(config)


def test_uninstall_of_nothing(config: Config, tmp_path: Path) -> None:
    assert not uninstall(config)
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF\0", b"#!/bin/sh\n", b"{", b"[]", b'{"plugins": [{"type": "terway"}]}']
)
def test_files_of_others_stay(config: Config, content: bytes) -> None:
    """Alibaba Cloud's own Terway has the same file names."""
    for path, put in ((binary_path(config), install_binary), (conflist_path(config), install_conflist)):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        with pytest.raises(IOFailure, match=f"{path}.*move it away"):
            put(config)
        assert path.read_bytes() == content
    assert not uninstall(config)
    assert binary_path(config).read_bytes() == conflist_path(config).read_bytes() == content


def test_failed_write_names_the_file_and_leaves_nothing(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    for path, put in ((binary_path(config), install_binary), (conflist_path(config), install_conflist)):
        with pytest.raises(IOFailure, match=f"{path} cannot be written: .*No space left"):
            put(config)
    assert files(tmp_path) == set()


def test_folder_that_cannot_be(config: Config, tmp_path: Path) -> None:
    (tmp_path / "opt").write_text("a file where a folder belongs")
    with pytest.raises(IOFailure, match=str(binary_path(config))):
        install_binary(config)
    (tmp_path / "etc/cni/net.d/10-podnet.conflist").mkdir(parents=True)
    with pytest.raises(IOFailure, match=str(conflist_path(config))):
        install_conflist(config)
    with pytest.raises(IOFailure, match=str(conflist_path(config))):
        remove_conflist(config)


def test_python_can_be_chosen(config: Config, tmp_path: Path) -> None:
    python = tmp_path / "py"
    python.symlink_to(sys.executable)
    install_binary(config, str(python))
    assert binary_path(config).read_text().startswith(f"#!{python} -IS\n")


@pytest.mark.parametrize("name", ["absent", "with space", "x" * 128])
def test_python_that_cannot_stand_in_a_first_line(config: Config, tmp_path: Path, name: str) -> None:
    python = tmp_path / name
    if name != "absent":
        python.symlink_to(sys.executable)
    with pytest.raises(InvalidConfig, match="cannot be run by"):
        install_binary(config, str(python))
    assert not binary_path(config).exists()


@pytest.mark.parametrize(
    "transform",
    [
        lambda document: None,
        lambda document: {},
        lambda document: {**document, "plugins": []},
        lambda document: {**document, "plugins": [{"type": "other"}]},
        lambda document: {**document, "x": object()},
        lambda document: {**document, "x": float("nan")},
    ],
)
def test_transform_that_spoils_the_conflist(config: Config, transform) -> None:
    with pytest.raises(InvalidConfig, match="terway_conflist hook"):
        install_conflist(config, [transform])
    assert not conflist_path(config).exists()
