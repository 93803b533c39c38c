"""Route tables through the product's functions, against the simulated VPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from typing import Any

import pytest

from terway_core.cloud import Cloud
from terway_core.cloud.vpc import (
    NextHop,
    RouteEntry,
    create_route_entry,
    delete_route_entry,
    find_system_route_table,
    list_route_entries,
)
from terway_core.config import CloudConfig
from terway_core.errors import CloudError
from terway_core.lab.api import CALLS, Behaviour, Instance, Region, build_app, serving

PODS = ip_network("172.16.0.0/24")
PODS6 = ip_network("2408:4000:0:aa::/64")


#: Seconds by :class:`Clock` that no machine is slow enough to need.
LONG = 100_000


class Clock:
    """Time that passes only by sleeping, much of it in a short sleep: a slow machine changes nothing."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        time.sleep(0.005)
        with self.lock:
            self.now += seconds


class Lab:
    """A served region with two nodes, and a cloud."""

    def __init__(self) -> None:
        self.region = Region.create()
        self.vpc = self.region.add_vpc("10.0.0.0/8")
        self.vswitch = self.region.add_vswitch(self.vpc, "10.0.0.0/24", "cn-hangzhou-h")
        self.node, self.other = self.add_node("node-1"), self.add_node("node-2")
        self.table = self.vpc.route_table_id
        self.behaviour = Behaviour()
        self.app = build_app(self.region, behaviour=self.behaviour)
        self.cloud: Cloud

    def add_node(self, name: str) -> Instance:
        return self.region.add_instance(name, instance_type="ecs.g7.large", vswitch=self.vswitch)

    def connect(self, endpoint: str) -> None:
        key = self.region.add_access_key()
        config = CloudConfig(
            region_id="cn-hangzhou", vpc_endpoint=endpoint, ecs_endpoint=endpoint, protocol="http"
        )
        env = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
        }
        clock = Clock()
        self.cloud = Cloud(config, env=env, monotonic=clock, sleep=clock.sleep)

    def custom(self) -> dict[str, str]:
        """Next hop by CIDR."""
        return {
            str(entry.cidr): entry.next_hop_id
            for entry in self.region.route_entries.values()
            if entry.type == "Custom"
        }

    def actions(self) -> list[tuple[str, str]]:
        return [(call.action, call.code) for call in self.app[CALLS]]


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    with serving(lab.app) as endpoint:
        lab.connect(endpoint)
        yield lab


def test_system_route_table(lab: Lab) -> None:
    for second in range(60):
        lab.region.add_vpc(f"172.{second}.0.0/16")
    assert find_system_route_table(lab.cloud, lab.vpc.vpc_id).table_id == lab.table
    with pytest.raises(CloudError, match=r"vpc-unknown has no system route table in cn-hangzhou"):
        find_system_route_table(lab.cloud, "vpc-unknown")


def test_all_pages_of_a_route_table(lab: Lab) -> None:
    table = lab.region.route_tables[lab.table]
    for number in range(150):
        lab.region.add_route(table, ip_network(f"172.16.{number}.0/24"), lab.node)
    lab.app[CALLS].clear()
    entries = list_route_entries(lab.cloud, lab.table)
    assert len(entries) == len({entry.entry_id for entry in entries}) == 152
    assert len(lab.app[CALLS]) == 2
    (entry,) = list_route_entries(lab.cloud, lab.table, destination=ip_network("172.16.77.0/24"))
    assert entry.destination == ip_network("172.16.77.0/24")
    assert entry.next_hops == (NextHop(type="Instance", id=lab.node.instance_id),)
    assert entry.status == "Pending"
    (system,) = list_route_entries(lab.cloud, lab.table, destination=ip_network("10.0.0.0/24"))
    assert (system.type, system.next_hops) == ("System", (NextHop(type="local", id=""),))


@pytest.mark.parametrize("destination", [PODS, PODS6], ids=str)
def test_create_and_delete(lab: Lab, destination: object) -> None:
    entry = create_route_entry(lab.cloud, lab.table, destination, lab.node.instance_id, name="node-1")
    assert entry.destination == destination
    assert entry.status == "Available"
    assert entry.leads_to(lab.node.instance_id)
    assert lab.custom() == {str(destination): lab.node.instance_id}
    assert lab.region.route_entries[entry.entry_id].name == "node-1"
    delete_route_entry(lab.cloud, lab.table, destination, lab.node.instance_id)
    assert lab.custom() == {}


