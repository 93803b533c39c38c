"""Building a lab, taking it down, and how it is doing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from terway_core.lab import unix_http
from terway_core.lab.nodes import install, start_daemon
from terway_core.lab.process import Process, spawn
from terway_core.lab.state import Lab, LabError, NodeFiles, Spec, open_netns, recall, remember
from terway_core.registry import Drivers
from terway_core.wiring.netns import create_netns

#: Pod CIDRs and the vSwitch are /24s: more nodes have no place in them.
MAX_NODES: Final = 250
#: Seconds a process of the lab may take until it serves.
START_LIMIT: Final = 60.0
#: sun_path of ``struct sockaddr_un`` (unix(7)) without its final NUL.
_SOCKET_PATH_MAX: Final = 107
_LOG_LINES_SHOWN: Final = 15

#: Told what is being done: steps done, steps in all, and the next one in words.
Progress = Callable[[int, int, str], None]


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


def up(lab: Lab, spec: Spec, progress: Progress = lambda done, total, step: None) -> None:
    """Build the lab, clearing away first whatever a crash left of an earlier one.

    :raises LabError: it is up already, this machine cannot hold it, or a part of it did not start. Nothing is
        left in the last case.
    """
    _check(lab, spec)
    with lab.lock():
        if _is_whole(lab):
            raise LabError(f"a lab is up in {lab.folder} already; take it down with: terway lab down")
        lab.raze()
        lab.mark(spec)
        try:
            _build(lab, spec, progress)
        except BaseException:
            lab.raze()
            raise


def down(lab: Lab) -> bool:
    """Take the lab down, whatever is left of it; False when there was nothing."""
    _require_root()
    with lab.lock():
        existed = lab.exists
        lab.raze()
    return existed


def status(lab: Lab) -> list[Health]:
    """The lab's processes: the region's, then one daemon for each node.

    :raises LabError: there is no lab.
    """
    return [
        _health("region", lab.region_dir, lab.region_log, lab.region_socket, "/lab/behaviour"),
        *(_health(node.name, node.folder, node.log, node.socket, "/readyz") for node in lab.nodes),
    ]


def served_calls(lab: Lab) -> list[dict[str, Any]]:
    """The API calls that the region served, as its ``/lab/calls`` tells them.

    :raises LabError: no region answers.
    """
    try:
        return list(unix_http.get(lab.region_socket, "/lab/calls")[1]["calls"])
    except OSError as error:
        raise LabError(f"no region answers in {lab.folder} ({error}); see: terway lab status") from error


def _is_whole(lab: Lab) -> bool:
    try:
        return all(health.state != "dead" for health in status(lab))
    except LabError:  # killed before it was written down
        return False


def _build(lab: Lab, spec: Spec, progress: Progress) -> None:
    total = 2 + 2 * spec.nodes
    progress(0, total, "making namespaces")
    for path in (lab.netns("switch"), lab.netns("internet"), *(node.netns for node in lab.nodes)):
        create_netns(path.name)
    progress(1, total, "starting the region")
    _await(_start_region(lab), "region", lab.region_log, lab.region_socket, "/lab/behaviour")
    done = 2

    def prepare(number: int, node: NodeFiles) -> Process:
        install(node, number, spec)
        return start_daemon(node)

    with ThreadPoolExecutor() as pool:
        progress(done, total, "starting the nodes")
        started = [pool.submit(prepare, number, node) for number, node in enumerate(lab.nodes, 1)]
        for node, process in zip(lab.nodes, started, strict=True):
            process.result()
            done += 1
            progress(done, total, f"started {node.name}")
        for node, process in zip(lab.nodes, started, strict=True):
            _await(process.result(), node.name, node.log, node.socket, "/readyz")
            done += 1
            progress(done, total, f"{node.name} is ready")


def _start_region(lab: Lab) -> Process:
    lab.region_dir.mkdir()
    argv = [sys.executable, "-P", "-m", "terway_core.lab.region", str(lab.folder)]
    with open_netns(lab.netns("switch")) as switch:
        process = spawn(switch, argv, log=lab.region_log)
    remember(lab.region_dir, process)
    return process


def _await(process: Process, name: str, log: Path, socket: Path, resource: str) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and process.alive:
        if _answers(socket, resource):
            return
        time.sleep(0.02)
    problem = f"was not ready after {START_LIMIT:.0f} s" if process.alive else "ended at once"
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
    raise LabError(f"the process of {name} {problem}; its last words are below", details="\n".join(lines))


def _answers(socket: Path, resource: str) -> bool:
    try:
        return unix_http.get(socket, resource)[0] == 200
    except OSError:
        return False


def _health(name: str, folder: Path, log: Path, socket: Path, resource: str) -> Health:
    process = recall(folder)
    if process is None or not process.alive:
        return Health(name=name, pid=process.pid if process else 0, state="dead", log=log)
    ready = _answers(socket, resource)
    return Health(name=name, pid=process.pid, state="ready" if ready else "not ready", log=log)


def _check(lab: Lab, spec: Spec) -> None:
    _require_root()
    if not 1 <= spec.nodes <= MAX_NODES:
        raise LabError(f"a lab has 1 to {MAX_NODES} nodes, not {spec.nodes}")
    drivers = Drivers.installed()
    for mode in spec.drivers:
        drivers.info(mode)
    excess = len(os.fsencode(lab.node_files(MAX_NODES).socket)) - _SOCKET_PATH_MAX
    if excess > 0:
        raise LabError(
            f"the path of the lab's folder {lab.folder} is too long for the unix sockets in it; "
            f"choose one that is {excess} characters shorter with --dir"
        )


def _require_root() -> None:
    if os.geteuid():
        raise LabError("the lab makes network namespaces, which takes root; run it with sudo")
