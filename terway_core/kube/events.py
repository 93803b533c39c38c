"""Events: what happened to pods and nodes, for ``kubectl describe``."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from terway_core.errors import KubeError, KubeNotFound, KubeUnavailable
from terway_core.kube.client import KubeClient
from terway_core.kube.resources import EVENTS

log = logging.getLogger(__name__)

#: Seconds between two calls for one event that repeats itself, and between any two calls.
REPEAT: Final = 10.0
SPACING: Final = 0.1
#: Seconds until the API server is asked again when it did not answer.
PAUSE: Final = 5.0
#: Seconds that a stop waits for a call that is under way.
LAST_CALL: Final = 3.0
#: Events that are remembered, and for how many seconds; the API server keeps them for an hour.
REMEMBERED: Final = 1000
FORGOTTEN_AFTER: Final = 3000.0


@dataclass(slots=True)
class _Event:
    """:ivar untold: occurrences that the API server has not been told of."""

    about: Mapping[str, str]
    namespace: str
    reason: str
    warning: bool
    message: str
    first: float
    last: float
    count: int = 0
    untold: int = 0
    name: str = ""  # of the object, once there is one
    told_at: float = float("-inf")


class Events:
    """Sends events from a thread of its own; telling one costs nothing and never waits.

    All occurrences of one reason at one object are one event, with a count and the latest message. While the
    API server is away they are gathered; beyond some number of events the oldest are dropped.

    :param component: who says so. :param host: the node's name.
    """

    def __init__(
        self, client: KubeClient, component: str, host: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._component = component
        self._host = host
        self._clock = clock
        self._events: OrderedDict[tuple[str, ...], _Event] = OrderedDict()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="events", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send no more. What was not sent is lost."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(LAST_CALL)

    def tell(self, about: Mapping[str, str], reason: str, message: str, *, warning: bool = False) -> None:
        """Something happened.

        :param about: the object: ``apiVersion``, ``kind``, ``namespace``, ``name`` and ``uid``.
        :param reason: one word in CamelCase. :param message: a sentence.
        """
        now = self._clock()
        key = (about["kind"], about.get("namespace", ""), about["name"], about.get("uid", ""), reason)
        with self._changed:
            event = self._events.pop(key, None)
            if event is None or now - event.last > FORGOTTEN_AFTER:
                # Events of objects without a namespace are in this one.
                namespace = about.get("namespace") or "default"
                event = _Event(about, namespace, reason, warning, message, first=now, last=now)
            event.message, event.last = message, now
            event.count += 1
            event.untold += 1
            self._events[key] = event  # at the end: the oldest is at the beginning
            if len(self._events) > REMEMBERED:
                self._events.popitem(last=False)
            self._changed.notify_all()

    # -- the thread ---------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and (wait := self._wait()) > 0:
                    self._changed.wait(None if wait == float("inf") else wait)
                if self._stopping:
                    return
                event = self._due()
                message, count, last = event.message, event.count, event.last
                untold, event.untold = event.untold, 0
                event.told_at = time.monotonic()
            pause = SPACING
            try:
                self._send(event, message, count, last)
            except KubeUnavailable:
                with self._changed:
                    event.untold += untold
                pause = PAUSE
            except KubeError as error:  # its namespace is being deleted, or RBAC has no events for us
                log.warning("event not sent", extra={"reason": event.reason, "problem": str(error)})
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, timeout=pause)

    def _wait(self) -> float:
        """Seconds until something is to be sent; infinity: nothing is."""
        now = time.monotonic()
        times = [event.told_at + REPEAT - now for event in self._events.values() if event.untold]
        return min(times, default=float("inf"))

    def _due(self) -> _Event:
        untold = (event for event in self._events.values() if event.untold)
        return min(untold, key=lambda event: event.told_at)

    def _send(self, event: _Event, message: str, count: int, last: float) -> None:
        changing = {"message": message, "count": count, "lastTimestamp": _time(last)}
        if event.name:
            try:
                self._client.patch(EVENTS, event.name, changing, event.namespace)
                return
            except KubeNotFound:
                pass  # an hour has passed
        name = f"{event.about['name']}.{time.time_ns():x}"
        self._client.create(
            EVENTS,
            {
                "metadata": {"name": name},
                "involvedObject": dict(event.about),
                "reason": event.reason,
                "type": "Warning" if event.warning else "Normal",
                "source": {"component": self._component, "host": self._host},
                "firstTimestamp": _time(event.first),
                **changing,
            },
            event.namespace,
        )
        event.name = name


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
