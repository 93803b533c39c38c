"""Building a lab, taking it down, and how it is doing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from terway_core.cli.client import ask
from terway_core.errors import IOFailure
from terway_core.lab import control_plane, fabric, kernel
from terway_core.lab.api.instance_types import INSTANCE_TYPES
from terway_core.lab.cluster import Cluster
from terway_core.lab.nodes import ENI_MODES, executable, install, start_daemon
from terway_core.lab.process import Process, spawn
from terway_core.lab.state import Lab, LabError, NodeFiles, Spec, open_netns, recall, remember
from terway_core.wiring.netns import create_netns

#: Pod CIDRs and the vSwitch are /24s: more nodes have no place in them.
MAX_NODES: Final = 250
#: Seconds a process of the lab may take until it serves.
START_LIMIT: Final = 60.0
#: sun_path of ``struct sockaddr_un`` (unix(7)) without its final NUL.
_SOCKET_PATH_MAX: Final = 107
_LOG_LINES_SHOWN: Final = 15

#: Told what is being done: the share that is done, from 0 to 1, and the next step in words. What it raises
#: ends the work at a moment when nothing is half done, and all is taken down.
Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """How one process of the lab is doing.

    :param state: ``dead`` also when it was never started.
    :param pid: 0 when it was never started.
    """

    name: str
    pid: int
    state: Literal["ready", "not ready", "dead"]
    log: Path


def up(lab: Lab, spec: Spec, progress: Progress) -> None:
    """Build the lab, clearing away first whatever a crash left of an earlier one.

    :raises LabError: it is up already, this machine cannot hold it, or a part of it did not start. Nothing is
        left in the last case.
    """
    _check(lab, spec)
    with lab.lock():
        _build_anew(lab, spec, progress)
        lab.mark_complete()


@contextmanager
def temporary(lab: Lab, spec: Spec, progress: Progress) -> Iterator[None]:
    """A lab that lives as long as the block. It is never complete: after a crash nobody takes it for one.

    :raises LabError: as :func:`up`.
    """
    _check(lab, spec)
    with lab.lock():
        _build_anew(lab, spec, progress)
        try:
            yield
        finally:
            lab.raze()


def down(lab: Lab) -> bool:
    """Take the lab down, whatever is left of it; False when there was nothing."""
    kernel.require_root()
    with lab.lock():
        existed = lab.exists
        kernel.power_off(lab)
        lab.raze()
    return existed


def status(lab: Lab) -> list[Health]:
    """The lab's processes: the region's, those of Kubernetes, then one daemon for each node.

    :raises LabError: there is no lab.
    """
    return [
        _health("region", lab.region_dir, lab.region_log, partial(_region_serves, lab)),
        *_cluster_health(lab),
        *(_health(node.name, node.folder, node.log, partial(_daemon_serves, node)) for node in lab.nodes),
    ]


def served_calls(lab: Lab) -> list[dict[str, Any]]:
    """The API calls that the region served, as its ``/lab/calls`` tells them.

    :raises LabError: no region answers.
    """
    return list(ask_region(lab, "GET", "/lab/calls")["calls"])


def ask_region(lab: Lab, method: str, path: str, body: object = None) -> Any:
    """What the region answers below ``/lab/``.

    :raises LabError: no region answers.
    """
    try:
        return ask(lab.region_socket, method, path, body)
    except IOFailure as error:
        raise LabError(f"no region answers in {lab.folder}; see: terway lab status") from error


def _build_anew(lab: Lab, spec: Spec, progress: Progress) -> None:
    if lab.complete and (kernel.machine(lab) or all(health.state != "dead" for health in status(lab))):
        raise LabError(f"a lab is up in {lab.folder} already; take it down with: terway lab down")
    kernel.power_off(lab)
    lab.raze()
    lab.mark(spec)
    try:
        _build(lab, spec, progress)
    except BaseException:
        lab.raze()
        raise


def _build(lab: Lab, spec: Spec, progress: Progress) -> None:
    progress(0.0, "making namespaces")
    for path in (lab.netns("switch"), lab.netns("internet"), *(node.netns for node in lab.nodes)):
        create_netns(path.name)
    region = _start_region(lab)
    for _ in _until(partial(_region_serves, lab), region, "the region", lab.region_log):
        progress(0.1, "starting the region")

    cluster = _start_cluster(lab, progress) if spec.kubernetes != "none" else None

    def start(number: int, node: NodeFiles) -> Process:
        install(node, number, spec)
        if cluster:
            cluster.install(node)
        return start_daemon(node)

    if control_plane.MODE in spec.drivers:
        progress(0.25, "starting the control plane")
        control_plane.start(lab)

    progress(0.3, "starting the nodes")
    with ThreadPoolExecutor() as pool:
        daemons = list(pool.map(start, range(1, spec.nodes + 1), lab.nodes))
    for number, (node, daemon) in enumerate(zip(lab.nodes, daemons, strict=True)):
        for _ in _until(partial(_daemon_serves, node), daemon, f"the daemon of {node.name}", node.log):
            progress(0.6 + 0.4 * number / spec.nodes, f"waiting for {node.name}")


def _start_cluster(lab: Lab, progress: Progress) -> Cluster:
    cluster = Cluster(lab)
    started = cluster.start() or [("the region", _running(lab.region_dir), lab.region_log)]
    for name, process, log in started:
        last = process is started[-1][1]
        for _ in _until(cluster.serves if last else lambda: True, process, name, log):
            progress(0.2, f"starting {name}")
    cluster.populate()
    return cluster


def _running(folder: Path) -> Process:
    process = recall(folder)
    assert process, f"{folder} has a process"
    return process


def _start_region(lab: Lab) -> Process:
    lab.region_dir.mkdir()
    argv = [sys.executable, "-P", "-m", "terway_core.lab.region", str(lab.folder)]
    with open_netns(lab.netns("switch")) as switch:
        process = spawn(switch, argv, log=lab.region_log)
    remember(lab.region_dir, process)
    return process


def _until(serves: Callable[[], bool], process: Process, name: str, log: Path) -> Iterator[None]:
    """Yield again and again until the process serves.

    :raises LabError: it ended, or took too long.
    """
    deadline = time.monotonic() + START_LIMIT
    while not serves():
        alive = process.alive
        if not alive or time.monotonic() > deadline:
            problem = f"does not serve after {START_LIMIT:.0f} s" if alive else "ended"
            lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
            raise LabError(f"{name} {problem}; the end of its log is below", details="\n".join(lines))
        yield
        time.sleep(0.02)


def _region_serves(lab: Lab) -> bool:
    try:
        return bool(ask(lab.region_socket, "GET", "/lab/behaviour"))
    except IOFailure:
        return False


def _daemon_serves(node: NodeFiles) -> bool:
    try:
        return bool(ask(node.socket, "GET", "/readyz")["ready"])
    except IOFailure:
        return False


def _health(name: str, folder: Path, log: Path, serves: Callable[[], bool]) -> Health:
    process = recall(folder)
    pid = process.pid if process else 0
    if process is None or not process.alive:
        return Health(name=name, pid=pid, state="dead", log=log)
    return Health(name=name, pid=pid, state="ready" if serves() else "not ready", log=log)


def _cluster_health(lab: Lab) -> Iterator[Health]:
    if lab.spec.kubernetes == "real":
        serves = Cluster(lab).serves
        for name in ("etcd", "apiserver"):
            yield _health(name, lab.kubernetes_dir / name, lab.kubernetes_dir / f"{name}.log", serves)
    if control_plane.MODE in lab.spec.drivers:
        log = control_plane.log(lab)
        yield _health("the control plane", control_plane.folder(lab), log, lambda: True)


def _check(lab: Lab, spec: Spec) -> None:
    kernel.require_root()
    if not 1 <= spec.nodes <= MAX_NODES:
        raise LabError(f"a lab has 1 to {MAX_NODES} nodes, not {spec.nodes}")
    if spec.instance_type not in INSTANCE_TYPES:
        known = ", ".join(INSTANCE_TYPES)
        raise LabError(f"the lab has no instance type {spec.instance_type!r}; it has {known}")
    try:
        fabric.all_vswitches(spec.vswitches)
    except ValueError as error:
        raise LabError(f"no such vSwitch can be in the lab: {error}") from error
    if problem := kernel.unmet(spec):
        raise LabError(problem)
    if spec.ip_stack == "ipv6" and (modes := ENI_MODES & set(spec.drivers)):
        raise LabError(f"pods of {', '.join(sorted(modes))} have IPv4 or both families; use --ip-stack dual")
    if control_plane.MODE in spec.drivers and spec.kubernetes == "none":
        raise LabError(f"pods of {control_plane.MODE} are selected in Kubernetes; use --kubernetes")
    executable()
    excess = len(os.fsencode(lab.node_files(MAX_NODES).socket)) - _SOCKET_PATH_MAX
    if excess > 0:
        raise LabError(
            f"the path of the lab's folder {lab.folder} is too long for the unix sockets in it; "
            f"choose one that is {excess} characters shorter with --dir"
        )
