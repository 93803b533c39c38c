"""``terway cni``: what is put on the host, and taken away again."""

import json
import os

import pytest
import yaml
from typer.testing import CliRunner

from terway_core.cli import cni
from terway_core.cli.app import build
from terway_core.cni.install import conflist
from terway_core.config import load_config
from terway_core.errors import UnknownDriver
from terway_core.hookspecs import hookimpl
from terway_core.registry import Drivers


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.yaml"
    folders = ("run_dir", "state_dir", "cni_bin_dir", "cni_conf_dir")
    file.write_text(yaml.safe_dump({name: str(tmp_path / name) for name in folders}))
    return file


@pytest.fixture
def run(config):
    def run(*arguments, status=0):
        result = CliRunner().invoke(build(["cni"]), ["cni", *arguments, "--config", str(config)])
        assert result.exit_code == status, result.output
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    return run


def installed(tmp_path):
    return {path.name for folder in ("cni_bin_dir", "cni_conf_dir") for path in (tmp_path / folder).glob("*")}


def test_install_and_uninstall(run, tmp_path):
    output = run("install")
    plugin, network = tmp_path / "cni_bin_dir/terway", tmp_path / "cni_conf_dir/10-terway.conflist"
    assert output.splitlines() == [f"{plugin}: installed", f"{network}: installed"]
    assert os.access(plugin, os.X_OK)
    assert json.loads(network.read_text())["plugins"][0]["type"] == "terway"
    assert run("install").splitlines() == [f"{plugin}: is in place", f"{network}: is in place"]
    assert run("uninstall") == "removed\n"
    assert installed(tmp_path) == set()
    assert run("uninstall") == "nothing was installed\n"


def test_the_conflist_can_wait_for_the_daemon(run, tmp_path):
    run("install", "--no-conflist")
    assert installed(tmp_path) == {"terway"}


def test_conflist_is_printed_and_nothing_is_installed(run, config, tmp_path):
    assert json.loads(run("conflist")) == conflist(load_config(config))
    assert installed(tmp_path) == set()


class Chaining:
    @hookimpl
    def terway_allocate(self, attachment, node): ...

    @hookimpl
    def terway_setup(self, attachment, lease, node): ...

    @hookimpl
    def terway_teardown(self, attachment, lease): ...

    @hookimpl
    def terway_gc(self, live, node): ...

    @hookimpl
    def terway_conflist(self, conflist):
        return conflist | {"plugins": [*conflist["plugins"], {"type": "portmap"}]}


def test_configured_drivers_add_their_plugins(run, config, monkeypatch):
    drivers = Drivers()
    drivers.register("chaining", Chaining())
    monkeypatch.setattr(cni.Drivers, "installed", lambda: drivers)
    assert [plugin["type"] for plugin in json.loads(run("conflist"))["plugins"]] == ["terway"]
    config.write_text(config.read_text() + "drivers: [chaining]\n")
    assert [plugin["type"] for plugin in json.loads(run("conflist"))["plugins"]] == ["terway", "portmap"]


def test_a_driver_that_is_not_installed_is_an_error_and_nothing_changes(run, config, tmp_path):
    config.write_text(config.read_text() + "drivers: [nowhere]\n")
    with pytest.raises(UnknownDriver, match="pip install terway-driver-nowhere"):
        run("conflist", status=1)
    with pytest.raises(UnknownDriver):
        run("install", status=1)
    assert "10-terway.conflist" not in installed(tmp_path)
