"""A real API server takes all that ``terway manifests`` prints, and takes nothing out of it."""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from terway_core.lab.kubernetes.real import Programs
from tests.e2e.containerd.node import TERWAY
from tests.e2e.kube_apiserver import running
from tests.kubernetes.cluster import resource_of

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(300)]


def lost(printed: Any, kept: Any, path: str = "") -> list[str]:
    """What was printed and is not in what the API server made of it."""
    if isinstance(printed, dict):
        return [
            found
            for name, value in printed.items()
            for found in (lost(value, kept[name], f"{path}.{name}") if name in kept else [f"{path}.{name}"])
        ]
    if isinstance(printed, list):
        pairs = enumerate(zip(printed, kept, strict=True))
        return [found for number, pair in pairs for found in lost(*pair, f"{path}[{number}]")]
    return [] if printed == kept else [f"{path}: {printed!r} became {kept!r}"]


def test_all_is_accepted(programs: Path, tmp_path: Path) -> None:
    drivers = "trunking,eni,eniip_veth,eniip_ipvlan,vpc"
    command = [TERWAY, "manifests", "--drivers", drivers, "--image", "registry.example/terway:1"]
    manifests = list(yaml.safe_load_all(subprocess.run(command, capture_output=True, check=True).stdout))
    binaries = Programs(programs / "etcd", programs / "kube-apiserver")
    with running(binaries, tmp_path) as server, closing(server.client()) as client:
        for manifest in manifests:
            namespace = manifest["metadata"].get("namespace", "")
            made = client.create(resource_of(manifest), manifest, namespace)
            assert lost(manifest, made, manifest["kind"]) == []
