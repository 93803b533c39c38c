"""Who owns which address, kept in the journal's ``addresses`` table.

A pool knows three kinds of address: owned, resting (given back, not yet to be used again, because somebody
may still send to its last owner), and free. Memory decides and the journal remembers: an address is marked in
memory under the lock, where it cannot be given twice, and written down before its owner is told; one that is
given back is free in memory only once that is written.

A change is on disk with the lease that it leads to, which is a durable write; a power cut before that undoes
both. One that undoes a release leaves an owner whose pod it has ended.
"""

from __future__ import annotations

import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, ip_address
from itertools import chain

from terway_core.database import Statement
from terway_core.errors import NoAddress
from terway_core.store import Store
from terway_core.types import IPAddress, IPNetwork

__all__ = ["AddressPool", "GivenAddresses"]

_OWN = "INSERT OR REPLACE INTO addresses (pool, address, owner) VALUES (?, ?, ?)"
_REST = "INSERT OR REPLACE INTO addresses (pool, address, rests_until) VALUES (?, ?, ?)"
_FREE = "DELETE FROM addresses WHERE pool=? AND address=?"


class _OwnedAddresses(ABC):
    """Addresses in the table, each with at most one owner. An owner's requests come one at a time."""

    def __init__(self, store: Store, name: str, *, rest: float, clock: Callable[[], float]) -> None:
        self.name = name
        self._store = store
        self._rest = rest
        self._clock = clock
        self._lock = threading.RLock()
        self._owners: dict[IPAddress, str] = {}
        self._owned: dict[str, list[IPAddress]] = {}
        self._resting: dict[IPAddress, float] = {}  # until when
        store.write(self._load)

    def release(self, owner: str) -> bool:
        """Give back what ``owner`` has. False when it has nothing."""
        with self._lock:
            addresses = tuple(self._owned.get(owner, ()))
        if addresses:
            until = self._clock() + self._rest
            texts = [str(address) for address in addresses]
            if self._rest:
                change = Statement(_REST, *((self.name, text, until) for text in texts))
            else:
                change = Statement(_FREE, *((self.name, text) for text in texts))
            self._store.write(change, durable=False)
            with self._lock:
                for address in addresses:
                    if self._owners.get(address) == owner:
                        self._disown(address)
                        if self._rest:
                            self._resting[address] = until
        return bool(addresses)

    def collect(self, live: Iterable[str]) -> list[str]:
        """Give back the addresses of owners that are neither in ``live`` nor in the journal.

        An attachment has its row before it gets an address, so one that is being added meanwhile is safe; and
        who comes back under a key that is found dead here waits, and then gets another address.

        :returns: one line for each address.
        """
        with self._lock:
            alive = {*live, *(str(record.key) for record in self._store.records())}
            dead = {owner: tuple(found) for owner, found in self._owned.items() if owner not in alive}
            for owner in dead:
                self.release(owner)
        return [f"address {address} of {owner}" for owner, found in dead.items() for address in found]

    def owners(self) -> dict[str, IPAddress]:
        """Who owns what."""
        with self._lock:
            return {owner: address for address, owner in self._owners.items()}

    @abstractmethod
    def _is_ours(self, address: IPAddress, driver: str) -> bool:
        """Whether an address that an attachment of ``driver`` leases is one of these."""

    def _load(self, db: sqlite3.Connection) -> None:
        """Know what the table has. Addresses in the leases of attachments count as owned, also when the table
        has lost their rows."""
        rows = db.execute("SELECT address, owner, rests_until FROM addresses WHERE pool=?", (self.name,))
        for text, owner, rests_until in rows.fetchall():
            if owner is None:
                self._resting[ip_address(text)] = rests_until
            else:
                self._own(ip_address(text), owner)
        for record in self._store.records():
            for address in (interface.ip for interface in record.lease.addresses) if record.lease else ():
                if self._is_ours(address, record.driver) and address not in self._owners:
                    db.execute(_OWN, (self.name, str(address), str(record.key)))
                    self._own(address, str(record.key))

    def _own(self, address: IPAddress, owner: str) -> None:
        self._owners[address] = owner
        self._owned.setdefault(owner, []).append(address)
        self._resting.pop(address, None)

    def _disown(self, address: IPAddress) -> None:
        owner = self._owners.pop(address)
        self._owned[owner].remove(address)
        if not self._owned[owner]:
            del self._owned[owner]


