import json
import re

import pytest
from typer.testing import CliRunner

from terway_core.cli.drivers import app
from terway_core.errors import RetryLater, UnknownDriver
from terway_core.hookspecs import hookimpl
from terway_core.registry import DriverInfo, Drivers
from terway_core.types import Problem
from tests.unit.ready_driver import ReadyDriver


class Unmet(ReadyDriver):
    @hookimpl
    def terway_preflight(self, node):
        return [Problem(summary=f"{node.name} has no ipvlan [y/m]", remedy="modprobe ipvlan")]


class Failing(ReadyDriver):
    @hookimpl
    def terway_preflight(self, node):
        raise RetryLater("the probe timed out")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run ``terway drivers …`` where four drivers are installed: ready, unmet, broken and failing."""
    drivers = Drivers()
    for mode, plugin in {
        "ready": ReadyDriver(),
        "unmet": Unmet(),
        "broken": object(),
        "failing": Failing(),
    }.items():
        about = DriverInfo(
            mode=mode,
            distribution=f"terway-driver-{mode}",
            version="1.2",
            summary=f"About {mode}",
            requirements=("terway-core>=0.1",),
        )
        drivers.register(mode, plugin, about)
    drivers.register_wrapper("odd", ReadyDriver())
    monkeypatch.setattr(Drivers, "installed", classmethod(lambda cls: drivers))
    config = tmp_path / "config.yaml"

    def run(*args, configured=()):
        config.write_text(f"drivers: {json.dumps(configured)}\nnode_name: node-a\n")
        return CliRunner().invoke(app, [*args, "--config", str(config)])

    return run


def test_list_shows_every_driver_configured_ones_first(run):
    result = run("list", configured=["unmet", "ready"])
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["MODE", "DISTRIBUTION", "VERSION", "STATUS", "SUMMARY"]
    assert [line.split()[0] for line in lines[1:]] == ["unmet", "ready", "broken", "failing"]
    assert "  unmet: node-a has no ipvlan [y/m]  " in lines[1]
    assert lines[2].split(maxsplit=4) == ["ready", "terway-driver-ready", "1.2", "ready", "About ready"]
    assert "  broken: required hooks are missing: " in lines[3]
    assert "  broken: the probe timed out  " in lines[4]


def test_list_is_plain_when_nobody_looks(run):
    lines = run("list").stdout.splitlines()
    assert all(line == line.rstrip() and line.isascii() for line in lines)


def test_list_fits_a_terminal(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    lines = run("list", configured=["unmet"]).stdout.splitlines()
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in lines) <= 100
    assert "[y/m]" in "".join(lines)


def test_broken_plugin_is_named_beside_the_list(run):
    result = run("list")
    assert "plugin odd of a driver registered by hand is broken" in result.stderr
    assert "odd" not in result.stdout


@pytest.mark.parametrize(
    ("configured", "code"),
    [
        ([], 0),
        (["ready"], 0),
        (["unmet"], 1),
        (["ready", "broken"], 1),
        (["failing"], 1),
        (["ready", "elsewhere"], 1),
    ],
)
def test_exit_code_says_whether_the_configured_drivers_can_serve(run, configured, code):
    assert run("list", configured=configured).exit_code == code


def test_configured_driver_that_is_not_installed_is_listed_with_its_remedy(run):
    driver = json.loads(run("list", "--json", configured=["eniip_veth"]).stdout)[0]
    assert (driver["mode"], driver["status"], driver["configured"]) == ("eniip_veth", "broken", True)
    assert driver["problems"] == [
        {"summary": "not installed", "remedy": "pip install terway-driver-eniip-veth"}
    ]


def test_list_json(run):
    listed = {driver["mode"]: driver for driver in json.loads(run("list", "--json").stdout)}
    assert {mode: driver["status"] for mode, driver in listed.items()} == {
        "ready": "ready",
        "unmet": "unmet",
        "broken": "broken",
        "failing": "broken",
    }
    assert listed["unmet"]["problems"][0]["remedy"] == "modprobe ipvlan"
    assert (listed["ready"]["distribution"], listed["ready"]["version"]) == ("terway-driver-ready", "1.2")


def test_no_driver_at_all_is_an_empty_list(run, monkeypatch):
    monkeypatch.setattr(Drivers, "installed", classmethod(lambda cls: Drivers()))
    assert json.loads(run("list", "--json").stdout) == []
    assert run("list").stdout.split() == ["MODE", "DISTRIBUTION", "VERSION", "STATUS", "SUMMARY"]


def test_show(run):
    lines = dict(line.split(maxsplit=1) for line in run("show", "unmet").stdout.splitlines())
    assert lines["hooks"].split(", ") == [
        "terway_allocate",
        "terway_gc",
        "terway_preflight",
        "terway_setup",
        "terway_teardown",
    ]
    assert lines["requirements"] == "terway-core>=0.1"
    assert lines["problem"] == "node-a has no ipvlan [y/m]"
    assert lines["remedy"] == "modprobe ipvlan"


def test_show_json(run):
    driver = json.loads(run("show", "ready", "--json").stdout)
    assert driver["status"] == "ready"
    assert "terway_gc" in driver["hooks"]


def test_show_of_a_mode_that_is_not_there(run):
    assert isinstance(run("show", "eni").exception, UnknownDriver)
