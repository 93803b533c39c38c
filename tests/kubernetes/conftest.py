"""The cluster that the tests share, where this machine can have one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from terway_core.lab.kubernetes.real import ENV_ASSETS
from tests.e2e.containerd.machine import Machine
from tests.e2e.containerd.runtime import LOOPBACK
from tests.kubernetes import build
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.workload import Workload

PROGRAMS = ("busybox", "containerd", "ctr", "ip", "nft", "nsenter", "pgrep", "runc", "tc", "unshare")


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with Kubernetes' programs."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    missing += [] if LOOPBACK.exists() else [str(LOOPBACK)]
    missing += [] if build.FOLDER.is_dir() else [f"{build.FOLDER} (made by: make test-kubernetes)"]
    missing += ["root"] if os.geteuid() else []
    if missing:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"a cluster cannot run here without: {', '.join(missing)}")
    return build.FOLDER


@pytest.fixture(scope="session")
def cluster(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that serve ``eniip_veth``."""
    yield from _run(programs, tmp_path_factory.mktemp("cluster"), "eniip_veth")


@pytest.fixture(scope="session")
def trunk_cluster(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that serve ``trunking`` and ``eniip_veth``."""
    folder, options = tmp_path_factory.mktemp("trunks"), ("--instance-type", "ecs.g7.4xlarge")
    yield from _run(programs, folder, "trunking,eniip_veth", *options)


@pytest.fixture
def workload(cluster: Cluster) -> Iterator[Workload]:
    """What a test runs in the cluster; it is gone afterwards."""
    workload = Workload(cluster)
    yield workload
    workload.clear()


def _run(programs: Path, folder: Path, drivers: str, *options: str) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch, Machine(f"terway-k8s-{os.getpid()}") as machine:
        patch.setenv(ENV_ASSETS, str(programs))
        cluster = Cluster(machine, folder, programs, drivers, *options)
        yield cluster
        cluster.close()
