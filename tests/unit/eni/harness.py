"""A node with a pool: the real pool, journal and SDK against the simulated API, in a time of its own."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, TypeVar

from terway_core.cloud import Cloud, Identity
from terway_core.config import CloudConfig, PoolConfig
from terway_core.eni.audit import audit_enis
from terway_core.eni.model import Use
from terway_core.eni.pool import Pool
from terway_core.eni.rows import Grant
from terway_core.errors import TerwayError
from terway_core.lab.api import (
    CALLS,
    Behaviour,
    InjectedFault,
    NetworkInterface,
    Region,
    ServedCall,
    VSwitch,
    build_app,
    serving,
)
from terway_core.record import Record, State
from terway_core.store import Store
from terway_core.testing.fakes import make_attachment
from terway_core.types import IPAddress, Lease
from terway_core.wiring.netlink import FoundLink

T = TypeVar("T")
ZONE = "cn-hangzhou-h"
DAY = 86400.0


class Time:
    """One time for the pool and its cloud; whoever sleeps lets it pass, and it takes none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 1_800_000_000.0
        self._skew = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        """Seconds since the epoch, as a wall clock has them."""
        return self._now + self._skew

    def monotonic(self) -> float:
        """Seconds that have passed."""
        return self._now

    def set_back(self, seconds: float) -> None:
        """Somebody sets the wall clock; negative: forward."""
        self._skew -= seconds

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Have something happen at that time."""
        self._due.append((self._now + seconds, act))

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self._lock:
            self._now += seconds
            due = [act for at, act in self._due if at <= self._now]
            self._due = [(at, act) for at, act in self._due if at > self._now]
        for act in due:
            act()


class Killed(BaseException):
    """The process is dead."""


class Fuse:
    """Kills the process at one of the points where a call or a write begins or ends.

    :ivar passed: the points that were reached.
    """

    def __init__(self, blow_at: int = 0) -> None:
        self.blow_at = blow_at
        self.passed: list[str] = []
        self.blown = False
        self._lock = threading.Lock()

    def burn(self, point: str) -> None:
        with self._lock:
            if not self.blown:
                self.passed.append(point)
                self.blown = len(self.passed) == self.blow_at
        self.check()

    def check(self) -> None:
        """The dead do nothing any more."""
        if self.blown:
            raise Killed


class MortalStore(Store):
    """The journal of a process that may die."""

    def __init__(self, path: Path, fuse: Fuse) -> None:
        self._fuse = Fuse()
        super().__init__(path)
        self._fuse = fuse

    def write(self, change: Callable[[Any], T], *, durable: bool = True) -> T:
        self._fuse.burn("write")
        result = super().write(change, durable=durable)
        self._fuse.burn("written")
        return result


class MortalCloud(Cloud):
    """The cloud as seen by a process that may die.

    :ivar on_answer: told of each call that is answered, and its parameters, before the caller is.
    """

    fuse = Fuse()
    on_answer: Callable[[str, dict[str, Any]], None] | None = None

    def call(self, product: Any, action: str, params: Any, **options: Any) -> dict[str, Any]:
        self.fuse.burn(action)
        answer = super().call(product, action, params, **options)
        self.fuse.burn(f"{action} answered")
        if self.on_answer:
            self.on_answer(action, params)
        return answer


class Metadata:
    """The metadata service, as far as the pool asks it."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def identity(self) -> Identity:
        return self._identity


class Account:
    """A served region with a VPC of one vSwitch."""

    def __init__(self, cidr: str = "192.168.1.0/24") -> None:
        self.region = Region.create(region_id="cn-hangzhou")
        self.vpc = self.region.add_vpc("192.168.0.0/16", ipv6_cidr="2001:db8:1::/56")
        self.vswitch = self.region.add_vswitch(self.vpc, cidr, ZONE, ipv6_cidr="2001:db8:1:1::/64")
        self.key = self.region.add_access_key()
        self.behaviour = Behaviour()
        self.app = build_app(self.region, behaviour=self.behaviour)
        self.endpoint = ""

    def add_vswitch(self, cidr: str, zone: str = ZONE) -> VSwitch:
        return self.region.add_vswitch(self.vpc, cidr, zone)

    @contextmanager
    def served(self) -> Iterator[Account]:
        with serving(self.app) as self.endpoint:
            yield self

    def fault(self, kind: str, action: str = "*", **fields: Any) -> InjectedFault:
        """Trouble from now on, until it is cleared or used up."""
        fault = InjectedFault(kind=kind, action=action, **fields)
        self.behaviour.faults.append(fault)
        return fault

    def clear(self, *faults: InjectedFault) -> None:
        """End these, or all."""
        self.behaviour.faults[:] = [one for one in self.behaviour.faults if faults and one not in faults]


