"""A lab leaves the machine as it found it, whatever of it is killed and when."""

import json
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from terway_core.lab.build import down, status, up
from terway_core.lab.paths import endpoints, measure
from terway_core.lab.process import netns_id
from terway_core.lab.runtime import PluginFailed, Runtime, all_pods
from terway_core.lab.state import Lab, LabError, Spec, recall

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

TERWAY = str(Path(sysconfig.get_path("scripts")) / "terway")


def build(lab: Lab, nodes: int = 1) -> Lab:
    up(lab, Spec(nodes=nodes, drivers=("vpc",)), lambda share, step: None)
    return lab


def terway(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"TERWAY_LAB_DIR": str(lab.folder)}
    return subprocess.run([TERWAY, "lab", *arguments], env=env, capture_output=True, text=True, timeout=60)


def start(lab: Lab, *arguments: str) -> subprocess.Popen[str]:
    env = os.environ | {"TERWAY_LAB_DIR": str(lab.folder)}
    pipe = subprocess.PIPE
    return subprocess.Popen([TERWAY, "lab", *arguments], env=env, stdout=pipe, stderr=pipe, text=True)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process is None or process.poll() is None, "ended before the moment to kill it came"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


class Traces:
    """What a lab puts on a machine, seen without the lab's own knowledge of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.links, self.shared = self._links(), self._shared_folders()
        self.pods: set[str] = set()

    def note_pods(self) -> None:
        """Remember the pods' namespaces, whose names do not say whose they are."""
        for record in self.lab.folder.glob("nodes/*/pods/*.json"):
            self.pods.add(Path(json.loads(record.read_text())["netns"]).name)

    def left(self) -> list[str]:
        """What is still there after the moment that the kernel needs to take a namespace down."""
        deadline = time.monotonic() + 5
        while (found := self.found()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def found(self) -> list[str]:
        found = [f"process {pid}: {command}" for pid, command in self._processes()]
        found += [f"link {name}" for name in self._links() - self.links]
        found += [f"mount {mount}" for mount in self._mounts()]
        found += [f"namespace {name}" for name in os.listdir("/run/netns") if self._is_ours(name)]
        found += [f"file {name}" for name in self._shared_folders() - self.shared]
        return found + [f"file {self.lab.folder}"] * self.lab.folder.exists()

    def _processes(self) -> Iterator[tuple[str, str]]:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except (OSError, UnicodeDecodeError):
                continue
            if str(self.lab.folder) in command:
                yield pid, command

    @staticmethod
    def _links() -> set[str]:
        return {name for name in os.listdir("/sys/class/net") if name.startswith(("eni", "cali", "internet"))}

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [point for point in (line.split()[4] for line in lines) if self._is_ours(Path(point).name)]

    def _is_ours(self, name: str) -> bool:
        return self.lab.id in name or name in self.pods

    @staticmethod
    def _shared_folders() -> set[str]:
        """The product's default places, which a lab must not use."""
        return {
            str(path)
            for folder in ("/var/lib/terway", "/run/terway", "/etc/terway", "/etc/cni/net.d", "/opt/cni/bin")
            for path in [Path(folder), *Path(folder).glob("**/*")]
            if path.exists()
        }


@pytest.fixture
def lab(tmp_path) -> Iterator[Lab]:
    lab = Lab(tmp_path / "lab")
    yield lab
    down(lab)


@pytest.fixture
def traces(lab) -> Traces:
    return Traces(lab)


def test_up_and_down_leave_the_machine_as_they_found_it(lab, traces):
    build(lab, nodes=2)
    pods = [Runtime(node).run_pod(f"pod-{node.name}") for node in lab.nodes]
    inside = {netns_id(Path(pod.netns)) for pod in pods} | {netns_id(node.netns) for node in lab.nodes}
    sleeper = start(lab, "pod", "exec", "pod-node-1", "--", "sleep", "1000")
    wait_for(lambda: any(netns_id(Path(f"/proc/{pid}/ns/net")) in inside for pid in _children(sleeper.pid)))
    traces.note_pods()
    assert traces.found()  # else it would see nothing below either
    assert down(lab)
    assert traces.left() == []
    assert sleeper.wait(timeout=10) == 128 + signal.SIGKILL
    sleeper.communicate()
    assert not down(lab)


def _children(pid: int) -> list[str]:
    return [
        child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()
    ]


def test_a_lab_that_is_up_is_not_built_again(lab):
    build(lab)
    before = status(lab)
    with pytest.raises(LabError, match=r"is up in .* already; take it down with"):
        build(lab)
    assert status(lab) == before


@pytest.mark.parametrize("victim", ["region", "daemon"])
def test_up_after_a_process_was_killed(lab, traces, victim):
    build(lab)
    pod = Runtime(lab.node("node-1")).run_pod("web")
    process = recall(lab.region_dir if victim == "region" else lab.node("node-1").folder)
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not process.alive)
    assert [health.state == "dead" for health in status(lab)] == [victim == "region", victim == "daemon"]
    build(lab)
    assert not Path(pod.netns).exists()
    assert {health.state for health in status(lab)} == {"ready"}
    assert all_pods(lab) == []
    down(lab)
    assert traces.left() == []


