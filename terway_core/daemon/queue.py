"""Who may work when: one at a time for a sandbox, a bounded number altogether, first come first served."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from terway_core.errors import RetryLater, Superseded


class Cancellation:
    """Tells an ADD that its DEL has arrived. ``check`` is called between the steps of the ADD."""

    def __init__(self) -> None:
        self._set = False
        self._wake: Callable[[], None] = lambda: None

    @property
    def is_set(self) -> bool:
        return self._set

    def cancel(self) -> None:
        self._set = True
        self._wake()

    def check(self) -> None:
        """:raises Superseded: the DEL is here."""
        if self._set:
            raise Superseded(
                "a DEL for this attachment arrived while its ADD was under way; nothing was kept"
            )

    def on_cancel(self, wake: Callable[[], None]) -> None:
        self._wake = wake


class SandboxLocks:
    """A lock for each name, made when somebody wants it and forgotten when nobody does."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Hold the locks of all ``names``. Everybody takes them in the same order: no ring of waiters."""
        ordered = sorted(set(names))
        with self._guard:
            wanted = [self._want(name) for name in ordered]
        held = []
        try:
            for lock in wanted:
                lock.acquire()
                held.append(lock)
            yield
        finally:
            for lock in held:
                lock.release()
            with self._guard:
                for name in ordered:
                    self._let_go(name)

    def is_wanted(self, name: str) -> bool:
        """Whether somebody holds the lock or waits for it."""
        with self._guard:
            return name in self._locks

    def _want(self, name: str) -> threading.Lock:
        lock, users = self._locks.get(name, (None, 0))
        lock = lock or threading.Lock()
        self._locks[name] = (lock, users + 1)
        return lock

    def _let_go(self, name: str) -> None:
        lock, users = self._locks[name]
        if users == 1:
            del self._locks[name]
        else:
            self._locks[name] = (lock, users - 1)


class WorkQueue:
    """``workers`` places; whoever finds none waits in line.

    :param waited: told how long each one stood in line, in seconds.
    """

    def __init__(self, workers: int, *, waited: Callable[[float], object] = lambda seconds: None) -> None:
        self._free = workers
        self._line: deque[_Waiting] = deque()
        self._lock = threading.Lock()
        self._waited = waited

    def __len__(self) -> int:
        """How many stand in line."""
        return len(self._line)

    def longest_wait(self) -> float:
        """How long the first in line has stood there, in seconds."""
        with self._lock:
            return time.monotonic() - self._line[0].since if self._line else 0.0

    @contextlib.contextmanager
    def place(self, *, timeout: float, cancellation: Cancellation | None = None) -> Iterator[None]:
        """Work in one of the places.

        :raises RetryLater: none came free within ``timeout`` seconds.
        :raises Superseded: the work was cancelled while it stood in line.
        """
        self._enter(timeout, cancellation)
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Within a :meth:`place`: let others have it while this one waits for something. Then it is the first
        in line, for however long that takes: it has waited already."""
        self._leave()
        try:
            yield
        finally:
            self._enter(None, None, first=True)

    def _leave(self) -> None:
        with self._lock:
            self._free += 1
            self._call_first()

    def _enter(
        self, timeout: float | None, cancellation: Cancellation | None, *, first: bool = False
    ) -> None:
        with self._lock:
            if self._free and not self._line:
                if cancellation:
                    cancellation.check()
                self._free -= 1
                self._waited(0.0)
                return
            me = _Waiting(self._lock)
            if first:
                self._line.appendleft(me)
            else:
                self._line.append(me)
            if cancellation:
                cancellation.on_cancel(partial(self._wake, me))
            try:
                if not me.called.wait_for(
                    lambda: (self._free and self._line[0] is me) or (cancellation and cancellation.is_set),
                    timeout,
                ):
                    raise RetryLater(
                        f"the daemon did not come to this request within {timeout:g} s, "
                        f"{len(self._line)} are in line; the runtime will ask again"
                    )
                if cancellation:
                    cancellation.check()
                self._free -= 1
            finally:
                self._line.remove(me)
                self._call_first()
                self._waited(time.monotonic() - me.since)

    def _call_first(self) -> None:
        # Only the first: of all who are woken the others would only keep it from the interpreter.
        if self._free and self._line:
            self._line[0].called.notify()

    def _wake(self, one: _Waiting) -> None:
        with self._lock:
            one.called.notify()


class _Waiting:
    """A place in the line."""

    def __init__(self, lock: threading.Lock) -> None:
        self.since = time.monotonic()
        self.called = threading.Condition(lock)
