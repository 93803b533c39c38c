"""The plugins in Python and in C as programs that can be called, and a daemon that answers them anything."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from terway_core.cni import plugin

PLUGIN = Path(plugin.__file__)
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "3f6940ab5ab4",
    "CNI_NETNS": "/var/run/netns/cni-1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web-0",
    "CNI_PATH": "/opt/cni/bin",
}
RESULT = b'{"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.7/32"}]}'
ERROR = b'{"cniVersion": "1.0.0", "code": 7, "msg": "no"}'


PYTHON, NATIVE, SANITIZED = KINDS = ("python", "c", "c, sanitized")
OPTIONS = {
    NATIVE: ["-static", "-O2", "-Wall", "-Wextra", "-Werror"],
    SANITIZED: ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


class Program:
    """One of the plugins; what it is compiled to is in ``folder``."""

    def __init__(self, kind: str, folder: Path, source: Path | None = None) -> None:
        self.kind = kind
        self.source = source = source or (PLUGIN if kind == PYTHON else PLUGIN.with_suffix(".c"))
        self.argv = [sys.executable, "-IS", str(source)]
        if kind != PYTHON:
            self.argv = [str(folder / "plugin")]
            compile_c(source, folder / "plugin", kind)

    def __call__(self, environment, data: bytes, **options) -> subprocess.CompletedProcess[bytes]:
        """One call; whatever happens, standard error stays empty and there is no third exit status."""
        done = subprocess.run(
            self.argv, env=environment, input=data, stdout=-1, stderr=-1, timeout=60, **options
        )
        assert done.stderr == b""
        assert done.returncode in (0, 1)
        return done

    def variant(self, folder: Path, **constants: object) -> Program:
        """This plugin with other constants, for what a test cannot wait for or must not touch."""
        text = self.source.read_text()
        for name, value in constants.items():
            in_c = f'"{value}"' if isinstance(value, str) else str(value)
            wanted = f"{name} = {value!r}" if self.kind == PYTHON else f"#define {name} {in_c}"
            pattern = rf"^{name} = .*$" if self.kind == PYTHON else rf"^#define {name} .*$"
            text, found = re.subn(pattern, wanted, text, flags=re.MULTILINE)
            assert found == 1
        copy = folder / f"variant{self.source.suffix}"
        copy.write_text(text)
        return Program(self.kind, folder, copy)


def compile_c(source: Path, target: Path, kind: str) -> None:
    """Compile as :data:`OPTIONS` says; skip the test where there is no compiler."""
    # With the C library that a wheel's plugin has; sanitizers exist for the machine's own.
    compiler = "musl-gcc" if kind == NATIVE and shutil.which("musl-gcc") else "cc"
    try:
        subprocess.run([compiler, "-std=gnu11", "-o", target, source, *OPTIONS[kind]], check=True)
    except FileNotFoundError:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the plugin in C needs a C compiler")


def error_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, object]:
    assert done.returncode == 1
    error = json.loads(done.stdout)
    assert set(error) == {"cniVersion", "code", "msg"}
    return error


@contextlib.contextmanager
def raw_daemon(path: str, *chunks: bytes):
    """Reads one request to its end, then sends the chunks one by one and closes."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            length = 0
            while line := stream.readline().strip().lower():
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            stream.read(length)
            for chunk in chunks:
                connection.sendall(chunk)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()