def test_again_changes_nothing(lab: Lab) -> None:
    first = create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id)
    assert create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id) == first
    assert [action for action, _ in lab.actions()].count("CreateRouteEntry") == 1
    for _ in range(2):
        delete_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id)
    assert [action for action, _ in lab.actions()].count("DeleteRouteEntry") == 1


def test_returns_when_it_is_so(lab: Lab) -> None:
    lab.behaviour.route_delay = 0.02
    entry = create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id, timeout=LONG)
    assert entry.status == "Available"
    delete_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id, timeout=LONG)
    assert lab.custom() == {}


@pytest.mark.parametrize(
    ("destination", "where"),
    [(PODS, "Instance {other}"), (ip_network("10.0.0.0/24"), "local")],
    ids=["node", "vswitch"],
)
def test_a_cidr_that_leads_elsewhere(lab: Lab, destination: object, where: str) -> None:
    create_route_entry(lab.cloud, lab.table, PODS, lab.other.instance_id)
    with pytest.raises(CloudError) as caught:
        create_route_entry(lab.cloud, lab.table, destination, lab.node.instance_id)
    assert f"leads {destination} to {where.format(other=lab.other.instance_id)} already" in str(caught.value)
    assert caught.value.code == "InvalidCIDRBlock.Duplicate"
    # And what is not ours is not ours to delete.
    delete_route_entry(lab.cloud, lab.table, destination, lab.node.instance_id)
    assert lab.custom() == {str(PODS): lab.other.instance_id}


@pytest.fixture
def meddler(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Meddler:
    meddler = Meddler(lab.cloud.call)
    monkeypatch.setattr(lab.cloud, "call", meddler)
    return meddler


class Meddler:
    """Another controller, which acts just before and just after our first CreateRouteEntry."""

    def __init__(self, call: Callable[..., dict[str, Any]]) -> None:
        self.call = call
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def __call__(self, product: str, action: str, params: dict[str, Any], **options: Any) -> dict[str, Any]:
        if action != "CreateRouteEntry":
            return self.call(product, action, params, **options)
        before, self.before = self.before, lambda: None
        after, self.after = self.after, lambda: None
        before()
        try:
            return self.call(product, action, params, **options)
        finally:
            after()

    def create(self, lab: Lab, node: Instance) -> str:
        params = {"RouteTableId": lab.table, "DestinationCidrBlock": str(PODS), "NextHopId": node.instance_id}
        return str(self.call("vpc", "CreateRouteEntry", params)["RouteEntryId"])


def test_somebody_made_our_entry_first(lab: Lab, meddler: Meddler) -> None:
    meddler.before = lambda: meddler.create(lab, lab.node)
    entry = create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id)
    assert entry.leads_to(lab.node.instance_id)
    assert ("CreateRouteEntry", "InvalidCIDRBlock.Duplicate") in lab.actions()


def test_somebody_took_our_cidr_first(lab: Lab, meddler: Meddler) -> None:
    meddler.before = lambda: meddler.create(lab, lab.other)
    with pytest.raises(CloudError, match=lab.other.instance_id):
        create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id)


def test_somebody_took_our_cidr_first_and_gives_it_back(lab: Lab, meddler: Meddler) -> None:
    def give_back() -> None:
        lab.behaviour.route_delay = 0.02
        (entry_id,) = (one.entry_id for one in lab.region.route_entries.values() if one.type == "Custom")
        meddler.call("vpc", "DeleteRouteEntry", {"RouteEntryId": entry_id})

    meddler.before = lambda: meddler.create(lab, lab.other)
    meddler.after = give_back
    create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id, timeout=LONG)
    assert lab.custom() == {str(PODS): lab.node.instance_id}


