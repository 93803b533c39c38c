"""docs/write-a-driver.md is true: its files are the example's, its commands work, its hooks are ours."""

import inspect
import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from terway_core import hookspecs
from terway_core.registry import REQUIRED_HOOKS, Drivers
from terway_core.types import DriverHooks

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "write-a-driver.md").read_text()
EXAMPLE = ROOT / "tests" / "example_driver"
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
FILES = {name: text for _, name, text in BLOCKS if name}
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("terway_")}


def signature(function):
    """As it is written in the source; annotations are strings there."""
    return str(inspect.signature(function)).replace("'", "")


# ---- the walk


def test_files_of_the_page_are_those_of_the_example():
    real = {
        str(path.relative_to(EXAMPLE)): path.read_text()
        for path in EXAMPLE.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name not in ("py.typed", "wrong_drivers.py")
    }
    assert {name: text for name, text in FILES.items() if name != "config.yaml"} == real


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Write the page's files and run its commands, in the page's order.

    Packages are built with what is installed here and go into a folder of the test, so that no registry is
    asked and nothing changes.

    :returns: each command with what the page shows of its output, and its output.
    """
    folder = tmp_path_factory.mktemp("write-a-driver")
    script, shown = ["set -e"], []
    for language, name, text in BLOCKS:
        if name:
            script.append(f"cat > {name} <<'END_OF_FILE'\n{text}END_OF_FILE")
        elif language == "console":
            for command, output in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", text, re.MULTILINE):
                shown.append((command, output))
                script.append(f"echo '==== next'\n{command}")
    run = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("TERWAY_")},
            "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder / "site"),
            "PIP_TARGET": str(folder / "site"),
            "PIP_NO_DEPS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as a switch of build isolation: 0 turns it off
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    outputs = run.stdout.split("==== next\n")[1:]
    return [(*pair, output) for pair, output in zip(shown, outputs, strict=True)]


def test_commands_print_what_the_page_shows(session):
    for command, shown, output in session:
        # How wide columns are depends on what else is installed; "…" stands for anything.
        lines = iter([line.split() for line in output.splitlines()])
        for expected in filter(lambda line: line != "…", shown.splitlines()):
            pattern = re.escape(" ".join(expected.split())).replace("…", ".*")
            found = any(re.fullmatch(pattern, " ".join(line)) for line in lines)
            assert found, f"{command}: {expected}\n{output}"


def test_page_installs_tests_and_lists_the_driver(session):
    commands = " ".join(command for command, _, _ in session)
    assert all(word in commands for word in ("pip install", "pytest", "terway drivers list"))


# ---- the reference


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_documented_with_its_signature(name):
    assert f"\n### `{name}{signature(HOOKS[name])}`\n" in DOC


def test_page_documents_no_hook_that_is_not_there():
    assert set(re.findall(r"^### `(\w+)\(", DOC, re.MULTILINE)) == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_hook_has_a_typed_call(name):
    assert callable(getattr(Drivers, name.removeprefix("terway_")))


def test_protocol_has_the_required_hooks_as_they_are_specified():
    protocol = {
        name: signature(method).replace("(self, ", "(")
        for name, method in vars(DriverHooks).items()
        if name.startswith("terway_")
    }
    assert protocol == {name: signature(HOOKS[name]) for name in REQUIRED_HOOKS}
