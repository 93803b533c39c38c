"""Decides what to ask of the cloud. Pure: a view of the pool in, operations out.

It is asked again after everything that happens, and says only what can begin now, so it needs no memory:
what is under way is part of the view.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from terway_core.config import PoolConfig
from terway_core.eni.model import Eni, EniAddress, EniState, Holds, Limits, Use

#: Addresses in one call; the API takes more for some states and fewer for others, this for all.
BATCH: Final = 10
#: Addresses of a /28, the size of every IPv4 prefix that the API assigns.
PREFIX_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class NewEni:
    """Make an ENI with room for ``count`` pods at once."""

    use: Use
    vswitch_id: str
    count: int


@dataclass(frozen=True, slots=True)
class Advance:
    """Move an ENI towards ready, or towards gone."""

    token: str


@dataclass(frozen=True, slots=True)
class Assign:
    """Add addresses (prefixes, in prefix mode) to an ENI, which makes room for ``gain`` pods."""

    token: str
    ipv4: int
    ipv6: int
    gain: int


@dataclass(frozen=True, slots=True)
class Unassign:
    """Give addresses back to the vSwitch."""

    token: str
    addresses: tuple[EniAddress, ...]


@dataclass(frozen=True, slots=True)
class Retire:
    """Detach and delete an ENI that nobody uses. ``reason`` is for the log."""

    token: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refresh:
    """Ask the cloud what an ENI has: a call's answer was lost, or contradicted what we believed."""

    token: str


Operation: TypeAlias = NewEni | Advance | Assign | Unassign | Retire | Refresh


@dataclass(frozen=True, kw_only=True)
class View:
    """The pool as the planner sees it; times are seconds since the epoch.

    :param vswitches: where an ENI can be made now, best first.
    :param busy: ENIs with an operation under way.
    :param not_before: when an ENI that failed or waits is looked at again.
    :param full_until: ENIs whose vSwitch had no address left for them, and until when that is believed.
    :param suspects: ENIs that may have other addresses than we believe.
    :param incoming: pods that the operations under way make room for, by ENI.
    :param waiting: pods that wait for an address; ``waiting_enis``: for an ENI of their own.
    :param foreign_enis: ENIs on the instance that are not ours and count against its quota.
    :param may_create_from: the quota of ENIs is believed to be used up until then.
    :param uses: what the configured drivers need of the pool.
    :param quiet_since: when a pod last came or went.
    """

    now: float
    limits: Limits
    enis: Mapping[str, Eni]
    addresses: Mapping[str, Sequence[EniAddress]]
    vswitches: Sequence[str] = ()
    busy: frozenset[str] = frozenset()
    not_before: Mapping[str, float] = field(default_factory=dict)
    full_until: Mapping[str, float] = field(default_factory=dict)
    suspects: frozenset[str] = frozenset()
    incoming: Mapping[str, int] = field(default_factory=dict)
    waiting: int = 0
    waiting_enis: int = 0
    foreign_enis: int = 0
    may_create_from: float = 0.0
    quiet_since: float = 0.0
    holds: Holds = field(default_factory=Holds)
    uses: frozenset[Use] = frozenset()


