"""``terway audit`` names each kind of difference between rows, journal and cloud."""

from __future__ import annotations

from dataclasses import replace

import pytest

from terway_core.record import State
from terway_core.testing.fakes import make_attachment

KEY = {number: str(make_attachment(number).key) for number in range(5)}


@pytest.fixture
def node(make_node):
    """A node with two pods that share an ENI, and one that has its own."""
    node = make_node()
    node.boot("shared", "exclusive")
    for number, use in ((1, "shared"), (2, "shared"), (3, "exclusive")):
        node.add_pod(number, use)
    assert node.audit() == []
    return node


@pytest.fixture
def shared(node):
    return next(eni for eni in node.tagged() if eni.tags["terway.use"] == "shared")


@pytest.fixture
def own(node):
    return next(eni for eni in node.tagged() if eni.tags["terway.use"] == "exclusive")


def change(node, statement, *values):
    node.store.write(lambda db: db.execute(statement, values))


def test_a_node_without_enis_is_not_asked_about(make_node):
    node = make_node()
    node.boot()
    node.forget_calls()
    assert node.audit() == []
    assert node.calls() == []


def test_an_owner_that_is_in_no_row_of_the_journal(node, shared, own):
    for number in (2, 3):
        node.store.remove(make_attachment(number).key)
    assert node.audit() == [
        f"enis: {own.network_interface_id} is owned by {KEY[3]}, which is in no row of the journal",
        f"enis: {shared.secondary_ips[0]} of {shared.network_interface_id} is owned by {KEY[2]}, "
        "which is in no row of the journal",
    ]


def test_a_lease_whose_address_belongs_to_somebody_else(node, shared):
    change(node, "UPDATE eni_addresses SET owner=? WHERE owner=?", KEY[1], KEY[2])
    assert node.audit() == [f"journal: {KEY[2]} has {shared.secondary_ips[0]}, which belongs to {KEY[1]}"]
    change(node, "UPDATE eni_addresses SET owner='' WHERE address=?", str(shared.secondary_ips[0]))
    assert node.audit() == [f"journal: {KEY[2]} has {shared.secondary_ips[0]}, which belongs to nobody"]
    node.store.advance(node.store.get(make_attachment(2).key), State.RELEASING)
    assert node.audit() == []


def test_the_cloud_cannot_be_asked(node, account):
    account.fault("error", "DescribeNetworkInterfaces", code="Forbidden.RAM")
    node.store.remove(make_attachment(1).key)
    owner, cloud = node.audit()
    assert "in no row of the journal" in owner
    assert cloud.startswith("cloud: cannot be asked: DescribeNetworkInterfaces: Forbidden.RAM: ")


def test_an_eni_that_no_row_knows(node, account, shared):
    lost = account.region.add_interface(
        account.vswitch,
        type="Secondary",
        private_ip=next(account.region.free_ipv4(account.vswitch)),
        security_group_ids=(),
        tags={**shared.tags, "terway.token": "lost"},
    )
    assert node.audit() == [f"cloud: {lost.network_interface_id} was made by this node and is in no row"]


def test_an_eni_that_is_gone_or_not_attached(node, account, shared, own):
    account.region.drop_interface(own)
    account.region.put_interface(replace(shared, status="Available", instance_id=""))
    assert sorted(node.audit()) == sorted(
        [
            f"cloud: {own.network_interface_id} is in a row and not there",
            f"cloud: {shared.network_interface_id} is Available, not InUse here",
        ]
    )
    account.region.put_interface(replace(shared, instance_id="i-another"))
    assert f"cloud: {shared.network_interface_id} is InUse at i-another, not InUse here" in node.audit()


def test_an_eni_on_its_way(node, account):
    account.fault("stuck", "AttachNetworkInterface")
    node.ask("pod", "exclusive")
    node.work(until=lambda: bool(node.states()["attaching"]))
    (line,) = [line for line in node.audit() if "is attaching" in line]
    assert line.startswith("enis: eni-")


def test_an_eni_that_was_given_up_says_why(node, account, own):
    account.fault("stuck", "DetachNetworkInterface")
    node.delete_pod(3)
    node.without_link.add(own.mac)
    node.work(700, pace=5)
    assert node.audit() == [
        f"enis: {own.network_interface_id} is detaching: was not attached within 120 s (status InUse)"
    ]


def test_addresses_that_only_one_side_has(node, account, shared):
    extra = next(account.region.free_ipv4(account.vswitch))
    gone = shared.secondary_ips[0]
    account.region.put_interface(replace(shared, secondary_ips=(extra,)))
    assert node.audit() == [
        f"cloud: {extra} is on {shared.network_interface_id} and in no row",
        f"cloud: {gone} is in a row and not on {shared.network_interface_id}",
    ]
