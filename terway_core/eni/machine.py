"""Moves one ENI one step. Every step asks the cloud where the ENI is, so it may be repeated at will.

::

                        is not there any more
                     ┌──────────┐
                     ▼          │
    creating ──▶ attaching ──▶ ready ──▶ detaching ──▶ deleting ──▶ (no row)
        │            │ never arrives        ▲
        ▼            └──────────────────────┘
     (no row)  nothing was made
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from terway_core.cloud import Cloud, ecs
from terway_core.eni.model import Eni, EniAddress, EniState, Tags
from terway_core.errors import CloudError
from terway_core.types import IPAddress

log = logging.getLogger(__name__)

#: Seconds an attach may take before the ENI is given up; two to six are usual.
ATTACH_LIMIT: Final = 120.0
#: Seconds for which an ENI may be missing from the API's lists and be there all the same.
VISIBLE_WITHIN: Final = 60.0
#: Seconds after which a detach or a delete is asked for again; two to six are usual.
STUCK_AFTER: Final = 30.0


@dataclass(frozen=True, slots=True)
class Moved:
    """What a step found out.

    :param eni: the row from now on; None when there is nothing left of the ENI.
    :param addresses: all that the cloud says are on it; only when it has become ready.
    :param wait: seconds until the next step can be of use.
    """

    eni: Eni | None
    addresses: tuple[EniAddress, ...] = ()
    wait: float = 0.0


class Machine:
    """The steps for ENIs of one instance.

    :param has_link: whether the kernel shows a link with this MAC address.
    """

    def __init__(
        self,
        cloud: Cloud,
        tags: Tags,
        *,
        prefix_mode: bool,
        has_link: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._cloud = cloud
        self._tags = tags
        self._prefix_mode = prefix_mode
        self._has_link = has_link
        self._clock = clock

    def advance(self, eni: Eni) -> Moved:
        """One step.

        :raises CloudError: the call was refused; the ENI stays where it is.
        """
        match eni.state:
            case EniState.CREATING:
                return self._create(eni)
            case EniState.ATTACHING:
                return self._attach(eni)
            case EniState.DETACHING:
                return self._detach(eni)
            case EniState.DELETING:
                return self._delete(eni)
            case _:
                return Moved(eni)

    def to(self, eni: Eni, state: EniState, *, problem: str = "") -> Eni:
        """The row of an ENI that comes into ``state`` now."""
        return replace(eni, state=state, since=self._clock(), problem=problem)

    def _create(self, eni: Eni) -> Moved:
        # The same token and the same parameters: a call whose answer was lost makes no second ENI.
        made = ecs.create_network_interface(
            self._cloud,
            vswitch_id=eni.vswitch_id,
            security_group_ids=eni.security_group_ids,
            tags=self._tags.of(eni.token, eni.use),
            client_token=eni.token,
            name=f"terway-{eni.token[:8]}",
            ipv4_count=0 if self._prefix_mode else eni.ipv4,
            ipv4_prefix_count=eni.ipv4 if self._prefix_mode else 0,
            ipv6_count=eni.ipv6,
            type="Trunk" if eni.use == "trunk" else "Secondary",
        )
        return Moved(self.to(replace(eni, eni_id=made.eni_id, mac=made.mac), EniState.ATTACHING))

    def _attach(self, eni: Eni) -> Moved:
        found = self._describe(eni)
        age = self._clock() - eni.since
        if found is None:
            return Moved(eni, wait=_poll(age)) if age < VISIBLE_WITHIN else Moved(None)
        if self._is_elsewhere(found):
            return Moved(None)
        # The link of an ENI that a pod owns is in the pod.
        if found.status == "InUse" and (eni.owner or self._has_link(eni.mac)):
            return Moved(self.to(eni, EniState.READY), addresses=addresses_of(eni, found))
        if age > ATTACH_LIMIT:
            problem = f"was not attached within {ATTACH_LIMIT:.0f} s (status {found.status})"
            return Moved(self.to(eni, EniState.DETACHING, problem=problem))
        if found.status == "Available":
            ecs.attach_network_interface(self._cloud, eni.eni_id, self._tags.instance_id)
        return Moved(eni, wait=_poll(age))

    def _detach(self, eni: Eni) -> Moved:
        found = self._describe(eni)
        if found is None or self._is_elsewhere(found):
            return Moved(None)
        if found.status in ("Available", "Deleting"):
            return Moved(self.to(eni, EniState.DELETING, problem=eni.problem))
        age = self._clock() - eni.since
        # Asked for again while it sticks, as the API's documentation advises.
        if found.status == "InUse" or (found.status == "Detaching" and age > STUCK_AFTER):
            ecs.detach_network_interface(self._cloud, eni.eni_id, self._tags.instance_id)
        return Moved(eni, wait=_poll(age))

    def _delete(self, eni: Eni) -> Moved:
        found = self._describe(eni)
        if found is None or self._is_elsewhere(found):
            return Moved(None)
        if found.status not in ("Available", "Deleting"):
            return Moved(self.to(eni, EniState.DETACHING, problem=eni.problem))
        age = self._clock() - eni.since
        if found.status == "Available" or age > STUCK_AFTER:
            ecs.delete_network_interface(self._cloud, eni.eni_id)
        return Moved(eni, wait=_poll(age))

    def _is_elsewhere(self, found: ecs.NetworkInterface) -> bool:
        """Somebody has attached it to another instance: it is not ours any more."""
        elsewhere = found.status == "InUse" and found.instance_id not in ("", self._tags.instance_id)
        if elsewhere:
            log.warning("eni lost", extra={"eni": found.eni_id, "instance": found.instance_id})
        return elsewhere

    def _describe(self, eni: Eni) -> ecs.NetworkInterface | None:
        found = ecs.describe_network_interfaces(self._cloud, eni_ids=[eni.eni_id])
        return found[0] if found else None


def addresses_of(eni: Eni, found: ecs.NetworkInterface) -> tuple[EniAddress, ...]:
    """All addresses that the cloud says an ENI has, as free ones; a prefix counts with each of its own."""
    every: tuple[IPAddress, ...] = (*found.ipv4, *found.ipv6)
    single = [
        EniAddress(token=eni.token, address=address, primary=address == found.primary_ip) for address in every
    ]
    blocks = [
        EniAddress(token=eni.token, address=address, block=block)
        for block in found.ipv4_prefixes
        for address in (block[offset] for offset in range(block.num_addresses))
    ]
    return (*single, *blocks)


def nothing_was_made(error: CloudError) -> bool:
    """Whether a refused creation has certainly left no ENI behind: the service gave its reason."""
    return bool(error.code) and not any(part in error.code for part in _UNDECIDED)


#: Codes after which the ENI may exist or come to exist.
_UNDECIDED: Final = ("InternalError", "ServiceUnavailable", "UnknownError", "Token", "Throttling")


def _poll(age: float) -> float:
    """Wait longer for what takes longer: a change usually takes two to six seconds."""
    return min(10.0, max(0.5, age / 2))