@pytest.mark.parametrize(
    "moment",
    [
        "lab.json",
        "region",
        "region/process.json",
        "region/region.sock",
        "nodes/node-1/config.yaml",
        "nodes/node-1/cni/bin/terway",
        "nodes/node-1/process.json",
        "nodes/node-1/run/terway.sock",
        "nodes/node-1/cni/net.d/10-terway.conflist",
    ],
)
def test_up_after_an_up_that_was_killed(lab, traces, moment):
    process = start(lab, "up", "--nodes", "1")
    wait_for((lab.folder / moment).exists, process)
    process.kill()
    process.communicate()
    build(lab)
    assert {health.state for health in status(lab)} == {"ready"}
    down(lab)
    assert traces.left() == []


def test_down_after_an_up_that_was_killed(lab, traces):
    process = start(lab, "up", "--nodes", "1")
    wait_for((lab.folder / "nodes/node-1/process.json").exists, process)
    process.kill()
    process.communicate()
    assert terway(lab, "down").returncode == 0
    assert traces.left() == []


def test_down_after_a_down_that_was_killed(lab, traces):
    build(lab)
    Runtime(lab.node("node-1")).run_pod("web")
    traces.note_pods()
    region = recall(lab.region_dir)
    process = start(lab, "down")
    wait_for(lambda: not region.alive)
    process.kill()
    process.communicate()
    down(lab)
    assert traces.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_up_that_is_interrupted_leaves_nothing(lab, traces, number):
    process = start(lab, "up", "--nodes", "1")
    wait_for((lab.folder / "nodes/node-1/config.yaml").exists, process)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode not in (0, None)
    assert traces.left() == []


def test_down_after_a_pod_add_that_was_killed(lab, traces):
    build(lab)
    process = start(lab, "pod", "add", "node-1", "web")
    wait_for(lambda: list(lab.node("node-1").pods.glob("*.json")), process)
    process.kill()
    process.communicate()
    traces.note_pods()
    assert traces.pods
    down(lab)
    assert traces.left() == []


def test_two_labs_live_side_by_side(tmp_path):
    labs = [Lab(tmp_path / name) for name in ("a", "b")]
    try:
        for one in labs:
            build(one)
            Runtime(one.node("node-1")).run_pod("web")
        assert [str(pod.addresses[0]) for one in labs for pod in all_pods(one)] == ["172.20.1.1"] * 2
        assert all(_reachable(one) for one in labs)
        down(labs[0])
        assert _reachable(labs[1])
    finally:
        for one in labs:
            down(one)


def _reachable(lab: Lab) -> bool:
    known = endpoints(lab)
    pairs = [(known["web"], known["internet"]), (known["node-1"], known["web"])]
    return all(result.milliseconds is not None for result in measure(pairs, timeout=3))


def test_a_pod_whose_add_fails_leaves_nothing(lab):
    node = build(lab).node("node-1")
    (node.cni_bin_dir / "broken").write_text("#!/bin/sh\ntest $CNI_COMMAND = DEL\n")
    (node.cni_bin_dir / "broken").chmod(0o755)
    conflist = node.cni_conf_dir / "10-terway.conflist"
    document = json.loads(conflist.read_text())
    conflist.write_text(json.dumps({**document, "plugins": [*document["plugins"], {"type": "broken"}]}))
    with pytest.raises(PluginFailed, match="failed in broken: exit status 1"):
        Runtime(node).run_pod("web")
    assert all_pods(lab) == []
    assert _audit(lab) == (0, "")


def test_a_pod_is_not_added_while_the_daemon_is_away(lab):
    node = build(lab).node("node-1")
    daemon = recall(node.folder)
    os.kill(daemon.pid, signal.SIGKILL)
    wait_for(lambda: not daemon.alive)
    done = terway(lab, "pod", "add", "node-1", "web")
    assert done.returncode == 1
    assert "CNI code 11" in done.stderr
    assert all_pods(lab) == []


def _audit(lab: Lab) -> tuple[int, str]:
    node = lab.node("node-1")
    done = terway(lab, "node", "exec", "node-1", "--", TERWAY, "audit", "--config", str(node.config))
    return done.returncode, done.stdout.strip().removeprefix("no difference")
