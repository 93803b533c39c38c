"""The addresses of a node's ENIs, found by their owner and by how long they have rested."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from itertools import count

from terway_core.eni.model import EniAddress
from terway_core.types import IPAddress


class Addresses(dict[IPAddress, EniAddress]):
    """Rows by address; changed by :meth:`put` and :meth:`drop` only.

    :ivar used: how many of each ENI have an owner, by its token.
    """

    def __init__(self, rows: Iterable[EniAddress]) -> None:
        super().__init__()
        self.used: Counter[str] = Counter()
        self._owned: dict[str, dict[IPAddress, None]] = {}
        # By ENI and family: when a rest is over, and of which address. What is out of date is left in it.
        self._rests: dict[tuple[str, int], list[tuple[float, int, IPAddress]]] = {}
        self._number = count()
        for row in rows:
            self.put(row)

    def put(self, row: EniAddress) -> None:
        """A row, new or in place of the old one."""
        self._unlink(row.address)
        self[row.address] = row
        if row.owner:
            self.used[row.token] += 1
            self._owned.setdefault(row.owner, {})[row.address] = None
        elif not row.leaving:
            rests = self._rests.setdefault((row.token, row.address.version), [])
            heapq.heappush(rests, (row.rests_until, next(self._number), row.address))

    def drop(self, address: IPAddress) -> None:
        """The row is gone."""
        self._unlink(address)
        del self[address]

    def of_owner(self, owner: str) -> tuple[EniAddress, ...]:
        """What somebody has."""
        return tuple(self[address] for address in self._owned.get(owner, ()))

    def longest_rested(self, token: str, family: int, now: float) -> EniAddress | None:
        """Of an ENI's addresses that may be given out the one that has rested longest."""
        rests = self._rests.get((token, family), [])
        while rests:
            until, _, address = rests[0]
            row = self.get(address)
            if row and row.token == token and row.rests_until == until and not row.owner and not row.leaving:
                return row if until <= now else None
            heapq.heappop(rests)
        return None

    def _unlink(self, address: IPAddress) -> None:
        row = self.get(address)
        if row and row.owner:
            self.used[row.token] -= 1
            del self._owned[row.owner][address]
            if not self._owned[row.owner]:
                del self._owned[row.owner]
