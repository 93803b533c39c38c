"""kill -9 at each side effect of what is done for a pod of eniip_ipvlan; the next daemon puts all in order.

The daemon's parts are real, and so are kernel and pool; but the process that dies is a thread. Once it is
dead it writes nothing, neither to the journal nor to the kernel, so that its cleaning up does nothing either.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from terway_core.cni.protocol import Command, Request
from terway_core.daemon.collector import Collector
from terway_core.daemon.lifecycle import Lifecycle
from terway_core.daemon.queue import Cancellation
from terway_core.daemon.shared import SharedObjects
from terway_core.lab.ping import ping
from terway_core.registry import Drivers
from terway_core.store import Store
from terway_core.testing.eni import FakeLinks, simulated_pool
from terway_core.testing.fakes import NoCloud, make_attachment
from terway_core.types import Attachment, Node, Services
from terway_core.wiring.engine import Engine
from terway_core.wiring.inspect import HostState, diff
from terway_core.wiring.netlink import NetlinkSocket
from terway_core.wiring.netns import Namespace, create_netns, delete_netns, temporary_netns
from terway_core.wiring.objects import LinkUp, Veth, Wiring

from .conftest import RUN, wait_for
from .wirings import traces

pytestmark = [pytest.mark.kernel, pytest.mark.uml]

MODE = "eniip_ipvlan"
NODE = Node(
    name="node-1",
    addresses=(ip_address("192.168.1.1"),),
    service_cidrs=(ip_network("172.21.0.0/20"),),
)


class Killed(BaseException):
    """The process is dead."""


class Trap:
    """Kills at the Nth side effect of the thread that set it, and of those that work for it."""

    def __init__(self) -> None:
        self._left = 0
        self.dead = False
        self._victim: threading.Thread | None = None

    def set(self, number: int) -> None:
        self._left, self.dead, self._victim = number, False, threading.current_thread()

    def disarm(self) -> None:
        self._victim, self.dead = None, False

    def step(self) -> None:
        thread = threading.current_thread()
        if self._victim is None or not (thread is self._victim or thread.name.startswith("netns:")):
            return  # the pool's own
        self._left -= 1
        if self._left == 0:
            self.dead = True
        if self.dead:
            raise Killed


@pytest.fixture
def trap(monkeypatch) -> Trap:
    """Before each write of the journal, each batch of messages to the kernel, and each hook."""
    trap = Trap()

    def wrap(owner: type, name: str) -> None:
        function = getattr(owner, name)

        def wrapper(self, *args, **kwargs):
            trap.step()
            return function(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    wrap(Store, "put")
    wrap(Store, "remove")
    wrap(Store, "advance")
    wrap(NetlinkSocket, "send")
    wrap(Drivers, "allocate")
    wrap(Drivers, "teardown")
    return trap


class World:
    """A node with one ENI; its daemon is :meth:`boot`\\ ed again and again."""

    def __init__(self, drivers: Drivers, services: Services, pods: list[str]) -> None:
        self._drivers = drivers
        self._services = services
        self._store = services.store
        self._pods = pods
        self.engine: Engine | None = None

    def boot(self) -> None:
        """What a daemon does before it serves."""
        self.close()
        self.engine = Engine()
        shared = SharedObjects(self.engine)
        for record in self._store.records():
            if record.wiring:
                shared.remember(record.key, record.wiring.node)
        common = {"store": self._store, "drivers": self._drivers, "engine": self.engine, "shared": shared}
        self.lifecycle = Lifecycle(
            **common,
            order=[MODE],
            node=lambda: NODE,
            unavailable={},
            cluster=None,
            clock=self._services.clock,
        )
        self.collector = Collector(
            **common,
            lifecycle=self.lifecycle,
            node=lambda: NODE,
            started=lambda: [MODE],
            spool=Path("/nonexistent"),
            cluster=None,
            gone_after=0,
            clock=self._services.clock,
        )

    def close(self) -> None:
        if self.engine:
            self.engine.close()
        self.engine = None

    def pod(self, number: int) -> Attachment:
        """A new sandbox, with ``lo`` as runtimes leave it."""
        path = create_netns(f"{RUN}-ipvlan-{number}")
        self._pods.append(path.name)
        with Namespace.open(path) as namespace:
            engine = Engine(namespace)
            engine.ensure([LinkUp(dev="lo")])
            engine.close()
        attachment = make_attachment(number)
        return Attachment(
            network=attachment.network,
            container_id=attachment.container_id,
            ifname="eth0",
            netns=str(path),
            pod=attachment.pod,
        )

    def vanish(self, pod: Attachment) -> None:
        """The sandbox's namespace goes, without a DEL."""
        delete_netns(Path(pod.netns).name)
        self._pods.remove(Path(pod.netns).name)

    def add(self, pod: Attachment) -> str:
        request = Request(command=Command.ADD, cni_version="1.0.0", network=pod.network, attachment=pod)
        with self.lifecycle.turn_to_add(pod):
            answer = self.lifecycle.add(request, Cancellation())
        return str(answer["ips"][0]["address"]).partition("/")[0]

    def delete(self, pod: Attachment) -> None:
        request = Request(command=Command.DEL, cni_version="1.0.0", network=pod.network, attachment=pod)
        with self.lifecycle.turn_to_delete(pod):
            self.lifecycle.delete(request)

    def is_dead(self, pod: Attachment) -> bool:
        record = self._store.get(pod.key)
        assert record
        return self.lifecycle.is_dead(record)

    def problems(self) -> list[str]:
        """What ``terway audit`` would find: differences, strays, addresses that belong to nobody."""
        records = self._store.records()
        found = [
            f"{stray.description} is a stray"
            for stray in HostState.read().strays(record.wiring for record in records if record.wiring)
        ]
        for record in records:
            found += [f"{record.key} is {record.state}"] if record.state != "ready" else []
            if record.wiring:
                with Namespace.open(record.attachment.netns) as pod:
                    found += map(str, diff(record.wiring, pod, owner=record.owner))
        owners = {str(record.key) for record in records}
        for eni in self._services.eni_pool("shared").describe():
            found += [
                f"{address['address']} of {address['owner']}"
                for address in eni["addresses"]
                if address["owner"] and address["owner"] not in owners
            ]
        return found

    def reaches(self, address: str) -> bool:
        return ping(ip_address(address), timeout=3.0) is not None


