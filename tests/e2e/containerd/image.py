"""Images made by hand: no registry is asked and nothing is compiled. One has nothing but busybox in it."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tarfile
from pathlib import Path

NAME = "docker.io/local/busybox:1"
APPLETS = ("ip", "ping", "sleep")
#: What Go calls this machine's architecture.
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def write_image(path: Path) -> None:
    """Write the image as an archive such as ``docker save`` makes.

    Its containers sleep until they are killed: the pause container of a sandbox does no more.
    """
    layer = path.with_suffix(".layer")
    with tarfile.open(layer, "w") as tar:
        tar.add(shutil.which("busybox") or "", "bin/busybox")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    write_archive(path, NAME, layer, {"Env": ["PATH=/bin"], "Entrypoint": ["sleep", "infinity"]})
    layer.unlink()


def write_archive(path: Path, name: str, layer: Path, config: dict[str, list[str]]) -> None:
    """Write an image of one layer as an archive such as ``docker save`` makes.

    :param config: how its containers run, by the OCI's names.
    """
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    image = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        tar.add(layer, "layer.tar")
        _add(tar, "config.json", json.dumps(image).encode())
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
