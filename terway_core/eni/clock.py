"""A clock for waiting by."""

from __future__ import annotations

import threading
from collections.abc import Callable


class SteadyClock:
    """Seconds since the epoch by ``clock``, except that they never go back.

    Nobody waits an hour longer because the node's clock was set back by one: time goes on from where it was.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last = clock()
        self._ahead = 0.0

    def __call__(self) -> float:
        with self._lock:
            now = self._clock() + self._ahead
            if now < self._last:
                self._ahead += self._last - now
                now = self._last
            self._last = now
            return now
