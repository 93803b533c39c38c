"""What a user types: plain ``pip install`` in a fresh virtual environment, nothing editable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def run(*argv: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TERWAY_", "PYTHON"))}
    kwargs = {"env": env, **kwargs}
    done = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The tree as it would be cloned: what git tracks, as it is now, and nothing that a build left behind."""
    target = tmp_path_factory.mktemp("source")
    for name in run(
        "git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"
    ).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def environment(source, tmp_path_factory) -> Path:
    """The ``bin`` folder of an environment with the core and the vpc driver."""
    home = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", home)
    run(home / "bin/pip", "install", "-q", "-c", "constraints.txt", ".", "./drivers/vpc", cwd=source)
    return home / "bin"


def test_commands_are_there(environment, tmp_path):
    assert run(environment / "terway", "--version", cwd=tmp_path).stdout.startswith("terway ")
    version = subprocess.run(
        [environment / "terway-cni"],
        input=b'{"cniVersion":"1.0.0"}',
        env={"CNI_COMMAND": "VERSION"},
        capture_output=True,
        check=True,
    )
    assert "1.1.0" in json.loads(version.stdout)["supportedVersions"]


def test_the_plugin_that_is_installed_is_in_c(environment, tmp_path):
    command = [environment / "terway", "cni", "install", "--no-conflist"]
    subprocess.run(command, env={"TERWAY_CNI_BIN_DIR": str(tmp_path)}, check=True)
    plugin = tmp_path / "terway"
    assert plugin.read_bytes().startswith(b"\x7fELF")
    assert json.loads(run(plugin, env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL).stdout)


@pytest.mark.parametrize(("compiler", "tag"), [("cc", "linux"), ("false", "any"), ("absent", "any")])
def test_wheel_is_for_the_platform_of_its_plugin(source, tmp_path, compiler, tag):
    run(
        *(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path),
        cwd=source,
        env={**os.environ, "CC": compiler},
    )
    (wheel,) = tmp_path.iterdir()
    *_, python, abi, platform = wheel.stem.split("-")
    assert (python, abi, platform.partition("_")[0]) == ("py3", "none", tag)
    assert ("terway_core/cni/terway-cni" in zipfile.ZipFile(wheel).namelist()) == (tag != "any")


def test_driver_comes_and_goes_with_its_package(environment, tmp_path):
    def modes() -> dict[str, str]:
        listed = subprocess.run(
            [environment / "terway", "drivers", "list", "--json"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        return {driver["mode"]: driver["distribution"] for driver in json.loads(listed.stdout)}

    assert modes() == {"vpc": "terway-driver-vpc"}
    run(environment / "pip", "uninstall", "-q", "-y", "terway-driver-vpc")
    assert modes() == {}


def test_wheels_hold_only_themselves(environment, source, tmp_path):
    for package, content in ((".", "terway_core/"), ("drivers/vpc", "terway_driver_vpc/")):
        wheels = tmp_path / content.strip("/")
        run(environment / "pip", "wheel", "-q", "--no-deps", "-w", wheels, source / package)
        (wheel,) = wheels.glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        assert all(name.startswith(content) or ".dist-info/" in name for name in names), names
        assert f"{content}py.typed" in names
