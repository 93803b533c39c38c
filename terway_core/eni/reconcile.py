"""Compares the rows with what the cloud and the kernel say, and mends what is certain.

* What only the cloud has is taken in: addresses on our ENIs, and ENIs that carry our tags.
* An address that only the rows have is reported and not given out any more. While nobody has it and a second
  look, some time after the first, does not find it either, it is given back: the API's lists may lag behind
  its answers.
* An ENI that is not where it should be is attached again, or found to be gone; :mod:`.machine` does that.
* An ENI of ours that is not on this instance and that neither a row nor a lease knows was lost; after a
  second look it is deleted.
* What others made is never touched; it only counts against the quota.

The metadata service is not asked at all: it lags, and nothing may be freed on its word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Final, get_args

from terway_core.cloud import Cloud, ecs, vpc
from terway_core.eni.machine import addresses_of
from terway_core.eni.model import TOKEN_TAG, USE_TAG, Eni, EniAddress, EniState, Tags, Use
from terway_core.eni.rows import Rows
from terway_core.types import IPAddress

log = logging.getLogger(__name__)

#: Seconds between the two looks that must agree before something is given back or deleted.
SECOND_LOOK: Final = 30.0


class Reconciler:
    """Remembers, between two rounds, what it has seen once.

    :param busy: whether something is being done to an ENI, by its token.
    :param has_link: whether the kernel shows a link with this MAC address.
    :ivar doubts: the last round has seen something that a second look must confirm.
    """

    def __init__(
        self,
        rows: Rows,
        cloud: Cloud,
        tags: Tags,
        *,
        busy: Callable[[str], bool],
        has_link: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._rows = rows
        self._cloud = cloud
        self._tags = tags
        self._busy = busy
        self._has_link = has_link
        self._clock = clock
        self._first_seen: dict[Hashable, float] = {}
        self._seen_now: dict[Hashable, float] = {}
        self.problems: list[str] = []
        self.foreign_enis = 0

    @property
    def doubts(self) -> bool:
        return bool(self._first_seen)

    def compare(self) -> list[ecs.NetworkInterface]:
        """One round; returns the ENIs on this instance, those of others included.

        :raises CloudError: the API refused or did not answer; nothing was changed.
        """
        before = self._snapshot()
        attached = ecs.describe_network_interfaces(self._cloud, instance_id=self._tags.instance_id)
        tagged = ecs.describe_network_interfaces(self._cloud, tags=self._tags.ours)
        unknown = {found.vswitch_id for found in tagged if found.eni_id not in before}
        vswitches = {v.vswitch_id: v for v in vpc.describe_vswitches(self._cloud, sorted(unknown))}
        without_link = self._without_link()
        with self._rows.changed:
            after = self._snapshot()
            self._seen_now = {}
            self.problems = []
            for found in tagged:
                # One that was in a row a moment ago is just being deleted.
                if found.eni_id not in before and found.eni_id not in after:
                    self._compare_unknown(found, vswitches.get(found.vswitch_id))
            found_enis = {found.eni_id: found for found in (*attached, *tagged)}
            for eni in list(self._rows.enis.values()):
                # While something was done to it, the answers may be from before or after.
                addresses = after.get(eni.eni_id)
                at_rest = addresses is not None and addresses == before.get(eni.eni_id)
                if eni.state is EniState.READY and at_rest:
                    self._compare_known(eni, found_enis.get(eni.eni_id))
                self._check_link(eni, without_link)
            self._report()
            self._first_seen = self._seen_now
            ours = {eni.eni_id for eni in self._rows.enis.values()} | {found.eni_id for found in tagged}
        others = [eni for eni in attached if eni.eni_id not in ours]
        self.foreign_enis = sum(eni.type not in ("Primary", "Member") for eni in others)
        return attached

    def check_links(self) -> None:
        """ENIs without a link on this host cannot serve: after a reboot they may need a moment."""
        without_link = self._without_link()
        with self._rows.changed:
            for eni in list(self._rows.enis.values()):
                self._check_link(eni, without_link)

    def _without_link(self) -> set[str]:
        """ENIs that should have one. Asked for without the lock, as the kernel may take its time."""
        with self._rows.changed:
            enis = [eni for eni in self._rows.enis.values() if eni.state is EniState.READY and not eni.owner]
        return {eni.token for eni in enis if not self._has_link(eni.mac)}

    def _check_link(self, eni: Eni, without_link: set[str]) -> None:
        eni = self._rows.enis[eni.token]
        # The link of an ENI that a pod owns is in the pod.
        if eni.token in without_link and eni.state is EniState.READY and not eni.owner:
            self._is_missing(eni, "the host has no link for it")

    def _snapshot(self) -> dict[str, set[IPAddress] | None]:
        """The addresses of each ENI, by its id; None while something is being done to it."""
        with self._rows.changed:
            return {
                eni.eni_id: None
                if self._busy(eni.token)
                else {row.address for row in self._rows.of(eni.token)}
                for eni in self._rows.enis.values()
                if eni.eni_id
            }

    # -- one ENI ------------------------------------------------------------------------------------------

    def _compare_unknown(self, found: ecs.NetworkInterface, vswitch: vpc.VSwitch | None) -> None:
        token = found.tags.get(TOKEN_TAG) or found.eni_id
        if known := self._rows.enis.get(token):
            if not known.eni_id:
                return  # its creation is just under way
            token = found.eni_id  # made twice for one token, which the service should not do
        here = found.instance_id == self._tags.instance_id
        if found.instance_id and not here:
            self.problems.append(
                f"{found.eni_id} carries this node's tags and is attached to {found.instance_id}; "
                "remove its tags or detach it there"
            )
            return
        eni = Eni(
            token=token,
            use=next((use for use in get_args(Use) if use == found.tags.get(USE_TAG)), "shared"),
            state=EniState.READY,
            vswitch_id=found.vswitch_id,
            security_group_ids=found.security_group_ids,
            since=self._clock(),
            eni_id=found.eni_id,
            mac=found.mac,
            cidr=vswitch.cidr if vswitch else None,
            ipv6_cidr=vswitch.ipv6_cidr if vswitch else None,
        )
        rows = addresses_of(eni, found)
        attached = here and found.status == "InUse"
        if attached or self._rows.has_lease(row.address for row in rows):
            self._rows.put(eni if attached else replace(eni, state=EniState.ATTACHING), rows)
            log.warning("eni taken in", extra={"eni": found.eni_id, "status": found.status})
        elif self._twice(found.eni_id):
            state = EniState.DETACHING if here else EniState.DELETING
            self._rows.put(replace(eni, state=state, problem="was made by this node and lost"))
            log.warning("lost eni is deleted", extra={"eni": found.eni_id, "status": found.status})

    def _compare_known(self, eni: Eni, found: ecs.NetworkInterface | None) -> None:
        here = found and found.instance_id == self._tags.instance_id and found.status == "InUse"
        if not found or not here:
            self._is_missing(eni, f"the cloud says that it is {found.status if found else 'gone'}")
            return
        new = self._rows.add_addresses(addresses_of(eni, found))
        if new:
            log.info(
                "addresses taken in",
                extra={"eni": eni.eni_id, "addresses": [str(row.address) for row in new]},
            )
        there = {row.address for row in addresses_of(eni, found)}
        rows = self._rows.of(eni.token)
        if eni.owner:
            self.problems += [
                f"{row.address} of {eni.owner} is not on {eni.eni_id} any more; delete that pod"
                for row in rows
                if row.address not in there
            ]
        else:
            changed = [self._settled(eni, row, there) for row in rows]
            self._rows.change_addresses([row for row in changed if row])

    def _settled(self, eni: Eni, row: EniAddress, there: set[IPAddress]) -> EniAddress | None:
        """The row as it is to be from now on; None if it stays as it is."""
        if row.address in there:
            return replace(row, leaving=False) if row.leaving and row.owner else None
        if row.leaving:
            return None
        if row.owner:
            return replace(row, leaving=True)
        if not self._twice(row.address):
            return replace(row, rests_until=self._clock() + 2 * SECOND_LOOK)
        log.warning("address is gone", extra={"eni": eni.eni_id, "address": str(row.address)})
        return replace(row, leaving=True)

    def _is_missing(self, eni: Eni, why: str) -> None:
        log.warning("eni is missing", extra={"eni": eni.eni_id, "problem": why})
        self._rows.put(replace(eni, state=EniState.ATTACHING, since=self._clock()))

    def _report(self) -> None:
        for eni in self._rows.enis.values():
            owners = self._rows.owners_on(eni.token)
            if owners and eni.state is not EniState.READY:
                self.problems.append(
                    f"{eni.eni_id} is not attached, so {', '.join(owners)} cannot be reached; "
                    "it is attached again if it still exists, else delete those pods"
                )
        for row in self._rows.addresses.values():
            if row.leaving and row.owner:
                name = self._rows.enis[row.token].name
                self.problems.append(
                    f"{row.address} of {row.owner} is not on {name} any more; delete that pod"
                )

    def _twice(self, what: Hashable) -> bool:
        """This is not the first time, and the first was long enough ago."""
        now = self._clock()
        first = self._first_seen.get(what, now)
        if now - first >= SECOND_LOOK:
            return True
        self._seen_now[what] = first
        return False


def primary_of(attached: list[ecs.NetworkInterface]) -> ecs.NetworkInterface | None:
    """The ENI that the instance was made with."""
    return next((eni for eni in attached if eni.type == "Primary"), None)
