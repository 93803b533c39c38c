"""Objects that several attachments of the node declare: made with the first, taken away with the last."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from terway_core.types import AttachmentKey
from terway_core.wiring.engine import Engine
from terway_core.wiring.objects import WiringObject


class SharedObjects:
    """Knows who needs which ``node`` object, so that an ADD touches only what is not there yet."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._users: dict[WiringObject, set[AttachmentKey]] = {}
        self._lock = threading.Lock()

    def remember(self, key: AttachmentKey, objects: Iterable[WiringObject]) -> None:
        """Note, at the start, what a row of the journal declares; the kernel is left as it is."""
        with self._lock:
            for obj in objects:
                self._users.setdefault(obj, set()).add(key)

    def need(self, key: AttachmentKey, objects: Iterable[WiringObject]) -> None:
        """Make what nobody needed before.

        :raises WiringError: the kernel refused; the next one who needs them tries again.
        """
        objects = tuple(objects)
        with self._lock:
            new = [obj for obj in objects if obj not in self._users]
            for obj in objects:
                self._users.setdefault(obj, set()).add(key)
            if new:
                try:
                    self._engine.ensure(new)
                except BaseException:
                    for obj in new:  # the next one shall try again
                        del self._users[obj]
                    raise

    def release(self, key: AttachmentKey, objects: Iterable[WiringObject]) -> None:
        """Take away what nobody needs any more.

        :raises WiringError: the kernel refused; gc finds what is left by its mark.
        """
        with self._lock:
            unused = []
            for obj in objects:
                users = self._users.get(obj, set())
                users.discard(key)
                if not users:
                    self._users.pop(obj, None)
                    unused.append(obj)
            if unused:
                self._engine.remove_shared(unused)

    def restore(self) -> None:
        """Bring back what somebody took away or changed.

        :raises WiringError: the kernel refused.
        """
        with self._lock:
            self._engine.ensure(tuple(self._users))
