"""A lab with a kernel of its own: it lives there, is found there, and goes with it. What is built there is
only said to be a lab, which is quicker."""

import json
import os
import subprocess
import sysconfig
from dataclasses import asdict
from pathlib import Path

import pytest

from terway_core.lab import kernel, uml
from terway_core.lab.build import down, up
from terway_core.lab.state import Lab, LabError, Spec

from .test_lab_uml import gone, runnable

pytestmark = pytest.mark.kernel

TERWAY = str(Path(sysconfig.get_path("scripts")) / "terway")
SPEC = Spec(nodes=1, drivers=("eniip_veth",))


@pytest.fixture
def lab(tmp_path):
    runnable()
    lab = Lab(tmp_path / "lab")
    yield lab
    down(lab)
    assert gone(lab.folder)
    assert not lab.folder.exists()


def builder(lab: Lab, status: int) -> list[str]:
    """A command that leaves what a lab leaves on disk."""
    marker = json.dumps(asdict(SPEC))
    return ["sh", "-c", f"cd {lab.folder} && echo '{marker}' >lab.json && touch complete && exit {status}"]


def terway(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [TERWAY, "lab", *arguments, "--dir", str(lab.folder)]
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_commands_run_where_the_lab_is(lab):
    assert kernel.up_inside(lab, builder(lab, 0)) == 0
    done = terway(lab, "status")
    assert (done.returncode, done.stderr) == (1, "")
    assert "region" in done.stdout
    assert "dead" in done.stdout
    with pytest.raises(LabError, match="a lab is up in"):
        kernel.up_inside(lab, builder(lab, 0))
    with pytest.raises(LabError, match="a lab is up in"):
        up(lab, SPEC, lambda share, step: None)
    assert kernel.machine(lab)
    assert terway(lab, "down").stdout == "the lab is down\n"
    assert kernel.machine(lab) is None


def test_what_could_not_be_built_leaves_no_kernel(lab):
    assert kernel.up_inside(lab, builder(lab, 3)) == 3
    assert kernel.machine(lab) is None
    assert not lab.kernel_dir.exists()


def test_an_interrupt_leaves_nothing(lab, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(uml.Machine, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernel.up_inside(lab, ["true"])
    assert not lab.folder.exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    runnable()
    (tmp_path / "kernel").mkdir()
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(LabError, match="holds other files"):
        kernel.up_inside(Lab(tmp_path), ["true"])
    assert sorted(os.listdir(tmp_path)) == ["kernel", "letter"]