def test_destinations_in_other_spellings_and_of_other_kinds(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that keeps what it was given and compares text."""
    stored = ["2408:4000:0:00AA:0:0:0:0/64", "pl-bp1abc", "172.16.0.0/24"]

    def call(_product: str, _action: str, params: dict[str, Any]) -> dict[str, Any]:
        entries = [
            {
                "RouteEntryId": f"rte-{number}",
                "RouteTableId": lab.table,
                "DestinationCidrBlock": text,
                "Type": "Custom",
                "Status": "Available",
                "NextHops": {"NextHop": [{"NextHopType": "Instance", "NextHopId": "i-1"}]},
            }
            for number, text in enumerate(stored)
            if params.get("DestinationCidrBlock", text) == text
        ]
        return {"RouteEntrys": {"RouteEntry": entries}}

    monkeypatch.setattr(lab.cloud, "call", call)
    found = [list_route_entries(lab.cloud, lab.table, destination=one) for one in (PODS6, PODS, None)]
    assert [[entry.entry_id for entry in entries] for entries in found] == [
        ["rte-0"],
        ["rte-2"],
        ["rte-0", "rte-2"],
    ]


def test_many_controllers_of_one_node(lab: Lab) -> None:
    lab.behaviour.route_delay = 0.02

    def make(_: int) -> RouteEntry:
        return create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id, timeout=LONG)

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(8)))
    assert len({entry.entry_id for entry in made}) == 1
    assert lab.custom() == {str(PODS): lab.node.instance_id}


def test_many_nodes_change_one_table(lab: Lab) -> None:
    """The VPC refuses what meets another change; each of ours is tried again until it is done."""
    lab.behaviour.route_delay = 0.02
    nodes = [lab.add_node(f"many-{number}") for number in range(8)]
    cidrs = list(PODS.supernet(new_prefix=20).subnets(new_prefix=24))[:8]

    def come(number: int) -> None:
        create_route_entry(lab.cloud, lab.table, cidrs[number], nodes[number].instance_id, timeout=LONG)

    def go(number: int) -> None:
        delete_route_entry(lab.cloud, lab.table, cidrs[number], nodes[number].instance_id, timeout=LONG)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come, range(8)))
        assert lab.custom() == {str(cidr): node.instance_id for cidr, node in zip(cidrs, nodes, strict=True)}
        list(pool.map(go, range(8)))
    assert lab.custom() == {}
    assert ("CreateRouteEntry", "TaskConflict") in lab.actions()


def test_an_entry_that_is_just_being_deleted_is_made_anew(lab: Lab) -> None:
    old = create_route_entry(lab.cloud, lab.table, PODS, lab.other.instance_id)
    lab.behaviour.route_delay = 0.05
    gone = threading.Thread(
        target=delete_route_entry,
        args=(lab.cloud, lab.table, PODS, lab.other.instance_id),
        kwargs={"timeout": LONG},
    )
    gone.start()
    while lab.region.route_entries[old.entry_id].status == "Available":
        time.sleep(0.001)
    new = create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id, timeout=LONG)
    gone.join()
    assert new.entry_id != old.entry_id
    assert lab.custom() == {str(PODS): lab.node.instance_id}


def test_refusals_that_do_not_pass(lab: Lab) -> None:
    lab.behaviour.route_quota = 0
    with pytest.raises(CloudError, match="quota") as caught:
        create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id)
    assert caught.value.code == "QuotaExceeded"
    with pytest.raises(CloudError, match=r"within a system route") as caught:
        create_route_entry(lab.cloud, lab.table, ip_network("10.0.0.0/25"), lab.node.instance_id)
    assert caught.value.code == "InvalidCidrBlock"
    with pytest.raises(CloudError) as caught:
        delete_route_entry(lab.cloud, "vtb-unknown", PODS, lab.node.instance_id)
    assert caught.value.code == "InvalidRouteTableId.NotFound"


def test_time_is_up(lab: Lab) -> None:
    lab.behaviour.route_delay = 600
    with pytest.raises(CloudError, match="is Pending after 5 s"):
        create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id, timeout=5)
    with pytest.raises(CloudError) as caught:
        delete_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id, timeout=5)
    assert caught.value.code == "IncorrectRouteEntryStatus"


def test_throttled(lab: Lab) -> None:
    lab.behaviour.limits = {"CreateRouteEntry": 0}
    with pytest.raises(CloudError) as caught:
        create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id, timeout=5)
    assert caught.value.code == "Throttling"
    assert ("CreateRouteEntry", "Throttling") in lab.actions()
    threading.Timer(0.05, lab.behaviour.limits.clear).start()
    create_route_entry(lab.cloud, lab.table, PODS, lab.node.instance_id, timeout=LONG)
    assert lab.custom() == {str(PODS): lab.node.instance_id}
