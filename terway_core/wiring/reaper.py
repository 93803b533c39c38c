"""Deletion of links, many at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from terway_core.errors import WiringError
from terway_core.wiring import netlink
from terway_core.wiring.netlink import ALREADY_GONE, NetlinkSocket
from terway_core.wiring.netns import Namespace


class LinkReaper:
    """Deletes links together.

    The kernel waits about 20 ms (an RCU grace period) for each deletion it is asked for, and as long for a
    whole group of links. Whoever comes while a deletion is under way is served by the next one.
    """

    def __init__(self, host: Namespace | None) -> None:
        self._socket = NetlinkSocket(host)
        self._waiting: list[_Doomed] = []
        self._list_lock = threading.Lock()
        self._kernel_lock = threading.Lock()

    def delete(self, indices: Sequence[int]) -> None:
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
        try:
            messages = [netlink.doom(index) for doomed in batch for index in doomed.indices]
            reply = self._socket.send([*messages, netlink.delete_doomed()])[-1]
            problem = "" if reply.errno in {0, *ALREADY_GONE} else os.strerror(reply.errno)
        except WiringError as error:
            problem = str(error)
        for doomed in batch:
            doomed.problem = problem
            doomed.done = True

    def close(self) -> None:
        self._socket.close()


class _Doomed:
    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices
        self.done = False
        self.problem = ""
