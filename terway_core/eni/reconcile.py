"""Compares the rows with what the cloud and the kernel say, and mends what is certain.

* What only the cloud has is taken in: addresses on our ENIs, and ENIs that carry our tags.
* What only the rows have is reported while somebody owns it, and forgotten when nobody does and a second
  look, some time after the first, does not find it either: the API's lists may lag behind its answers.
* An ENI of ours that is not on this instance and that no row knows was lost; after a second look it is
  deleted.
* What others made is never touched; it only counts against the quota.

The metadata service is not asked at all: it lags, and nothing may be freed on its word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Final

from terway_core.cloud import Cloud, ecs, vpc
from terway_core.eni.machine import addresses_of
from terway_core.eni.model import TOKEN_TAG, USE_TAG, Eni, EniState, Tags
from terway_core.eni.rows import Rows

log = logging.getLogger(__name__)

#: Seconds between the two looks that must agree before something is forgotten or deleted.
SECOND_LOOK: Final = 30.0


class Reconciler:
    """Remembers, between two rounds, what it has seen once."""

    def __init__(
        self,
        rows: Rows,
        cloud: Cloud,
        tags: Tags,
        *,
        busy: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._rows = rows
        self._cloud = cloud
        self._tags = tags
        self._busy = busy
        self._clock = clock
        self._first_seen: dict[Hashable, float] = {}
        self.problems: list[str] = []
        self.foreign_enis = 0

    def compare(self) -> list[ecs.NetworkInterface]:
        """One round; returns the ENIs on this instance, those of others included.

        :raises CloudError: the API refused or did not answer; nothing was changed.
        """
        attached = ecs.describe_network_interfaces(self._cloud, instance_id=self._tags.instance_id)
        tagged = ecs.describe_network_interfaces(self._cloud, tags=self._tags.ours)
        ours = {found.eni_id: found for found in tagged}
        foreign = [
            eni for eni in attached if eni.eni_id not in ours and eni.type not in ("Primary", "Member")
        ]
        problems: list[str] = []
        with self._rows.changed:
            known = {eni.eni_id: eni for eni in self._rows.enis.values() if eni.eni_id}
            tokens = set(self._rows.enis)
            for found in tagged:
                if found.eni_id in known:
                    self._compare_addresses(known[found.eni_id], found, problems)
                elif found.tags.get(TOKEN_TAG) not in tokens:  # else its creation is just under way
                    self._take_in(found)
            for eni_id, eni in known.items():
                if eni_id not in ours and eni.state is EniState.READY and not self._busy(eni.token):
                    self._missing_eni(eni, problems)
        self.problems = problems
        self.foreign_enis = len(foreign)
        return attached

    def _take_in(self, found: ecs.NetworkInterface) -> None:
        here = found.instance_id == self._tags.instance_id
        if here and found.status == "InUse":
            (vswitch,) = vpc.describe_vswitches(self._cloud, [found.vswitch_id])
            eni = Eni(
                token=found.tags.get(TOKEN_TAG) or found.eni_id,
                use="exclusive" if found.tags.get(USE_TAG) == "exclusive" else "shared",
                state=EniState.READY,
                vswitch_id=found.vswitch_id,
                security_group_ids=found.security_group_ids,
                since=self._clock(),
                eni_id=found.eni_id,
                mac=found.mac,
                cidr=vswitch.cidr,
                ipv6_cidr=vswitch.ipv6_cidr,
            )
            self._rows.put(eni, addresses_of(eni, found))
            log.warning("eni taken in", extra={"eni": found.eni_id})
        elif self._twice(found.eni_id):
            eni = Eni(
                token=found.tags.get(TOKEN_TAG) or found.eni_id,
                use="shared",
                state=EniState.DETACHING if here else EniState.DELETING,
                vswitch_id=found.vswitch_id,
                security_group_ids=found.security_group_ids,
                since=self._clock(),
                eni_id=found.eni_id,
                mac=found.mac,
                problem="was made by this node and lost",
            )
            self._rows.put(eni)
            log.warning("lost eni is deleted", extra={"eni": found.eni_id, "status": found.status})

    def _compare_addresses(self, eni: Eni, found: ecs.NetworkInterface, problems: list[str]) -> None:
        if eni.state is not EniState.READY or self._busy(eni.token):
            return
        actual = {address.address: address for address in addresses_of(eni, found)}
        new = self._rows.add_addresses(actual.values())
        if new:
            log.info(
                "addresses taken in", extra={"eni": eni.eni_id, "addresses": [str(a.address) for a in new]}
            )
        gone = []
        for row in self._rows.of(eni.token):
            if row.address in actual:
                self._first_seen.pop(row.address, None)
            elif row.owner:
                problems.append(f"{row.address} of {row.owner} is not on {eni.eni_id} any more")
            elif self._twice(row.address):
                gone.append(row.address)
        if gone:
            self._rows.remove_addresses(gone)
            log.warning("addresses forgotten", extra={"eni": eni.eni_id, "addresses": [str(a) for a in gone]})

    def _missing_eni(self, eni: Eni, problems: list[str]) -> None:
        owners = {row.owner for row in self._rows.of(eni.token)} | {eni.owner}
        if owners - {""}:
            problems.append(
                f"{eni.eni_id} is gone, and with it the network of {', '.join(sorted(owners - {''}))}"
            )
        elif self._twice(eni.eni_id):
            self._rows.remove(eni.token)
            log.warning("eni forgotten", extra={"eni": eni.eni_id})

    def _twice(self, what: Hashable) -> bool:
        """This is not the first time, and the first was long enough ago."""
        now = self._clock()
        first = self._first_seen.setdefault(what, now)
        if now - first < SECOND_LOOK:
            return False
        del self._first_seen[what]
        return True


def primary_of(attached: list[ecs.NetworkInterface]) -> ecs.NetworkInterface | None:
    """The ENI that the instance was made with."""
    return next((eni for eni in attached if eni.type == "Primary"), None)
