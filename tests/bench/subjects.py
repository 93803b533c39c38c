"""What is measured: a CNI plugin with its configuration, on a node of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from terway_core.cli.client import ask
from terway_core.cni import install
from terway_core.config import Config, load_config
from terway_core.errors import IOFailure
from terway_core.lab import nodes
from terway_core.lab.build import temporary
from terway_core.lab.state import Lab, Spec
from terway_core.wiring.netns import Namespace, create_netns, delete_netns

GO_PLUGINS = Path("/usr/lib/cni")
#: Environment, and descriptors of standard input and output.
Call = tuple[dict[str, str], int, int]
PREFIX = f"terway-bench-{os.getpid()}"
#: With 8 ENIs of 30 addresses; a burst needs 110.
INSTANCE_TYPE = "ecs.g7.4xlarge"
POOL = {"cluster": "lab", "cooldown": 0, "warm_min": 150, "warm_max": 200, "warm_enis": 3}


@dataclass
class Subject:
    """A plugin that can be called.

    :param node: where it runs.
    :param socket: its daemon's; None when it has none.
    """

    name: str
    plugin: Path
    netconf: dict[str, Any]
    node: Namespace
    socket: Path | None = None
    results: dict[str, Any] = field(default_factory=dict)

    def call(self, command: str, netns: Path) -> float:
        """Seconds from the start of the plugin's process to its exit."""
        return self.call_all(command, [netns], at_once=1)

    def call_all(self, command: str, pods: Sequence[Path], *, at_once: int) -> float:
        """Seconds until the plugin has been called for all pods.

        Processes are started by posix_spawn(3) and one thread, which does nothing else: half a millisecond
        for each, for everybody.
        """
        with contextlib.ExitStack() as files:
            calls = [self._prepare(command, pod, files) for pod in pods]
            seconds, failed = self.node.run(_timed, str(self.plugin), calls, at_once)
            for netns, (_, _, stdout) in zip(pods, calls, strict=True):
                answer = os.pread(stdout, 1 << 20, 0)
                if failed:
                    raise SystemExit(f"{self.name}: {command} of {netns.name} failed: {answer.decode()}")
                if command == "ADD":
                    self.results[netns.name] = json.loads(answer)
        return seconds

    def _prepare(self, command: str, netns: Path, files: contextlib.ExitStack) -> Call:
        config = dict(self.netconf)
        if command == "CHECK":
            config["prevResult"] = self.results[netns.name]
        env = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": netns.name,
            "CNI_NETNS": str(netns),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(GO_PLUGINS),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAME={netns.name};K8S_POD_NAMESPACE=bench",
        }
        stdin, stdout = os.memfd_create("stdin"), os.memfd_create("stdout")
        for file in (stdin, stdout):
            files.callback(os.close, file)
        os.pwrite(stdin, json.dumps(config).encode(), 0)
        return env, stdin, stdout

    def address(self, netns: Path) -> str:
        """What an ADD gave the pod."""
        return self.results[netns.name]["ips"][0]["address"].partition("/")[0]


def _timed(plugin: str, calls: Sequence[Call], at_once: int) -> tuple[float, bool]:
    """Seconds that all of them take, and whether one failed."""
    waiting = list(reversed(calls))
    running = 0
    failed = False
    start = time.perf_counter()
    while waiting or running:
        while waiting and running < at_once:
            env, stdin, stdout = waiting.pop()
            files = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
            os.posix_spawn(plugin, [plugin], env, file_actions=files)
            running += 1
        _, status = os.wait()
        running -= 1
        failed |= bool(status)
    return time.perf_counter() - start, failed


@contextlib.contextmanager
def namespaces(count: int, label: str) -> Iterator[list[Path]]:
    """Empty namespaces, as a runtime makes them for pods."""
    names = [f"{PREFIX}-{label}{number}" for number in range(count)]
    try:
        yield [create_netns(name) for name in names]
    finally:
        for name in names:
            delete_netns(name)


