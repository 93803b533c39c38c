"""The pool's rows in memory and on disk, and who gets which.

Memory decides and the journal remembers: a grant is made in memory under the lock, where it cannot be made
twice, written down without it, and told to the caller only then. What is taken from service is on disk before
the cloud is asked to take it away.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_interface

from terway_core.eni.addresses import Addresses
from terway_core.eni.ledger import Ledger
from terway_core.eni.model import Eni, EniAddress, EniState, Use
from terway_core.types import IPAddress, IPInterface


@dataclass(frozen=True, slots=True)
class Grant:
    """What an attachment got: an ENI, and the addresses on it that are the attachment's."""

    eni: Eni
    addresses: tuple[EniAddress, ...]

    @property
    def interfaces(self) -> tuple[IPInterface, ...]:
        """The addresses as a pod has them, each alone in its subnet; IPv4 first."""
        ordered = sorted(self.addresses, key=lambda row: row.address.version)
        return tuple(ip_interface(row.address) for row in ordered)


class Rows:
    """ENIs and addresses of one node. :attr:`changed` is their lock, and notified whenever one changes.

    :param families: what a pod gets an address of.
    :param now: by which times that were written under a wrong clock are put right.
    :param cooldown: the longest that anything can still have to rest.
    :ivar version: grows with each change.
    :ivar urgent: one of the changes since somebody set this to False was more than who has what there is.
    """

    def __init__(self, ledger: Ledger, families: Sequence[int], *, now: float, cooldown: float) -> None:
        self._ledger = ledger
        self._families = families
        self.changed = threading.Condition(threading.RLock())
        self.version = 0
        self.urgent = False
        latest = now + cooldown
        enis, addresses = ledger.load()
        self.enis: dict[str, Eni] = {
            eni.token: replace(eni, since=min(eni.since, now), rests_until=min(eni.rests_until, latest))
            for eni in enis
        }
        self.addresses = Addresses(
            replace(row, rests_until=min(row.rests_until, latest)) for row in addresses
        )

    def of(self, token: str) -> list[EniAddress]:
        """The addresses of one ENI."""
        with self.changed:
            return [address for address in self.addresses.values() if address.token == token]

    def by_eni(self) -> dict[str, list[EniAddress]]:
        """All addresses, by the token of their ENI."""
        with self.changed:
            found: dict[str, list[EniAddress]] = {token: [] for token in self.enis}
            for address in self.addresses.values():
                found[address.token].append(address)
            return found

    def notify(self, *, urgent: bool = True) -> None:
        """Something that others wait for has changed."""
        with self.changed:
            self.version += 1
            self.urgent |= urgent
            self.changed.notify_all()

    # -- grants -----------------------------------------------------------------------------------------

    def granted(self, owner: str) -> Grant | None:
        """What ``owner`` has."""
        with self.changed:
            for eni in self.enis.values():
                if eni.owner == owner:
                    return Grant(eni, tuple(self.of(eni.token)))
            mine = self.addresses.of_owner(owner)
            return Grant(self.enis[mine[0].token], mine) if mine else None

    def grant(self, owner: str, use: Use, now: float) -> Grant | None:
        """Mark, in memory only, what ``owner`` gets; None when nothing is free. :meth:`keep` writes it."""
        with self.changed:
            return self._grant_eni(owner, now) if use == "exclusive" else self._grant_address(owner, now)

    def keep(self, grant: Grant) -> None:
        """Write a grant down.

        :raises StoreError: the disk did not take it; the grant is undone.
        """
        try:
            if grant.eni.owner:
                with self.changed:
                    self._ledger.put(self.enis[grant.eni.token])
            else:
                self._ledger.put_addresses(grant.addresses, durable=False)
        except BaseException:
            with self.changed:
                if grant.eni.owner:
                    self.enis[grant.eni.token] = replace(self.enis[grant.eni.token], owner="")
                for address in grant.addresses:
                    self.addresses.put(replace(self.addresses[address.address], owner=""))
                self.notify()
            raise

    def give_back(self, owner: str, rests_until: float) -> bool:
        """End what ``owner`` has; it rests. False when it has nothing.

        :raises StoreError: the disk did not take it; ``owner`` still has it.
        """
        with self.changed:
            enis = [eni for eni in self.enis.values() if eni.owner == owner]
            for eni in enis:
                self._put(replace(eni, owner="", rests_until=rests_until))
            mine = [row.address for row in self.addresses.of_owner(owner)]
        if not mine:
            return bool(enis)
        # Without the lock: releases that come together are one write, and no grant waits for the disk.
        self._ledger.give_back(owner, mine, rests_until)
        with self.changed:
            for address in mine:
                if (row := self.addresses[address]).owner == owner:
                    self.addresses.put(replace(row, owner="", rests_until=rests_until))
            self.notify(urgent=False)
        return True

    def owners(self) -> set[str]:
        """Everybody who has something."""
        with self.changed:
            owners = {eni.owner for eni in self.enis.values()}
            owners.update(address.owner for address in self.addresses.values())
            return owners - {""}

    def owners_on(self, token: str) -> list[str]:
        """Everybody who has something of this ENI."""
        with self.changed:
            return sorted({self.enis[token].owner, *(row.owner for row in self.of(token))} - {""})

    def adopt(self) -> None:
        """Addresses in the journal's leases have an owner, also when their rows were lost and made anew.

        Only one that is being unassigned has none: its last owner is through with it.
        """
        with self.changed:
            changed = []
            for owner, addresses in self._ledger.journalled().items():
                for row in filter(None, map(self.addresses.get, addresses)):
                    eni = self.enis[row.token]
                    if eni.use == "exclusive":
                        if not eni.owner:
                            self._put(replace(eni, owner=owner))
                    elif not row.owner and not row.leaving:
                        changed.append(replace(row, owner=owner))
            if changed:
                self._put_addresses(changed)

    def has_lease(self, addresses: Iterable[IPAddress]) -> bool:
        """One of these is in a lease of the journal."""
        wanted = {*addresses}
        return any(wanted.intersection(leased) for leased in self._ledger.journalled().values())

    # -- changes of what there is -----------------------------------------------------------------------

    def put(self, eni: Eni, addresses: Iterable[EniAddress] = ()) -> None:
        """An ENI as it is from now on, with addresses on it. Who has it stays as it is."""
        with self.changed:
            if known := self.enis.get(eni.token):
                eni = replace(eni, owner=known.owner, rests_until=known.rests_until)
            new = self._new(addresses)
            self._put(eni, new)
            if new:
                self.adopt()

    def add_addresses(self, addresses: Iterable[EniAddress]) -> list[EniAddress]:
        """Addresses that the cloud says are on an ENI; returns those that were not known to be there."""
        with self.changed:
            new = self._new(addresses)
            if new:
                self._put_addresses(new)
                self.adopt()
            return new

    def change_addresses(self, addresses: Sequence[EniAddress]) -> None:
        """Rows as they are from now on; made from rows under the lock that the caller still has."""
        with self.changed:
            self._put_addresses(addresses)

    def leave(self, addresses: Iterable[EniAddress]) -> list[EniAddress]:
        """Take addresses from service that nobody has; returns those. A prefix goes whole or stays."""
        with self.changed:
            units = {row.block or row.address for row in addresses}
            owned = {row.block for row in self.addresses.values() if row.block and row.owner}
            going = [
                replace(row, leaving=True)
                for row in self.addresses.values()
                if (row.block or row.address) in units - owned and not row.owner
            ]
            if going:
                self._put_addresses(going)
            return going

    def retire(self, token: str, now: float) -> bool:
        """Take an ENI from service, unless somebody has got hold of it."""
        with self.changed:
            if self.owners_on(token):
                return False
            self._put(replace(self.enis[token], state=EniState.DETACHING, since=now, problem=""))
            return True

    def remove(self, token: str) -> None:
        """An ENI is gone."""
        with self.changed:
            self._ledger.remove(token)
            del self.enis[token]
            for address in [a.address for a in self.addresses.values() if a.token == token]:
                self.addresses.drop(address)
            self.notify()

    def remove_addresses(self, token: str, addresses: Iterable[IPAddress]) -> None:
        """Addresses are no longer on an ENI; by now they may be on another one."""
        with self.changed:
            known = self.addresses
            gone = [one for one in addresses if one in known and known[one].token == token]
            self._ledger.remove_addresses(gone)
            for address in gone:
                known.drop(address)
            self.notify()

    def _new(self, addresses: Iterable[EniAddress]) -> list[EniAddress]:
        """Those without a row on their ENI. The row of another ENI is out of date, as the cloud gives no
        address twice; but as long as it has an owner nobody else may get it."""
        return [row for row in addresses if self._is_new(row, self.addresses.get(row.address))]

    def _is_new(self, row: EniAddress, known: EniAddress | None) -> bool:
        if known is None:
            return True
        return known.token != row.token and not known.owner and not self.enis[known.token].owner

    def _put(self, eni: Eni, addresses: Sequence[EniAddress] = ()) -> None:
        self._ledger.put(eni, addresses)
        self.enis[eni.token] = eni
        for address in addresses:
            self.addresses.put(address)
        self.notify()

    def _put_addresses(self, addresses: Sequence[EniAddress]) -> None:
        self._ledger.put_addresses(addresses)
        for address in addresses:
            self.addresses.put(address)
        self.notify()

    def _grant_eni(self, owner: str, now: float) -> Grant | None:
        free = [
            eni
            for eni in self.enis.values()
            if eni.use == "exclusive" and eni.state is EniState.READY
            if not eni.owner and eni.rests_until <= now
        ]
        if not free:
            return None
        eni = replace(min(free, key=lambda eni: eni.rests_until), owner=owner)
        self.enis[eni.token] = eni
        return Grant(eni, tuple(self.of(eni.token)))

    def _grant_address(self, owner: str, now: float) -> Grant | None:
        """One address of each family from one ENI, the fullest first: what is spread thin cannot be given
        back. Of an ENI's free addresses the one that has rested longest."""
        serving = []
        for eni in self.enis.values():
            if eni.use == "shared" and eni.state is EniState.READY:
                chosen = [self.addresses.longest_rested(eni.token, family, now) for family in self._families]
                if all(chosen):
                    serving.append((eni, chosen))
        if not serving:
            return None
        eni, chosen = max(serving, key=lambda one: self.addresses.used[one[0].token])
        taken = tuple(replace(address, owner=owner) for address in chosen if address)
        for address in taken:
            self.addresses.put(address)
        return Grant(eni, taken)
