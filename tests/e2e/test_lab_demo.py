"""``terway lab demo``: what it says, and that a broken path is not overlooked."""

import json
import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from terway_core.lab.build import down, up
from terway_core.lab.state import Lab, LabError, Spec
from terway_core.wiring.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

TERWAY = str(Path(sysconfig.get_path("scripts")) / "terway")


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "lab")
    yield lab
    down(lab)


def start_demo(lab: Lab, *arguments: str) -> subprocess.Popen[str]:
    argv = [TERWAY, "lab", "demo", "--drivers", "vpc", "--dir", str(lab.folder), *arguments]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_pods(lab: Lab, demo: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not list(lab.folder.glob("nodes/*/pods/*.json")):
        assert demo.poll() is None, demo.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def nothing_left(lab: Lab) -> bool:
    return not lab.folder.exists() and not [name for name in os.listdir("/run/netns") if lab.id in name]


def test_every_pod_reaches_every_pod_every_node_and_the_internet(lab):
    demo = start_demo(lab, "--json", "--ip-stack", "dual")
    stdout, stderr = demo.communicate(timeout=60)
    assert demo.returncode == 0, stdout + stderr
    report = json.loads(stdout)
    pods, others = {f"pod-{number}" for number in range(1, 7)}, {"node-1", "node-2", "internet"}
    for version in (4, 6):
        paths = [path for path in report["paths"] if (":" in path["address"]) == (version == 6)]
        pairs = [(path["source"], path["target"]) for path in paths]
        assert sorted(pairs) == sorted((a, b) for a in pods for b in pods | others if a != b)
    assert all(path["milliseconds"] > 0 for path in report["paths"])
    assert report["ok"] is True
    assert report["drift"] == []
    assert nothing_left(lab)


def test_the_table_has_a_time_for_each_path(lab):
    demo = start_demo(lab)
    stdout, stderr = demo.communicate(timeout=60)
    assert demo.returncode == 0, stdout + stderr
    rows = [line.split() for line in stdout.splitlines() if line.strip().startswith("pod-")]
    assert [row[0] for row in rows] == [f"pod-{number}" for number in range(1, 7)]
    assert all(float(cell) > 0 for row in rows for cell in row[1:])
    assert {len(row) for row in rows} == {1 + 5 + 2 + 1}  # itself, other pods, nodes, internet
    assert "48 of 48 paths work, audit found no difference" in stdout


def test_a_broken_path_makes_it_fail(lab):
    demo = start_demo(lab, "--json")
    wait_for_pods(lab, demo)
    with Namespace.open(lab.node("node-2").netns) as node:
        node.run(subprocess.run, ["ip", "route", "del", "default"], check=True)
    stdout, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    report = json.loads(stdout)
    assert report["ok"] is False
    broken = {(path["source"], path["target"]) for path in report["paths"] if path["milliseconds"] is None}
    assert {("pod-1", "pod-4"), ("pod-4", "pod-1"), ("pod-4", "internet")} <= broken
    assert not broken & {("pod-1", "pod-2"), ("pod-4", "pod-5"), ("pod-1", "internet")}
    assert nothing_left(lab)


def test_what_the_audit_finds_makes_it_fail(lab):
    demo = start_demo(lab, "--json")
    wait_for_pods(lab, demo)
    with Namespace.open(lab.node("node-1").netns) as node:
        while not (entry := node.run(permanent_neighbour)):
            time.sleep(0.002)
        # Packets still find their way: the pod answers ARP.
        node.run(subprocess.run, ["ip", "neigh", "del", *entry], check=True)
    stdout, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    report = json.loads(stdout)
    assert all(path["milliseconds"] for path in report["paths"])
    assert any("node-1" in line and f"neighbour {entry[0]}" in line for line in report["drift"])


def permanent_neighbour() -> list[str]:
    """``ADDRESS dev LINK`` of one that the driver made in the calling thread's namespace."""
    argv = ["ip", "neigh", "show", "nud", "permanent"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    return lines[0].split()[:3] if lines else []


def test_an_interrupted_demo_takes_all_down(lab):
    demo = start_demo(lab)
    wait_for_pods(lab, demo)
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=30)
    assert demo.returncode not in (0, None)
    assert nothing_left(lab)


def test_what_a_killed_demo_left_is_no_lab(lab):
    demo = start_demo(lab)
    wait_for_pods(lab, demo)
    demo.kill()
    demo.communicate()
    up(lab, Spec(nodes=1, drivers=("vpc",)), lambda share, step: None)
    assert len(lab.nodes) == 1
    down(lab)
    assert nothing_left(lab)


def test_nobody_takes_a_running_demos_lab(lab):
    demo = start_demo(lab)
    wait_for_pods(lab, demo)
    with pytest.raises(LabError, match="another command is building or removing the lab"):
        down(lab)
    assert demo.wait(timeout=60) == 0
    demo.communicate()