class AddressPool(_OwnedAddresses):
    """The addresses of ``cidr``, each with at most one owner.

    The network address is never given out, nor the IPv4 broadcast address.

    :param name: the pool's name in the store; of two pools with one name only one may live.
    :param rest: seconds before an address that was given back is used again; survives a restart.
    :param clock: seconds since the epoch. When it jumps back, an address rests at most ``rest`` from now.
    :param reserve: addresses of the CIDR that belong to somebody else.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        cidr: IPNetwork,
        *,
        rest: float,
        clock: Callable[[], float],
        reserve: Iterable[IPAddress] = (),
    ) -> None:
        self.cidr = cidr
        self._reserved = {address for address in reserve if address in cidr}
        self._first = 1 if cidr.prefixlen < cidr.max_prefixlen - 1 else 0
        broadcast = isinstance(cidr, IPv4Network) and self._first
        self._stop = cidr.num_addresses - (1 if broadcast else 0)
        self._next = self._first
        super().__init__(store, name, rest=rest, clock=clock)

    def allocate(self, owner: str) -> IPAddress:
        """An address for ``owner``; the same one as long as it is not released.

        :raises NoAddress: every address is owned or rests.
        """
        with self._lock:
            if owned := self._owned.get(owner):
                return owned[0]
            changes = self._look_at_rests(self._clock())
            address = self._find_free()
            if address is not None:
                self._own(address, owner)
                changes.append(Statement(_OWN, (self.name, str(address), owner)))

        def change_all(db: sqlite3.Connection) -> None:
            for change in changes:
                change(db)

        try:
            self._store.write(changes[0] if len(changes) == 1 else change_all, durable=False)
        except BaseException:
            if address is not None:
                with self._lock:
                    self._disown(address)
            raise
        if address is None:
            raise NoAddress(self._why_none())
        return address

    def _look_at_rests(self, now: float) -> list[Statement]:
        """End the rests that are over, also on disk: the clock may jump back. Shorten those it has made too
        long."""
        changes = []
        latest = now + self._rest
        over = [address for address, until in self._resting.items() if until <= now]
        long = [address for address, until in self._resting.items() if until > latest]
        for address in over:
            del self._resting[address]
        for address in long:
            self._resting[address] = latest
        if over:
            changes.append(Statement(_FREE, *((self.name, str(address)) for address in over)))
        if long:
            changes.append(Statement(_REST, *((self.name, str(address), latest) for address in long)))
        return changes

    def _find_free(self) -> IPAddress | None:
        # Going on after the last one given keeps an address out of use for longer than its rest demands.
        start = self._next if self._first <= self._next < self._stop else self._first
        for offset in chain(range(start, self._stop), range(self._first, start)):
            address = self.cidr.network_address + offset
            if address not in self._owners and address not in self._resting and address not in self._reserved:
                self._next = offset + 1
                return address
        return None

    def _why_none(self) -> str:
        with self._lock:
            owned = sum(address in self.cidr for address in self._owners)
            resting = sum(address in self.cidr for address in self._resting)
        return (
            f"no address is free in {self.cidr}: {owned} are owned by pods and {resting} rest for up to "
            f"{self._rest:g} s after their last use; delete pods or give the node a larger CIDR"
        )

    def _is_ours(self, address: IPAddress, driver: str) -> bool:
        return address.version == self.cidr.version and address in self.cidr


class GivenAddresses(_OwnedAddresses):
    """Addresses that somebody else chooses for an attachment. They do not rest.

    :param mode: the driver whose attachments have them; also their name in the store.
    """

    def __init__(self, store: Store, mode: str, *, clock: Callable[[], float]) -> None:
        super().__init__(store, mode, rest=0.0, clock=clock)

    def take(self, owner: str, addresses: Iterable[IPAddress]) -> None:
        """Make them ``owner``'s.

        :raises NoAddress: one is still somebody else's; nothing has changed.
        """
        with self._lock:
            wanted = [address for address in addresses if self._owners.get(address) != owner]
            for address in wanted:
                if other := self._owners.get(address):
                    raise NoAddress(f"address {address} is still that of {other}, which is being taken down")
            for address in wanted:
                self._own(address, owner)
        try:
            rows = [(self.name, str(address), owner) for address in wanted]
            self._store.write(Statement(_OWN, *rows), durable=False)
        except BaseException:
            with self._lock:
                for address in wanted:
                    self._disown(address)
            raise

    def _is_ours(self, address: IPAddress, driver: str) -> bool:
        return driver == self.name
