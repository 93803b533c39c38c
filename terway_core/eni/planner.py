"""Decides what to ask of the cloud. Pure: a view of the pool in, operations out.

It is asked again after everything that happens, and says only what can begin now, so it needs no memory:
what is under way is part of the view.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from terway_core.config import PoolConfig
from terway_core.eni.model import Eni, EniAddress, EniState, Holds, Limits, Use

#: Addresses in one call; the API takes more for some states and fewer for others, this for all.
BATCH: Final = 10
#: Secondary addresses that an ENI may be made with.
MOST_AT_BIRTH: Final = 49
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
    """Give addresses back to the vSwitch. ``reason`` is for the log."""

    token: str
    addresses: tuple[EniAddress, ...]
    reason: str


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

    :param vswitches: where an ENI can be made, best first.
    :param exhausted: vSwitches that had no address left a while ago.
    :param scarce: vSwitches that had fewer left than were asked for; one at a time may still be had.
    :param busy: ENIs with an operation under way.
    :param not_before: when an ENI that failed or waits is looked at again.
    :param full_until: ENIs that took no more addresses, and until when that is believed.
    :param suspects: ENIs that may have other addresses than we believe.
    :param incoming: pods that the operations under way make room for, by ENI.
    :param waiting: pods that wait for an address; ``waiting_enis``: for an ENI of their own.
    :param foreign_enis: ENIs on the instance that are not ours and count against its quota.
    :param create_from: when the next ENI may be made.
    :param uses: what the configured drivers need of the pool.
    :param quiet_since: when a pod last came or went.
    """

    now: float
    limits: Limits
    enis: Mapping[str, Eni]
    addresses: Mapping[str, Sequence[EniAddress]]
    vswitches: Sequence[str] = ()
    exhausted: frozenset[str] = frozenset()
    scarce: frozenset[str] = frozenset()
    busy: frozenset[str] = frozenset()
    not_before: Mapping[str, float] = field(default_factory=dict)
    full_until: Mapping[str, float] = field(default_factory=dict)
    suspects: frozenset[str] = frozenset()
    incoming: Mapping[str, int] = field(default_factory=dict)
    waiting: int = 0
    waiting_enis: int = 0
    foreign_enis: int = 0
    create_from: float = 0.0
    quiet_since: float = 0.0
    holds: Holds = field(default_factory=Holds)
    uses: frozenset[Use] = frozenset()


