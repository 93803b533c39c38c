"""The route controller, against the simulated VPC."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_network

import pytest
from terway_driver_vpc import VpcDriver
from terway_driver_vpc.routes import RECHECK, RouteKeeper

from terway_core.cloud import Cloud
from terway_core.cloud.metadata import Identity
from terway_core.config import CloudConfig
from terway_core.errors import CloudError
from terway_core.lab.api import CALLS, Region, build_app, serving
from terway_core.registry import Drivers
from terway_core.testing.fakes import make_attachment
from terway_core.types import Node, Services

PODS, PODS6 = ip_network("172.20.1.0/24"), ip_network("2408:4000:0:aa::/64")


class Vpc:
    """A served region with two nodes; this one is the first."""

    def __init__(self):
        self.region = Region.create()
        vpc = self.region.add_vpc("10.0.0.0/8", "2408:4000::/56")
        vswitch = self.region.add_vswitch(vpc, "10.0.0.0/24", "cn-hangzhou-h", "2408:4000:0:1::/64")
        self.table = vpc.route_table_id
        self.node, self.other = (
            self.region.add_instance(name, instance_type="ecs.g7.large", vswitch=vswitch)
            for name in ("node-1", "node-2")
        )
        self.app = build_app(self.region)
        #: Make it True, and the metadata service does not answer.
        self.away = False
        self.identity = Identity(
            region_id="cn-hangzhou",
            zone_id="cn-hangzhou-h",
            vpc_id=vpc.vpc_id,
            vpc_cidrs=(ip_network("10.0.0.0/8"),),
            vswitch_id=vswitch.vswitch_id,
            instance_id=self.node.instance_id,
            instance_type="ecs.g7.large",
            private_ipv4=IPv4Address("10.0.0.1"),
            private_ipv6=None,
            mac="00:16:3e:00:00:01",
        )

    def connect(self, endpoint):
        key = self.region.add_access_key()
        env = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
        }
        config = CloudConfig(
            region_id="cn-hangzhou", vpc_endpoint=endpoint, ecs_endpoint=endpoint, protocol="http"
        )
        self.cloud = Cloud(config, env=env, sleep=lambda seconds: None)
        self.cloud.metadata.identity = self._who

    def _who(self):
        if self.away:
            raise CloudError("the metadata service does not answer")
        return self.identity

    def custom(self):
        """Our kind of entries: CIDR → instance."""
        return {
            str(entry.cidr): entry.next_hop_id
            for entry in self.region.route_entries.values()
            if entry.type == "Custom"
        }

    def calls(self, action):
        return sum(call.action == action for call in self.app[CALLS])

    def remove_all(self):
        for entry_id, entry in list(self.region.route_entries.items()):
            if entry.type == "Custom":
                del self.region.route_entries[entry_id]


@pytest.fixture
def vpc():
    vpc = Vpc()
    with serving(vpc.app) as endpoint:
        vpc.connect(endpoint)
        yield vpc


@pytest.fixture
def keeper(vpc, terway_clock):
    return RouteKeeper(vpc.cloud, [PODS, PODS6], "", terway_clock)


def test_what_is_missing_is_made(vpc, keeper):
    keeper.keep()
    assert vpc.custom() == {str(PODS): vpc.node.instance_id, str(PODS6): vpc.node.instance_id}


def test_what_is_there_is_left_alone(vpc, keeper, terway_clock):
    keeper.keep()
    entries = dict(vpc.region.route_entries)
    RouteKeeper(vpc.cloud, [PODS, PODS6], vpc.table, terway_clock).keep()
    assert vpc.region.route_entries == entries
    assert vpc.calls("CreateRouteEntry") == 2


def test_it_looks_again_after_a_while_and_not_before(vpc, keeper, terway_clock):
    keeper.keep()
    vpc.remove_all()
    served = len(vpc.app[CALLS])
    terway_clock.advance(RECHECK - 1)
    keeper.keep()
    assert len(vpc.app[CALLS]) == served
    terway_clock.advance(1)
    keeper.keep()
    assert set(vpc.custom()) == {str(PODS), str(PODS6)}


def test_a_clock_that_jumped_back_does_not_keep_it_from_looking(vpc, keeper, terway_clock):
    keeper.keep()
    vpc.remove_all()
    terway_clock.advance(-86_400)
    keeper.keep()
    assert set(vpc.custom()) == {str(PODS), str(PODS6)}


def test_an_entry_that_leads_elsewhere_is_an_error_and_stays(vpc, keeper, terway_clock):
    mine, other = vpc.identity, vpc.other.instance_id
    vpc.identity = replace(mine, instance_id=other)
    RouteKeeper(vpc.cloud, [PODS], "", terway_clock).keep()
    vpc.identity = mine
    with pytest.raises(CloudError, match=rf"{PODS} to Instance {other} already.*another CIDR"):
        keeper.keep()
    assert vpc.custom()[str(PODS)] == other


def test_after_a_failure_it_tries_again_at_once(vpc, keeper):
    vpc.away = True
    with pytest.raises(CloudError, match="does not answer"):
        keeper.keep()
    vpc.away = False
    keeper.keep()
    assert str(PODS) in vpc.custom()


def test_a_table_that_does_not_exist_is_named(vpc, terway_clock):
    with pytest.raises(CloudError, match="route table does not exist"):
        RouteKeeper(vpc.cloud, [PODS], "vtb-none", terway_clock).keep()


# -- in the driver ----------------------------------------------------------------------------------------


NODE = Node(name="node-1")


class Driver:
    def __init__(self, vpc, store, clock):
        self._services = Services(
            options={}, node=NODE, store=store, cloud=vpc.cloud, eni_pool=None, clock=clock
        )
        self._drivers = Drivers()
        self._drivers.register("vpc", VpcDriver())

    def start(self, **options):
        options = {"pod_cidrs": [str(PODS)], "cluster_cidrs": ["172.20.0.0/16"], **options}
        self._drivers.start("vpc", replace(self._services, options=options))

    def allocate(self, number):
        return self._drivers.allocate("vpc", make_attachment(number), NODE)

    def teardown(self, number):
        return self._drivers.teardown("vpc", make_attachment(number), None).changed

    def gc(self):
        return self._drivers.gc("vpc", (), NODE)


@pytest.fixture
def driver(vpc, terway_store, terway_clock):
    return Driver(vpc, terway_store, terway_clock)


def test_somebody_else_keeps_the_routes_unless_told_otherwise(vpc, driver):
    driver.start()
    driver.gc()
    assert len(vpc.app[CALLS]) == 0


def test_the_driver_makes_its_route_before_it_serves_and_keeps_it(vpc, driver, terway_clock):
    driver.start(route_controller=True)
    assert vpc.custom() == {str(PODS): vpc.node.instance_id}
    vpc.remove_all()
    terway_clock.advance(RECHECK)
    assert driver.gc().problems == ()
    assert vpc.custom() == {str(PODS): vpc.node.instance_id}


def test_routes_that_cannot_be_kept_are_a_problem_of_gc(vpc, driver, terway_clock):
    driver.start(route_controller=True)
    terway_clock.advance(RECHECK)
    vpc.away = True
    assert driver.gc().problems == ("the metadata service does not answer",)


def test_without_routes_the_driver_does_not_start_but_pods_can_go(vpc, driver):
    driver.start()
    driver.allocate(1)
    vpc.away = True
    with pytest.raises(CloudError, match="does not answer"):
        driver.start(route_controller=True)
    assert driver.teardown(1)
    vpc.away = False
    driver.start(route_controller=True)
    assert set(vpc.custom()) == {str(PODS)}
