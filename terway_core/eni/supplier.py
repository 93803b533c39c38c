"""Carries out what the planner decides: at most one operation at a time for each ENI, several altogether."""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Final

from terway_core.cloud import Cloud, ecs, failures, vpc
from terway_core.eni.machine import Machine, addresses_of, nothing_was_made
from terway_core.eni.model import Eni, EniAddress, EniState, Holds, Limits, Use
from terway_core.eni.planner import (
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
from terway_core.eni.rows import Rows
from terway_core.errors import CloudError, TerwayError

log = logging.getLogger(__name__)

#: Calls under way at once. More would only meet the API's limits sooner.
WORKERS: Final = 4
#: Seconds for which a vSwitch without free addresses is believed to stay so.
EXHAUSTED_FOR: Final = 600.0
#: Seconds after a refused call before the same ENI is touched again: doubled up to the last.
BACKOFF_FIRST, BACKOFF_LAST = 1.0, 60.0
#: Seconds for which the quota of ENIs is believed to be used up.
QUOTA_FOR: Final = 60.0
#: Stands for the token of an ENI that could not be made.
CREATION: Final = "creation"
_NOT_HERE: Final = failures.EXHAUSTED_VSWITCH | failures.ENI_QUOTA


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where this node's ENIs are made.

    :param vswitches: of the node's zone, in the order in which they are preferred.
    """

    vswitches: tuple[vpc.VSwitch, ...] = ()
    security_group_ids: tuple[str, ...] = ()


class Supplier:
    """Brings ENIs and addresses to where they are needed.

    :ivar place: set once the cloud has been asked; until then no ENI can be made.
    """

    def __init__(
        self,
        rows: Rows,
        cloud: Cloud,
        machine: Machine,
        planner: Planner,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._rows = rows
        self._cloud = cloud
        self._machine = machine
        self._planner = planner
        self.place = Place()
        self._clock = clock
        self._executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="eni")
        self._under_way: set[Future[None]] = set()
        self._busy: set[str] = set()
        self._incoming: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._attempts: dict[str, int] = {}
        self._errors: dict[str, str] = {}
        self._full_until: dict[str, float] = {}
        self._quota_until = 0.0
        self._suspects: set[str] = set()
        self._exhausted_until: dict[str, float] = {}
        self._scarce_until: dict[str, float] = {}
        self.foreign_enis = 0
        self.limits = limits

    def view(
        self, *, waiting: int, waiting_enis: int, quiet_since: float, holds: Holds, uses: frozenset[Use]
    ) -> View:
        """The pool as it is now."""
        now = self._clock()
        with self._rows.changed:
            return View(
                now=now,
                limits=self.limits,
                enis=dict(self._rows.enis),
                addresses=self._rows.by_eni(),
                vswitches=[vswitch.vswitch_id for vswitch in self.place.vswitches],
                exhausted=_still(self._exhausted_until, now),
                scarce=_still(self._scarce_until, now),
                busy=frozenset(self._busy),
                not_before=dict(self._not_before),
                full_until=dict(self._full_until),
                suspects=frozenset(self._suspects),
                incoming=dict(self._incoming),
                waiting=waiting,
                waiting_enis=waiting_enis,
                foreign_enis=self.foreign_enis,
                create_from=max(self._quota_until, self._not_before.get(CREATION, 0.0)),
                quiet_since=quiet_since,
                holds=holds,
                uses=uses,
            )

    def begin(self, view: View) -> int:
        """Start what the planner says can begin now; returns how many operations that are."""
        operations = self._planner.plan(view)
        for operation in operations:
            self._start(operation)
        return len(operations)

    @property
    def under_way(self) -> bool:
        """Something is being done."""
        return bool(self._under_way)

    def is_busy(self, token: str) -> bool:
        """Something is being done to this ENI."""
        return token in self._busy

    def run(self, work: Callable[[], None]) -> None:
        """Have a worker do what may take a while; it must not raise."""
        future = self._executor.submit(work)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)

    def settle(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way:
            wait(tuple(self._under_way))

    def close(self) -> None:
        """Finish what is under way; what is left is in the rows."""
        self._executor.shutdown()

    def next_look(self, after: float) -> float:
        """The first time after another at which something that waits may go on, in seconds since the epoch;
        infinity if nothing waits."""
        with self._rows.changed:
            return min((at for at in self._not_before.values() if at > after), default=float("inf"))

    @property
    def last_error(self) -> str:
        """The last refusal of what has not succeeded since; for people who wait for an address."""
        with self._rows.changed:
            return next(reversed(self._errors.values()), "")

    # -- operations ---------------------------------------------------------------------------------------

    def _start(self, operation: Operation) -> None:
        """Mark it, so that the next plan knows of it, and have a worker do it."""
        with self._rows.changed:
            match operation:
                case NewEni(use=use, vswitch_id=vswitch_id, count=count):
                    eni = self._new_eni(use, vswitch_id, count)
                    self._rows.put(eni)  # before the call: its token finds the ENI again after a kill
                    token, work = eni.token, partial(self._advance, eni.token)
                case Advance(token=token):
                    work = partial(self._advance, token)
                case Assign(token=token, ipv4=ipv4, ipv6=ipv6, gain=gain):
                    self._incoming[token] = gain
                    work = partial(self._assign, token, ipv4, ipv6)
                case Unassign(token=token, addresses=addresses, reason=reason):
                    work = partial(self._unassign, token, addresses, reason)
                case Retire(token=token, reason=reason):
                    work = partial(self._retire, token, reason)
                case Refresh(token=token):
                    work = partial(self._refresh, token)
            self._busy.add(token)
        self.run(partial(self._carry_out, token, work))

    def _carry_out(self, token: str, work: Callable[[], None]) -> None:
        try:
            work()
        except TerwayError as error:
            self._failed(token, error)
        except Exception:
            log.exception("eni operation failed", extra={"eni": token})
            self._failed(token, TerwayError("a defect of terway; the log has more"))
        else:
            self._succeeded(token)
        finally:
            with self._rows.changed:
                self._busy.discard(token)
                self._incoming.pop(token, None)
                if token not in self._rows.enis:
                    self._succeeded(token)
                    self._not_before.pop(token, None)
                    self._full_until.pop(token, None)
                    self._suspects.discard(token)
                self._rows.notify()

    def _failed(self, token: str, error: TerwayError) -> None:
        with self._rows.changed:
            now = self._clock()
            eni = self._rows.enis.get(token)
            what = token if eni else CREATION
            if self._not_before.get(what, 0.0) <= now:  # several that fail together are one lesson
                self._attempts[what] = self._attempts.get(what, 0) + 1
            pause = min(BACKOFF_LAST, BACKOFF_FIRST * 2.0 ** (self._attempts[what] - 1))
            pause *= random.uniform(0.7, 1.3)
            self._errors.pop(what, None)
            self._errors[what] = str(error)
            # Of a full vSwitch or account we know how long to believe it; another vSwitch may be tried now.
            definite = isinstance(error, CloudError) and error.code in _NOT_HERE
            if eni or not definite:
                self._not_before[what] = now + pause
        log.warning("eni call failed", extra={"eni": eni.name if eni else "new", "problem": str(error)})

    def _succeeded(self, token: str) -> None:
        with self._rows.changed:
            self._attempts.pop(token, None)
            self._errors.pop(token, None)

    def _new_eni(self, use: Use, vswitch_id: str, count: int) -> Eni:
        ipv4, ipv6 = self._planner.order(count)
        vswitch = next(one for one in self.place.vswitches if one.vswitch_id == vswitch_id)
        return Eni(
            token=uuid.uuid4().hex,
            use=use,
            state=EniState.CREATING,
            vswitch_id=vswitch_id,
            security_group_ids=self.place.security_group_ids,
            since=self._clock(),
            ipv4=ipv4,
            ipv6=ipv6,
            cidr=vswitch.cidr,
            ipv6_cidr=vswitch.ipv6_cidr,
        )

    def _advance(self, token: str) -> None:
        eni = self._rows.enis[token]
        try:
            moved = self._machine.advance(eni)
        except CloudError as error:
            self._learn(eni, error, asked=self._planner.gain(eni.ipv4, eni.ipv6))
            if eni.state is EniState.CREATING and nothing_was_made(error):
                self._rows.remove(token)
            elif eni.state is EniState.ATTACHING and error.code in failures.ENI_QUOTA:
                self._move(eni, self._machine.to(eni, EniState.DELETING, problem=str(error)))
            elif eni.state is EniState.ATTACHING and error.code in failures.ADDRESS_QUOTA:
                # Detached it may have more addresses than attached.
                self._refresh(token)
                idle = [row for row in self._rows.of(token) if not row.primary]
                self._unassign(token, idle, "with them the ENI cannot be attached")
            raise
        with self._rows.changed:
            self._not_before[token] = self._clock() + moved.wait
            self._move(eni, moved.eni, moved.addresses)
            if eni.state is EniState.CREATING:
                self._succeeded(CREATION)
                self._not_before.pop(CREATION, None)

    def _move(self, eni: Eni, to: Eni | None, addresses: Sequence[EniAddress] = ()) -> None:
        """Write where an ENI is now; it does not go as long as somebody has something of it."""
        with self._rows.changed:
            going = to is None or to.state in (EniState.DETACHING, EniState.DELETING)
            if going and self._rows.owners_on(eni.token):
                now = self._clock()
                to = replace(eni, since=now, problem=(to and to.problem) or "is gone")
                self._not_before[eni.token] = now + BACKOFF_LAST
            if to is None:
                self._rows.remove(eni.token)
            elif to != eni:
                self._rows.put(to, addresses)
        if to is None or (to.state, to.problem) != (eni.state, eni.problem):
            log.info(
                "eni",
                extra={
                    "eni": (to or eni).name,
                    "state": to.state.value if to else "gone",
                    "use": eni.use,
                    "problem": to.problem if to else "",
                },
            )

    def _assign(self, token: str, ipv4: int, ipv6: int) -> None:
        eni = self._rows.enis[token]
        try:
            # One after the other: the service refuses both families at the same moment.
            if ipv4:
                self._rows.add_addresses(self._assign_ipv4(eni, ipv4))
            if ipv6:
                added = ecs.assign_ipv6(self._cloud, eni.eni_id, ipv6, client_token=uuid.uuid4().hex)
                self._rows.add_addresses(EniAddress(token=token, address=address) for address in added)
        except TerwayError as error:
            if isinstance(error, CloudError):
                self._learn(eni, error, asked=max(ipv4, ipv6))
            with self._rows.changed:
                self._suspects.add(token)
            raise

    def _assign_ipv4(self, eni: Eni, count: int) -> list[EniAddress]:
        token = uuid.uuid4().hex
        if not self._planner.prefix_mode:
            added = ecs.assign_ipv4(self._cloud, eni.eni_id, count, client_token=token)
            return [EniAddress(token=eni.token, address=address) for address in added]
        blocks = ecs.assign_ipv4_prefixes(self._cloud, eni.eni_id, count, client_token=token)
        return [
            EniAddress(token=eni.token, address=address, block=block) for block in blocks for address in block
        ]

    def _unassign(self, token: str, addresses: Sequence[EniAddress], reason: str) -> None:
        eni = self._rows.enis[token]
        going = self._rows.leave(addresses)
        blocks = {row.block for row in going if isinstance(row.block, IPv4Network)}
        ipv4 = [row.address for row in going if not row.block and isinstance(row.address, IPv4Address)]
        ipv6 = [row.address for row in going if isinstance(row.address, IPv6Address)]
        if ipv4:
            ecs.unassign_ipv4(self._cloud, eni.eni_id, ipv4)
        if blocks:
            ecs.unassign_ipv4_prefixes(self._cloud, eni.eni_id, blocks)
        if ipv6:
            ecs.unassign_ipv6(self._cloud, eni.eni_id, ipv6)
        if going:
            self._rows.remove_addresses(token, [row.address for row in going])
            names = [*map(str, blocks), *map(str, ipv4), *map(str, ipv6)]
            log.info("addresses given back", extra={"eni": eni.name, "addresses": names, "reason": reason})

    def _retire(self, token: str, reason: str) -> None:
        if self._rows.retire(token, self._clock()):
            log.info("eni is given back", extra={"eni": self._rows.enis[token].name, "reason": reason})

    def _refresh(self, token: str) -> None:
        eni = self._rows.enis[token]
        found = ecs.describe_network_interfaces(self._cloud, eni_ids=[eni.eni_id])
        if found:
            self._rows.add_addresses(addresses_of(eni, found[0]))
        with self._rows.changed:
            self._suspects.discard(token)

    # -- learning -----------------------------------------------------------------------------------------

    def _learn(self, eni: Eni, error: CloudError, *, asked: int) -> None:
        """Believe for a while what a refusal says of the vSwitch or the quota, and spare others the call."""
        now = self._clock()
        with self._rows.changed:
            if error.code in failures.EXHAUSTED_VSWITCH:
                # Somebody who asks for ten gets none of the nine that are left.
                known = self._scarce_until if asked > 1 else self._exhausted_until
                known[eni.vswitch_id] = now + EXHAUSTED_FOR
            elif error.code in failures.ADDRESS_QUOTA:
                self._full_until[eni.token] = now + EXHAUSTED_FOR
            elif error.code in failures.ENI_QUOTA:
                self._quota_until = now + QUOTA_FOR


def _still(until: Mapping[str, float], now: float) -> frozenset[str]:
    return frozenset(name for name, at in until.items() if at > now)
