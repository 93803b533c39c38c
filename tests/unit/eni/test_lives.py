"""Random lives of a node again; here hypothesis looks for the shortest one that breaks the pool."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from .chaos import ACTIONS, PODS, REFUSALS, Chaos
from .harness import Account

#: More are for a night: TERWAY_TEST_EXAMPLES=500 pytest …
EXAMPLES = int(os.environ.get("TERWAY_TEST_EXAMPLES", "15"))


class Lives(RuleBasedStateMachine):
    """What can happen, in any order."""

    @initialize(mode=st.sampled_from([{}, {"ip_stack": "dual"}, {"prefix_mode": True}]))
    def begin(self, mode):
        self.folder = TemporaryDirectory()
        account = Account("192.168.1.0/26")
        account.region.add_vswitch(account.vpc, "192.168.2.0/24", "cn-hangzhou-h", "2001:db8:1:2::/64")
        self.served = account.served()
        self.served.__enter__()
        self.chaos = Chaos(account, Path(self.folder.name) / "terway.db", **mode)

    pods = st.integers(0, 19)
    numbers = st.integers(0, 30)

    @rule(first=pods, count=st.integers(1, 8))
    def add(self, first, count):
        for number in range(first, first + count):
            self.chaos.add(number)

    @rule(number=st.integers(PODS, PODS + 2))
    def add_with_an_eni(self, number):
        self.chaos.add(number, "exclusive")

    @rule(first=pods, count=st.integers(1, 8))
    def delete(self, first, count):
        for number in [one for one in sorted(self.chaos.held) if one >= first][:count]:
            self.chaos.delete(number)

    @rule(seconds=st.sampled_from([1, 10, 60, 300]))
    def wait(self, seconds):
        self.chaos.wait(seconds)

    @rule()
    def kill(self):
        self.chaos.kill()

    @rule(points=st.integers(1, 12))
    def die_soon(self, points):
        self.chaos.die_soon(points)

    @rule()
    def reboot(self):
        self.chaos.reboot()

    @rule()
    def lose_journal(self):
        self.chaos.lose_journal()

    @rule(seconds=st.sampled_from([-4000, 4000]))
    def set_clock(self, seconds):
        self.chaos.set_clock(seconds)

    @rule(releasing=st.booleans(), calling=st.booleans())
    def hold(self, releasing, calling):
        self.chaos.hold(releasing, calling)

    @rule(
        kind=st.sampled_from(["error", "lost", "down", "stuck"]),
        action=st.sampled_from(ACTIONS),
        code=st.sampled_from(REFUSALS),
        times=st.sampled_from([1, 3, None]),
    )
    def fault(self, kind, action, code, times):
        self.chaos.fault(kind, action, code, times)

    @rule()
    def clear(self):
        self.chaos.account.clear()

    @rule(number=numbers)
    def take_address(self, number):
        self.chaos.take_address(number)

    @rule(number=numbers)
    def take_eni(self, number):
        self.chaos.take_eni(number)

    @rule(number=numbers)
    def detach_eni(self, number):
        self.chaos.detach_eni(number)

    @rule()
    def add_foreign(self):
        self.chaos.add_foreign()

    @rule()
    def remove_foreign(self):
        self.chaos.remove_foreign()

    @invariant()
    def nobody_shares_an_address(self):
        if hasattr(self, "chaos"):
            self.chaos.check()

    def teardown(self):
        if hasattr(self, "chaos"):
            try:
                self.chaos.finish()
            finally:
                self.chaos.close()
                self.served.__exit__(None, None, None)
                self.folder.cleanup()


@pytest.mark.usefixtures("at_once")
def test_hypothesis_finds_no_life_that_breaks_it():
    run_state_machine_as_test(
        Lives,
        settings=settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None, derandomize=True),
    )