class Planner:
    """Plans for one node's settings."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self.families = config.families
        self.prefix_mode = config.prefix_mode

    def plan(self, view: View) -> list[Operation]:
        """What can begin now."""
        if view.holds.calling:
            return []
        return [*self._move_on(view), *self._supply(view), *self._reclaim(view)]

    # -- what each part knows ---------------------------------------------------------------------------

    def free(self, view: View, token: str) -> int:
        """Pods that could get an address of this ENI now: one of each family that pods have."""
        addresses = view.addresses.get(token, ())
        return min(
            sum(a.address.version == family and a.free(view.now) for a in addresses)
            for family in self.families
        )

    def room(self, view: View, eni: Eni) -> tuple[int, int]:
        """How many IPv4 addresses (or prefixes) and IPv6 addresses can be added to an ENI."""
        addresses = [a for a in view.addresses.get(eni.token, ()) if not a.leaving]
        blocks = {a.block for a in addresses if a.block}
        single = sum(a.address.version == 4 and not a.block for a in addresses)
        ipv6 = sum(a.address.version == 6 for a in addresses)
        return view.limits.ipv4 - single - len(blocks), (view.limits.ipv6 - ipv6 if 6 in self.families else 0)

    def coming(self, view: View, eni: Eni) -> int:
        """Pods that an ENI on its way will have room for."""
        if eni.state not in (EniState.CREATING, EniState.ATTACHING):
            return view.incoming.get(eni.token, 0)
        if eni.use == "exclusive":
            return 1
        ipv4 = 1 + eni.ipv4 * (PREFIX_SIZE if self.prefix_mode else 1)
        return min(ipv4, eni.ipv6) if 6 in self.families else ipv4

    def order(self, count: int) -> tuple[int, int]:
        """What to ask for with a new ENI for ``count`` pods: IPv4 addresses (or prefixes) besides its primary
        one, and IPv6 addresses."""
        ipv4 = math.ceil((count - 1) / PREFIX_SIZE) if self.prefix_mode else count - 1
        return min(ipv4, BATCH) if self.prefix_mode else ipv4, count if 6 in self.families else 0

    def can_create(self, view: View) -> int:
        """ENIs that may still be made."""
        if view.now < view.may_create_from or not view.vswitches:
            return 0
        most = view.limits.enis - view.foreign_enis - len(view.enis)
        return max(0, min(most, self._config.max_enis - len(view.enis)) if self._config.max_enis else most)

    # -- operations -------------------------------------------------------------------------------------

    def _move_on(self, view: View) -> Iterator[Operation]:
        for eni in view.enis.values():
            if not self._idle(view, eni):
                continue
            if eni.token in view.suspects:
                yield Refresh(eni.token)
                continue
            going = eni.state in (EniState.DETACHING, EniState.DELETING)
            if eni.state is not EniState.READY and not (going and view.holds.releasing):
                yield Advance(eni.token)
            leaving = tuple(a for a in view.addresses.get(eni.token, ()) if a.leaving)
            if eni.state is EniState.READY and leaving and not view.holds.releasing:
                yield Unassign(eni.token, leaving[:BATCH])

    def _supply(self, view: View) -> Iterator[Operation]:
        shared = [eni for eni in view.enis.values() if eni.use == "shared" and self._serves(eni)]
        missing = view.waiting + (self._config.warm_min if "shared" in view.uses else 0)
        missing -= sum(self.free(view, eni.token) + self.coming(view, eni) for eni in shared)
        # The fullest first: what is spread thin cannot be given back.
        for eni in sorted(shared, key=lambda eni: -len(view.addresses.get(eni.token, ()))):
            if missing <= 0:
                break
            if eni.state is not EniState.READY or not self._idle(view, eni) or eni.token in view.suspects:
                continue
            if view.full_until.get(eni.token, 0) > view.now or self._has_leaving(view, eni):
                continue
            assign = self._assign(view, eni, missing)
            if assign.gain > 0:
                yield assign
                missing -= assign.gain
        creatable = self.can_create(view)
        vswitch = view.vswitches[0] if view.vswitches else ""
        own = [eni for eni in view.enis.values() if eni.use == "exclusive" and self._serves(eni)]
        lacking = view.waiting_enis + (self._config.warm_enis if "exclusive" in view.uses else 0)
        lacking -= sum(self._is_free(view, eni) if eni.state is EniState.READY else 1 for eni in own)
        for _ in range(min(lacking, creatable)):
            yield NewEni("exclusive", vswitch, 1)
            creatable -= 1
        while missing > 0 and creatable > 0:
            gain = self._most_per_eni(view)
            if not gain:
                break
            yield NewEni("shared", vswitch, min(missing, gain))
            missing -= gain
            creatable -= 1

    def _assign(self, view: View, eni: Eni, missing: int) -> Assign:
        room4, room6 = self.room(view, eni)
        addresses = [a for a in view.addresses.get(eni.token, ()) if not a.leaving]
        spare = {f: sum(a.address.version == f and a.free(view.now) for a in addresses) for f in (4, 6)}
        unit = PREFIX_SIZE if self.prefix_mode else 1
        reach = dict.fromkeys(self.families, 0)
        add = {4: 0, 6: 0}
        base = min(spare[family] for family in self.families)
        for family, room, size in ((4, room4, unit), (6, room6, 1)):
            if family in self.families:
                wanted = max(0, math.ceil((base + missing - spare[family]) / size))
                add[family] = max(0, min(wanted, room, BATCH))
                reach[family] = spare[family] + add[family] * size
        return Assign(eni.token, add[4], add[6], min(reach.values()) - base)

    def _most_per_eni(self, view: View) -> int:
        ipv4 = view.limits.ipv4
        if self.prefix_mode:
            ipv4 = 1 + (view.limits.ipv4 - 1) * PREFIX_SIZE
        return min(ipv4, view.limits.ipv6) if 6 in self.families else ipv4

    def _reclaim(self, view: View) -> Iterator[Operation]:
        """At most one thing at a time, from the ENI that is used least."""
        if view.holds.releasing or view.waiting or view.waiting_enis:
            return
        if view.now - view.quiet_since < self._config.reclaim_after:
            return
        idle = [eni for eni in view.enis.values() if eni.state is EniState.READY and self._idle(view, eni)]
        spare = [eni for eni in idle if eni.use == "exclusive" and self._is_free(view, eni)]
        if len(spare) > self._config.warm_enis:
            yield Retire(
                spare[0].token, f"{len(spare)} ENIs are free, {self._config.warm_enis} are kept warm"
            )
            return
        shared = [eni for eni in idle if eni.use == "shared"]
        total = sum(self.free(view, eni.token) for eni in shared)
        excess = total - max(self._config.warm_max, self._config.warm_min)
        if excess <= 0:
            return
        reason = f"{total} addresses are free, {self._config.warm_max} are kept warm"
        for eni in sorted(shared, key=lambda eni: (self._used(view, eni), len(view.addresses[eni.token]))):
            if not self._used(view, eni) and self.free(view, eni.token) <= excess:
                yield Retire(eni.token, reason)
                return
            victims = self._victims(view, eni, excess)
            if victims:
                yield Unassign(eni.token, victims)
                return

    def _victims(self, view: View, eni: Eni, excess: int) -> tuple[EniAddress, ...]:
        addresses = view.addresses.get(eni.token, ())
        if not self.prefix_mode:
            found = []
            for family in self.families:
                free = [
                    a for a in addresses if a.address.version == family and a.free(view.now) and not a.primary
                ]
                found += free[: min(excess, BATCH)]
            return tuple(found)
        blocks: dict[object, list[EniAddress]] = {}
        for address in addresses:
            if address.block:
                blocks.setdefault(address.block, []).append(address)
        for members in blocks.values():
            if len(members) <= excess and all(a.free(view.now) for a in members):
                return tuple(members)
        return ()

    # -- words ------------------------------------------------------------------------------------------

    @staticmethod
    def _serves(eni: Eni) -> bool:
        return eni.state in (EniState.CREATING, EniState.ATTACHING, EniState.READY)

    @staticmethod
    def _is_free(view: View, eni: Eni) -> bool:
        return not eni.owner and eni.rests_until <= view.now

    @staticmethod
    def _idle(view: View, eni: Eni) -> bool:
        return eni.token not in view.busy and view.not_before.get(eni.token, 0) <= view.now

    @staticmethod
    def _has_leaving(view: View, eni: Eni) -> bool:
        return any(a.leaving for a in view.addresses.get(eni.token, ()))

    @staticmethod
    def _used(view: View, eni: Eni) -> int:
        """Addresses that pods have or had a short while ago."""
        return sum(bool(a.owner) or a.rests_until > view.now for a in view.addresses.get(eni.token, ()))
