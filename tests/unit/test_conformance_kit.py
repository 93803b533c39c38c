"""What the conformance suite stands on: its guard, its fakes, and the pytest plugin."""

import importlib
import os
import socket
import subprocess
import sys
from ipaddress import ip_interface
from pathlib import Path

import pytest

from terway_core.errors import CloudError, WiringError
from terway_core.testing.conformance import DriverConformance
from terway_core.testing.fakes import ALWAYS, FakeClock, FakeEngine, NoCloud, make_attachment
from terway_core.testing.purity import watch_io
from terway_core.wiring.objects import Address, LinkUp, Sysctl, Wiring

pytest_plugins = ["pytester"]

# ---- the guard


def test_mode_is_required():
    with pytest.raises(TypeError, match="set `mode`"):
        type("TestModeless", (DriverConformance,), {})


@pytest.mark.parametrize("replacement", [lambda self: None, None])
def test_case_cannot_be_replaced_silently(replacement):
    members = {"mode": "m", "test_teardown_twice": replacement}
    with pytest.raises(TypeError, match=r"test_teardown_twice.*xfail"):
        type("TestReplacing", (DriverConformance,), members)


def test_case_cannot_be_replaced_by_a_mixin():
    mixin = type("Mixin", (), {"test_teardown_twice": lambda self: None})
    with pytest.raises(TypeError, match="test_teardown_twice"):
        type("TestMixed", (mixin, DriverConformance), {"mode": "m"})


def test_xfail_needs_its_reason():
    case = pytest.mark.xfail()(lambda self: None)
    with pytest.raises(TypeError, match="test_teardown_twice"):
        type("TestReasonless", (DriverConformance,), {"mode": "m", "test_teardown_twice": case})


def test_case_may_be_excused_with_a_reason():
    class TestExcused(DriverConformance):
        mode = "m"

        @pytest.mark.xfail(reason="the cloud gives another lease each time")
        def test_teardown_twice(self, rig):
            super().test_teardown_twice(rig)

    assert TestExcused.mode == "m"


def test_failures_say_what_differs(pytester):
    """Assertions of the suite are rewritten; without that a failure reads AssertionError and nothing more."""
    pytester.makepyfile(
        """
        from terway_core.hookspecs import hookimpl
        from terway_core.testing.conformance import DriverConformance
        from terway_core.types import GcReport, Lease, Outcome, Wiring
        import pytest

        class Driver:
            @hookimpl
            def terway_allocate(self): return Lease(addresses=())
            @hookimpl
            def terway_setup(self): return Wiring()
            @hookimpl
            def terway_teardown(self): return Outcome(changed=True)
            @hookimpl
            def terway_gc(self): return GcReport(released=("something",))

        class TestDriver(DriverConformance):
            mode = "m"
            @pytest.fixture
            def driver(self): return Driver()
        """
    )
    result = pytester.runpytest_subprocess("-k", "test_gc_spares_the_live", "--strict-markers")
    result.stdout.fnmatch_lines(["*('something',) == ()*"])
    assert result.parseoutcomes()["failed"] == 1


def test_families_come_from_the_capabilities(pytester):
    pytester.makepyfile(
        """
        from terway_core.testing.conformance import DriverConformance

        class TestBoth(DriverConformance):
            mode = "m"
            supports_ipv4 = False
            supports_ipv6 = True
            supports_dual_stack = True
        """
    )
    result = pytester.runpytest_subprocess("--collect-only", "-q", "-k", "test_teardown_twice")
    names = [line.partition("::")[2] for line in result.outlines if "::" in line]
    assert names == ["TestBoth::test_teardown_twice[ipv6]", "TestBoth::test_teardown_twice[ipv4+ipv6]"]


# ---- the plugin


def test_pytest_starts_without_loading_terway(pytester):
    """In a project that only happens to have terway installed, and before coverage begins to measure."""
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_loaded():
            loaded = {name for name in sys.modules if name.startswith("terway")}
            assert loaded == {"terway_core", "terway_core.testing", "terway_core.testing.pytest_plugin"}
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


@pytest.mark.parametrize(("ci", "outcome"), [("", "skipped"), ("1", "failed")])
def test_missing_rights_skip_but_not_where_nobody_looks(pytester, monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    pytester.makeconftest(
        """
        from terway_core.errors import IOFailure
        from terway_core.wiring import netns

        def refuse(name):
            raise IOFailure("Operation not permitted")

        netns.create_netns = refuse
        """
    )
    pytester.makepyfile("def test_it(terway_netns): terway_netns()")
    result = pytester.runpytest_subprocess("-rsf")
    assert result.parseoutcomes() == {outcome: 1}
    result.stdout.fnmatch_lines(["*no network namespaces here: Operation not permitted*"])


# ---- the fakes


def test_clock_stands_still_until_told():
    clock = FakeClock()
    before = clock()
    assert clock() == before
    clock.advance(60)
    assert clock() == before + 60


def test_attachments_of_different_numbers_differ_in_all_that_identifies_them():
    one, two = make_attachment(1), make_attachment(2)
    assert make_attachment(1) == one
    for read in (lambda a: a.container_id, lambda a: a.netns, lambda a: a.pod.name, lambda a: a.pod.uid):
        assert read(one) != read(two)
    assert make_attachment(1, ifname="eth1").container_id == one.container_id


def test_cloud_that_is_not_there_says_so():
    with pytest.raises(CloudError, match=r"'identity'.*fixture `cloud`"):
        NoCloud().identity()


WIRING = Wiring(
    node=(Sysctl(key="ipv4/ip_forward", value="1"),),
    host=(LinkUp(dev="cali0"),),
    pod=(LinkUp(dev="lo"), Address(dev="eth0", address=ip_interface("10.9.0.2/32"))),
)


def add(engine, owner="owner"):
    try:
        engine.ensure(WIRING.node)
        engine.apply(WIRING, None, owner)
    except WiringError:
        return False
    return True


def test_engine_remembers_what_exists():
    engine = FakeEngine()
    assert add(engine)
    assert [obj for _, _, obj in engine.present] == [*WIRING.node, *WIRING.pod, *WIRING.host]
    engine.remove(WIRING, None, "owner")
    assert [obj for _, _, obj in engine.present] == [*WIRING.node]


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize(("times", "attempts"), [(1, "FTT"), (2, "FFT"), (ALWAYS, "FFF")])
def test_engine_fails_where_and_as_often_as_told(step, times, attempts):
    engine = FakeEngine(fail_at=step, times=times)
    assert not add(engine)
    assert len(engine.present) == step
    assert "".join("FT"[add(engine)] for _ in range(2)) == attempts[1:]


def test_engine_tells_owners_apart():
    engine = FakeEngine()
    add(engine, "one")
    add(engine, "two")
    engine.remove(WIRING, None, "one")
    assert engine.owned("one") == []
    assert len(engine.owned("two")) == 3


# ---- noticing I/O


@pytest.mark.parametrize(
    "act",
    [
        lambda: Path("/proc/self/status").read_text(),
        lambda: socket.socket().close(),
        lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        lambda: os.system("true"),
    ],
    ids=["file", "socket", "process", "shell"],
)
def test_io_is_noticed(act):
    with watch_io() as seen:
        act()
    assert seen


def test_computing_and_importing_is_no_io(monkeypatch):
    monkeypatch.delitem(sys.modules, "tabnanny", raising=False)
    with watch_io() as seen:
        importlib.import_module("tabnanny")
        sorted(range(10))
    assert seen == []


def test_io_outside_the_block_is_not_noticed():
    with watch_io() as seen:
        pass
    Path("/proc/self/status").read_text()
    assert seen == []
