"""The commands of the README do what it says, on a node of the lab."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from terway_core.config import load_config
from terway_core.lab.build import down, up
from terway_core.lab.runtime import Runtime
from terway_core.lab.state import Lab, Spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
pytestmark = pytest.mark.e2e

#: Lines that other tests run: tests/e2e/test_install.py the first; the daemon is that of the lab's node.
ELSEWHERE = {"pip install terway-core terway-driver-vpc", "terway daemon", "make test"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    up(lab, Spec(nodes=1, drivers=("vpc",)), lambda share, step: None)
    try:
        runtime = Runtime(lab.nodes[0])
        pod = runtime.run_pod("web")
        yield lab.nodes[0]
        runtime.remove_pod(pod)
    finally:
        down(lab)


def test_the_rest_is_run_elsewhere():
    assert set(commands()) >= ELSEWHERE


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("make ")])
def test_make_knows_the_target(command):
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.timeout(300)
def test_make_demo():
    done = subprocess.run(["make", "--no-print-directory", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    modes = len(list((ROOT / "drivers").iterdir()))
    assert (
        done.stdout.splitlines()[-1] == f"{48 * modes} of {48 * modes} paths work, audit found no difference"
    )


@pytest.mark.parametrize(
    "command", [line for line in commands() if line.startswith("terway ") and line not in ELSEWHERE]
)
def test_terway_command(node, command):
    run_on(node, command)


def test_show_and_metrics(node):
    assert "169.254.1.1" in run_on(node, "terway pods show default/web")
    url = re.search(r"`(curl --unix-socket) \S+ (\S+)`", README)
    assert url
    assert "terway_attachments" in run_on(node, f"{url[1]} {node.socket} {url[2]}")


def test_configuration_is_valid(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("".join(blocks("yaml")))
    config = load_config(path, env={})
    assert config.drivers == ("vpc",)
    assert config.kube.enabled
    assert {"pod_cidrs", "cluster_cidrs"} == set(config.options["vpc"])


def run_on(node, command: str) -> str:
    path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["ip", "netns", "exec", node.netns.name, *shlex.split(command)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "TERWAY_CONFIG": str(node.config)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
