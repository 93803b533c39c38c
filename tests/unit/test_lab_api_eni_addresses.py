"""Addresses and prefixes of network interfaces in the simulated ECS, and what vSwitches have left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from terway_core.cloud.vpc import describe_vswitches
from terway_core.lab.api import InjectedFault

from .served_region import Eni, ServedRegion, wait_for


@pytest.fixture
def lab() -> Iterator[ServedRegion]:
    with ServedRegion().served() as lab:
        yield lab


def assign(lab: ServedRegion, eni: Eni, **params: Any) -> dict[str, Any]:
    action = (
        "AssignIpv6Addresses"
        if any(name.startswith("Ipv6") for name in params)
        else ("AssignPrivateIpAddresses")
    )
    return lab.call(action, NetworkInterfaceId=eni["NetworkInterfaceId"], **params)


def test_exactly_the_new_ones_are_answered(lab: ServedRegion) -> None:
    eni = lab.attached()
    first = assign(lab, eni, SecondaryPrivateIpAddressCount=2)["AssignedPrivateIpAddressesSet"]
    assert first["PrivateIpSet"]["PrivateIpAddress"] == ["10.0.0.3", "10.0.0.4"]
    assert first["NetworkInterfaceId"] == eni["NetworkInterfaceId"]
    second = assign(lab, eni, PrivateIpAddress=["10.0.0.99"])["AssignedPrivateIpAddressesSet"]
    assert second["PrivateIpSet"]["PrivateIpAddress"] == ["10.0.0.99"]
    third = assign(lab, eni, Ipv4PrefixCount=1)["AssignedPrivateIpAddressesSet"]
    # The last whole block below the addresses that the vSwitch keeps.
    assert third["Ipv4PrefixSet"]["Ipv4Prefixes"] == ["10.0.0.224/28"]
    assert third["PrivateIpSet"]["PrivateIpAddress"] == []
    sixth = assign(lab, eni, Ipv6AddressCount=2)
    assert len(sixth["Ipv6Sets"]["Ipv6Address"]) == 2
    found = lab.look(eni)
    assert [one["PrivateIpAddress"] for one in found["PrivateIpSets"]["PrivateIpSet"]] == [
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.4",
        "10.0.0.99",
    ]
    assert [one["Ipv6Address"] for one in found["Ipv6Sets"]["Ipv6Set"]] == sixth["Ipv6Sets"]["Ipv6Address"]
    assert found["Ipv4PrefixSets"]["Ipv4PrefixSet"] == [{"Ipv4Prefix": "10.0.0.224/28"}]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"SecondaryPrivateIpAddressCount": 6}, "InvalidOperation.Ipv4CountExceeded"),  # with the primary: 7
        ({"Ipv4PrefixCount": 6}, "InvalidOperation.Ipv4CountExceeded"),
        ({"Ipv6AddressCount": 7}, "InvalidOperation.Ipv6CountExceeded"),
        ({"PrivateIpAddress": ["10.0.0.1"]}, "InvalidIp.IpAssigned"),
        ({"PrivateIpAddress": ["10.0.0.0"]}, "InvalidVSwitchId.IpInvalid"),
        ({"Ipv4Prefix": ["10.0.0.0/28"]}, "InvalidParameter"),  # the vSwitch keeps its first address
        ({"Ipv4Prefix": ["10.0.0.64/27"]}, "InvalidParameter"),
        ({"Ipv4PrefixCount": 1, "SecondaryPrivateIpAddressCount": 1}, "InvalidParameter.Conflict"),
        ({}, "MissingParameter"),
        ({"Ipv6Address": ["2001:db8::1"]}, "InvalidIp.Address"),
    ],
)
def test_what_cannot_be_assigned(lab: ServedRegion, params: dict[str, Any], code: str) -> None:
    eni = lab.attached()
    before = lab.look(eni)
    action = "AssignIpv6Addresses" if any("Ipv6" in name for name in params) else "AssignPrivateIpAddresses"
    assert lab.refused(action, NetworkInterfaceId=eni["NetworkInterfaceId"], **params) == code
    assert lab.look(eni) == before


def test_an_eni_that_is_attached_to_nothing_may_have_fifty(lab: ServedRegion) -> None:
    eni = lab.create(SecondaryPrivateIpAddressCount=49)
    one = {"NetworkInterfaceId": eni["NetworkInterfaceId"]}
    assert (
        lab.refused("AssignPrivateIpAddresses", **one, SecondaryPrivateIpAddressCount=1)
        == "MaxEniPrivateIpsCountExceeded"
    )
    lab.call("AssignIpv6Addresses", **one, Ipv6AddressCount=10)
    assert lab.refused("AssignIpv6Addresses", **one, Ipv6AddressCount=1) == "MaxEniIpv6IpsCountExceeded"
    assert not any(one.plugged for pair in lab.told for one in pair)


def test_ipv6_needs_a_vswitch_and_a_type_that_have_it(lab: ServedRegion) -> None:
    eni = lab.create(vswitch=lab.zone_i)
    one = {"NetworkInterfaceId": eni["NetworkInterfaceId"]}
    assert lab.refused("AssignIpv6Addresses", **one, Ipv6AddressCount=1) == "InvalidVSwitch.Ipv6NotTurnOn"
    plain = lab.region.add_instance("plain", instance_type="ecs.unknown", vswitch=lab.zone_h)
    (primary,) = lab.find(InstanceId=plain.instance_id)
    one = {"NetworkInterfaceId": primary["NetworkInterfaceId"]}
    assert lab.refused("AssignIpv6Addresses", **one, Ipv6AddressCount=1) == "InvalidOperation.Ipv6NotSupport"


def test_taking_back_is_all_or_nothing(lab: ServedRegion) -> None:
    eni = lab.attached(SecondaryPrivateIpAddressCount=2, Ipv6AddressCount=2)
    one = {"NetworkInterfaceId": eni["NetworkInterfaceId"]}
    unassigned = "InvalidIp.IpUnassigned"
    for wrong in ("10.0.0.2", "10.0.0.200"):  # the primary one, and nobody's
        params = {**one, "PrivateIpAddress": ["10.0.0.3", wrong]}
        assert lab.refused("UnassignPrivateIpAddresses", **params) == unassigned
    assert len(lab.look(eni)["PrivateIpSets"]["PrivateIpSet"]) == 3
    lab.call("UnassignPrivateIpAddresses", **one, PrivateIpAddress=["10.0.0.3", "10.0.0.4"])
    assert len(lab.look(eni)["PrivateIpSets"]["PrivateIpSet"]) == 1
    (first, second) = [item["Ipv6Address"] for item in eni["Ipv6Sets"]["Ipv6Set"]]
    lab.call("UnassignIpv6Addresses", **one, Ipv6Address=[first])
    assert lab.refused("UnassignIpv6Addresses", **one, Ipv6Address=[first, second]) == unassigned
    assert lab.refused("UnassignPrivateIpAddresses", **one, Ipv4Prefix=["10.0.0.16/28"]) == unassigned
    for action in ("UnassignPrivateIpAddresses", "UnassignIpv6Addresses", "AssignIpv6Addresses"):
        assert lab.refused(action, **one) == "MissingParameter"


def test_the_network_is_told_of_addresses_of_attached_enis(lab: ServedRegion) -> None:
    eni = lab.attached()
    lab.told.clear()
    assign(lab, eni, SecondaryPrivateIpAddressCount=1)
    ((before, after),) = lab.told
    assert [len(one.ipv4) for one in (before, after)] == [1, 2]
    lab.fabric_fails = True
    one = {"NetworkInterfaceId": eni["NetworkInterfaceId"]}
    assert lab.refused("AssignPrivateIpAddresses", **one, SecondaryPrivateIpAddressCount=1) == "InternalError"
    assert (
        lab.refused("UnassignPrivateIpAddresses", **one, PrivateIpAddress=[str(after.secondary_ips[0])])
        == "InternalError"
    )
    assert len(lab.look(eni)["PrivateIpSets"]["PrivateIpSet"]) == 2


def test_nothing_changes_while_an_eni_comes_or_goes(lab: ServedRegion) -> None:
    lab.behaviour.faults.append(InjectedFault(kind="stuck", action="AttachNetworkInterface"))
    eni = lab.attached()
    one = {"NetworkInterfaceId": eni["NetworkInterfaceId"]}
    state = "InvalidOperation.InvalidEniState"
    assert lab.refused("AssignPrivateIpAddresses", **one, SecondaryPrivateIpAddressCount=1) == state
    assert lab.refused("AssignIpv6Addresses", **one, Ipv6AddressCount=1) == state
    assert lab.refused("UnassignPrivateIpAddresses", **one, PrivateIpAddress=["10.0.0.2"]) == state


def test_a_vswitch_has_what_is_left(lab: ServedRegion) -> None:
    tiny = lab.region.add_vswitch(lab.vpc, "10.0.8.0/28", "cn-hangzhou-h")
    assert tiny.usable == 12

    def left() -> int:
        (vswitch,) = describe_vswitches(lab.cloud, [tiny.vswitch_id])
        return vswitch.available_ips

    assert left() == 12
    eni = lab.create(vswitch=tiny, SecondaryPrivateIpAddressCount=11)
    assert left() == 0
    params = {"VSwitchId": tiny.vswitch_id, "SecurityGroupIds": [lab.group]}
    assert lab.refused("CreateNetworkInterface", **params) == "InvalidVSwitchId.IpNotEnough"
    one = {"NetworkInterfaceId": eni["NetworkInterfaceId"]}
    assert (
        lab.refused("AssignPrivateIpAddresses", **one, SecondaryPrivateIpAddressCount=1)
        == "InvalidVSwitchId.IpNotEnough"
    )
    assert lab.refused("AssignPrivateIpAddresses", **one, Ipv4PrefixCount=1) == "InvalidVSwitchId.IpNotEnough"
    lab.call("UnassignPrivateIpAddresses", **one, PrivateIpAddress=["10.0.8.5"])
    assert left() == 1
    assert lab.create(vswitch=tiny)["PrivateIpAddress"] == "10.0.8.5"
    lab.call("DeleteNetworkInterface", **one)
    assert left() == 11


def test_a_prefix_takes_sixteen(lab: ServedRegion) -> None:
    eni = lab.create(Ipv4PrefixCount=2)
    assert [one["Ipv4Prefix"] for one in eni["Ipv4PrefixSets"]["Ipv4PrefixSet"]] == [
        "10.0.0.224/28",
        "10.0.0.208/28",
    ]
    assert len(lab.region.taken(lab.zone_h)) == 2 + 32
    named = {
        "PrimaryIpAddress": "10.0.0.225",
        "VSwitchId": lab.zone_h.vswitch_id,
        "SecurityGroupId": lab.group,
    }
    assert lab.refused("CreateNetworkInterface", **named) == "InvalidIp.IpAssigned"


def test_one_change_of_an_eni_at_a_time(lab: ServedRegion) -> None:
    eni, other = lab.attached(), lab.attached()
    slow = InjectedFault(kind="slow", action="AssignPrivateIpAddresses", seconds=0.3, times=1)
    lab.behaviour.faults.append(slow)
    one = {"NetworkInterfaceId": eni["NetworkInterfaceId"]}
    cloud = lab.client()
    thread = threading.Thread(
        target=cloud.call,
        args=("ecs", "AssignPrivateIpAddresses", {**one, "SecondaryPrivateIpAddressCount": 1}),
    )
    thread.start()
    wait_for(lambda: slow.used)
    assert lab.refused("AssignIpv6Addresses", **one, Ipv6AddressCount=1) == "Operation.Conflict"
    assert lab.refused("DetachNetworkInterface", **lab.attachment(eni)) == "Operation.Conflict"
    assign(lab, other, Ipv6AddressCount=1)
    thread.join()
    assign(lab, eni, Ipv6AddressCount=1)