@contextlib.contextmanager
def go_ptp(folder: Path) -> Iterator[Subject]:
    """``ptp`` with ``host-local``."""
    ipam = {"type": "host-local", "subnet": "172.30.0.0/16", "dataDir": str(folder / "ipam")}
    netconf = {"cniVersion": "1.0.0", "name": "ptp", "type": "ptp", "ipam": ipam}
    with namespaces(1, "ptp") as (path,), Namespace.open(path) as node:
        node.run(subprocess.run, ["ip", "link", "set", "lo", "up"], check=True)
        yield Subject("ptp + host-local", GO_PLUGINS / "ptp", netconf, node)


def vpc_config(folder: Path) -> Path:
    """A configuration file of the vpc mode; everything is below ``folder``.

    Without masquerading, as ptp is called: it makes the kernel track connections.
    """
    cidrs = ["172.20.0.0/16"]
    vpc = {"pod_cidrs": cidrs, "cluster_cidrs": cidrs, "rest_seconds": 0, "masquerade": False}
    settings = {
        "drivers": ["vpc"],
        "options": {"vpc": vpc},
        "vpc_cidrs": ["192.168.0.0/16"],
        "gc_interval": 3600,
        "log_level": "error",
        **{f"{name}_dir": str(folder / name) for name in ("state", "run", "cni_bin", "cni_conf")},
    }
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@contextlib.contextmanager
def daemon(config_file: Path, node: Namespace) -> Iterator[float]:
    """A daemon; yields the seconds that it took until it was ready."""
    config = load_config(config_file, env={})
    argv = [str(Path(sys.executable).with_name("terway")), "daemon", "--config", str(config_file)]
    start = time.perf_counter()
    process = node.run(subprocess.Popen, argv)
    try:
        while not _is_ready(config):
            assert process.poll() is None, "the daemon ended"
            time.sleep(0.002)
        yield time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()


def _is_ready(config: Config) -> bool:
    try:
        return bool(ask(config.socket, "GET", "/readyz")["ready"])
    except IOFailure:
        return False


def netconf_of(config: Config) -> dict[str, Any]:
    """What libcni makes of the conflist."""
    entry = install.conflist(config)["plugins"][0]
    return {**entry, "name": config.network, "cniVersion": "1.0.0"}


@contextlib.contextmanager
def vpc(folder: Path) -> Iterator[Subject]:
    """The vpc mode."""
    config_file = vpc_config(folder)
    config = load_config(config_file, env={})
    install.install_binary(config)
    with namespaces(1, "vpc") as (path,), Namespace.open(path) as node, daemon(config_file, node):
        yield Subject("vpc", install.binary_path(config), netconf_of(config), node, config.socket)


@contextlib.contextmanager
def lab_mode(mode: str, folder: Path) -> Iterator[Subject]:
    """A mode that needs the cloud, on a node of a lab, with a warm pool.

    One whose pods have an ENI each comes and goes by itself only: a burst would wait for the cloud.
    """
    lab = Lab(folder)
    spec = Spec(nodes=1, drivers=(mode,), instance_type=INSTANCE_TYPE)
    with (
        mock.patch.object(nodes, "_pool", return_value=POOL),
        temporary(lab, spec, lambda share, step: None),
        Namespace.open(lab.nodes[0].netns) as node,
    ):
        config = load_config(lab.nodes[0].config, env={})
        _wait_until_warm(config)
        if mode != "eni":
            # The region's processes are on this machine too, unlike a real one's: what the pool asks of it
            # while pods come and go would be measured with them.
            ask(config.socket, "POST", "/v1/pool/holds", {"calling": True})
        yield Subject(mode, install.binary_path(config), netconf_of(config), node, config.socket)


def _wait_until_warm(config: Config) -> None:
    while True:
        enis = ask(config.socket, "GET", "/v1/enis")["enis"]
        ready = [eni for eni in enis if eni["state"] == "ready"]
        if "eni" in config.drivers and len(ready) >= POOL["warm_enis"]:
            return
        if sum(len(eni["addresses"]) for eni in ready if eni["use"] == "shared") >= POOL["warm_min"]:
            return
        time.sleep(0.1)
