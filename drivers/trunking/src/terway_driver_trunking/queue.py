"""Names of objects to be looked at: each by one worker at a time, and again after a while."""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from terway_core.errors import TerwayError

log = logging.getLogger(__name__)

#: Seconds until a failed look is repeated: doubled from the first to the last.
RETRY_FIRST, RETRY_LAST = 0.5, 30.0

K = TypeVar("K")


class KeyQueue(Generic[K]):
    """A queue with workers of its own.

    :param look: brings one object nearer to what it shall be. It answers the seconds after which to look
        again, None when something must happen first, and may raise whatever it likes: it is asked again.
    """

    def __init__(self, name: str, look: Callable[[K], float | None], workers: int) -> None:
        self._name = name
        self._look = look
        self._workers = workers
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order: Final = itertools.count()
        self._busy: set[K] = set()
        self._failures: dict[K, int] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._threads: list[threading.Thread] = []

    def add(self, key: K, delay: float = 0.0) -> None:
        """Have it looked at in ``delay`` seconds, or sooner if that is settled already."""
        due = time.monotonic() + delay
        with self._changed:
            if due < self._due.get(key, float("inf")):
                self._due[key] = due
                heapq.heappush(self._heap, (due, next(self._order), key))
                self._changed.notify()

    def start(self) -> None:
        """Begin to work."""
        self._threads = [
            threading.Thread(target=self._work, name=f"{self._name} {number}", daemon=True)
            for number in range(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing more, and wait for what is under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (key := self._take()) is not None:
            delay: float | None
            try:
                delay = self._look(key)
                failures = 0
            except Exception as error:
                failures = self._failures.get(key, 0) + 1
                delay = min(RETRY_LAST, RETRY_FIRST * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)
                if isinstance(error, TerwayError):
                    log.warning("will be tried again", extra={"key": str(key), "problem": str(error)})
                else:  # of ours: the others must not wait for its mend
                    log.exception("a defect", extra={"key": str(key)})
            with self._changed:
                self._busy.discard(key)
                if failures:
                    self._failures[key] = failures
                else:
                    self._failures.pop(key, None)
                self._changed.notify_all()  # it may be due again, and was passed over
            if delay is not None:
                self.add(key, delay)

    def _take(self) -> K | None:
        """The next one that is due; None: the work ends."""
        with self._changed:
            while not self._stopping:
                key, wait = self._next()
                if key is not None:
                    return key
                self._changed.wait(wait)
            return None

    def _next(self) -> tuple[K | None, float | None]:
        """One that is due, or the seconds until one is; None: until something is added or finished."""
        passed: list[tuple[float, int, K]] = []
        found: K | None = None
        wait: float | None = None
        now = time.monotonic()
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) != due:  # added again for an earlier time, or taken
                heapq.heappop(self._heap)
            elif due > now:
                wait = due - now
                break
            elif key in self._busy:
                passed.append(heapq.heappop(self._heap))
            else:
                heapq.heappop(self._heap)
                del self._due[key]
                self._busy.add(key)
                found = key
                break
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found, wait
