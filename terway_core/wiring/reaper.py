"""Deletes links: together, and waiting no longer than until they are gone.

The kernel takes a link out of all its tables, its peer too, within a millisecond and tells whoever listens
(RTM_DELLINK). Only 10 to 20 ms later, after RCU grace periods in which it frees what nobody can see any more,
does it answer the request, and as late for a whole group of links as for one. So requests are sent by threads
of their own, and whoever wants a link deleted waits for the news.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from terway_core.errors import WiringError
from terway_core.wiring import netlink
from terway_core.wiring.netlink import LinkNews, Message, NetlinkSocket, Reply
from terway_core.wiring.netns import Namespace

#: Requests whose answers are awaited at the same time; what comes meanwhile is sent as one.
SENDERS: Final = 16
#: Seconds until a request that made no news, because the links were gone already, is looked at.
_PATIENCE: Final = 0.005


class LinkReaper:
    """Deletes links of one namespace. Safe for use by many threads.

    :param host: the namespace; by default the caller's own.
    """

    def __init__(self, host: Namespace | None) -> None:
        self._host = host
        self._waiting: list[_Doomed] = []
        self._list_lock = threading.Lock()
        self._kernel_lock = threading.Lock()
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="reaper")

    def close(self) -> None:
        """Wait for what was asked of the kernel."""
        self._senders.shutdown()

    def delete(self, indices: Sequence[int]) -> None:
        """Return when the links are gone; those that are gone already are forgiven.

        Whoever comes while the kernel takes others away is served by one request for all who have.

        :raises WiringError: the kernel did not delete them.
        """
        if not indices:
            return
        mine = _Doomed(indices)
        with self._list_lock:
            self._waiting.append(mine)
        with self._kernel_lock:
            if not mine.done:
                with self._list_lock:
                    batch, self._waiting = self._waiting, []
                self._delete_all(batch)
        if mine.problem:
            raise WiringError(f"the kernel did not delete links {list(indices)}: {mine.problem}")

    def _delete_all(self, batch: Sequence[_Doomed]) -> None:
        left = {index for doomed in batch for index in doomed.indices}
        messages = [*map(netlink.doom, left), netlink.delete_doomed()]
        problem = ""
        try:
            with LinkNews(self._host) as news:  # listening before anything can happen
                request = self._senders.submit(self._send, messages)
                while left and not request.done():
                    left -= news.deleted(_PATIENCE)
            if left and (reply := request.result()[-1]).errno not in {0, *netlink.ALREADY_GONE}:
                problem = os.strerror(reply.errno)
        except WiringError as error:
            problem = str(error)
        for doomed in batch:
            doomed.problem = problem
            doomed.done = True

    def _send(self, messages: Sequence[Message]) -> list[Reply]:
        with NetlinkSocket(self._host) as sock:
            return sock.send(messages)


class _Doomed:
    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices
        self.done = False
        self.problem = ""
