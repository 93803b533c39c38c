"""Deletes links: together, and waiting no longer than until they are gone.

The kernel takes a link out of all its tables, its peer too, within a millisecond and tells whoever listens
(RTM_DELLINK). Only 10 to 20 ms later, after RCU grace periods in which it frees what nobody can see any more,
does it answer the request, and as late for a whole group of links as for one. So requests are sent by threads
of their own, and whoever wants a link deleted waits for the news.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from terway_core.batcher import Batcher
from terway_core.errors import WiringError
from terway_core.wiring import netlink
from terway_core.wiring.changes import belongs_to
from terway_core.wiring.netlink import LinkNews, Message, NetlinkSocket, Reply
from terway_core.wiring.netns import Namespace

#: Requests whose answers are awaited at the same time; what comes meanwhile is sent as one.
SENDERS: Final = 16
#: Seconds until a request that made no news, because the links were gone already, is looked at.
_PATIENCE: Final = 0.005


class LinkReaper:
    """Deletes links of one namespace. Safe for use by many threads.

    Whoever comes while the kernel takes others away is served by one request for all who have.

    :param host: the namespace; by default the caller's own.
    """

    def __init__(self, host: Namespace | None) -> None:
        self._host = host
        self._socket = NetlinkSocket(host)
        self._batcher = Batcher(self._delete_all)
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="reaper")

    def close(self) -> None:
        """Wait for what was asked of the kernel."""
        self._senders.shutdown()
        self._socket.close()

    def delete(self, names: Sequence[str], owner: str) -> None:
        """Return when the links of these names are gone; those that are gone already are forgiven, and those
        of another owner left alone.

        :raises WiringError: the kernel did not delete them.
        """
        if names:
            self._batcher.do(_Doomed(names=names, owner=owner))

    def delete_indices(self, indices: Sequence[int]) -> None:
        """The same for links of anybody."""
        self._batcher.do(_Doomed(indices=indices))

    def _delete_all(self, batch: Sequence[_Doomed]) -> None:
        links = self._socket.links([name for doomed in batch for name in doomed.names])
        left = {index for doomed in batch for index in doomed.indices}
        for doomed in batch:
            found = (links[name] for name in doomed.names if name in links)
            left.update(link.index for link in found if belongs_to(link, doomed.owner))
        if not left:
            return
        messages = [*map(netlink.doom, left), netlink.delete_doomed()]
        with LinkNews(self._host) as news:  # listening before anything can happen
            request = self._senders.submit(self._send, messages)
            while left and not request.done():
                left -= news.deleted(_PATIENCE)
        if left and (reply := request.result()[-1]).errno not in {0, *netlink.ALREADY_GONE}:
            names = sorted(name for name, link in links.items() if link.index in left)
            raise WiringError(
                f"the kernel did not delete links {', '.join(names) or left}: {os.strerror(reply.errno)}"
            )

    def _send(self, messages: Sequence[Message]) -> list[Reply]:
        with NetlinkSocket(self._host) as sock:
            return sock.send(messages)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Doomed:
    names: Sequence[str] = ()
    owner: str = ""
    indices: Sequence[int] = ()
