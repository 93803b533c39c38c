"""How fast actions may be called, on a clock of its own."""

from __future__ import annotations

import threading

import pytest

from terway_core.cloud.limiter import LIMITS, OTHER_LIMIT, RECOVERY, SPREAD, WINDOW, Limiter
from terway_core.errors import CloudError

ACTION = "CreateNetworkInterface"
FOREVER = 1e9


class Clock:
    """Time that passes only by sleeping. It starts 20 s before the end of a minute."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(clock=clock, monotonic=clock, sleep=clock.sleep)


def calls_within(limiter: Limiter, clock: Clock, seconds: float, action: str = ACTION) -> int:
    """How many calls, each answered, fit into the next ``seconds``."""
    end = clock.now + seconds
    number = 0
    while True:
        try:
            limiter.wait(action, end)
        except CloudError:
            clock.now = end
            return number
        limiter.answered(action)
        number += 1


@pytest.mark.parametrize(
    ("action", "limit"), [(ACTION, OTHER_LIMIT), ("DescribeVSwitches", LIMITS["DescribeVSwitches"])]
)
def test_a_whole_minutes_calls_may_come_at_once_but_no_more(
    limiter: Limiter, clock: Clock, action: str, limit: int
) -> None:
    for _ in range(limit):
        assert limiter.wait(action, FOREVER) == pytest.approx(0, abs=1e-6)
    with pytest.raises(CloudError, match=rf"{action} is not called: this node .* {limit} times") as caught:
        limiter.wait(action, clock.now)
    assert caught.value.code == "Throttling"
    assert limiter.wait(action, FOREVER) == pytest.approx(WINDOW / limit)
    assert limiter.wait("AnotherAction", FOREVER) == 0
    clock.now += 3600
    assert calls_within(limiter, clock, 0.001, action) == limit


def test_throttled_means_not_before_the_next_minute_and_slowly_then(limiter: Limiter, clock: Clock) -> None:
    limiter.wait(ACTION, FOREVER)
    pause = limiter.throttled(ACTION)
    assert 20 <= pause <= 20 + SPREAD
    waited = limiter.wait(ACTION, FOREVER)
    assert waited == pytest.approx(pause)
    assert limiter.wait(ACTION, FOREVER) == pytest.approx(1.0)
    assert limiter.wait(ACTION, FOREVER) == pytest.approx(1.0)  # nothing was answered: no faster
    assert limiter.wait("AnotherAction", FOREVER) == 0


def test_answered_calls_make_it_faster_up_to_the_full_rate_but_not_to_a_burst(
    limiter: Limiter, clock: Clock
) -> None:
    limiter.throttled(ACTION)
    waits = []
    for _ in range(RECOVERY + 5):
        waits.append(limiter.wait(ACTION, FOREVER))
        limiter.answered(ACTION)
    rounded = [round(wait, 6) for wait in waits[1:]]  # differences of a clock, not exact
    assert rounded == sorted(rounded, reverse=True)
    assert waits[-1] == pytest.approx(WINDOW / OTHER_LIMIT)
    assert calls_within(limiter, clock, WINDOW) == pytest.approx(OTHER_LIMIT, abs=1)
    clock.now += WINDOW
    assert calls_within(limiter, clock, 0.001) == OTHER_LIMIT


def test_throttled_again_it_is_slow_again(limiter: Limiter, clock: Clock) -> None:
    limiter.throttled(ACTION)
    for _ in range(RECOVERY):
        limiter.wait(ACTION, FOREVER)
        limiter.answered(ACTION)
    pause = limiter.throttled(ACTION)
    assert pause > 0
    assert limiter.wait(ACTION, FOREVER) == pytest.approx(pause)
    assert limiter.wait(ACTION, FOREVER) == pytest.approx(1.0)


def test_calls_that_were_under_way_together_are_one_lesson(limiter: Limiter, clock: Clock) -> None:
    first = limiter.throttled(ACTION)
    clock.now += 1
    assert limiter.throttled(ACTION) == pytest.approx(first - 1)
    limiter.answered(ACTION)  # sent before the pause: says nothing of what comes after it
    limiter.wait(ACTION, FOREVER)
    assert limiter.wait(ACTION, FOREVER) == pytest.approx(1.0)


def test_the_service_may_say_how_long(limiter: Limiter) -> None:
    assert limiter.throttled(ACTION, retry_after=3.0) == pytest.approx(3.0)


def test_what_would_be_too_late_fails_at_once_and_keeps_its_turn_for_others(
    limiter: Limiter, clock: Clock
) -> None:
    pause = limiter.throttled(ACTION)
    before = clock.now
    for _ in range(5):
        with pytest.raises(CloudError, match=f"{ACTION} is not called: the service throttled it") as caught:
            limiter.wait(ACTION, before + pause - 0.1)
        assert caught.value.code == "Throttling"
    assert clock.now == before
    assert limiter.wait(ACTION, FOREVER) == pytest.approx(pause)


def test_callers_share_one_pace() -> None:
    clock = Clock()
    turns: list[float] = []
    lock = threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            turns.append(seconds)

    limiter = Limiter(clock=clock, monotonic=clock, sleep=sleep)
    pause = limiter.throttled(ACTION)
    threads = [threading.Thread(target=limiter.wait, args=(ACTION, FOREVER)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turns) == pytest.approx([pause + number for number in range(8)])


def test_who_waits_when_it_is_throttled_waits_on() -> None:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if not sleeps:  # while this one waited its turn, another call was throttled
            pauses.append(limiter.throttled(ACTION))
        sleeps.append(seconds)

    sleeps: list[float] = []
    pauses: list[float] = []
    limiter = Limiter(clock=clock, monotonic=clock, sleep=sleep)
    limiter.throttled(ACTION)
    limiter.wait(ACTION, FOREVER)
    assert len(sleeps) == 2
    assert sleeps[1] == pytest.approx(pauses[0])
