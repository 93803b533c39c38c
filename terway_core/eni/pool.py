"""The pool: gives out addresses and ENIs, takes them back, and keeps enough of them ready.

A request that finds something free is served at once and without a call to the cloud. Others wait in the
order of their arrival; one thread plans for all of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from terway_core.cloud import Cloud, ecs, vpc
from terway_core.cloud.metadata import Identity
from terway_core.config import PoolConfig
from terway_core.eni.clock import SteadyClock
from terway_core.eni.describe import describe
from terway_core.eni.ledger import Ledger
from terway_core.eni.line import GATHER, Line, Ticket
from terway_core.eni.machine import Machine
from terway_core.eni.model import Eni, EniState, Holds, Limits, Tags, Use
from terway_core.eni.planner import Planner, View
from terway_core.eni.reconcile import SECOND_LOOK, Reconciler, primary_of
from terway_core.eni.rows import Grant, Rows
from terway_core.eni.shortage import explain, is_short, may_end
from terway_core.eni.supplier import Place, Supplier
from terway_core.errors import InvalidConfig, NoAddress, RetryLater, TerwayError
from terway_core.store import Store
from terway_core.wiring.netlink import FoundLink

log = logging.getLogger(__name__)

#: The longest pause of the planning thread, in seconds.
LONGEST_PAUSE: Final = 30.0
#: Seconds for which a plan is put off when pods only came and went, and longer if it is not the first of a
#: burst: they are done by then, without the planner in their way.
CALM: Final = 0.005
#: Seconds after which the cloud is asked again what it has if it did not answer.
ASK_AGAIN: Final = 30.0


class Pool:
    """The ENIs of this node. :meth:`start` it before anything else.

    :param find_link: the link of the host's namespace that has this MAC address.
    :param clock: seconds since the epoch.
    :param waiting: see :class:`~terway_core.types.Services`.
    """

    def __init__(
        self,
        store: Store,
        cloud: Cloud,
        config: PoolConfig,
        *,
        find_link: Callable[[str], FoundLink | None],
        clock: Callable[[], float] = time.time,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._cloud = cloud
        self._config = config
        self._find_link = find_link
        self._clock = SteadyClock(clock)
        self._waiting = waiting
        self._ledger = Ledger(store)
        self._rows = Rows(self._ledger, config.families, now=self._clock(), cooldown=config.cooldown)
        self._line = Line(self._rows, self._clock)
        self._planner = Planner(config)
        self._uses: frozenset[Use] = frozenset()
        self._holds = self._ledger.holds
        self._quiet_since = self._clock()
        self._compare_at = float("-inf")
        self._comparing = False
        self._compared = False
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._supplier: Supplier | None = None
        self._reconciler: Reconciler | None = None
        self._identity: Identity | None = None

    # -- life ---------------------------------------------------------------------------------------------

    def start(self, use: Use, *, threaded: bool = True) -> None:
        """Serve requests for ``use``; called again, it only adds the use.

        A node that has ENIs already serves from what it knows of them, and asks the cloud meanwhile.

        :param threaded: False leaves the planning to calls of :meth:`step`.
        :raises CloudError: what the cloud has must be known and is not.
        :raises InvalidConfig: the settings name no vSwitch that serves this node, or its type takes no trunk.
        """
        with self._starting:
            if self._supplier is None:
                self._connect()
            if use == "trunk" and not (limits := self._started().limits).members:
                raise InvalidConfig(
                    f"instance type {limits.instance_type} takes no trunk ENI; "
                    "take one that does, or leave the driver out of `drivers` on this node"
                )
            self._uses |= {use}
            if self._thread is None and threaded:
                self._thread = threading.Thread(target=self._loop, name="eni pool", daemon=True)
                self._thread.start()
        self._rows.notify()

    def stop(self) -> None:
        """Finish the calls that are under way; everything else is in the rows."""
        with self._rows.changed:
            self._stopping.set()
            self._rows.notify()
        if self._thread:
            self._thread.join()
        if self._supplier:
            self._supplier.close()

    def _connect(self) -> None:
        self._identity = identity = self._cloud.metadata.identity()
        tags = Tags(
            cluster=self._config.cluster, instance_id=identity.instance_id, extra=dict(self._config.tags)
        )
        machine = Machine(
            self._cloud,
            tags,
            prefix_mode=self._config.prefix_mode,
            has_link=self._has_link,
            clock=self._clock,
        )
        supplier = Supplier(
            self._rows,
            self._cloud,
            machine,
            self._planner,
            self._find_limits(identity.instance_type),
            self._clock,
        )
        self._reconciler = Reconciler(
            self._rows,
            self._cloud,
            tags,
            busy=supplier.is_busy,
            has_link=self._has_link,
            clock=self._clock,
        )
        if not any(eni.state is EniState.READY for eni in self._rows.enis.values()):
            self._compare(supplier)
        self._rows.adopt()
        self._reconciler.check_links()
        self._supplier = supplier

    def _find_limits(self, instance_type: str) -> Limits:
        limits = self._ledger.limits(instance_type)
        if limits is None:
            found = ecs.describe_instance_type(self._cloud, instance_type)
            limits = Limits(
                instance_type=instance_type,
                enis=found.eni_quantity - 1,
                ipv4=found.ipv4_per_eni,
                ipv6=found.ipv6_per_eni,
                members=found.eni_total_quantity - found.eni_quantity if found.trunk_supported else 0,
            )
            self._ledger.remember_limits(limits)
        if limits.enis < 1:
            raise InvalidConfig(f"instance type {instance_type} takes no ENI besides its primary one")
        if 6 in self._config.families and limits.ipv6 < 1:
            raise InvalidConfig(f"instance type {instance_type} has no IPv6; set pool.ip_stack to ipv4")
        return limits

    def _has_link(self, mac: str) -> bool:
        return self._find_link(mac) is not None

    # -- requests -----------------------------------------------------------------------------------------

    def allocate(self, owner: str, use: Use = "shared") -> Grant:
        """Addresses, or an ENI, for ``owner``; the same as long as they are not released.

        :raises NoAddress: none came free in time; the message names the cause.
        :raises RetryLater: the pool is not started, or is being stopped.
        """
        supplier = self._started()
        with self._rows.changed:
            if granted := self._rows.granted(owner):
                return granted
            self._quiet_since = self._clock()
            ticket = self._line.join(owner, use)
        if not ticket.settled:
            with self._waiting(), self._rows.changed:
                self._rows.changed.wait_for(
                    lambda: ticket.settled or self._stopping.is_set(), timeout=self._config.wait
                )
                self._line.leave(ticket)
                self._quiet_since = self._clock()
        if ticket.grant is None:
            if self._stopping.is_set() and not ticket.hopeless:
                raise RetryLater("the ENI pool is being stopped")
            raise NoAddress(ticket.hopeless or f"waited {self._config.wait:g} s: {self._why(supplier, use)}")
        self._rows.keep(ticket.grant)
        return ticket.grant

    def link_of(self, eni: Eni) -> FoundLink:
        """The host's link of an ENI; without one, the ENI serves nobody until it has one.

        :raises RetryLater: it is not there, or in a pod.
        """
        link = self._find_link(eni.mac)
        if link is None:
            if self._reconciler:
                self._reconciler.check_links()
            raise RetryLater(f"the host has no link with MAC address {eni.mac}, that of {eni.eni_id}")
        return link

    def allocate_with_link(self, owner: str) -> tuple[Grant, FoundLink]:
        """Addresses for ``owner``, and the host's link of their ENI; the owner keeps nothing when it fails.

        :raises NoAddress: as :meth:`allocate`. :raises RetryLater: also as :meth:`link_of`.
        """
        grant = self.allocate(owner)
        try:
            return grant, self.link_of(grant.eni)
        except RetryLater:
            self.release(owner)
            raise

    def trunk(self) -> Eni:
        """The trunk ENI.

        :raises RetryLater: it is not attached; the message names the cause.
        """
        supplier = self._started()
        with self._rows.changed:
            for eni in self._rows.enis.values():
                if eni.use == "trunk" and eni.state is EniState.READY:
                    return eni
        raise RetryLater(self._why(supplier, "trunk"))

    def members(self) -> int:
        """How many ENIs the trunk ENI takes; 0 while there is none."""
        try:
            self.trunk()
        except RetryLater:
            return 0
        return self._started().limits.members

    def release(self, owner: str) -> bool:
        """Give back what ``owner`` has; it rests. False when it has nothing."""
        self._quiet_since = now = self._clock()
        return self._rows.give_back(owner, now + self._config.cooldown)

    def collect(self, live: Iterable[str]) -> list[str]:
        """Give back what belongs to owners that are neither in ``live`` nor in the journal; a line for each.

        An attachment has its row before it gets an address, so one that is being added meanwhile is safe; and
        who comes back under a key that is found dead here waits until it has been given back.
        """
        with self._rows.changed:
            dead = sorted(self._rows.owners() - set(live) - set(self._ledger.journalled()))
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
            self._rows.notify()
        log.warning("pool switches", extra={"hold_releasing": holds.releasing, "hold_calling": holds.calling})

    # -- planning -----------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Begin to compare if it is time, serve who can be served, begin what can begin. True when something
        began."""
        supplier = self._started()
        with self._rows.changed:
            self._line.serve()
            if self._clock() >= self._compare_at and not self._comparing and not self._holds.calling:
                self._comparing = True
                supplier.run(self._compare_in_background)
                return True
            if not self._compared and self._comparing:
                return False  # until then it is not known what there is
            tickets = self._line.gathered()
            view = self._view(supplier, tickets)
            begun = supplier.begin(view)
            if not begun and not supplier.under_way:
                self._give_up_hopeless(supplier, view, tickets)
        return bool(begun)

    def settle(self) -> bool:
        """:meth:`step`, and wait until nothing is under way; for callers without the thread."""
        began = self.step()
        self._started().settle()
        return began

    def _loop(self) -> None:
        version, planned, looked = -1, 0.0, self._clock()
        while not self._stopping.is_set():
            with self._rows.changed:
                if self._rows.version == version:
                    self._rows.changed.wait(self._pause(looked))
                calm = version >= 0 and not self._line and not self._rows.urgent
                self._rows.urgent = False
            if calm:
                self._stopping.wait(max(CALM, planned + GATHER - time.monotonic()))
            planned = time.monotonic()
            with self._rows.changed:
                version = self._rows.version
            looked = self._clock()
            try:
                self.step()
            except TerwayError as error:
                log.error("pool", extra={"problem": str(error)})
            except Exception:
                log.exception("pool step failed")

    def _pause(self, looked: float) -> float:
        """Seconds until a time comes that the last look at the rows could not know as past."""
        now = self._clock()
        times = [
            self._started().next_look(looked),
            self._compare_at,
            self._quiet_since + self._config.reclaim_after,
        ]
        times += [row.rests_until for row in self._rows.addresses.values()]
        times += [eni.rests_until for eni in self._rows.enis.values()]
        pause = min((at - now for at in times if at > looked), default=LONGEST_PAUSE)
        return max(0.01, min(pause, GATHER if self._line else LONGEST_PAUSE))

    def _view(self, supplier: Supplier, tickets: Sequence[Ticket] = ()) -> View:
        return supplier.view(
            waiting=sum(ticket.use == "shared" for ticket in tickets),
            waiting_enis=sum(ticket.use == "exclusive" for ticket in tickets),
            quiet_since=self._quiet_since,
            holds=self._holds,
            uses=self._uses,
        )

    def _compare_in_background(self) -> None:
        try:
            self._compare(self._started())
        except TerwayError as error:
            log.warning("comparison with the cloud failed", extra={"problem": str(error)})
        except Exception:
            log.exception("comparison with the cloud failed")
        finally:
            with self._rows.changed:
                self._comparing = False
                self._compared = True
                self._rows.notify()

    def _compare(self, supplier: Supplier) -> None:
        assert self._reconciler
        assert self._identity
        interval = self._config.reconcile_interval
        self._compare_at = self._clock() + min(interval, ASK_AGAIN)  # if it fails
        attached = self._reconciler.compare()
        supplier.foreign_enis = self._reconciler.foreign_enis
        supplier.place = self._find_place(self._identity, attached)
        self._compared = True
        self._compare_at = self._clock() + (
            min(interval, SECOND_LOOK) if self._reconciler.doubts else interval
        )

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
        return Place(vswitches=tuple(here), security_group_ids=tuple(groups))

    def _give_up_hopeless(self, supplier: Supplier, view: View, tickets: Sequence[Ticket]) -> None:
        """Tell those, whom ``view`` counts, for whom nothing is on its way why; waiting would not help."""
        tried_again = supplier.next_look(self._clock()) < float("inf") or not supplier.place.vswitches
        if tried_again and not view.holds.calling:
            return
        for ticket in tickets:
            if not ticket.settled and not may_end(view, ticket.use, self._config.wait):
                ticket.hopeless = self._why(supplier, ticket.use)
                self._rows.notify()

    def _why(self, supplier: Supplier, use: Use) -> str:
        return explain(self._view(supplier), self._planner, use, supplier.last_error)

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
            return [ticket.use for ticket in self._line]

    def shortages(self) -> list[str]:
        """For each use that has nothing left for the next pod, why."""
        supplier = self._started()
        with self._rows.changed:
            view = self._view(supplier)
            return [
                self._why(supplier, use)
                for use in sorted(self._uses)
                if is_short(view, self._planner, use, self._config.wait)
            ]

    def capacity(self) -> int:
        """How many pods can have an ENI of their own: those that have, and as many as there is place for."""
        supplier = self._started()
        with self._rows.changed:
            own = sum(
                eni.use == "exclusive" and eni.state is not EniState.DELETING
                for eni in self._rows.enis.values()
            )
            return own + self._planner.can_create(self._view(supplier))

    def describe(self) -> list[dict[str, Any]]:
        """For people and metrics: each ENI, and its addresses by state."""
        return describe(self._rows, self._clock())
