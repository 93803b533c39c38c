"""Who owns which address, kept in the journal's ``addresses`` table.

A pool knows three kinds of address: owned, resting (given back, not yet to be used again, because somebody
may still send to its last owner), and free. Only the first two have rows.

A change is on disk with the lease that it leads to, which is a durable write; a power cut before that undoes
both. One that undoes a release leaves an owner whose pod it has ended.
"""

from __future__ import annotations

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, ip_address
from itertools import chain

from terway_core.errors import NoAddress
from terway_core.store import Store
from terway_core.types import IPAddress, IPNetwork

__all__ = ["AddressPool", "GivenAddresses"]


class _OwnedAddresses(ABC):
    """Addresses in the table, each with at most one owner."""

    def __init__(self, store: Store, name: str, *, rest: float, clock: Callable[[], float]) -> None:
        self.name = name
        self._store = store
        self._rest = rest
        self._clock = clock
        store.write(self._adopt)

    def release(self, owner: str) -> bool:
        """Give back what ``owner`` has. False when it has nothing."""

        def change(db: sqlite3.Connection) -> bool:
            now = self._clock()
            return bool(
                db.execute(
                    "UPDATE addresses SET owner=NULL, rests_until=? WHERE pool=? AND owner=?",
                    (now + self._rest, self.name, owner),
                ).rowcount
            )

        return self._store.write(change, durable=False)

    def collect(self, live: Iterable[str]) -> list[str]:
        """Give back the addresses of owners that are neither in ``live`` nor in the journal.

        The journal is asked in the same transaction: an attachment has its row before it gets an address, so
        one that is being added meanwhile is safe.

        :returns: one line for each address.
        """
        alive = set(live)

        def change(db: sqlite3.Connection) -> list[str]:
            alive.update(
                f"{network}/{container_id}/{ifname}"
                for network, container_id, ifname in db.execute(
                    "SELECT network, container_id, ifname FROM attachments"
                )
            )
            owned = db.execute(
                "SELECT owner, address FROM addresses WHERE pool=? AND owner IS NOT NULL", (self.name,)
            ).fetchall()
            dead = [(owner, address) for owner, address in owned if owner not in alive]
            db.executemany(
                "UPDATE addresses SET owner=NULL, rests_until=? WHERE pool=? AND owner=?",
                [(self._clock() + self._rest, self.name, owner) for owner, _ in dead],
            )
            return [f"address {address} of {owner}" for owner, address in dead]

        return self._store.write(change)

    def owners(self) -> dict[str, IPAddress]:
        """Who owns what."""
        with self._store.read() as db:
            rows = db.execute(
                "SELECT owner, address FROM addresses WHERE pool=? AND owner IS NOT NULL", (self.name,)
            ).fetchall()
        return {owner: ip_address(address) for owner, address in rows}

    @abstractmethod
    def _is_ours(self, address: IPAddress, driver: str) -> bool:
        """Whether an address that an attachment of ``driver`` leases is one of these."""

    def _adopt(self, db: sqlite3.Connection) -> None:
        """Addresses in the leases of attachments count as owned, also when the table has lost their rows."""
        rows = db.execute(
            "SELECT network, container_id, ifname, driver, lease FROM attachments WHERE lease IS NOT NULL"
        )
        for network, container_id, ifname, driver, lease in rows.fetchall():
            for address in _leased(lease):
                if self._is_ours(address, driver):
                    db.execute(
                        "INSERT INTO addresses (pool, address, owner) VALUES (?, ?, ?) "
                        "ON CONFLICT DO UPDATE SET owner=excluded.owner WHERE owner IS NULL",
                        (self.name, str(address), f"{network}/{container_id}/{ifname}"),
                    )


class AddressPool(_OwnedAddresses):
    """The addresses of ``cidr``, each with at most one owner.

    The network address is never given out, nor the IPv4 broadcast address.

    :param name: the pool's name in the store; two pools of one name would share rows.
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
        self._reserved = {int(address) - int(cidr.network_address) for address in reserve if address in cidr}
        self._first = 1 if cidr.prefixlen < cidr.max_prefixlen - 1 else 0
        broadcast = isinstance(cidr, IPv4Network) and self._first
        self._end = cidr.num_addresses - (1 if broadcast else 0)
        self._next = self._first
        super().__init__(store, name, rest=rest, clock=clock)

    def allocate(self, owner: str) -> IPAddress:
        """An address for ``owner``; the same one as long as it is not released.

        :raises NoAddress: every address is owned or rests.
        """
        found = self._store.write(lambda db: self._allocate(db, owner), durable=False)
        if isinstance(found, NoAddress):
            raise found  # only now: raised in the transaction it would undo what that did about the clock
        return found

    def _allocate(self, db: sqlite3.Connection, owner: str) -> IPAddress | NoAddress:
        row = db.execute(
            "SELECT address FROM addresses WHERE pool=? AND owner=?", (self.name, owner)
        ).fetchone()
        if row:
            return ip_address(row[0])
        now = self._clock()
        # By itself SQLite would look through all rows of the pool.
        table, unowned = "addresses INDEXED BY addresses_by_owner", "pool=? AND owner IS NULL AND rests_until"
        db.execute(f"DELETE FROM {table} WHERE {unowned}<=?", (self.name, now))
        db.execute(  # the clock has jumped back
            f"UPDATE {table} SET rests_until=? WHERE {unowned}>?",
            (now + self._rest, self.name, now + self._rest),
        )
        offset = self._free_offset(db)
        if offset is None:
            rows = db.execute("SELECT address, owner FROM addresses WHERE pool=?", (self.name,)).fetchall()
            inside = [owner for address, owner in rows if ip_address(address) in self.cidr]
            resting = inside.count(None)
            owned = len(inside) - resting
            return NoAddress(
                f"no address is free in {self.cidr}: {owned} are owned by pods and {resting} rest for up to "
                f"{self._rest:g} s after their last use; delete pods or give the node a larger CIDR"
            )
        self._next = offset + 1
        address = self.cidr.network_address + offset
        db.execute(
            "INSERT INTO addresses (pool, address, owner) VALUES (?, ?, ?)", (self.name, str(address), owner)
        )
        return address

    def _free_offset(self, db: sqlite3.Connection) -> int | None:
        # Going on after the last one given keeps an address out of use for longer than its rest demands.
        start = self._next if self._first <= self._next < self._end else self._first
        for offset in chain(range(start, self._end), range(self._first, start)):
            if offset in self._reserved:
                continue
            address = str(self.cidr.network_address + offset)
            if not db.execute(
                "SELECT 1 FROM addresses WHERE pool=? AND address=?", (self.name, address)
            ).fetchone():
                return offset
        return None

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
        wanted = [str(address) for address in addresses]

        def change(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM addresses WHERE pool=? AND owner IS NULL", (self.name,))
            for address in wanted:
                row = db.execute(
                    "SELECT owner FROM addresses WHERE pool=? AND address=?", (self.name, address)
                ).fetchone()
                if row and row[0] != owner:
                    raise NoAddress(f"address {address} is still that of {row[0]}, which is being taken down")
                db.execute(
                    "INSERT OR IGNORE INTO addresses (pool, address, owner) VALUES (?, ?, ?)",
                    (self.name, address, owner),
                )

        self._store.write(change, durable=False)

    def _is_ours(self, address: IPAddress, driver: str) -> bool:
        return driver == self.name


def _leased(lease: str) -> list[IPAddress]:
    """The addresses in a lease as the journal holds it."""
    return [ip_address(text.partition("/")[0]) for text in json.loads(lease)["addresses"]]