@contextmanager
def world(store: Store, clock: Callable[[], float]) -> Iterator[World]:
    """In the calling thread's namespace, which becomes the node's."""
    links, pods = FakeLinks(), []
    with simulated_pool(store, clock, links.find, instance_type="ecs.g6.large", cooldown=0) as simulated:
        drivers = Drivers.installed()
        services = Services(
            options={"masquerade": False},
            node=NODE,
            store=store,
            cloud=NoCloud(),
            eni_pool=simulated.start,
            clock=clock,
        )
        drivers.start(MODE, services)
        pool = services.eni_pool("shared")
        pool.allocate("the first makes the ENI")
        pool.release("the first makes the ENI")
        found = World(drivers, services, pods)
        try:
            found.boot()
            with Namespace.current() as here, temporary_netns() as beyond:
                eni = Veth(name="far", peer="eth1", mac="ee:ff:ff:ff:ff:ff", peer_mac=links.macs[0])
                engine = Engine(beyond)
                engine.apply(Wiring(host=(eni,)), here, "the VPC")
                engine.close()
                yield found
        finally:
            found.close()
            for name in pods:
                delete_netns(name)
            drivers.stop(MODE)


@pytest.fixture
def on_a_node(terway_netns, terway_store, terway_clock):
    """Have a function called with a world, in the namespace of its node."""

    def run(function: Callable[[World], None]) -> None:
        def inside() -> None:
            with world(terway_store, terway_clock) as found:
                function(found)

        terway_netns().run(inside)

    return run


def state(*pods: Attachment) -> object:
    """What anybody has made on the node, and in these pods."""
    with Namespace.current() as here, ExitStack() as stack:
        inside = [stack.enter_context(Namespace.open(pod.netns)) for pod in pods]
        return traces(here, *inside)


def killed(trap: Trap, step: int, act: Callable[[], object]) -> bool:
    """Whether ``act`` came to that step, and so to its end."""
    trap.set(step)
    try:
        act()
    except Killed:
        return True
    finally:
        trap.disarm()
    return False


@pytest.mark.parametrize("company", ["alone", "beside another"])
def test_add(on_a_node, trap, company):
    def scenario(world: World) -> None:
        other = world.add(world.pod(0)) if company == "beside another" else ""
        for step in itertools.count(1):
            pod = world.pod(step)
            before = state(pod)
            if not killed(trap, step, lambda pod=pod: world.add(pod)):
                break
            world.boot()
            assert world.collector.recover().problems == []
            assert world.problems() == [], f"killed at step {step}"
            world.delete(pod)  # what a runtime does after a failed ADD
            assert state(pod) == before, f"killed at step {step}"
            assert world.reaches(world.add(pod))
            assert not other or world.reaches(other)
            world.delete(pod)
            assert state(pod) == before, f"killed at step {step}, then made again"
            world.vanish(pod)
        assert step > 12

    on_a_node(scenario)


@pytest.mark.parametrize("company", ["alone", "beside another"])
def test_delete(on_a_node, trap, company):
    def scenario(world: World) -> None:
        other = world.add(world.pod(0)) if company == "beside another" else ""
        for step in itertools.count(1):
            pod = world.pod(step)
            before = state(pod)
            world.add(pod)
            if not killed(trap, step, lambda pod=pod: world.delete(pod)):
                break
            world.boot()
            assert world.collector.recover().problems == []
            world.delete(pod)  # the runtime asks again
            assert world.problems() == [], f"killed at step {step}"
            assert state(pod) == before, f"killed at step {step}"
            assert not other or world.reaches(other)
            world.vanish(pod)
        assert step > 6

    on_a_node(scenario)


def test_gc(on_a_node, trap):
    """The pod's namespace is gone without a DEL, and the daemon that finds out is killed."""

    def scenario(world: World) -> None:
        other = world.add(world.pod(0))
        before = state()
        for step in itertools.count(1):
            pod = world.pod(step)
            world.add(pod)
            world.vanish(pod)
            wait_for(lambda pod=pod: world.is_dead(pod), "the kernel takes the namespace apart")
            if not killed(trap, step, world.collector.recover):
                break
            world.boot()
            world.collector.round()
            assert world.problems() == [], f"killed at step {step}"
            assert state() == before, f"killed at step {step}"
            assert world.reaches(other)
        assert step > 6

    on_a_node(scenario)
