"""What a kernel can make is found out without a trace; this kernel's own answers are known."""

import os

import pytest

from terway_core.errors import IOFailure
from terway_core.wiring import netns, nft, probe
from terway_core.wiring.objects import LinkUp, Sysctl, TokenBucket

from .conftest import machine_state, require

pytestmark = pytest.mark.kernel


def test_what_can_be_made_is_no_problem():
    require()
    samples = [TokenBucket(dev=probe.LINK, rate=1000, burst=3000, limit=3000), LinkUp(dev="lo")]
    assert probe.preflight(samples, "buy another") is None


def test_each_kind_that_cannot_is_named_with_the_kernels_words_and_the_remedy():
    require()
    samples = [
        Sysctl(key="ipv4/no_such_thing", value="1"),
        TokenBucket(dev=probe.LINK, rate=0, burst=0, limit=0),
        LinkUp(dev=probe.LINK),
    ]
    problem = probe.preflight(samples, "buy another")
    assert problem
    assert problem.remedy == "buy another"
    assert problem.summary.startswith("the kernel lacks sysctl (No such file or directory), tbf (")
    assert "link-up" not in problem.summary


def test_nothing_is_left():
    require("ip")
    before, here = machine_state(), set(os.listdir("/proc/self/ns"))
    assert probe.preflight([LinkUp(dev="no-such-link")], "")
    assert (machine_state(), set(os.listdir("/proc/self/ns"))) == (before, here)
    assert probe.LINK not in os.listdir("/sys/class/net")


@pytest.mark.parametrize("ask", [lambda: probe.preflight([LinkUp(dev="lo")], "x"), nft.preflight])
def test_without_the_right_to_ask_that_is_the_problem(monkeypatch, ask):
    def refused(*_):
        raise IOFailure("unshare for network namespace without a name failed: Operation not permitted")

    monkeypatch.setattr(netns, "_check", refused)
    problem = ask()
    assert problem
    assert "Operation not permitted" in problem.summary
