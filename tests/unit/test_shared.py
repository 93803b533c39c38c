"""Shared objects: the first attachment makes them, the last takes them away."""

from ipaddress import ip_network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from terway_core.daemon.shared import SharedObjects
from terway_core.errors import WiringError
from terway_core.types import AttachmentKey
from terway_core.wiring.objects import Masquerade, Sysctl

FORWARDING = Sysctl(key="ipv4/ip_forward", value="1")
MASQUERADE = Masquerade(src=ip_network("172.20.0.0/24"))
OBJECTS = (FORWARDING, MASQUERADE, Sysctl(key="ipv6/conf/all/forwarding", value="1"))


class RecordingEngine:
    """What exists, and each call in turn; fails when it is told to."""

    def __init__(self):
        self.present = set()
        self.calls = []
        self.failing = False

    def ensure(self, objects):
        self._call("ensure", objects)
        self.present.update(objects)

    def remove_shared(self, objects):
        self._call("remove", objects)
        self.present.difference_update(objects)

    def _call(self, what, objects):
        self.calls.append((what, list(objects)))
        if self.failing:
            raise WiringError("refused")


@pytest.fixture
def engine():
    return RecordingEngine()


@pytest.fixture
def shared(engine):
    return SharedObjects(engine)


def key(number):
    return AttachmentKey("net", f"c{number}", "eth0")


def test_the_first_makes_and_the_last_removes(shared, engine):
    shared.need(key(1), [FORWARDING, MASQUERADE])
    shared.need(key(2), [FORWARDING])
    shared.need(key(1), [FORWARDING, MASQUERADE])  # an ADD again
    shared.release(key(1), [FORWARDING, MASQUERADE])
    shared.release(key(2), [FORWARDING])
    assert engine.calls == [
        ("ensure", [FORWARDING, MASQUERADE]),
        ("remove", [MASQUERADE]),
        ("remove", [FORWARDING]),
    ]


def test_what_an_earlier_daemon_made_is_not_made_again(shared, engine):
    shared.remember(key(1), [FORWARDING])
    shared.need(key(2), [FORWARDING])
    assert engine.calls == []
    shared.release(key(1), [FORWARDING])
    assert engine.calls == []
    shared.release(key(2), [FORWARDING])
    assert engine.calls == [("remove", [FORWARDING])]


def test_a_failure_is_tried_again_by_the_next(shared, engine):
    engine.failing = True
    with pytest.raises(WiringError):
        shared.need(key(1), [FORWARDING])
    engine.failing = False
    shared.need(key(2), [FORWARDING])
    assert engine.calls == [("ensure", [FORWARDING])] * 2
    assert engine.present == {FORWARDING}


def test_what_failed_half_way_is_taken_away_with_its_attachment(shared, engine):
    engine.failing = True
    with pytest.raises(WiringError):
        shared.need(key(1), [FORWARDING, MASQUERADE])
    engine.failing = False
    shared.release(key(1), [FORWARDING, MASQUERADE])
    assert engine.calls[-1] == ("remove", [FORWARDING, MASQUERADE])


def test_a_removal_that_failed_is_tried_again(shared, engine):
    shared.need(key(1), [MASQUERADE])
    engine.failing = True
    with pytest.raises(WiringError):
        shared.release(key(1), [MASQUERADE])
    engine.failing = False
    shared.release(key(1), [MASQUERADE])
    assert engine.present == set()


def test_restore_brings_back_what_is_needed(shared, engine):
    shared.need(key(1), [FORWARDING, MASQUERADE])
    engine.present.clear()
    shared.restore()
    assert engine.present == {FORWARDING, MASQUERADE}


class Shared(RuleBasedStateMachine):
    """Attachments come and go in any order, and the kernel refuses now and then."""

    def __init__(self):
        super().__init__()
        self.engine = RecordingEngine()
        self.shared = SharedObjects(self.engine)
        self.needs = {}

    @rule(number=st.integers(0, 3), objects=st.sets(st.sampled_from(OBJECTS)), failing=st.booleans())
    def come(self, number, objects, failing):
        if number in self.needs:
            return
        self.engine.failing = failing
        try:
            self.shared.need(key(number), objects)
        except WiringError:
            self.engine.failing = False
            self.shared.release(key(number), objects)  # as the undo of a failed ADD does
        else:
            self.needs[number] = objects

    @rule(number=st.integers(0, 3))
    def go(self, number):
        self.engine.failing = False
        self.shared.release(key(number), self.needs.pop(number, ()))

    @rule()
    def restart(self):
        self.shared = SharedObjects(self.engine)
        for number, objects in self.needs.items():
            self.shared.remember(key(number), objects)

    @invariant()
    def exactly_what_is_needed_exists(self):
        assert self.engine.present == set().union(*self.needs.values())


TestShared = Shared.TestCase
TestShared.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)
