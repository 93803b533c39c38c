"""Network interfaces through the product's functions, against the simulated region."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from terway_core.cloud import Cloud
from terway_core.cloud.ecs import (
    IDS_PER_CALL,
    InstanceType,
    NetworkInterface,
    assign_ipv4,
    assign_ipv4_prefixes,
    assign_ipv6,
    attach_network_interface,
    create_network_interface,
    delete_network_interface,
    describe_instance_type,
    describe_network_interfaces,
    detach_network_interface,
    modify_network_interface,
    tag_resources,
    unassign_ipv4,
    unassign_ipv4_prefixes,
    unassign_ipv6,
)
from terway_core.cloud.failures import ADDRESS_QUOTA, ENI_QUOTA, EXHAUSTED_VSWITCH, NOT_FOUND
from terway_core.cloud.vpc import describe_vswitches
from terway_core.config import CloudConfig
from terway_core.errors import CloudError
from terway_core.lab.api import CALLS, Behaviour, InjectedFault, Region, build_app, serving

TAGS = {"cluster": "c1", "node": "node-1"}


class Lab:
    """A served region with a node, and a cloud whose sleeps take no time."""

    def __init__(self) -> None:
        self.region = Region.create()
        vpc = self.region.add_vpc("10.0.0.0/8", "2408:4000::/56")
        self.vswitch = self.region.add_vswitch(vpc, "10.0.0.0/24", "cn-hangzhou-h", "2408:4000:0:1::/64")
        self.small = self.region.add_vswitch(vpc, "10.0.1.0/29", "cn-hangzhou-h")
        self.group = self.region.security_groups_of(vpc.vpc_id)[0].security_group_id
        self.node = self.region.add_instance(
            "node-1", instance_type="ecs.g7.large", vswitch=self.vswitch
        ).instance_id
        self.behaviour = Behaviour()
        self.app = build_app(self.region, behaviour=self.behaviour)
        self.tokens = iter(range(1000))
        self.cloud: Cloud

    def connect(self, endpoint: str) -> None:
        key = self.region.add_access_key()
        config = CloudConfig(
            region_id="cn-hangzhou", vpc_endpoint=endpoint, ecs_endpoint=endpoint, protocol="http"
        )
        env = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
        }
        self.cloud = Cloud(config, env=env, sleep=lambda seconds: time.sleep(0.005))

    @property
    def token(self) -> str:
        return f"token-{next(self.tokens)}"

    def create(self, **options: object) -> NetworkInterface:
        defaults: dict[str, object] = {
            "vswitch_id": self.vswitch.vswitch_id,
            "security_group_ids": [self.group],
            "tags": TAGS,
            "client_token": self.token,
        }
        return create_network_interface(self.cloud, **(defaults | options))  # type: ignore[arg-type]

    def attached(self, **options: object) -> NetworkInterface:
        eni = self.create(**options)
        attach_network_interface(self.cloud, eni.eni_id, self.node)
        return self.look(eni)

    def look(self, eni: NetworkInterface) -> NetworkInterface:
        (found,) = describe_network_interfaces(self.cloud, eni_ids=[eni.eni_id])
        return found

    def actions(self) -> list[tuple[str, str]]:
        return [(call.action, call.code) for call in self.app[CALLS]]


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    with serving(lab.app) as endpoint:
        lab.connect(endpoint)
        yield lab


def test_the_life_of_an_eni(lab: Lab) -> None:
    eni = lab.create(name="pool", description="by terway", ipv4_count=2, ipv6_count=1)
    assert (eni.status, eni.type, eni.instance_id, eni.name) == ("Available", "Secondary", "", "pool")
    assert (eni.vswitch_id, eni.zone_id) == (lab.vswitch.vswitch_id, "cn-hangzhou-h")
    assert eni.mac.startswith("00:16:3e:")
    assert eni.ipv4 == tuple(ip_address(f"10.0.0.{last}") for last in (2, 3, 4))  # .1 is the node's
    assert eni.primary_ip == eni.ipv4[0]
    assert (len(eni.ipv6), eni.ipv6[0] in ip_network("2408:4000:0:1::/64")) == (1, True)
    assert (eni.tags, eni.security_group_ids) == (TAGS, (lab.group,))
    assert lab.look(eni) == eni

    attach_network_interface(lab.cloud, eni.eni_id, lab.node)
    attached = lab.look(eni)
    assert (attached.status, attached.instance_id) == ("InUse", lab.node)
    assert (attached.ipv4, attached.ipv6, attached.mac) == (eni.ipv4, eni.ipv6, eni.mac)

    detach_network_interface(lab.cloud, eni.eni_id, lab.node)
    assert lab.look(eni) == eni
    delete_network_interface(lab.cloud, eni.eni_id)
    assert describe_network_interfaces(lab.cloud, eni_ids=[eni.eni_id]) == []
    assert set(lab.actions()) == {(action, "") for action, _ in lab.actions()}


def test_a_token_makes_an_eni_once(lab: Lab) -> None:
    lab.behaviour.faults.append(InjectedFault(kind="lost", action="CreateNetworkInterface", times=1))
    eni = lab.create(client_token="once")
    assert lab.create(client_token="once") == eni
    assert len(lab.region.network_interfaces) == 2  # the node's own, and this one
    with pytest.raises(CloudError) as caught:
        lab.create(client_token="once", name="another")
    assert caught.value.code == "IdempotentParameterMismatch"


def test_a_lost_answer_to_what_has_no_token_does_no_harm(lab: Lab) -> None:
    eni = lab.create()
    for action in ("Attach", "Detach", "Delete"):
        lab.behaviour.faults.append(InjectedFault(kind="lost", action=f"{action}NetworkInterface", times=1))
    attach_network_interface(lab.cloud, eni.eni_id, lab.node)
    assert lab.look(eni).status == "InUse"
    detach_network_interface(lab.cloud, eni.eni_id, lab.node)
    assert lab.look(eni).status == "Available"
    delete_network_interface(lab.cloud, eni.eni_id)
    refused = [code for _, code in lab.actions() if code]
    assert refused == [
        "InvalidOperation.InvalidEniState",
        "InvalidOperation.InvalidEniState",
        "InvalidEniId.NotFound",
    ]


def test_attaching_says_when_it_cannot_be(lab: Lab) -> None:
    other = lab.region.add_instance("node-2", instance_type="ecs.g7.large", vswitch=lab.vswitch).instance_id
    eni = lab.attached()
    attach_network_interface(lab.cloud, eni.eni_id, lab.node)  # it is: success
    with pytest.raises(CloudError, match="InvalidEniState"):
        attach_network_interface(lab.cloud, eni.eni_id, other)
    with pytest.raises(CloudError) as caught:
        attach_network_interface(lab.cloud, "eni-unknown", lab.node)
    assert caught.value.code in NOT_FOUND
    lab.attached()
    with pytest.raises(CloudError) as caught:
        lab.attached()
    assert caught.value.code in ENI_QUOTA
    assert "instance type" in caught.value.message


def test_detaching_what_is_not_attached_here_is_success(lab: Lab) -> None:
    other = lab.region.add_instance("node-2", instance_type="ecs.g7.large", vswitch=lab.vswitch).instance_id
    eni = lab.attached()
    detach_network_interface(lab.cloud, eni.eni_id, other)
    assert lab.look(eni).instance_id == lab.node
    detach_network_interface(lab.cloud, eni.eni_id, lab.node)
    detach_network_interface(lab.cloud, eni.eni_id, lab.node)
    detach_network_interface(lab.cloud, "eni-unknown", lab.node)
    (primary,) = describe_network_interfaces(lab.cloud, instance_id=lab.node, type="Primary")
    with pytest.raises(CloudError, match="DetachPrimaryEniNotAllowed"):
        detach_network_interface(lab.cloud, primary.eni_id, lab.node)


def test_detaching_does_not_take_attaching_for_detached(lab: Lab) -> None:
    lab.behaviour.faults.append(InjectedFault(kind="stuck", action="AttachNetworkInterface"))
    eni = lab.attached()
    assert (eni.status, eni.instance_id) == ("Attaching", lab.node)
    attach_network_interface(lab.cloud, eni.eni_id, lab.node)  # about to be: success
    with pytest.raises(CloudError, match="InvalidEniState"):
        detach_network_interface(lab.cloud, eni.eni_id, lab.node)


def test_deleting_needs_it_detached(lab: Lab) -> None:
    eni = lab.attached()
    with pytest.raises(CloudError, match="InvalidEniState"):
        delete_network_interface(lab.cloud, eni.eni_id)
    delete_network_interface(lab.cloud, "eni-unknown")


def test_filters_and_pages(lab: Lab) -> None:
    enis = [lab.create(tags={"number": str(number % 2)}) for number in range(IDS_PER_CALL + 2)]
    lab.app[CALLS].clear()
    ids = [eni.eni_id for eni in enis]
    found = describe_network_interfaces(lab.cloud, eni_ids=[*ids, "eni-unknown"])
    assert sorted(eni.eni_id for eni in found) == sorted(ids)
    assert len(lab.app[CALLS]) == 2
    assert len(describe_network_interfaces(lab.cloud)) == len(ids) + 1
    assert len(describe_network_interfaces(lab.cloud, tags={"number": "1"})) == len(ids) // 2
    assert [eni.type for eni in describe_network_interfaces(lab.cloud, instance_id=lab.node)] == ["Primary"]
    assert describe_network_interfaces(lab.cloud, status="Attaching") == []


def test_pages_are_followed_to_the_end(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terway_core.cloud.ecs.PAGE_SIZE", 10)
    enis = [lab.create() for _ in range(24)]
    lab.app[CALLS].clear()
    assert len(describe_network_interfaces(lab.cloud)) == len(enis) + 1
    assert len(lab.app[CALLS]) == 3


def test_changing_what_an_eni_is_called_and_its_groups(lab: Lab) -> None:
    eni = lab.create()
    vpc = lab.region.vpcs[eni.vpc_id]
    groups = [lab.region.add_security_group(vpc, name).security_group_id for name in ("a", "b")]
    modify_network_interface(lab.cloud, eni.eni_id, security_group_ids=groups)
    modify_network_interface(lab.cloud, eni.eni_id, name="renamed")
    found = lab.look(eni)
    assert (found.security_group_ids, found.name) == (tuple(groups), "renamed")
    tag_resources(lab.cloud, [eni.eni_id], {"node": "node-2", "pod": "p"})
    assert lab.look(eni).tags == {"cluster": "c1", "node": "node-2", "pod": "p"}


def test_ipv4_addresses_come_and_go(lab: Lab) -> None:
    eni = lab.attached()
    given = assign_ipv4(lab.cloud, eni.eni_id, 3, client_token="t")
    assert assign_ipv4(lab.cloud, eni.eni_id, 3, client_token="t") == given
    assert lab.look(eni).ipv4 == (eni.primary_ip, *given)
    unassign_ipv4(lab.cloud, eni.eni_id, given[:1])
    # One of these is gone already: the others go all the same.
    unassign_ipv4(lab.cloud, eni.eni_id, given[:2])
    assert lab.look(eni).ipv4 == (eni.primary_ip, given[2])
    unassign_ipv4(lab.cloud, eni.eni_id, given[:2])
    unassign_ipv4(lab.cloud, "eni-unknown", given)
    with pytest.raises(CloudError, match="InvalidIp"):
        unassign_ipv4(lab.cloud, eni.eni_id, [eni.primary_ip])


def test_ipv6_addresses_come_and_go(lab: Lab) -> None:
    eni = lab.attached()
    given = assign_ipv6(lab.cloud, eni.eni_id, 2, client_token=lab.token)
    assert lab.look(eni).ipv6 == given
    unassign_ipv6(lab.cloud, eni.eni_id, given[:1])
    unassign_ipv6(lab.cloud, eni.eni_id, given)
    assert lab.look(eni).ipv6 == ()


def test_prefixes_come_and_go(lab: Lab) -> None:
    eni = lab.attached(ipv4_prefix_count=1)
    (first,) = eni.ipv4_prefixes
    assert (first.prefixlen, eni.ipv4) == (28, (eni.primary_ip,))
    (second,) = assign_ipv4_prefixes(lab.cloud, eni.eni_id, 1, client_token=lab.token)
    assert lab.look(eni).ipv4_prefixes == (first, second)
    unassign_ipv4_prefixes(lab.cloud, eni.eni_id, [first])
    unassign_ipv4_prefixes(lab.cloud, eni.eni_id, [first, second])
    assert lab.look(eni).ipv4_prefixes == ()


def test_no_more_than_the_instance_type_allows(lab: Lab) -> None:
    kind = describe_instance_type(lab.cloud, "ecs.g7.large")
    assert kind == InstanceType(
        name="ecs.g7.large",
        eni_quantity=3,
        eni_total_quantity=3,
        ipv4_per_eni=6,
        ipv6_per_eni=6,
        trunk_supported=False,
    )
    assert describe_instance_type(lab.cloud, "ecs.g7.4xlarge").trunk_supported
    with pytest.raises(CloudError, match=r"ecs\.unknown"):
        describe_instance_type(lab.cloud, "ecs.unknown")
    eni = lab.attached()
    for assign in (assign_ipv4, assign_ipv4_prefixes, assign_ipv6):
        with pytest.raises(CloudError) as caught:
            assign(lab.cloud, eni.eni_id, kind.ipv4_per_eni + 1, client_token=lab.token)
        assert caught.value.code in ADDRESS_QUOTA
    big = lab.create(ipv4_count=kind.ipv4_per_eni)
    with pytest.raises(CloudError) as caught:
        attach_network_interface(lab.cloud, big.eni_id, lab.node)
    assert caught.value.code in ADDRESS_QUOTA


def test_a_vswitch_runs_out(lab: Lab) -> None:
    def available() -> list[int]:
        found = describe_vswitches(lab.cloud, [lab.small.vswitch_id, lab.vswitch.vswitch_id, "vsw-unknown"])
        return [one.available_ips for one in found]

    assert available() == [4, 251]
    eni = lab.create(vswitch_id=lab.small.vswitch_id, ipv4_count=2)
    assert available() == [1, 251]
    lab.create(vswitch_id=lab.small.vswitch_id)
    for attempt in (
        lambda: lab.create(vswitch_id=lab.small.vswitch_id),
        lambda: assign_ipv4(lab.cloud, eni.eni_id, 1, client_token=lab.token),
    ):
        with pytest.raises(CloudError, match="another vSwitch") as caught:
            attempt()
        assert caught.value.code in EXHAUSTED_VSWITCH
    (vswitch,) = describe_vswitches(lab.cloud, [lab.vswitch.vswitch_id])
    assert vswitch.cidr == ip_network("10.0.0.0/24")
    assert vswitch.ipv6_cidr == ip_network("2408:4000:0:1::/64")
    assert vswitch.zone_id == "cn-hangzhou-h"


def test_members_of_a_trunk(lab: Lab) -> None:
    node = lab.region.add_instance("big", instance_type="ecs.g7.4xlarge", vswitch=lab.vswitch).instance_id
    trunk = lab.create(type="Trunk")
    assert trunk.type == "Trunk"
    attach_network_interface(lab.cloud, trunk.eni_id, node)
    members = [lab.create() for _ in range(2)]
    for member in members:
        attach_network_interface(lab.cloud, member.eni_id, node, trunk_eni_id=trunk.eni_id)
    found = [lab.look(member) for member in members]
    assert [(one.type, one.instance_id, one.trunk_eni_id) for one in found] == [
        ("Member", node, trunk.eni_id)
    ] * 2
    assert sorted(one.device_index for one in found) == [1, 2]
    with pytest.raises(CloudError, match="HasMemberEniAttached"):
        detach_network_interface(lab.cloud, trunk.eni_id, node)
    for member in members:
        detach_network_interface(lab.cloud, member.eni_id, node, trunk_eni_id=trunk.eni_id)
    detach_network_interface(lab.cloud, trunk.eni_id, node)
    assert lab.look(trunk).status == "Available"


def test_changes_of_one_eni_at_a_time_are_tried_again(lab: Lab) -> None:
    eni = lab.attached()
    lab.behaviour.faults.append(
        InjectedFault(kind="slow", action="AssignPrivateIpAddresses", seconds=0.1, times=1)
    )
    slow = threading.Thread(target=assign_ipv4, args=(lab.cloud, eni.eni_id, 1), kwargs={"client_token": "a"})
    slow.start()
    while not lab.behaviour.faults[0].used:
        time.sleep(0.001)
    (address,) = assign_ipv6(lab.cloud, eni.eni_id, 1, client_token="b")
    slow.join()
    assert ("AssignIpv6Addresses", "Operation.Conflict") in lab.actions()
    found = lab.look(eni)
    assert (len(found.ipv4), found.ipv6) == (2, (address,))
