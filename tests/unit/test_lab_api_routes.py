"""Route entries of the simulated VPC, over the wire, with the product's own client."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from terway_core.cloud import Cloud
from terway_core.config import CloudConfig
from terway_core.errors import CloudError
from terway_core.lab.api import CALLS, Behaviour, Region, build_app, serving

PODS = "172.16.0.0/24"


class Lab:
    """A served region with two nodes, and what its fabric was told."""

    def __init__(self, region: Region, behaviour: Behaviour | None = None) -> None:
        self.region = region
        self.key = next(iter(region.access_keys.values()), None) or region.add_access_key()
        if not region.vpcs:
            vswitch = region.add_vswitch(region.add_vpc("10.0.0.0/8"), "10.0.0.0/24", "cn-hangzhou-h")
            for name in ("node-1", "node-2"):
                region.add_instance(name, instance_type="ecs.g7.large", vswitch=vswitch)
        self.vpc = next(iter(region.vpcs.values()))
        self.node, self.other = list(region.instances.values())[:2]
        self.table = self.vpc.route_table_id
        self.told: list[tuple[str, str, str]] = []
        #: Clear it to hold the fabric back.
        self.fabric_works = threading.Event()
        self.fabric_works.set()
        self.fabric_fails = False
        self.behaviour = behaviour or Behaviour()
        self.app = build_app(
            region, behaviour=self.behaviour, on_route_added=self.added, on_route_removed=self.removed
        )
        self.cloud: Cloud

    async def added(self, cidr: object, instance_id: str) -> None:
        await self._tell("added", cidr, instance_id)

    async def removed(self, cidr: object, instance_id: str) -> None:
        await self._tell("removed", cidr, instance_id)

    async def _tell(self, what: str, cidr: object, instance_id: str) -> None:
        self.told.append((what, str(cidr), instance_id))
        if self.fabric_fails:
            raise RuntimeError("no such link")
        while not self.fabric_works.is_set():
            await asyncio.sleep(0.005)

    def connect(self, endpoint: str) -> None:
        config = CloudConfig(
            region_id="cn-hangzhou", vpc_endpoint=endpoint, ecs_endpoint=endpoint, protocol="http"
        )
        env = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": self.key.access_key_id,
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": self.key.access_key_secret,
        }
        # A clock that leaps 20 s at each look leaves time for one try of a call and none for a second.
        self.cloud = Cloud(config, env=env, monotonic=itertools.count(step=20).__next__)

    def call(self, action: str, **params: Any) -> dict[str, Any]:
        return self.cloud.call("vpc", action, params)

    def create(self, cidr: str = PODS, **params: Any) -> dict[str, Any]:
        wanted = {
            "RouteTableId": self.table,
            "DestinationCidrBlock": cidr,
            "NextHopType": "Instance",
            "NextHopId": self.node.instance_id,
        }
        return self.call("CreateRouteEntry", **(wanted | params))

    def entries(self, **filters: Any) -> list[dict[str, Any]]:
        answer = self.call("DescribeRouteEntryList", RouteTableId=self.table, **filters)
        return list(answer["RouteEntrys"]["RouteEntry"])

    def refused(self, action: str, **params: Any) -> str:
        with pytest.raises(CloudError) as caught:
            self.call(action, **params)
        return caught.value.code


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(Region.create())
    with serving(lab.app) as endpoint:
        lab.connect(endpoint)
        yield lab


def test_an_entry_comes_and_goes(lab: Lab) -> None:
    entry_id = lab.create(RouteEntryName="node-1", Description="pods")["RouteEntryId"]
    (entry,) = lab.entries(RouteEntryType="Custom")
    assert entry["RouteEntryId"] == entry_id
    assert entry["DestinationCidrBlock"] == PODS
    assert (entry["Status"], entry["Type"], entry["IpVersion"]) == ("Available", "Custom", "IPv4")
    assert (entry["RouteEntryName"], entry["Description"]) == ("node-1", "pods")
    (hop,) = entry["NextHops"]["NextHop"]
    assert (hop["NextHopType"], hop["NextHopId"]) == ("Instance", lab.node.instance_id)
    lab.call("DeleteRouteEntry", RouteEntryId=entry_id)
    assert lab.entries(RouteEntryType="Custom") == []
    assert lab.told == [("added", PODS, lab.node.instance_id), ("removed", PODS, lab.node.instance_id)]


def test_delete_by_table_cidr_and_next_hop(lab: Lab) -> None:
    lab.create()
    where = {"RouteTableId": lab.table, "DestinationCidrBlock": PODS}
    assert lab.refused("DeleteRouteEntry", **where) == "MissingParameter"
    wrong = lab.refused("DeleteRouteEntry", **where, NextHopId=lab.other.instance_id)
    assert wrong == "InvalidRouteEntry.NotFound"
    lab.call("DeleteRouteEntry", **where, NextHopId=lab.node.instance_id)
    assert lab.entries(RouteEntryType="Custom") == []


def test_ipv6_and_single_addresses(lab: Lab) -> None:
    lab.create("2408:4000:0:aa::/64")
    lab.create("172.16.0.1")
    entries = {entry["DestinationCidrBlock"]: entry["IpVersion"] for entry in lab.entries()}
    assert entries["2408:4000:0:aa::/64"] == "IPv6"
    assert entries["172.16.0.1/32"] == "IPv4"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cidr": "172.16.0.1/24"}, "InvalidCidrBlock.Malformed"),
        ({"cidr": "pods"}, "InvalidCidrBlock.Malformed"),
        ({"cidr": "10.0.0.0/24"}, "InvalidCIDRBlock.Duplicate"),
        ({"cidr": "10.0.0.128/25"}, "InvalidCidrBlock"),
        ({"cidr": "100.100.0.0/16"}, "InvalidCidrBlock"),
        ({"RouteTableId": "vtb-unknown"}, "InvalidRouteTableId.NotFound"),
        ({"NextHopId": "i-unknown"}, "InvalidNextHopId.NotFound"),
        ({"NextHopType": "HaVip"}, "InvalidParameter"),
        ({"NextHopId": None}, "MissingParameter"),
    ],
)
def test_entries_that_cannot_be(lab: Lab, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(CloudError) as caught:
        lab.create(**changes)
    assert caught.value.code == code
    assert lab.told == []


def test_a_wider_cidr_than_a_vswitch_is_fine(lab: Lab) -> None:
    lab.create("10.0.0.0/16")
    lab.create("0.0.0.0/0")


def test_the_same_cidr_twice(lab: Lab) -> None:
    lab.create()
    with pytest.raises(CloudError, match="already exists") as caught:
        lab.create(NextHopId=lab.other.instance_id)
    assert caught.value.code == "InvalidCIDRBlock.Duplicate"


def test_an_instance_of_another_vpc(lab: Lab) -> None:
    vpc = lab.region.add_vpc("192.168.0.0/16")
    vswitch = lab.region.add_vswitch(vpc, "192.168.0.0/24", "cn-hangzhou-h")
    stranger = lab.region.add_instance("stranger", instance_type="t", vswitch=vswitch)
    with pytest.raises(CloudError) as caught:
        lab.create(NextHopId=stranger.instance_id)
    assert caught.value.code == "OperationFailed.InstanceDismatchCurrentVpc"


def test_quota(lab: Lab) -> None:
    lab.behaviour.route_quota = 2
    lab.create("172.16.0.0/24")
    lab.create("172.16.1.0/24")
    with pytest.raises(CloudError, match="quota exceeded") as caught:
        lab.create("172.16.2.0/24")
    assert caught.value.code == "QuotaExceeded"


def test_system_entries_stay(lab: Lab) -> None:
    system = lab.entries(RouteEntryType="System")
    assert {entry["DestinationCidrBlock"] for entry in system} == {"10.0.0.0/24", "100.64.0.0/10"}
    assert lab.refused("DeleteRouteEntry", RouteEntryId=system[0]["RouteEntryId"]) == "OperationDenied"
    assert lab.refused("DeleteRouteEntry", RouteEntryId="rte-unknown") == "InvalidRouteEntry.NotFound"


def test_filters_and_tokens(lab: Lab) -> None:
    for third in range(12):
        lab.create(f"172.16.{third}.0/24")
    (found,) = lab.entries(DestinationCidrBlock="172.16.7.0/24")
    assert lab.entries(RouteEntryId=found["RouteEntryId"]) == [found]
    assert lab.entries(NextHopId=lab.other.instance_id) == []
    assert len(lab.entries(NextHopType="Instance", MaxResult=100)) == 12

    seen: list[str] = []
    token = ""
    while True:
        answer = lab.call("DescribeRouteEntryList", RouteTableId=lab.table, MaxResult=5, NextToken=token)
        page = [entry["RouteEntryId"] for entry in answer["RouteEntrys"]["RouteEntry"]]
        assert len(page) == 5 or not answer["NextToken"]
        seen += page
        if not (token := answer["NextToken"]):
            break
        if page[-1] in lab.region.route_entries and lab.region.route_entries[page[-1]].type == "Custom":
            lab.call("DeleteRouteEntry", RouteEntryId=page[-1])  # what is removed hides nothing else
    assert len(seen) == len(set(seen)) == 14


def test_pending_until_the_fabric_carries_it(lab: Lab) -> None:
    lab.fabric_works.clear()
    lab.behaviour.route_delay = 0.01
    entry_id = lab.create()["RouteEntryId"]
    assert lab.entries(RouteEntryId=entry_id)[0]["Status"] == "Pending"
    wait_for(lambda: lab.told)
    assert lab.entries(RouteEntryId=entry_id)[0]["Status"] == "Pending"
    with pytest.raises(CloudError, match="too frequent") as caught:
        lab.create("172.16.1.0/24")
    assert caught.value.code == "TaskConflict"
    assert lab.refused("DeleteRouteEntry", RouteEntryId=entry_id) == "IncorrectRouteEntryStatus"
    lab.fabric_works.set()
    wait_for(lambda: lab.entries(RouteEntryId=entry_id)[0]["Status"] == "Available")

    lab.fabric_works.clear()
    lab.call("DeleteRouteEntry", RouteEntryId=entry_id)
    wait_for(lambda: len(lab.told) == 2)
    assert lab.entries(RouteEntryId=entry_id)[0]["Status"] == "Deleting"
    lab.fabric_works.set()
    wait_for(lambda: not lab.entries(RouteEntryId=entry_id))
    lab.create()


@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_a_fabric_that_fails_leaves_the_table_as_it_was(
    lab: Lab, delay: float, caplog: pytest.LogCaptureFixture
) -> None:
    kept = lab.create()["RouteEntryId"]
    lab.behaviour.route_delay = delay
    lab.fabric_fails = True
    for failing in (
        lambda: lab.create("172.16.1.0/24"),
        lambda: lab.call("DeleteRouteEntry", RouteEntryId=kept),
    ):
        told = len(lab.told)
        with suppress(CloudError):
            failing()
        wait_for(lambda told=told: len(lab.told) > told)
        wait_for(lambda: [one["Status"] for one in lab.entries(RouteEntryType="Custom")] == ["Available"])
    assert [entry["RouteEntryId"] for entry in lab.entries(RouteEntryType="Custom")] == [kept]
    wait_for(lambda: caplog.text.count("no such link") >= 2)


def test_another_vpc_is_not_disturbed(lab: Lab) -> None:
    vpc = lab.region.add_vpc("192.168.0.0/16")
    vswitch = lab.region.add_vswitch(vpc, "192.168.0.0/24", "cn-hangzhou-h")
    there = lab.region.add_instance("there", instance_type="t", vswitch=vswitch)
    lab.behaviour.route_delay = 600
    lab.create()
    lab.create(RouteTableId=vpc.route_table_id, NextHopId=there.instance_id)


def test_batches_succeed_in_parts(lab: Lab) -> None:
    lab.create("172.16.1.0/24")
    routes = [
        {
            "RouteTableId": lab.table,
            "DstCidrBlock": f"172.16.{third}.0/24",
            "NextHop": lab.node.instance_id,
            "NextHopType": "Instance",
            "Name": f"pods-{third}",
        }
        for third in range(3)
    ]
    answer = lab.call("CreateRouteEntries", RouteEntries=routes)
    assert (answer["SuccessCount"], answer["FailedCount"]) == (2, 1)
    assert len(answer["RouteEntryIds"]) == 2
    (failed,) = answer["FailedRouteEntries"]
    assert failed["DstCidrBlock"] == "172.16.1.0/24"
    assert failed["NextHop"] == lab.node.instance_id
    assert failed["FailedCode"] == "InvalidCIDRBlock.Duplicate"
    assert {entry["RouteEntryName"] for entry in lab.entries(RouteEntryType="Custom")} == {
        "",
        "pods-0",
        "pods-2",
    }

    first, second = answer["RouteEntryIds"]
    gone = [
        {"RouteTableId": lab.table, "RouteEntryId": first},
        {"RouteTableId": lab.table, "RouteEntryId": first},
        {"RouteTableId": lab.table, "RouteEntryId": "rte-unknown"},
        {"RouteTableId": lab.table, "DstCidrBlock": "172.16.1.0/24", "NextHop": lab.node.instance_id},
    ]
    answer = lab.call("DeleteRouteEntries", RouteEntries=gone)
    assert (answer["SuccessCount"], answer["FailedCount"]) == (2, 2)
    codes = [failed["FailedCode"] for failed in answer["FailedRouteEntries"]]
    assert codes == ["IncorrectRouteEntryStatus", "InvalidRouteEntry.NotFound"]
    assert [entry["RouteEntryId"] for entry in lab.entries(RouteEntryType="Custom")] == [second]


def test_batches_take_50(lab: Lab) -> None:
    routes = [{"RouteTableId": lab.table, "RouteEntryId": "rte-x"}] * 51
    assert lab.refused("DeleteRouteEntries", RouteEntries=routes) == "InvalidParameter"
    assert lab.call("DeleteRouteEntries", RouteEntries=routes[:50])["FailedCount"] == 50


def test_client_token(lab: Lab) -> None:
    first = lab.create(ClientToken="token-1")
    again = lab.create(ClientToken="token-1")
    assert again["RouteEntryId"] == first["RouteEntryId"]
    assert again["RequestId"] != first["RequestId"]
    assert len(lab.told) == 1
    with pytest.raises(CloudError) as caught:
        lab.create("172.16.1.0/24", ClientToken="token-1")
    assert caught.value.code == "IdempotentParameterMismatch"
    with pytest.raises(CloudError) as caught:
        lab.create(ClientToken="x" * 65)
    assert caught.value.code == "InvalidParameter"


def test_client_token_of_a_call_that_failed_may_be_used_again(lab: Lab) -> None:
    with pytest.raises(CloudError):
        lab.create(ClientToken="token-1", NextHopId="i-unknown")
    lab.create(ClientToken="token-1")


def test_client_token_of_a_call_under_way(lab: Lab) -> None:
    lab.fabric_works.clear()
    slow = threading.Thread(target=lab.create, kwargs={"ClientToken": "token-1"})
    slow.start()
    wait_for(lambda: lab.told)
    with pytest.raises(CloudError) as caught:
        lab.create(ClientToken="token-1")
    assert caught.value.code == "LastTokenProcessing"
    lab.fabric_works.set()
    slow.join()
    lab.create(ClientToken="token-1")
    assert len(lab.told) == 1


def test_a_server_takes_up_where_the_last_one_stopped(tmp_path: Path) -> None:
    path = tmp_path / "region.json"
    before = Lab(Region.create(path=path), Behaviour(route_delay=600))
    with serving(before.app) as endpoint:
        before.connect(endpoint)
        entry_id = before.create()["RouteEntryId"]
    assert before.told == []

    after = Lab(Region.load(path))
    with serving(after.app) as endpoint:
        after.connect(endpoint)
        wait_for(lambda: after.entries(RouteEntryId=entry_id)[0]["Status"] == "Available")
        assert after.told == [("added", PODS, before.node.instance_id)]
        after.call("DeleteRouteEntry", RouteEntryId=entry_id)
    assert entry_id not in Region.load(path).route_entries


def test_every_call_is_recorded(lab: Lab) -> None:
    lab.create()
    with pytest.raises(CloudError) as caught:
        lab.create()
    created, refused = lab.app[CALLS]
    assert (created.action, created.code, created.status) == ("CreateRouteEntry", "", 200)
    assert (refused.code, refused.status) == ("InvalidCIDRBlock.Duplicate", 400)
    assert refused.request_id == caught.value.request_id
