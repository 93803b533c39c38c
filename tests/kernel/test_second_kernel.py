"""Tests that are marked ``uml``: run in another kernel, reported like any other."""

import os
import re
import subprocess
import sys

import pytest

from terway_core.lab import uml

pytestmark = pytest.mark.kernel

TESTS = """
import os, time, warnings
import pytest

HERE = "{release}"

def test_outside():
    assert os.uname().release == HERE

@pytest.fixture(scope="class")
def shared():
    open("/run/shared", "x").close()
    yield
    os.unlink("/run/shared")

@pytest.mark.uml
class TestInside:
    @pytest.mark.parametrize("word", ["a b", "[c]", "d'e"])
    def test_passes(self, shared, word):
        assert os.uname().release != HERE

    def test_fails(self, shared):
        print("printed inside")
        assert {{1: "one"}} == {{1: "two"}}

    @pytest.mark.skip(reason="no reason")
    def test_skipped(self):
        pass

    @pytest.mark.xfail(reason="known")
    def test_xfails(self):
        assert False

    @pytest.fixture
    def broken(self):
        raise RuntimeError("in setup")

    def test_broken(self, broken):
        pass

def test_also_outside(tmp_path):
    assert os.uname().release == HERE
"""
CRASH = """
@pytest.mark.uml
def test_crash():
    open("/proc/sysrq-trigger", "w").write("c")
    time.sleep(60)

@pytest.mark.uml
def test_after_the_crash():
    pass
"""


@pytest.fixture
def run(tmp_path):
    def run(tests: str, *options: str, **env: str) -> tuple[int, str]:
        (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
        (tmp_path / "test_it.py").write_text(tests)
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-ra", *options]
        inherited = {
            name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")
        }
        done = subprocess.run(
            argv, cwd=tmp_path, env=inherited | env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(autouse=True)
def _runnable():
    if problems := uml.missing():
        if os.environ.get("CI"):
            pytest.fail("; ".join(problems))
        pytest.skip("; ".join(problems))


def outcomes(output: str) -> dict[str, str]:
    return dict(re.findall(r"^test_it\.py::(.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", output, re.MULTILINE))


INSIDE = {
    "TestInside::test_passes[a b]": "PASSED",
    "TestInside::test_passes[[c]]": "PASSED",
    "TestInside::test_passes[d'e]": "PASSED",
    "TestInside::test_fails": "FAILED",
    "TestInside::test_skipped": "SKIPPED",
    "TestInside::test_xfails": "XFAIL",
    "TestInside::test_broken": "ERROR",
}
OUTSIDE = {"test_outside": "PASSED", "test_also_outside": "PASSED"}


def test_one_summary_for_both_kernels(run):
    status, output = run(TESTS.format(release=os.uname().release))
    assert outcomes(output) == INSIDE | OUTSIDE
    assert status == 1
    assert "1 failed, 5 passed, 1 skipped, 1 xfailed, 1 error in" in output
    assert "Captured stdout call" in output
    assert "printed inside" in output
    assert "AssertionError: assert {1: 'one'} == {1: 'two'}" in output
    assert "RuntimeError: in setup" in output


def test_only_what_is_selected_runs_and_a_failure_can_end_it(run):
    status, output = run(TESTS.format(release=os.uname().release), "-x", "-k", "Inside")
    assert status == 1
    assert "1 failed, 3 passed" in output
    assert not set(outcomes(output)) & set(OUTSIDE)


def test_a_crash_fails_the_test_and_those_after_it_with_the_kernels_words(run):
    status, output = run(TESTS.format(release="") + CRASH, "-k", "passes or crash")
    assert status == 1
    assert outcomes(output)["TestInside::test_passes[a b]"] == "PASSED"
    assert {outcomes(output)[name] for name in ("test_crash", "test_after_the_crash")} == {"FAILED"}
    assert "user-mode Linux ended" in output
    assert "sysrq" in output


def test_one_that_hangs_does_not_hang_us(run, tmp_path):
    patch = "from terway_core.testing import second_kernel\nsecond_kernel.PATIENCE = 10.0\n"
    (tmp_path / "conftest.py").write_text(patch)
    hangs = "\n@pytest.mark.uml\ndef test_hangs():\n    time.sleep(100)\n"
    status, output = run(TESTS.format(release="") + hangs, "-k", "passes or hangs", "-p", "no:timeout")
    assert status == 1
    assert outcomes(output)["TestInside::test_passes[a b]"] == "PASSED"
    assert outcomes(output)["test_hangs"] == "FAILED"
    assert "nothing was heard of the tests in user-mode Linux for 10 s" in output


@pytest.mark.parametrize(("env", "outcome"), [({}, "SKIPPED"), ({"CI": "1"}, "ERROR")])
def test_where_it_cannot_run(run, tmp_path, env, outcome):
    patch = "from terway_core.lab import uml\numl.missing = lambda: ['not installed']\n"
    (tmp_path / "conftest.py").write_text(patch)
    _, output = run(TESTS.format(release=os.uname().release), **env)
    assert set(outcomes(output)) == set(INSIDE | OUTSIDE)
    assert {outcomes(output)[name] for name in INSIDE} == {outcome}
    assert "user-mode Linux cannot run: not installed" in output
