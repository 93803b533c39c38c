"""The pool: gives out addresses and ENIs, takes them back, and keeps enough of them ready.

A request that finds something free is served at once and without a call to the cloud. Others wait in the
order of their arrival; one thread plans for all of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from terway_core.cloud import Cloud, ecs, vpc
from terway_core.cloud.metadata import Identity
from terway_core.config import PoolConfig
from terway_core.eni.ledger import Ledger
from terway_core.eni.machine import Machine
from terway_core.eni.model import Eni, EniAddress, EniState, Holds, Limits, Tags, Use
from terway_core.eni.planner import Planner, View
from terway_core.eni.reconcile import Reconciler, primary_of
from terway_core.eni.rows import Grant, Rows
from terway_core.eni.supplier import Place, Supplier
from terway_core.errors import CloudError, InvalidConfig, NoAddress, RetryLater, TerwayError
from terway_core.store import Store
from terway_core.wiring.netlink import FoundLink

log = logging.getLogger(__name__)

#: Seconds for which a request waits for others of the same burst before the cloud is asked for it.
GATHER: Final = 0.05
#: The longest pause of the planning thread, in seconds.
LONGEST_PAUSE: Final = 30.0


class Pool:
    """The ENIs of this node. :meth:`start` it before anything else.

    :param find_link: the link of the host's namespace that has this MAC address.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        cloud: Cloud,
        config: PoolConfig,
        *,
        find_link: Callable[[str], FoundLink | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cloud = cloud
        self._config = config
        self._find_link = find_link
        self._clock = clock
        self._ledger = Ledger(store)
        self._rows = Rows(self._ledger, config.families)
        self._planner = Planner(config)
        self._tickets: deque[_Ticket] = deque()
        self._uses: frozenset[Use] = frozenset()
        self._holds = self._ledger.holds
        self._quiet_since = clock()
        self._compared_at = float("-inf")
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._identity: Identity | None = None
        self._supplier: Supplier | None = None
        self._reconciler: Reconciler | None = None

    # -- life ---------------------------------------------------------------------------------------------

    def start(self, use: Use, *, threaded: bool = True) -> None:
        """Serve requests for ``use``; called again, it only adds the use.

        Without an answer from the API it starts all the same if pods can be served from what is known.

        :param threaded: False leaves the planning to calls of :meth:`step`.
        :raises CloudError: what the cloud has must be known and is not.
        :raises InvalidConfig: the settings name no vSwitch that serves this node.
        """
        with self._rows.changed:
            if self._supplier is None:
                self._connect()
            self._uses |= {use}
            if self._thread is None and threaded:
                self._thread = threading.Thread(target=self._loop, name="eni pool", daemon=True)
                self._thread.start()
            self._rows.changed.notify_all()

    def stop(self) -> None:
        """Finish the calls that are under way; everything else is in the rows."""
        with self._rows.changed:
            self._stopping = True
            self._rows.changed.notify_all()
        if self._thread:
            self._thread.join()
        if self._supplier:
            self._supplier.close()

    def _connect(self) -> None:
        identity = self._cloud.metadata.identity()
        tags = Tags(
            cluster=self._config.cluster, instance_id=identity.instance_id, extra=dict(self._config.tags)
        )
        machine = Machine(
            self._cloud,
            tags,
            prefix_mode=self._config.prefix_mode,
            has_link=lambda mac: self._find_link(mac) is not None,
            clock=self._clock,
        )
        supplier = Supplier(
            self._rows,
            self._cloud,
            machine,
            self._planner,
            self._ask_limits(identity.instance_type),
            self._clock,
        )
        reconciler = Reconciler(self._rows, self._cloud, tags, busy=supplier.is_busy, clock=self._clock)
        self._identity, self._reconciler = identity, reconciler
        try:
            self._compare(supplier)
        except CloudError as error:
            if not any(eni.state is EniState.READY for eni in self._rows.enis.values()):
                raise
            log.warning("pool starts from what it knows", extra={"problem": str(error)})
        self._rows.adopt(self._ledger.journalled())
        self._supplier = supplier

    def _ask_limits(self, instance_type: str) -> Limits:
        try:
            found = ecs.describe_instance_type(self._cloud, instance_type)
        except CloudError:
            if known := self._ledger.limits(instance_type):
                return known
            raise
        limits = Limits(
            instance_type=instance_type,
            enis=found.eni_quantity - 1,
            ipv4=found.ipv4_per_eni,
            ipv6=found.ipv6_per_eni,
        )
        if limits.enis < 1:
            raise InvalidConfig(f"instance type {instance_type} takes no ENI besides its primary one")
        if 6 in self._config.families and limits.ipv6 < 1:
            raise InvalidConfig(f"instance type {instance_type} has no IPv6; set pool.ip_stack to ipv4")
        self._ledger.remember_limits(limits)
        return limits

    # -- requests -----------------------------------------------------------------------------------------

    def allocate(self, owner: str, use: Use = "shared") -> Grant:
        """Addresses, or an ENI, for ``owner``; the same as long as they are not released.

        :raises NoAddress: none came free in time; the message names the cause.
        :raises RetryLater: the pool is not started.
        """
        supplier = self._started()
        with self._rows.changed:
            if granted := self._rows.granted(owner):
                return granted
            ticket = _Ticket(owner, use)
            self._tickets.append(ticket)
            self._serve()
            if ticket.grant is None:
                self._rows.changed.notify_all()
                deadline = time.monotonic() + self._config.wait
                while not ticket.settled:
                    left = deadline - time.monotonic()
                    if left <= 0 or self._stopping:
                        break
                    self._rows.changed.wait(left)
            if ticket in self._tickets:
                self._tickets.remove(ticket)
            grant = ticket.grant
            self._quiet_since = self._clock()
        if grant is None:
            raise NoAddress(ticket.hopeless or f"waited {self._config.wait:g} s: {self._why(supplier, use)}")
        self._rows.keep(grant)
        return grant

    def link_of(self, eni: Eni) -> FoundLink:
        """The host's link of an ENI.

        :raises RetryLater: it is not there, or in a pod.
        """
        link = self._find_link(eni.mac)
        if link is None:
            raise RetryLater(f"the host has no link with MAC address {eni.mac}, that of {eni.eni_id}")
        return link

    def release(self, owner: str) -> bool:
        """Give back what ``owner`` has; it rests. False when it has nothing."""
        with self._rows.changed:
            self._quiet_since = now = self._clock()
            return self._rows.give_back(owner, now + self._config.cooldown) is not None

    def collect(self, live: Iterable[str]) -> list[str]:
        """Give back what belongs to owners that are neither in ``live`` nor in the journal; a line for each.

        The owners are looked at before the journal: an attachment has its row before it gets an address.
        """
        owners = self._rows.owners()
        dead = sorted(owners - set(live) - set(self._ledger.journalled()))
        return [f"addresses of {owner}" for owner in dead if self.release(owner)]

    @property
    def families(self) -> tuple[int, ...]:
        """What a pod gets an address of."""
        return self._config.families

    @property
    def holds(self) -> Holds:
        """The operator's switches."""
        return self._holds

    def hold(self, holds: Holds) -> None:
        """Set the operator's switches; they outlive a restart."""
        self._ledger.holds = holds
        with self._rows.changed:
            self._holds = holds
            self._rows.changed.notify_all()
        log.warning("pool switches", extra={"hold_releasing": holds.releasing, "hold_calling": holds.calling})

    # -- planning -----------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Compare if it is time, serve who can be served, begin what can begin. True when something began."""
        supplier = self._started()
        if self._clock() - self._compared_at >= self._config.reconcile_interval and not self._holds.calling:
            try:
                self._compare(supplier)
            except CloudError as error:
                log.warning("comparison with the cloud failed", extra={"problem": str(error)})
        with self._rows.changed:
            self._serve()
            view = self._view(supplier)
            begun = supplier.begin(view)
            if not begun and not supplier.under_way:
                self._give_up_hopeless(supplier, view)
        return bool(begun)

    def settle(self) -> None:
        """Step until nothing is left to do at once; for callers without the thread."""
        supplier = self._started()
        while self.step() or supplier.under_way:
            supplier.settle()

    def _loop(self) -> None:
        while not self._stopping:
            try:
                self.step()
            except TerwayError as error:
                log.error("pool", extra={"problem": str(error)})
            except Exception:
                log.exception("pool step failed")
            with self._rows.changed:
                if not self._stopping:
                    self._rows.changed.wait(self._pause())

    def _pause(self) -> float:
        now = self._clock()
        supplier = self._started()
        times = [supplier.next_look(), self._compared_at + self._config.reconcile_interval]
        times += [
            address.rests_until for address in self._rows.addresses.values() if address.rests_until > now
        ]
        times.append(self._quiet_since + self._config.reclaim_after)
        pause = min([at - now for at in times if at > now], default=LONGEST_PAUSE)
        if self._tickets:
            pause = min(pause, GATHER)
        return min(max(pause, 0.01), LONGEST_PAUSE)

    def _serve(self) -> None:
        """Grant to those who wait, in the order in which they came; each use has its own line."""
        dry: set[Use] = set()
        for ticket in tuple(self._tickets):
            if ticket.use in dry:
                continue
            ticket.grant = self._rows.grant(ticket.owner, ticket.use, self._clock())
            if ticket.grant is None:
                dry.add(ticket.use)
            else:
                self._tickets.remove(ticket)
                self._rows.changed.notify_all()

    def _view(self, supplier: Supplier) -> View:
        gathered = [t for t in self._tickets if time.monotonic() - self._tickets[0].since >= GATHER]
        return supplier.view(
            waiting=sum(ticket.use == "shared" for ticket in gathered),
            waiting_enis=sum(ticket.use == "exclusive" for ticket in gathered),
            quiet_since=self._quiet_since,
            holds=self._holds,
            uses=self._uses,
        )

    def _compare(self, supplier: Supplier) -> None:
        assert self._reconciler
        assert self._identity
        self._compared_at = self._clock()  # also when it fails: not again at once
        attached = self._reconciler.compare()
        supplier.foreign_enis = self._reconciler.foreign_enis
        supplier.place = self._find_place(self._identity, attached)

    def _find_place(self, identity: Identity, attached: list[ecs.NetworkInterface]) -> Place:
        primary = primary_of(attached)
        wanted = self._config.vswitch_ids or (identity.vswitch_id,)
        here = [v for v in vpc.describe_vswitches(self._cloud, wanted) if v.zone_id == identity.zone_id]
        if not here:
            raise InvalidConfig(
                f"none of the vSwitches {', '.join(wanted)} is in this node's zone {identity.zone_id}; "
                "name one of that zone in pool.vswitch_ids"
            )
        here.sort(key=lambda vswitch: -vswitch.available_ips)
        groups = self._config.security_group_ids or (primary.security_group_ids if primary else ())
        return Place(vswitch_ids=tuple(v.vswitch_id for v in here), security_group_ids=tuple(groups))

    def _give_up_hopeless(self, supplier: Supplier, view: View) -> None:
        """Tell those for whom nothing is on its way why; waiting out their time would not help them."""
        if not self._tickets or supplier.next_look() < float("inf"):
            return
        if any(eni.state in (EniState.CREATING, EniState.ATTACHING) for eni in view.enis.values()):
            return
        for ticket in self._tickets:
            old_enough = time.monotonic() - ticket.since >= GATHER
            if old_enough and not self._something_rests(view, ticket.use):
                ticket.hopeless = self._why(supplier, ticket.use)
        self._rows.changed.notify_all()

    def _something_rests(self, view: View, use: Use) -> bool:
        soon = view.now + self._config.wait
        if use == "exclusive":
            return any(view.now < eni.rests_until <= soon for eni in view.enis.values() if not eni.owner)
        return any(
            view.now < a.rests_until <= soon and not a.owner for rows in view.addresses.values() for a in rows
        )

    def _why(self, supplier: Supplier, use: Use) -> str:
        """The cause of a shortage, as far as it is known, and what to do."""
        now = self._clock()
        what = "address" if use == "shared" else "ENI"
        limits = supplier.limits
        causes = []
        if self._holds.calling:
            causes.append("calls to the cloud are held; end that with: terway pool resume")
        exhausted = sorted(v for v, until in supplier.exhausted_until.items() if until > now)
        if exhausted:
            causes.append(
                f"vSwitch {', '.join(exhausted)} has no free address; add a vSwitch to pool.vswitch_ids"
            )
        if supplier.is_full(self._planner, self._view(supplier)):
            causes.append(
                f"instance type {limits.instance_type} takes {limits.enis} ENIs with {limits.ipv4} IPv4 "
                "addresses each and all are used; delete pods or take a larger type"
            )
        if supplier.last_error:
            causes.append(f"the last refusal was: {supplier.last_error}")
        return f"no {what} is free: " + ("; ".join(causes) or "none came free")

    def _started(self) -> Supplier:
        if self._supplier is None:
            raise RetryLater("the ENI pool is not started yet")
        return self._supplier

    # -- answers ------------------------------------------------------------------------------------------

    @property
    def problems(self) -> Sequence[str]:
        """What the last comparison with the cloud found wrong and could not mend."""
        return self._reconciler.problems if self._reconciler else ()

    def waiting(self) -> list[Use]:
        """What those in line wait for."""
        with self._rows.changed:
            return [ticket.use for ticket in self._tickets]

    def describe(self) -> list[dict[str, Any]]:
        """For people and metrics: each ENI, and its addresses by state."""
        now = self._clock()
        with self._rows.changed:
            by_eni = self._rows.by_eni()
            return [
                {
                    "eni": eni.eni_id,
                    "state": eni.state.value,
                    "use": eni.use,
                    "vswitch": eni.vswitch_id,
                    "mac": eni.mac,
                    "owner": eni.owner,
                    "problem": eni.problem,
                    "addresses": [_words(row, now) for row in sorted(by_eni[eni.token], key=_by_address)],
                }
                for eni in sorted(self._rows.enis.values(), key=lambda eni: eni.since)
            ]


def _words(row: EniAddress, now: float) -> dict[str, str]:
    state = "used" if row.owner else "leaving" if row.leaving else "free" if row.free(now) else "cooling"
    return {
        "address": str(row.address),
        "prefix": str(row.block or ""),
        "owner": row.owner,
        "state": state,
    }


def _by_address(row: EniAddress) -> tuple[int, int]:
    return row.address.version, int(row.address)


class _Ticket:
    """Somebody's place in the line."""

    def __init__(self, owner: str, use: Use) -> None:
        self.owner = owner
        self.use = use
        self.since = time.monotonic()
        self.grant: Grant | None = None
        self.hopeless = ""

    @property
    def settled(self) -> bool:
        """Served, or told that it cannot be."""
        return self.grant is not None or bool(self.hopeless)
