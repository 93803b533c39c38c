"""The pool's rows in memory and on disk, and who gets which.

Memory decides and disk remembers: a grant is made in memory under the lock, where it cannot be made twice,
written to disk without it, and told to the caller only then. What is taken from service is on disk before
the cloud is asked to take it away.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from terway_core.eni.ledger import Ledger
from terway_core.eni.model import Eni, EniAddress, EniState, Use
from terway_core.types import IPAddress


@dataclass(frozen=True, slots=True)
class Grant:
    """What an attachment got: an ENI, and the addresses on it that are the attachment's."""

    eni: Eni
    addresses: tuple[EniAddress, ...]


class Rows:
    """ENIs and addresses of one node; :attr:`changed` is notified whenever one changes.

    :param families: what a pod gets an address of.
    """

    def __init__(self, ledger: Ledger, families: Sequence[int]) -> None:
        self._ledger = ledger
        self._families = families
        self.changed = threading.Condition(threading.RLock())
        enis, addresses = ledger.load()
        self.enis: dict[str, Eni] = {eni.token: eni for eni in enis}
        self.addresses: dict[IPAddress, EniAddress] = {address.address: address for address in addresses}

    def of(self, token: str) -> list[EniAddress]:
        """The addresses of one ENI."""
        with self.changed:
            return [address for address in self.addresses.values() if address.token == token]

    def by_eni(self) -> dict[str, list[EniAddress]]:
        """All addresses, by the token of their ENI."""
        with self.changed:
            found: dict[str, list[EniAddress]] = {token: [] for token in self.enis}
            for address in self.addresses.values():
                found.setdefault(address.token, []).append(address)
            return found

    # -- grants -----------------------------------------------------------------------------------------

    def granted(self, owner: str) -> Grant | None:
        """What ``owner`` has."""
        with self.changed:
            for eni in self.enis.values():
                if eni.owner == owner:
                    return Grant(eni, tuple(self.of(eni.token)))
            mine = tuple(address for address in self.addresses.values() if address.owner == owner)
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
                self._ledger.put(grant.eni)
            else:
                self._ledger.put_addresses(grant.addresses)
        except BaseException:
            with self.changed:
                if grant.eni.owner:
                    self.enis[grant.eni.token] = replace(grant.eni, owner="")
                for address in grant.addresses:
                    self.addresses[address.address] = replace(address, owner="")
                self.changed.notify_all()
            raise

    def give_back(self, owner: str, rests_until: float) -> Grant | None:
        """End what ``owner`` has; it rests. None when it has nothing."""
        with self.changed:
            grant = self.granted(owner)
            if grant is None:
                return None
            if grant.eni.owner:
                self._put(replace(grant.eni, owner="", rests_until=rests_until))
            else:
                self._put_addresses(
                    [replace(address, owner="", rests_until=rests_until) for address in grant.addresses]
                )
            return grant

    def owners(self) -> set[str]:
        """Everybody who has something."""
        with self.changed:
            owners = {eni.owner for eni in self.enis.values()}
            owners.update(address.owner for address in self.addresses.values())
            return owners - {""}

    def adopt(self, leases: dict[str, tuple[IPAddress, ...]]) -> None:
        """Addresses in the journal's leases have an owner, also when their rows were lost and made anew."""
        with self.changed:
            changed = []
            for owner, addresses in leases.items():
                for row in filter(None, map(self.addresses.get, addresses)):
                    eni = self.enis[row.token]
                    if eni.use == "exclusive":
                        if not eni.owner:
                            self._put(replace(eni, owner=owner))
                    elif not row.owner:
                        changed.append(replace(row, owner=owner, leaving=False))
            if changed:
                self._put_addresses(changed)

    # -- changes of what there is -----------------------------------------------------------------------

    def put(self, eni: Eni, addresses: Iterable[EniAddress] = ()) -> None:
        """An ENI as it is from now on, with addresses that are new on it."""
        with self.changed:
            self._put(eni, [address for address in addresses if address.address not in self.addresses])

    def add_addresses(self, addresses: Iterable[EniAddress]) -> list[EniAddress]:
        """Addresses that the cloud gave; those that are known already stay as they are."""
        with self.changed:
            new = [address for address in addresses if address.address not in self.addresses]
            self._put_addresses(new)
            return new

    def leave(self, addresses: Iterable[EniAddress]) -> list[EniAddress]:
        """Take addresses from service that are still free; returns those. A prefix goes whole or stays."""
        with self.changed:
            kept = {row.block for row in self.addresses.values() if row.block and row.owner}
            going = [
                replace(row, leaving=True)
                for row in (self.addresses.get(address.address) for address in addresses)
                if row and not row.owner and row.block not in kept
            ]
            self._put_addresses(going)
            return going

    def retire(self, eni: Eni) -> bool:
        """Write the row of an ENI that is taken from service, unless somebody has got hold of it."""
        with self.changed:
            if self.enis[eni.token].owner or any(address.owner for address in self.of(eni.token)):
                return False
            self._put(eni)
            return True

    def remove(self, token: str) -> None:
        """An ENI is gone."""
        with self.changed:
            self._ledger.remove(token)
            del self.enis[token]
            for address in [a.address for a in self.addresses.values() if a.token == token]:
                del self.addresses[address]
            self.changed.notify_all()

    def remove_addresses(self, addresses: Iterable[IPAddress]) -> None:
        """Addresses are gone."""
        with self.changed:
            gone = list(addresses)
            self._ledger.remove_addresses(gone)
            for address in gone:
                self.addresses.pop(address, None)
            self.changed.notify_all()

    def _put(self, eni: Eni, addresses: Sequence[EniAddress] = ()) -> None:
        self._ledger.put(eni, addresses)
        self.enis[eni.token] = eni
        self.addresses.update((address.address, address) for address in addresses)
        self.changed.notify_all()

    def _put_addresses(self, addresses: Sequence[EniAddress]) -> None:
        self._ledger.put_addresses(addresses)
        self.addresses.update((address.address, address) for address in addresses)
        self.changed.notify_all()

    def _grant_eni(self, owner: str, now: float) -> Grant | None:
        for eni in self.enis.values():
            ready = eni.use == "exclusive" and eni.state is EniState.READY
            if ready and not eni.owner and eni.rests_until <= now:
                eni = replace(eni, owner=owner)
                self.enis[eni.token] = eni
                return Grant(eni, tuple(self.of(eni.token)))
        return None

    def _grant_address(self, owner: str, now: float) -> Grant | None:
        """One address of each family from one ENI, the fullest first: what is spread thin cannot be given
        back. Of an ENI's free addresses the one that has rested longest."""
        best: tuple[int, Eni, tuple[EniAddress, ...]] | None = None
        for token, addresses in self.by_eni().items():
            eni = self.enis[token]
            if eni.use != "shared" or eni.state is not EniState.READY:
                continue
            chosen = []
            for family in self._families:
                free = [a for a in addresses if a.address.version == family and a.free(now)]
                if not free:
                    break
                chosen.append(min(free, key=lambda a: a.rests_until))
            else:
                used = sum(bool(a.owner) for a in addresses)
                if best is None or used > best[0]:
                    best = used, eni, tuple(chosen)
        if best is None:
            return None
        taken = tuple(replace(address, owner=owner) for address in best[2])
        self.addresses.update((address.address, address) for address in taken)
        return Grant(best[1], taken)
