"""The suite passes the right driver, and each wrong one fails exactly the case that it is wrong about."""

import ast
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from terway_core.testing.conformance import DriverConformance

EXAMPLE = Path(__file__).parents[1] / "example_driver"
CASES = {name for name in dir(DriverConformance) if name.startswith("test_")}


def wrong_drivers():
    """Test class → the case that it must fail."""
    tree = ast.parse((EXAMPLE / "wrong_drivers.py").read_text())
    return {
        f"Test{node.name}": node.decorator_list[0].args[0].value
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.decorator_list
    }


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run the suite on all drivers, in a process that has the example installed.

    :returns: test class → outcome (``passed``, ``failed``, ``skipped``) → names of cases.
    """
    folder = tmp_path_factory.mktemp("conformance")
    shutil.copytree(EXAMPLE / "src" / "terway_driver_example", folder / "terway_driver_example")
    info = folder / "terway_driver_example-0.1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: terway-driver-example\nVersion: 0.1.0\n"
    )
    info.joinpath("entry_points.txt").write_text(
        "[terway.drivers]\n"
        "example = terway_driver_example:driver\n"
        "wrong_entry = terway_driver_example:ExampleDriver\n"
    )
    shutil.copy(EXAMPLE / "tests" / "test_conformance.py", folder)
    shutil.copy(EXAMPLE / "wrong_drivers.py", folder)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-W", "error", "--strict-markers"),
            *("-p", "no:cacheprovider", "--junitxml=report.xml", "test_conformance.py", "wrong_drivers.py"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    found = defaultdict(lambda: defaultdict(set))
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        name = case.get("name").partition("[")[0]
        found[case.get("classname").rpartition(".")[2]][outcome].add(name)
    return found


def test_right_driver_passes_every_case(outcomes):
    assert outcomes["TestExample"]["failed"] == set()
    assert outcomes["TestExample"]["passed"] | outcomes["TestExample"]["skipped"] == CASES


@pytest.mark.parametrize(("name", "case"), wrong_drivers().items())
def test_wrong_driver_fails_its_case_and_no_other(outcomes, name, case):
    # Cases that need root are skipped without it.
    assert outcomes[name]["failed"] == {case} - outcomes[name]["skipped"]


def test_every_case_has_a_driver_that_fails_it():
    assert set(wrong_drivers().values()) == CASES
