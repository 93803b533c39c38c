"""A cloud that obeys, and pods that come and go: where the planner is tried out."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from itertools import count
from typing import Any

from terway_core.config import PoolConfig
from terway_core.eni.model import Eni, EniAddress, EniState, Holds, Limits, Use
from terway_core.eni.planner import (
    BATCH,
    MOST_AT_BIRTH,
    Advance,
    Assign,
    NewEni,
    Operation,
    Planner,
    Refresh,
    Retire,
    Unassign,
    View,
)


class World:
    """A cloud that obeys and pods that come and go; refuses what the real one would refuse."""

    def __init__(self, limits: Limits, **config: Any) -> None:
        self.config = PoolConfig(**{"warm_min": 0, "warm_max": 0, "reclaim_after": 10.0, **config})
        self.planner = Planner(self.config)
        self.limits = limits
        self.now = 1000.0
        self.quiet_since = self.now
        self.enis: dict[str, Eni] = {}
        self.rows: dict[str, list[EniAddress]] = {}
        self.busy: set[str] = set()
        self.suspects: set[str] = set()
        self.waiting: dict[Use, int] = {"shared": 0, "exclusive": 0}
        self.holds = Holds()
        self.foreign = 0
        self.vswitches = ["vsw-1"]
        self.exhausted: frozenset[str] = frozenset()
        self.scarce: frozenset[str] = frozenset()
        self.incoming: dict[str, int] = {}
        self._numbers = count(1)

    def view(self, **changes: Any) -> View:
        return replace(
            View(
                now=self.now,
                limits=self.limits,
                enis=self.enis,
                addresses=self.rows,
                vswitches=self.vswitches,
                exhausted=self.exhausted,
                scarce=self.scarce,
                busy=frozenset(self.busy),
                suspects=frozenset(self.suspects),
                incoming=self.incoming,
                waiting=self.waiting["shared"],
                waiting_enis=self.waiting["exclusive"],
                foreign_enis=self.foreign,
                quiet_since=self.quiet_since,
                holds=self.holds,
                uses=frozenset({"shared", "exclusive"}),
            ),
            **changes,
        )

    def plan(self) -> list[Operation]:
        operations = self.planner.plan(self.view())
        self.check(operations)
        return operations

    def check(self, operations: list[Operation]) -> None:
        """What holds for every plan."""
        tokens = [operation.token for operation in operations if not isinstance(operation, NewEni)]
        assert len(set(tokens)) == len(tokens), "two operations for one ENI"
        assert not set(tokens) & self.busy
        attached = [eni for eni in self.enis.values() if eni.state is not EniState.DELETING]
        made = sum(isinstance(operation, NewEni) for operation in operations)
        assert not made or len(attached) + made + self.foreign <= self.limits.enis
        assert not made or not self.config.max_enis or len(attached) + made <= self.config.max_enis
        taking_back = [one for one in operations if isinstance(one, Unassign | Retire)]
        if self.holds.calling:
            assert operations == []
        if self.holds.releasing:
            assert taking_back == []
        for operation in taking_back:
            begun = isinstance(operation, Unassign) and all(row.leaving for row in operation.addresses)
            assert begun or not any(self.waiting.values()), "reclaim while somebody waits"
            assert begun or self.now - self.quiet_since >= self.config.reclaim_after

    def apply(self, operation: Operation) -> None:
        match operation:
            case NewEni(use=use, count=pods):
                ipv4, ipv6 = self.planner.order(pods)
                assert 0 <= ipv4 <= (BATCH if self.config.prefix_mode else MOST_AT_BIRTH)
                assert 0 <= ipv6 <= BATCH
                token = f"eni-{next(self._numbers)}"
                self.enis[token] = Eni(
                    token=token,
                    use=use,
                    state=EniState.CREATING,
                    vswitch_id=operation.vswitch_id,
                    security_group_ids=(),
                    since=self.now,
                    ipv4=ipv4,
                    ipv6=ipv6,
                )
                self.rows[token] = []
            case Advance(token=token):
                self._advance(self.enis[token])
            case Assign(token=token, ipv4=ipv4, ipv6=ipv6, gain=gain):
                assert 0 <= ipv4 <= BATCH
                assert 0 <= ipv6 <= BATCH
                assert gain > 0
                before = self.planner.free(self.view(), token)
                self._add(token, ipv4, ipv6)
                assert self.planner.free(self.view(), token) - before == gain
            case Unassign(token=token, addresses=addresses):
                gone = {row.address for row in addresses}
                assert not any(row.owner or row.primary for row in self.rows[token] if row.address in gone)
                self.rows[token] = [row for row in self.rows[token] if row.address not in gone]
                blocks = [row.block for row in addresses if row.block]
                assert not any(row.block in blocks for row in self.rows[token]), "half a prefix"
            case Retire(token=token):
                assert not self.enis[token].owner
                assert not any(row.owner for row in self.rows[token])
                self.enis[token] = replace(self.enis[token], state=EniState.DETACHING)
            case Refresh(token=token):
                self.suspects.discard(token)
        self._check_quotas()

    def settle(self) -> int:
        """Carry out plans until there is nothing to do; returns how many operations that took."""
        self.busy.clear()
        done = 0
        while operations := self.plan():
            for operation in operations:
                self.apply(operation)
                done += 1
            self.serve()
            assert done < 500, f"never ends: {operations}"
        return done

    def serve(self) -> None:
        while self.waiting["shared"] and (free := self._free_set()):
            for row in free:
                rows = self.rows[row.token]
                rows[rows.index(row)] = replace(row, owner="pod")
            self.waiting["shared"] -= 1
        for token, eni in self.enis.items():
            ready = eni.state is EniState.READY and eni.use == "exclusive"
            if self.waiting["exclusive"] and ready and not eni.owner and eni.rests_until <= self.now:
                self.enis[token] = replace(eni, owner="pod")
                self.waiting["exclusive"] -= 1

    def come(self, pods: int, use: Use = "shared") -> None:
        self.waiting[use] += pods
        self.quiet_since = self.now
        self.serve()

    def go(self, pods: int) -> None:
        """So many pods end; what they had rests."""
        self.quiet_since = self.now
        for token, rows in self.rows.items():
            by_family = {f: [row for row in rows if row.owner and row.address.version == f] for f in (4, 6)}
            number = min([pods, *(len(by_family[family]) for family in self.config.families)])
            ended = [row for family in self.config.families for row in by_family[family][:number]]
            self.rows[token] = [
                replace(row, owner="", rests_until=self.now + 30) if row in ended else row for row in rows
            ]
            pods -= number

    def used(self) -> int:
        return sum(
            bool(row.owner) and row.address.version == 4 for rows in self.rows.values() for row in rows
        )

    def free(self) -> int:
        return sum(self.planner.free(self.view(), token) for token in self.enis)

    def capacity(self) -> int:
        """Pods with a shared address that the node can have."""
        per_eni = self.planner.gain(self.limits.ipv4 - 1, self.limits.ipv6)
        enis = min(self.limits.enis - self.foreign, self.config.max_enis or self.limits.enis)
        exclusive = sum(eni.use == "exclusive" for eni in self.enis.values())
        return per_eni * (enis - exclusive)

    def _free_set(self) -> list[EniAddress]:
        for token, rows in self.rows.items():
            eni = self.enis[token]
            found = [
                next((row for row in rows if row.address.version == family and row.free(self.now)), None)
                for family in self.config.families
            ]
            if eni.use == "shared" and eni.state is EniState.READY and all(found):
                return [row for row in found if row]
        return []

    def _advance(self, eni: Eni) -> None:
        match eni.state:
            case EniState.CREATING:
                self.enis[eni.token] = replace(eni, state=EniState.ATTACHING)
            case EniState.ATTACHING:
                self.enis[eni.token] = replace(eni, state=EniState.READY)
                self._add(eni.token, eni.ipv4, eni.ipv6, primary=True)
            case EniState.DETACHING:
                self.enis[eni.token] = replace(eni, state=EniState.DELETING)
            case EniState.DELETING:
                del self.enis[eni.token]
                del self.rows[eni.token]
            case _:
                raise AssertionError("a ready ENI has nowhere to go")

    def _add(self, token: str, ipv4: int, ipv6: int, *, primary: bool = False) -> None:
        rows = self.rows[token]
        if primary:
            address = IPv4Address(f"10.0.0.{next(self._numbers) % 250}") + next(self._numbers) * 256
            rows.append(EniAddress(token=token, address=address, primary=True))
        for _ in range(ipv4):
            if self.config.prefix_mode:
                block = IPv4Network((0x0B000000 + next(self._numbers) * 16, 28))
                rows += [EniAddress(token=token, address=address, block=block) for address in block]
            else:
                rows.append(EniAddress(token=token, address=ip_address(0x0C000000 + next(self._numbers))))
        for _ in range(ipv6):
            rows.append(EniAddress(token=token, address=IPv6Address(2**100 + next(self._numbers))))

    def _check_quotas(self) -> None:
        for token, rows in self.rows.items():
            ipv4 = {row.block or row.address for row in rows if row.address.version == 4}
            assert len(ipv4) <= self.limits.ipv4, token
            assert sum(row.address.version == 6 for row in rows) <= self.limits.ipv6, token
