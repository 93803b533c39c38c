"""A real kube-apiserver with its etcd on the loopback, for tests that need nothing else of a cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from terway_core.config import KubeConfig
from terway_core.errors import KubeError
from terway_core.kube import NAMESPACES, NODES, PODS, KubeClient
from terway_core.lab.kubernetes import real
from terway_core.lab.kubernetes.real import Programs, apiserver_command

#: Seconds until it must serve; a loaded machine takes its time.
PATIENCE = 90.0


def programs() -> Programs:
    """The programs; a test that finds none is skipped, and fails in CI."""
    found = real.find()
    if found is None:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(
            f"no kube-apiserver and etcd in {real.DEFAULT_ASSETS} or ${real.ENV_ASSETS}: make test-kubernetes"
        )
    return found


class RealApiServer:
    """:meth:`client` asks as an administrator, :meth:`config_of` as a service account of kube-system."""

    def __init__(self, folder: Path, port: int, accounts: tuple[str, ...]) -> None:
        self.folder = folder
        self.port = port
        self.accounts = accounts
        self.config = self._config("admin")

    def config_of(self, account: str) -> KubeConfig:
        return self._config(account)

    def client(self) -> KubeClient:
        return KubeClient(self.config)

    def add_node(self, name: str, **spec: Any) -> dict[str, Any]:
        with closing(self.client()) as client:
            return client.create(NODES, {"metadata": {"name": name}, "spec": spec})

    def add_pod(self, name: str, node: str = "node-1", **metadata: Any) -> dict[str, Any]:
        spec: dict[str, Any] = {"containers": [{"name": "main", "image": "busybox"}]}
        if node:
            spec["nodeName"] = node
        with closing(self.client()) as client:
            return client.create(PODS, {"metadata": {"name": name, **metadata}, "spec": spec}, "default")

    def _config(self, who: str) -> KubeConfig:
        path = self.folder / f"kubeconfig-{who}"
        cluster = {
            "server": f"https://127.0.0.1:{self.port}",
            "certificate-authority": str(self.folder / "apiserver.crt"),
        }
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "real", "cluster": cluster}],
                    "users": [{"name": who, "user": {"token": f"token-of-{who}"}}],
                    "contexts": [{"name": "real", "context": {"cluster": "real", "user": who}}],
                    "current-context": "real",
                }
            )
        )
        return KubeConfig(enabled=True, kubeconfig=path)


@contextmanager
def running(programs: Programs, folder: Path, *accounts: str) -> Iterator[RealApiServer]:
    """:param accounts: service accounts of kube-system that have a token."""
    client_port, peer_port, port = _free_ports(3)
    etcd = f"http://127.0.0.1:{client_port}"
    peer = f"http://127.0.0.1:{peer_port}"
    tokens = ['token-of-admin,admin,1,"system:masters"']
    tokens += [f"token-of-{one},system:serviceaccount:kube-system:{one},{one}" for one in accounts]
    (folder / "tokens.csv").write_text("\n".join(tokens) + "\n")
    commands = [
        [
            str(programs.etcd),
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ],
        apiserver_command(
            programs, folder, etcd=etcd, address="127.0.0.1", port=port, service_cidr="172.21.0.0/20"
        ),
    ]
    with ExitStack() as stack:
        processes = []
        for command in commands:
            log = stack.enter_context((folder / f"{Path(command[0]).name}.log").open("w"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            processes.append(process)
            stack.callback(_end, process)
        api = RealApiServer(folder, port, accounts)
        _wait(api, processes)
        yield api


def _wait(api: RealApiServer, processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        assert all(process.poll() is None for process in processes), f"it ended; see {api.folder}"
        assert time.monotonic() < deadline, f"it does not serve; see {api.folder}"
        if (api.folder / "apiserver.crt").exists():
            try:
                with closing(api.client()) as client:
                    names = {one["metadata"]["name"] for one in client.list(NAMESPACES).items}
            except KubeError:
                names = set()
            if {"default", "kube-system"} <= names:
                return
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]
