"""Carries out what the planner decides: at most one operation at a time for each ENI, several altogether."""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from typing import Final

from terway_core.cloud import Cloud, ecs, failures
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where this node's ENIs are made.

    :param vswitch_ids: of the node's zone, in the order in which they are preferred.
    """

    vswitch_ids: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()


class Supplier:
    """Brings ENIs and addresses to where they are needed.

    :ivar place: set once the cloud has been asked; until then no ENI can be made.
    :ivar last_error: of a call, for people who wait for an address.
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
        self._full_until: dict[str, float] = {}
        self._may_create_from = 0.0
        self._suspects: set[str] = set()
        self.exhausted_until: dict[str, float] = {}
        self.foreign_enis = 0
        self.limits = limits
        self.last_error = ""

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
                vswitches=[v for v in self.place.vswitch_ids if self.exhausted_until.get(v, 0) <= now],
                busy=frozenset(self._busy),
                not_before=dict(self._not_before),
                full_until=dict(self._full_until),
                suspects=frozenset(self._suspects),
                incoming=dict(self._incoming),
                waiting=waiting,
                waiting_enis=waiting_enis,
                foreign_enis=self.foreign_enis,
                may_create_from=self._may_create_from,
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

    def is_full(self, planner: Planner, view: View) -> bool:
        """The instance can hold no more ENIs, nor its ENIs more addresses."""
        shared = [eni for eni in view.enis.values() if eni.use == "shared"]
        room = any(min(planner.room(view, eni)[: len(planner.families)]) > 0 for eni in shared)
        return not room and len(view.enis) + view.foreign_enis >= view.limits.enis

    def settle(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way:
            wait(tuple(self._under_way))

    def close(self) -> None:
        """Finish what is under way; what is left is in the rows."""
        self._executor.shutdown()

    def next_look(self) -> float:
        """When something that waits may go on, in seconds since the epoch; infinity if nothing waits."""
        now = self._clock()
        with self._rows.changed:
            return min((at for at in self._not_before.values() if at > now), default=float("inf"))

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
                case Unassign(token=token, addresses=addresses):
                    work = partial(self._unassign, token, addresses)
                case Retire(token=token, reason=reason):
                    work = partial(self._retire, token, reason)
                case Refresh(token=token):
                    work = partial(self._refresh, token)
            self._busy.add(token)
        future = self._executor.submit(self._run, token, work)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)

    def _run(self, token: str, work: Callable[[], None]) -> None:
        try:
            work()
        except TerwayError as error:
            self._failed(token, error)
        except Exception:
            log.exception("eni operation failed", extra={"eni": token})
            self._failed(token, TerwayError("a defect of terway; the log has more"))
        else:
            with self._rows.changed:
                self._attempts.pop(token, None)
        finally:
            with self._rows.changed:
                self._busy.discard(token)
                self._incoming.pop(token, None)
                if token not in self._rows.enis:
                    self._forget(token)
                self._rows.changed.notify_all()

    def _failed(self, token: str, error: TerwayError) -> None:
        with self._rows.changed:
            attempt = self._attempts[token] = self._attempts.get(token, 0) + 1
            pause = min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** (attempt - 1)) * random.uniform(0.7, 1.3)
            self._not_before[token] = self._clock() + pause
            self.last_error = str(error)
            eni = self._rows.enis.get(token)
        name = eni.name if eni else token
        log.warning(
            "eni call failed", extra={"eni": name, "problem": str(error), "again_in": round(pause, 1)}
        )

    def _new_eni(self, use: Use, vswitch_id: str, count: int) -> Eni:
        ipv4, ipv6 = self._planner.order(count) if use == "shared" else self._planner.order(1)
        return Eni(
            token=uuid.uuid4().hex,
            use=use,
            state=EniState.CREATING,
            vswitch_id=vswitch_id,
            security_group_ids=self.place.security_group_ids,
            since=self._clock(),
            ipv4=ipv4,
            ipv6=ipv6,
        )

    def _advance(self, token: str) -> None:
        eni = self._rows.enis[token]
        try:
            moved = self._machine.advance(eni)
        except CloudError as error:
            self._learn(eni, error)
            if eni.state is EniState.CREATING and nothing_was_made(error):
                self._rows.remove(token)
            elif eni.state is EniState.ATTACHING and error.code in failures.ENI_QUOTA:
                self._rows.put(self._machine.to(eni, EniState.DELETING, problem=str(error)))
            raise
        with self._rows.changed:
            self._not_before[token] = self._clock() + moved.wait
            if moved.eni is None:
                self._rows.remove(token)
            elif moved.eni != eni:
                self._rows.put(moved.eni, moved.addresses)
        if moved.eni is None or moved.eni.state is not eni.state:
            state = moved.eni.state.value if moved.eni else "gone"
            problem = moved.eni.problem if moved.eni else ""
            name = (moved.eni or eni).name
            log.info("eni", extra={"eni": name, "state": state, "use": eni.use, "problem": problem})

    def _assign(self, token: str, ipv4: int, ipv6: int) -> None:
        eni = self._rows.enis[token]
        try:
            # One after the other: the service refuses both families at the same moment.
            if ipv4:
                self._rows.add_addresses(self._assign_ipv4(eni, ipv4))
            if ipv6:
                added = ecs.assign_ipv6(self._cloud, eni.eni_id, ipv6, client_token=uuid.uuid4().hex)
                self._rows.add_addresses(EniAddress(token=token, address=address) for address in added)
        except CloudError as error:
            self._learn(eni, error)
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

    def _unassign(self, token: str, addresses: Sequence[EniAddress]) -> None:
        eni = self._rows.enis[token]
        going = self._rows.leave(addresses)
        blocks = {address.block for address in going if isinstance(address.block, IPv4Network)}
        single = [address.address for address in going if not address.block]
        ipv4 = [address for address in single if address.version == 4]
        ipv6 = [address for address in single if address.version == 6]
        try:
            if ipv4:
                ecs.unassign_ipv4(self._cloud, eni.eni_id, ipv4)
            if blocks:
                ecs.unassign_ipv4_prefixes(self._cloud, eni.eni_id, list(blocks))
            if ipv6:
                ecs.unassign_ipv6(self._cloud, eni.eni_id, ipv6)
        except CloudError as error:
            self._learn(eni, error)
            raise
        gone = [*single, *(row.address for row in self._rows.of(token) if row.block in blocks)]
        self._rows.remove_addresses(gone)
        log.info("addresses given back", extra={"eni": eni.name, "addresses": [str(a) for a in gone]})

    def _retire(self, token: str, reason: str) -> None:
        eni = self._rows.enis[token]
        if self._rows.retire(self._machine.to(eni, EniState.DETACHING)):
            log.info("eni is given back", extra={"eni": eni.name, "reason": reason})

    def _refresh(self, token: str) -> None:
        eni = self._rows.enis[token]
        found = ecs.describe_network_interfaces(self._cloud, eni_ids=[eni.eni_id])
        if found:
            self._rows.add_addresses(addresses_of(eni, found[0]))
        with self._rows.changed:
            self._suspects.discard(token)

    # -- learning -----------------------------------------------------------------------------------------

    def _learn(self, eni: Eni, error: CloudError) -> None:
        """Believe for a while what a refusal says of the vSwitch or the quota, and spare others the call."""
        until = self._clock() + EXHAUSTED_FOR
        with self._rows.changed:
            if error.code in failures.EXHAUSTED_VSWITCH:
                self.exhausted_until[eni.vswitch_id] = until
                self._full_until[eni.token] = until
            elif error.code in failures.ADDRESS_QUOTA:
                self._full_until[eni.token] = until
            elif error.code in failures.ENI_QUOTA:
                self._may_create_from = self._clock() + QUOTA_FOR

    def _forget(self, token: str) -> None:
        for known in (self._not_before, self._attempts, self._full_until):
            known.pop(token, None)
        self._suspects.discard(token)