class Node:
    """One instance of an account, and the process on it that has the pool."""

    def __init__(
        self, account: Account, path: Path, instance_type: str = "ecs.g7.xlarge", **settings: Any
    ) -> None:
        self.account = account
        self.region = account.region
        self.time = Time()
        self.path = path
        # Plain arithmetic for tests: nothing is kept warm, and nothing given back, unless a test says so.
        self.settings = {"warm_min": 0, "warm_max": 0, "reclaim_after": DAY, "wait": 10.0, **settings}
        self.instance = self.region.add_instance(
            f"node-{len(self.region.instances)}", instance_type=instance_type, vswitch=account.vswitch
        )
        self.without_link: set[str] = set()
        self.fuse = Fuse()
        self._process = ExitStack()
        self._threaded = False
        self._threads = ThreadPoolExecutor(64)
        self._first_call = 0

    # -- the process --------------------------------------------------------------------------------------

    def boot(self, *uses: Use, threaded: bool = False, fuse: Fuse | None = None, **settings: Any) -> Pool:
        """Start the process, again with the same journal."""
        self.settings |= settings
        self.fuse = fuse or Fuse()
        self.store = MortalStore(self.path, self.fuse)
        self._process.callback(self.store.close)
        self.cloud = self.connect()
        self.cloud.fuse = self.fuse
        mortal, self._threaded = self.fuse, threaded

        def clock() -> float:
            mortal.check()
            return time.time() if threaded else self.time.clock()

        self.pool = Pool(
            self.store, self.cloud, PoolConfig(**self.settings), find_link=self.find_link, clock=clock
        )
        self._process.callback(self.pool.stop)
        for use in uses or ("shared",):
            self.pool.start(use, threaded=threaded)
        return self.pool

    def kill(self) -> None:
        """What is under way goes unfinished, as with kill -9. Not for a process with a thread of its own."""
        self.fuse.blown = True
        self.stop()

    def stop(self) -> None:
        """What is under way is finished."""
        self._process.close()

    def close(self) -> None:
        self.stop() if self._threaded else self.kill()
        self._threads.shutdown()

    def lose_journal(self) -> None:
        """The file is gone. As a start of the daemon does, pods that run are taken in from the kernel."""
        records = [record for record in self.store.records() if record.state is State.READY]
        self.kill()
        for path in self.path.parent.glob(f"{self.path.name}*"):
            path.unlink()
        store = Store(self.path)
        for record in records:
            store.put(record)
        store.close()

    def connect(self) -> MortalCloud:
        """A cloud for this node."""
        endpoint, region = self.account.endpoint, self.region
        cloud = MortalCloud(
            CloudConfig(
                region_id=region.region_id, vpc_endpoint=endpoint, ecs_endpoint=endpoint, protocol="http"
            ),
            env={
                "ALIBABA_CLOUD_ACCESS_KEY_ID": self.account.key.access_key_id,
                "ALIBABA_CLOUD_ACCESS_KEY_SECRET": self.account.key.access_key_secret,
            },
            clock=self.time.clock,
            monotonic=self.time.monotonic,
            sleep=self.time.advance,
        )
        instance = self.instance
        cloud.metadata = Metadata(  # type: ignore[assignment]
            Identity(
                region_id=region.region_id,
                zone_id=instance.zone_id,
                vpc_id=instance.vpc_id,
                vpc_cidrs=(),
                vswitch_id=instance.vswitch_id,
                instance_id=instance.instance_id,
                instance_type=instance.instance_type,
                private_ipv4=instance.private_ip,
                private_ipv6=instance.ipv6,
                mac=instance.mac,
            )
        )
        return cloud

    def find_link(self, mac: str) -> FoundLink | None:
        """The kernel shows a link for what is plugged in, unless a test hides it."""
        for index, eni in enumerate(self.enis(), 2):
            if eni.mac == mac and eni.plugged and not self.without_link & {mac, "*"}:
                return FoundLink(f"eth{index}", index)
        return None

    # -- pods ---------------------------------------------------------------------------------------------

    def ask(self, owner: str, use: Use = "shared") -> Future[Grant]:
        """An ADD that goes on while the test does something else."""
        return self._threads.submit(self.pool.allocate, owner, use)

    def allocate(self, owner: str, use: Use = "shared") -> Grant:
        """An ADD, with as much time for the pool as it needs."""
        future = self.ask(owner, use)
        self.work(until=future.done)
        return future.result()

    def burst(self, count: int, use: Use = "shared", *, first: int = 0) -> list[Grant]:
        """So many ADDs at once."""
        futures = [self.ask(f"pod-{number}", use) for number in range(first, first + count)]
        self.work(until=lambda: all(future.done() for future in futures))
        return [future.result() for future in futures]

    def work(
        self, seconds: float = 5.0, *, until: Callable[[], bool] | None = None, pace: float = 1.0
    ) -> None:
        """Let the pool work for some time, or until something has come true."""
        end = self.time.monotonic() + seconds

        def is_over() -> bool:
            return until() if until else self.time.monotonic() >= end

        while True:
            while self.pool.settle() and not is_over():
                self.fuse.check()
            self.fuse.check()
            if is_over():
                return
            if until:
                time.sleep(0.005)  # for those who wait in threads
            self.time.advance(pace)

    def add_pod(self, number: int, use: Use = "shared") -> Grant:
        """An ADD with its rows in the journal, in the order in which the daemon writes them."""
        record = Record(
            attachment=make_attachment(number),
            driver="eni" if use == "exclusive" else "eniip_veth",
            state=State.ALLOCATING,
            created=self.time.clock(),
        )
        self.store.put(record)
        try:
            grant = self.allocate(str(record.key), use)
        except TerwayError:
            self.store.remove(record.key)
            raise
        self.store.put(replace(record, state=State.READY, lease=lease_of(grant)))
        return grant

    def delete_pod(self, number: int) -> None:
        """A DEL."""
        record = self.store.get(make_attachment(number).key)
        if record:
            self.store.advance(record, State.RELEASING)
            self.pool.release(str(record.key))
            self.store.remove(record.key)

    def recover(self) -> None:
        """What a start does about attachments that were on their way."""
        for record in self.store.records():
            if record.state is not State.READY:
                self.pool.release(str(record.key))
                self.store.remove(record.key)

    # -- what there is ------------------------------------------------------------------------------------

    def enis(self) -> list[NetworkInterface]:
        """The cloud's, on this instance."""
        every = list(self.region.network_interfaces.values())
        return [eni for eni in every if eni.instance_id == self.instance.instance_id]

    def tagged(self) -> list[NetworkInterface]:
        """The cloud's, that carry this node's tags."""
        every = list(self.region.network_interfaces.values())
        return [eni for eni in every if eni.tags.get("terway.instance") == self.instance.instance_id]

    def in_cloud(self) -> dict[str, set[IPAddress]]:
        """The addresses of each ENI that this node has made, by its id."""
        return {eni.network_interface_id: addresses_of(eni) for eni in self.tagged()}

    def in_rows(self) -> dict[str, set[IPAddress]]:
        """The same, as the pool believes it."""
        return {
            eni["eni"]: {ip_interface(row["address"]).ip for row in eni["addresses"]}
            for eni in self.pool.describe()
        }

    def states(self) -> Counter[str]:
        """How many ENIs are in each state, as the pool sees it."""
        return Counter(eni["state"] for eni in self.pool.describe())

    def addresses(self, state: str) -> list[str]:
        """The addresses that are ``used``, ``free``, ``cooling`` or ``leaving``."""
        rows = [row for eni in self.pool.describe() for row in eni["addresses"]]
        return [row["address"] for row in rows if row["state"] == state]

    def audit(self) -> list[str]:
        """What ``terway audit`` says, from a journal of its own that it may only read."""
        store = Store(self.path, read_only=True)
        try:
            return audit_enis(store, self.connect(), PoolConfig(**self.settings))
        finally:
            store.close()

    def forget_calls(self) -> None:
        """Count from here."""
        self._first_call = len(self.account.app[CALLS])

    def calls(self, *actions: str) -> list[ServedCall]:
        """What the API has served; all of it, or only some actions."""
        served = list(self.account.app[CALLS])[self._first_call :]
        return [call for call in served if not actions or call.action in actions]

    def changes(self) -> Counter[str]:
        """How often it was asked to change something."""
        return Counter(call.action for call in self.calls() if not call.action.startswith("Describe"))


def addresses_of(eni: NetworkInterface) -> set[IPAddress]:
    """All, those of prefixes too."""
    return {*eni.ipv4, *eni.ipv6, *(address for block in eni.ipv4_prefixes for address in block)}


def lease_of(grant: Grant) -> Lease:
    """As a driver makes it."""
    addresses = sorted({row.address.version: row.address for row in grant.addresses}.items())
    return Lease(addresses=tuple(ip_interface(address) for _, address in addresses))


def assert_agree(node: Node) -> None:
    """Cloud, rows and owners."""
    assert node.in_cloud() == node.in_rows()
    assert node.audit() == []


def assert_agree_but_owners(node: Node) -> None:
    """Cloud and rows; the owners of a test that keeps no journal are in none."""
    assert node.in_cloud() == node.in_rows()
    assert [line for line in node.audit() if "owned by" not in line] == []


def assert_whole(node: Node, grants: list[Grant]) -> None:
    """Each has addresses of its own, which are on an ENI of this node."""
    given = [row.address for grant in grants for row in grant.addresses]
    assert len(set(given)) == len(given)
    assert set(given) <= {address for eni in node.enis() for address in addresses_of(eni)}
