"""How fast each action may be called: below the service's limits, and slower after it said "too fast".

The service counts calls per account, region and action in fixed windows of one minute, and an action that was
throttled is refused until its window ends. Other nodes of the account count too, so no fixed rate is safe:
after a ``Throttling`` answer the action pauses until that minute is over, then goes at one call a second, and
each answered call makes it faster until it has its full rate again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from terway_core.errors import CloudError

#: Calls per minute by action, all of which may come at once; and that of any other action.
LIMITS: Final = {
    "DescribeNetworkInterfaces": 800,
    "DetachNetworkInterface": 400,
    "AssignPrivateIpAddresses": 400,
    "UnassignPrivateIpAddresses": 400,
    "AssignIpv6Addresses": 400,
    "UnassignIpv6Addresses": 400,
    "DescribeInstanceTypes": 400,
    "DescribeVSwitches": 300,
}
OTHER_LIMIT: Final = 500

#: The service's window (seconds).
WINDOW: Final = 60.0
#: After a pause, nodes that were throttled together come back within so many seconds, not all at once.
SPREAD: Final = 2.0
#: Calls per second after a pause.
PROBE_RATE: Final = 1.0
#: So many answered calls after a pause, an action has its full rate again.
RECOVERY: Final = 10


class Limiter:
    """When each action may be called; safe to use from several threads. Callers are served in their order.

    :param clock: seconds since the epoch, by which the service's windows are known.
    :param monotonic: seconds by which waiting is measured; ``sleep`` is how to wait.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paces: dict[str, _Pace] = {}

    def wait(self, action: str, deadline: float) -> float:
        """Wait until ``action`` may be called.

        :param deadline: by ``monotonic``.
        :returns: the seconds waited.
        :raises CloudError: it cannot be before the deadline; at once, code ``Throttling``.
        """
        began = self._monotonic()
        while True:
            with self._lock:
                pace = self._pace(action)
                pauses = pace.pauses
                now = self._monotonic()
                turn = pace.next_turn(now)
                if turn > now and turn >= deadline:
                    raise CloudError(
                        f"{action} is not called: {pace.reason}, so its turn would come in {turn - now:.1f} "
                        f"s, and this call has {max(0.0, deadline - now):.1f} s left. Try again later.",
                        code="Throttling",
                    )
                pace.take(turn)
            if turn <= now:
                return now - began
            self._sleep(turn - now)
            with self._lock:
                if pace.pauses == pauses:
                    return self._monotonic() - began
            # Throttled meanwhile: the turn is no longer ours.

    def answered(self, action: str) -> None:
        """The service took a call of ``action``."""
        with self._lock:
            self._pace(action).speed_up(self._monotonic())

    def throttled(self, action: str, retry_after: float = 0.0) -> float:
        """The service refused a call of ``action`` as too fast; pause it.

        :param retry_after: seconds that the service asks to wait; 0: until its window ends.
        :returns: the seconds until it may be called again.
        """
        with self._lock:
            now = self._monotonic()
            pace = self._pace(action)
            if pace.resumes <= now:  # calls that were under way together are one lesson, not many
                window = WINDOW - self._clock() % WINDOW + random.uniform(0.0, SPREAD)
                pace.pause(now + (retry_after or window))
            return pace.next_turn(now) - now

    def _pace(self, action: str) -> _Pace:
        pace = self._paces.get(action)
        if pace is None:
            rate = LIMITS.get(action, OTHER_LIMIT) / WINDOW
            pace = self._paces[action] = _Pace(full_rate=rate, rate=rate)
        return pace


@dataclass
class _Pace:
    """One action's pace: the generic cell rate algorithm, calls per second.

    :param due: when the next call is due if calls come evenly at ``rate``; a burst may run ahead of it.
    :param resumes: when the last pause ends.
    :param pauses: how many there have been.
    """

    full_rate: float
    rate: float
    due: float = float("-inf")
    resumes: float = float("-inf")
    pauses: int = 0

    def next_turn(self, now: float) -> float:
        return max(now, self.due - self._ahead)

    def take(self, turn: float) -> None:
        self.due = max(self.due, turn) + 1 / self.rate

    def pause(self, until: float) -> None:
        self.rate = min(PROBE_RATE, self.full_rate)
        self.due = self.resumes = until
        self.pauses += 1

    def speed_up(self, now: float) -> None:
        if now < self.resumes or self.rate == self.full_rate:
            return
        self.rate = min(self.full_rate, self.rate + self.full_rate / RECOVERY)
        # From nothing: a burst would be throttled again. It may be a whole one when a window has passed.
        self.due += self._ahead

    @property
    def reason(self) -> str:
        if self.rate < self.full_rate:
            return "the service throttled it"
        return f"this node has called it {self.full_rate * WINDOW:.0f} times in a minute"

    @property
    def _ahead(self) -> float:
        """Seconds by which a burst may run ahead: a window's worth at the full rate, nothing below it."""
        return WINDOW - 1 / self.rate if self.rate == self.full_rate else 0.0
