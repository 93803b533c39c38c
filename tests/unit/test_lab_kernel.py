"""Which kernel a lab is given, and that nothing is made where none will do."""

import os

import pytest

from terway_core.errors import UnknownDriver
from terway_core.hookspecs import hookimpl
from terway_core.lab import kernel, uml
from terway_core.lab.build import up
from terway_core.lab.state import Lab, LabError, Spec
from terway_core.registry import Drivers
from terway_core.types import Problem
from tests.unit.ready_driver import ReadyDriver


class Driver(ReadyDriver):
    def __init__(self, *problems):
        self.problems = list(problems)

    @hookimpl
    def terway_preflight(self, node, options):
        return self.problems


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """One that can run user-mode Linux and whose own kernel lacks ipvlan."""
    drivers = Drivers()
    drivers.register("plain", Driver())
    drivers.register("fancy", Driver(Problem(summary="the kernel lacks ipvlan", remedy="run another")))
    monkeypatch.setattr(Drivers, "installed", lambda: drivers)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(uml, "missing", list)


def spec(*modes):
    return Spec(nodes=1, drivers=modes)


@pytest.mark.parametrize(
    ("modes", "chosen"), [(["plain"], "host"), (["fancy"], "uml"), (["plain", "fancy"], "uml"), ([], "host")]
)
def test_auto_takes_this_machines_if_that_will_do(modes, chosen):
    assert kernel.choose("auto", spec(*modes)) == chosen


@pytest.mark.parametrize("chosen", ["host", "uml"])
def test_who_chooses_is_heeded(chosen):
    assert kernel.choose(chosen, spec("plain", "fancy")) == chosen


def test_where_neither_will_do_both_remedies_are_told(monkeypatch):
    monkeypatch.setattr(uml, "missing", lambda: ["not installed; run: apt-get install user-mode-linux"])
    with pytest.raises(LabError) as caught:
        kernel.choose("auto", spec("fancy"))
    assert "fancy cannot work here: the kernel lacks ipvlan; run another" in caught.value.message
    assert "apt-get install user-mode-linux" in caught.value.message
    assert kernel.choose("auto", spec("plain")) == "host"


def test_a_mode_that_nobody_offers_is_named():
    with pytest.raises(UnknownDriver, match="moon"):
        kernel.choose("auto", spec("moon"))


def test_the_wrong_kernel_is_told_before_anything_is_made(tmp_path):
    with pytest.raises(LabError, match="fancy cannot work here: the kernel lacks ipvlan; run another"):
        up(Lab(tmp_path / "lab"), spec("fancy"), lambda share, step: None)
    assert not (tmp_path / "lab").exists()


def test_others_than_root_are_told_so(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="takes root; run it with sudo"):
        kernel.choose("auto", spec("fancy"))
    with pytest.raises(LabError, match="takes root; run it with sudo"):
        kernel.up_inside(Lab(tmp_path / "lab"), ["true"])
    assert not (tmp_path / "lab").exists()
