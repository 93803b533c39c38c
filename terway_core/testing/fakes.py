"""Stand-ins for what surrounds a driver: time, the journal, the cloud, attachments, the wiring engine."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from terway_core.errors import CloudError, WiringError
from terway_core.record import Record
from terway_core.store import Store
from terway_core.types import Attachment, AttachmentKey, Pod, Wiring
from terway_core.wiring.objects import WiringObject, describe

if TYPE_CHECKING:
    from terway_core.wiring.netns import Namespace

__all__ = ["ALWAYS", "FakeClock", "FakeEngine", "NoCloud", "WatchedStore", "make_attachment"]

T = TypeVar("T")

ALWAYS: Final = math.inf


class FakeClock:
    """A clock that stands still until it is told otherwise; a ``Services.clock``."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class WatchedStore(Store):
    """The real journal, which counts how often it was asked or written to."""

    uses = 0

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        self.uses += 1
        with super().read() as connection:
            yield connection

    def _known(self) -> dict[AttachmentKey, Record]:
        self.uses += 1
        return super()._known()

    def write(self, change: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        self.uses += 1
        return super().write(change, durable=durable)


class NoCloud:
    """A ``Services.cloud`` for drivers that need none: whatever is asked of it fails."""

    def __getattr__(self, name: str) -> Any:
        raise CloudError(f"there is no cloud in this test to ask for {name!r}; override the fixture `cloud`")


def make_attachment(number: int, *, ifname: str = "eth0") -> Attachment:
    """One of as many different attachments as there are numbers: its own sandbox, of its own pod.

    Numbers that are equal give equal attachments. Only ``ifname`` tells two of one pod apart.
    """
    return Attachment(
        network="terway",
        container_id=f"{number:064x}",
        ifname=ifname,
        netns=f"/var/run/netns/cni-{number}",
        pod=Pod(namespace="conformance", name=f"pod-{number}", uid=f"00000000-0000-4000-8000-{number:012x}"),
    )


class FakeEngine:
    """An engine without a kernel: it remembers what exists, and can fail half-way.

    :param fail_at: index in ``(*wiring.node, *wiring.pod, *wiring.host)`` of the object that cannot be made;
        None for no such object. Those before it are made, as with the real engine.
    :param times: how often it fails there: 1, 2, … or ``ALWAYS``.
    """

    def __init__(self, fail_at: int | None = None, times: float = ALWAYS) -> None:
        self._fail_at = fail_at
        self._times = times
        self._shared = 0
        #: What exists: where it is, who owns it (``""``: the node), and the object itself.
        self.present: dict[tuple[str, str, WiringObject], None] = {}

    def ensure(self, objects: Iterable[WiringObject]) -> None:
        """Make shared objects. :raises WiringError: as told."""
        steps = [("node", "", obj) for obj in objects]
        self._shared = len(steps)
        self._make(steps, 0)

    def apply(self, wiring: Wiring, pod: Namespace | None, owner: str) -> None:
        """Make what belongs to ``owner``. :raises WiringError: as told."""
        steps = [("pod", owner, obj) for obj in wiring.pod] + [("host", owner, obj) for obj in wiring.host]
        self._make(steps, self._shared)

    def remove(self, wiring: Wiring, pod: Namespace | None, owner: str) -> None:
        """Take away what belongs to ``owner``; shared objects stay."""
        for where, objects in (("pod", wiring.pod), ("host", wiring.host)):
            for obj in objects:
                self.present.pop((where, owner, obj), None)

    def owned(self, owner: str) -> list[str]:
        """What exists of ``owner``, one line each."""
        return [f"{where}: {describe(obj)}" for where, whose, obj in self.present if whose == owner]

    def _make(self, steps: Sequence[tuple[str, str, WiringObject]], first: int) -> None:
        for index, step in enumerate(steps, first):
            if index == self._fail_at and self._times > 0:
                self._times -= 1
                raise WiringError(f"told to fail at {describe(step[2])}")
            self.present[step] = None
