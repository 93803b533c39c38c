"""What a lab needs of the machine is said before anything is made."""

import os
import sysconfig

import pytest

from terway_core.lab.build import down, up
from terway_core.lab.state import Lab, LabError, Spec
from terway_core.types import Problem
from terway_core.wiring import nft

SPEC = Spec(nodes=1, drivers=("vpc",))


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(nft, "preflight", lambda: None)
    lab = Lab(tmp_path / "lab")
    yield lab
    assert not lab.folder.exists()


def build(lab):
    up(lab, SPEC, lambda share, step: None)


def test_others_than_root_are_told_so(lab, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for act in (build, down):
        with pytest.raises(LabError, match="takes root; run it with sudo"):
            act(lab)


def test_a_missing_command_is_named(lab, monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"`terway` command is not installed; .* pip install terway-core"):
        build(lab)


def test_a_missing_library_is_named_with_its_remedy(lab, monkeypatch):
    problem = Problem(summary="libnftables.so.1 is missing", remedy="apt-get install libnftables1")
    monkeypatch.setattr(nft, "preflight", lambda: problem)
    with pytest.raises(LabError, match=r"libnftables\.so\.1 is missing; apt-get install libnftables1"):
        build(lab)
