"""Deletes links: together, and waiting no longer than until they are gone.

The kernel takes a link out of all its tables, its peer too, within a millisecond and tells whoever listens
(RTM_DELLINK). Only 10 to 20 ms later, after RCU grace periods in which it frees what nobody can see any more,
does it answer the request, and as late for a whole group of links as for one. So requests are sent by threads
of their own, and whoever wants a link deleted waits for the news.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping, Sequence
from queue import SimpleQueue
from types import MappingProxyType
from typing import Final, NamedTuple

from terway_core.batcher import Batcher
from terway_core.errors import WiringError
from terway_core.wiring import netlink
from terway_core.wiring.changes import belongs_to
from terway_core.wiring.netlink import Message, NetlinkSocket
from terway_core.wiring.netns import Namespace
from terway_core.wiring.news import LinkNews

#: Requests whose answers are awaited at the same time; what comes meanwhile is sent as one.
SENDERS: Final = 16
#: Seconds until a request that made no news, because the links were gone already, is looked at.
_PATIENCE: Final = 0.005
_NOBODY: Final[Mapping[str, str]] = MappingProxyType({})


class LinkReaper:
    """Deletes links of one namespace. Safe for use by many threads.

    Whoever comes while the kernel takes others away is served by one request for all who have.

    :param host: the namespace; by default the caller's own.
    """

    def __init__(self, host: Namespace | None) -> None:
        self._host = host
        self._socket = NetlinkSocket(host)
        self._news = LinkNews(host)
        self._batcher = Batcher(self._delete_all)
        self._senders: list[_Sender] = []
        self._idle: SimpleQueue[_Sender] = SimpleQueue()

    def close(self) -> None:
        """Wait for what was asked of the kernel."""
        for _ in self._senders:
            self._idle.get().end()
        self._news.close()
        self._socket.close()

    def delete(self, indices: Collection[int], owners: Mapping[str, str] = _NOBODY) -> None:
        """Return when links are gone; those that are gone already are forgiven.

        :param owners: further links, by name, each with its owner; one of another owner is left alone.
        :raises WiringError: the kernel did not delete them, or others of the same batch.
        """
        if indices or owners:
            self._batcher.do(_Doomed(indices, owners))

    def _delete_all(self, batch: Sequence[_Doomed]) -> None:
        owners = {name: owner for doomed in batch for name, owner in doomed.owners.items()}
        links = self._socket.links(list(owners))
        left = {index for doomed in batch for index in doomed.indices}
        left.update(link.index for name, link in links.items() if belongs_to(link, owners[name]))
        if not left:
            return
        sender = self._find_sender()
        sender.begin([*map(netlink.doom, left), netlink.delete_doomed()])
        while left and sender.outcome is None:
            left -= self._news.deleted(_PATIENCE)
        if not left:
            return
        if isinstance(sender.outcome, BaseException):
            raise sender.outcome
        # One that is gone already makes no news.
        if sender.outcome not in {0, *netlink.ALREADY_GONE}:
            names = sorted(name for name, link in links.items() if link.index in left)
            reason = os.strerror(sender.outcome or 0)
            raise WiringError(f"the kernel did not delete links {', '.join(names) or left}: {reason}")

    def _find_sender(self) -> _Sender:
        """One that has nothing to do."""
        if self._idle.empty() and len(self._senders) < SENDERS:
            self._senders.append(_Sender(self._host, self._idle))
        return self._idle.get()


class _Sender:
    """A thread that sends one request after another, and waits in ``idle`` for the next.

    :ivar outcome: of the last request: an errno, or what was raised; None while it is under way.
    """

    def __init__(self, host: Namespace | None, idle: SimpleQueue[_Sender]) -> None:
        self.outcome: int | BaseException | None = None
        self._socket = NetlinkSocket(host)
        self._idle = idle
        self._messages: Sequence[Message] = ()
        self._turn = threading.Lock()
        self._turn.acquire()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
        self._thread.start()
        idle.put(self)

    def begin(self, messages: Sequence[Message]) -> None:
        """Send a request; what counts is its last message."""
        self.outcome, self._messages = None, messages
        self._turn.release()

    def end(self) -> None:
        """Finish what was begun."""
        self._messages = ()
        self._turn.release()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while True:
            self._turn.acquire()
            if not self._messages:
                return
            try:
                self.outcome = self._socket.send(self._messages)[-1].errno
            except BaseException as error:  # somebody waits for it
                self.outcome = error
            self._idle.put(self)


class _Doomed(NamedTuple):
    indices: Collection[int]
    owners: Mapping[str, str]