class Planner:
    """Plans for one node's settings."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self.families = config.families
        self.prefix_mode = config.prefix_mode
        self.max_enis = config.max_enis

    def plan(self, view: View) -> list[Operation]:
        """What can begin now; at most one operation for each ENI."""
        if view.holds.calling:
            return []
        planned: list[Operation] = []
        for part in (self._move_on, self._supply, self._reclaim):
            operations = list(part(view))
            planned += operations
            taken = {operation.token for operation in operations if not isinstance(operation, NewEni)}
            view = replace(view, busy=view.busy | taken)
        return planned

    # -- what each part knows ---------------------------------------------------------------------------

    def free(self, view: View, token: str) -> int:
        """Pods that could get an address of this ENI now: one of each family that pods have."""
        addresses = view.addresses.get(token, ())
        return min(
            sum(a.address.version == family and a.free(view.now) for a in addresses)
            for family in self.families
        )

    def room(self, view: View, eni: Eni) -> dict[int, int]:
        """How many addresses of each family that pods have can be added to an ENI; of IPv4, in prefix mode,
        how many prefixes. One that is being unassigned still takes its place."""
        addresses = view.addresses.get(eni.token, ())
        ipv4 = {a.block or a.address for a in addresses if a.address.version == 4}
        ipv6 = sum(a.address.version == 6 for a in addresses)
        room = {4: view.limits.ipv4 - len(ipv4), 6: view.limits.ipv6 - ipv6}
        return {family: max(0, room[family]) for family in self.families}

    def supply(self, view: View, eni: Eni) -> int:
        """Pods that an ENI has addresses for, or will have before anything else is planned for it."""
        if not self._serves(eni):
            return 0
        if eni.state is EniState.READY or view.addresses.get(eni.token):
            return self.free(view, eni.token) + view.incoming.get(eni.token, 0)
        return self.gain(eni.ipv4, eni.ipv6)

    def gain(self, ipv4: int, ipv6: int) -> int:
        """Pods that a new ENI has addresses for: its primary one, and what it was ordered with."""
        pods = 1 + ipv4 * (PREFIX_SIZE if self.prefix_mode else 1)
        return min(pods, ipv6) if 6 in self.families else pods

    def order(self, count: int) -> tuple[int, int]:
        """What to ask for with a new ENI for up to ``count`` pods: IPv4 addresses (or prefixes) besides its
        primary one, and IPv6 addresses. The API gives no more than that at once."""
        if 6 in self.families:
            count = min(count, BATCH)
        if self.prefix_mode:
            ipv4 = min(math.ceil((count - 1) / PREFIX_SIZE), BATCH)
        else:
            ipv4 = min(count - 1, MOST_AT_BIRTH)
        return ipv4, count if 6 in self.families else 0

    def can_create(self, view: View, use: Use = "shared") -> int:
        """ENIs that the instance, and the settings, still have place for. One is kept for the trunk ENI."""
        # One that is being deleted is off the instance.
        ours = [eni for eni in view.enis.values() if eni.state is not EniState.DELETING]
        most = view.limits.enis - view.foreign_enis
        places = min(most, self.max_enis or most) - len(ours)
        lacks_trunk = "trunk" in view.uses and not any(eni.use == "trunk" for eni in ours)
        if use == "trunk":
            return int(lacks_trunk and places > 0)
        return max(0, places - lacks_trunk)

    def has_room(self, view: View) -> bool:
        """Whether ENIs that pods share may have more addresses."""
        return any(eni.use == "shared" and self._takes_more(view, eni) for eni in view.enis.values())

    # -- operations -------------------------------------------------------------------------------------

    def _move_on(self, view: View) -> Iterator[Operation]:
        for eni in view.enis.values():
            if not self._idle(view, eni):
                continue
            going = eni.state in (EniState.DETACHING, EniState.DELETING)
            leaving = tuple(a for a in view.addresses.get(eni.token, ()) if a.leaving and not a.owner)
            if eni.token in view.suspects:
                yield Refresh(eni.token)
            elif eni.state is not EniState.READY:
                if not (going and view.holds.releasing):
                    yield Advance(eni.token)
            elif leaving and not eni.owner and not view.holds.releasing:
                yield Unassign(eni.token, leaving[:BATCH], "they were on their way out")

    def _supply(self, view: View) -> Iterator[Operation]:
        vswitches = [v for v in view.vswitches if v not in view.exhausted]
        vswitches.sort(key=lambda vswitch: vswitch in view.scarce)
        can_make = bool(vswitches) and view.now >= view.create_from
        if can_make and self.can_create(view, "trunk"):
            yield NewEni("trunk", vswitches[0], 1)
        can_create = self.can_create(view) if can_make else 0
        own = [eni for eni in view.enis.values() if eni.use == "exclusive" and self._serves(eni)]
        lacking = view.waiting_enis + self._warm_enis(view)
        lacking -= sum(
            not eni.owner and (self._is_free(view, eni) or eni.state is not EniState.READY) for eni in own
        )
        for _ in range(min(lacking, can_create)):
            yield NewEni("exclusive", vswitches[0], 1)
            can_create -= 1

        shared = [eni for eni in view.enis.values() if eni.use == "shared"]
        missing = view.waiting + (self._config.warm_min if "shared" in view.uses else 0)
        missing -= sum(self.supply(view, eni) for eni in shared)
        # The fullest first: what is spread thin cannot be given back.
        for eni in sorted(shared, key=lambda eni: -len(view.addresses.get(eni.token, ()))):
            if missing > 0 and self._can_assign(view, eni):
                assign = self._assign(view, eni, 1 if eni.vswitch_id in view.scarce else missing)
                if assign.gain > 0:
                    yield assign
                    missing -= assign.gain
        # One that is just being given addresses takes more in a moment; of places for ENIs there are few.
        missing -= sum(self._room_soon(view, eni) for eni in shared)
        if vswitches and vswitches[0] in view.scarce:
            # Its last addresses go to the ENIs that are there, then to a new one as the only one on its way.
            at_hand = any(eni.vswitch_id == vswitches[0] and self._takes_more(view, eni) for eni in shared)
            can_create, missing = (0 if at_hand else min(1, can_create)), min(1, missing)
        most = self.gain(view.limits.ipv4 - 1, view.limits.ipv6)
        for _ in range(can_create if most else 0):
            if missing > 0:
                count = min(missing, most)
                yield NewEni("shared", vswitches[0], count)
                missing -= self.gain(*self.order(count))

    def _room_soon(self, view: View, eni: Eni) -> int:
        """Pods that an ENI will take once what is under way is done."""
        if eni.state is not EniState.READY or eni.token not in view.busy or eni.vswitch_id in view.exhausted:
            return 0
        if not self._serves(eni) or view.full_until.get(eni.token, 0) > view.now:
            return 0
        size = {4: PREFIX_SIZE if self.prefix_mode else 1, 6: 1}
        room = min(count * size[family] for family, count in self.room(view, eni).items())
        return max(0, room - view.incoming.get(eni.token, 0))

    def _can_assign(self, view: View, eni: Eni) -> bool:
        if eni.state is not EniState.READY or not self._idle(view, eni) or eni.vswitch_id in view.exhausted:
            return False
        return view.full_until.get(eni.token, 0) <= view.now

    def _assign(self, view: View, eni: Eni, missing: int) -> Assign:
        addresses = view.addresses.get(eni.token, ())
        room = self.room(view, eni)
        size = {4: PREFIX_SIZE if self.prefix_mode else 1, 6: 1}
        spare = {f: sum(a.address.version == f and a.free(view.now) for a in addresses) for f in room}
        base = min(spare.values())
        reach = min(spare[family] + min(room[family], BATCH) * size[family] for family in room)
        gain = min(missing, reach - base)
        add = {f: max(0, math.ceil((base + gain - spare[f]) / size[f])) for f in room}
        if gain > 0:  # prefixes are larger than what is missing
            gain = min(spare[family] + add[family] * size[family] for family in room) - base
        return Assign(eni.token, add[4], add.get(6, 0), gain)

    def _reclaim(self, view: View) -> Iterator[Operation]:
        """At most one thing at a time, from the ENI that is used least."""
        if view.holds.releasing or view.waiting or view.waiting_enis:
            return
        if view.now - view.quiet_since < self._config.reclaim_after:
            return
        idle = [eni for eni in view.enis.values() if eni.state is EniState.READY and self._idle(view, eni)]
        spare = [eni for eni in idle if eni.use == "exclusive" and self._is_free(view, eni)]
        warm = self._warm_enis(view)
        if len(spare) > warm:
            yield Retire(spare[0].token, f"{len(spare)} ENIs are free, {warm} are kept warm")
            return
        shared = [eni for eni in idle if eni.use == "shared"]
        total = sum(self.free(view, eni.token) for eni in shared)
        warm = max(self._config.warm_max, self._config.warm_min) if "shared" in view.uses else 0
        excess = total - warm
        if excess <= 0:
            return
        reason = f"{total} addresses are free, {warm} are kept warm"
        for eni in sorted(shared, key=lambda eni: (self._used(view, eni), len(view.addresses[eni.token]))):
            if not self._used(view, eni) and self.free(view, eni.token) <= excess:
                yield Retire(eni.token, reason)
                return
            victims = self._victims(view, eni, excess)
            if victims:
                yield Unassign(eni.token, victims, reason)
                return

    def _victims(self, view: View, eni: Eni, excess: int) -> tuple[EniAddress, ...]:
        """Addresses, and whole prefixes, that hold no more than ``excess`` pods."""
        units: dict[object, list[EniAddress]] = {}
        for address in view.addresses.get(eni.token, ()):
            if not address.primary:
                units.setdefault(address.block or address.address, []).append(address)
        found: list[EniAddress] = []
        for family in self.families:
            left, calls = excess, BATCH
            for members in units.values():
                fits = members[0].address.version == family and len(members) <= left
                if fits and calls and all(address.free(view.now) for address in members):
                    found += members
                    left -= len(members)
                    calls -= 1
        return tuple(found)

    # -- words ------------------------------------------------------------------------------------------

    def _warm_enis(self, view: View) -> int:
        return self._config.warm_enis if "exclusive" in view.uses else 0

    def _takes_more(self, view: View, eni: Eni) -> bool:
        return self._serves(eni) and min(self.room(view, eni).values()) > 0

    @staticmethod
    def _serves(eni: Eni) -> bool:
        return eni.state in (EniState.CREATING, EniState.ATTACHING, EniState.READY) and not eni.problem

    @staticmethod
    def _is_free(view: View, eni: Eni) -> bool:
        return not eni.owner and eni.rests_until <= view.now

    @staticmethod
    def _idle(view: View, eni: Eni) -> bool:
        return eni.token not in view.busy and view.not_before.get(eni.token, 0) <= view.now

    @staticmethod
    def _used(view: View, eni: Eni) -> int:
        """Addresses that pods have or had a short while ago."""
        return sum(bool(a.owner) or a.rests_until > view.now for a in view.addresses.get(eni.token, ()))
