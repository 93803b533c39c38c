"""Work that costs little more for many than for one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Batcher(Generic[T]):
    """Whoever comes first works for all who wait; those who come meanwhile are the next batch.

    No thread has to wake up for one who comes alone, and one for a whole batch, not for each of it in turn.

    :param work: does what a batch of items asks for. What it raises, all of them raise.
    """

    def __init__(self, work: Callable[[Sequence[T]], object]) -> None:
        self._work = work
        self._line: list[_Waiting[T]] = []
        self._busy = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many wait for the next batch."""
        return len(self._line)

    def do(self, item: T) -> None:
        """Return when the work has been done for ``item``, or raise why not."""
        mine = None
        with self._lock:
            if self._busy:
                mine = _Waiting(item)
                self._line.append(mine)
            self._busy = True
        if mine is None:
            try:
                self._work((item,))
            finally:
                self._call_next()
            return
        mine.turn.acquire()
        if not mine.done:
            self._lead()
        if mine.problem:
            raise mine.problem

    def _lead(self) -> None:
        with self._lock:
            batch, self._line = self._line, []
        problem = None
        try:
            self._work([waiting.item for waiting in batch])
        except BaseException as error:  # nobody may be left waiting
            problem = error
        self._call_next()
        for waiting in batch:
            waiting.done, waiting.problem = True, problem
            waiting.turn.release()

    def _call_next(self) -> None:
        with self._lock:
            following = self._line[:1]
            self._busy = bool(following)
        for waiting in following:
            waiting.turn.release()


class _Waiting(Generic[T]):
    """A place in the line. ``turn`` is released when the work is done, or this is the first in line."""

    __slots__ = ("done", "item", "problem", "turn")

    def __init__(self, item: T) -> None:
        self.item = item
        self.done = False
        self.problem: BaseException | None = None
        self.turn = threading.Lock()
        self.turn.acquire()
