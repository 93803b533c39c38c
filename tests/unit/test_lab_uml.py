"""What keeps user-mode Linux from running is said, with what to do."""

import os
import platform
import shutil

import pytest

from terway_core.lab import uml
from terway_core.lab.state import LabError


@pytest.fixture
def able(monkeypatch):
    """A machine that has everything."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda command, path: f"/usr/bin/{command}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(uml, "_free_mib", lambda: 4096)


def test_nothing_is_missing(able):
    assert uml.missing() == []


def test_another_architecture(able, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert uml.missing() == ["user-mode Linux exists for x86_64, and this is a aarch64"]


def test_packages(able, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda command, path: None)
    assert uml.missing() == ["not installed; run: apt-get install user-mode-linux kmod iproute2"]


def test_rights(able, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (problem,) = uml.missing()
    assert "run it with sudo" in problem


def test_memory(able, monkeypatch):
    monkeypatch.setattr(uml, "_free_mib", lambda: 100)
    assert uml.missing() == ["it takes up to 1024 MiB of memory, and 100 MiB are free"]


def test_booting_says_all_of_it_and_leaves_nothing(able, monkeypatch, tmp_path):
    monkeypatch.setattr(uml.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda command, path: None)
    monkeypatch.setattr(uml, "_free_mib", lambda: 100)
    with pytest.raises(LabError, match=r"not installed; .*; it takes up to"), uml.booted():
        pass
    assert list(tmp_path.iterdir()) == []
