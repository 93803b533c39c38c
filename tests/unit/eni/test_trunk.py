"""The trunk ENI: one for a node that needs one, kept as long as there is a pool."""

from __future__ import annotations

import pytest

from terway_core.errors import InvalidConfig, RetryLater

from .harness import DAY, assert_agree, assert_whole

TRUNKING = "ecs.g7.4xlarge"


def trunks(node):
    return [eni for eni in node.enis() if eni.type == "Trunk"]


@pytest.mark.parametrize("ip_stack", ["ipv4", "dual"])
def test_it_is_made_once_and_serves_no_pod(make_node, ip_stack):
    node = make_node(TRUNKING, ip_stack=ip_stack)
    pool = node.boot("shared", "trunk")
    with pytest.raises(RetryLater, match=r"^no trunk ENI is attached: it is on its way$"):
        pool.trunk()
    assert pool.members() == 0
    node.work(30)
    (trunk,) = trunks(node)
    assert pool.trunk().eni_id == trunk.network_interface_id
    assert len(trunk.ipv6) == (ip_stack == "dual")
    assert pool.members() == 32
    grants = node.burst(40)
    assert_whole(node, grants)
    assert trunk.private_ip not in {row.address for grant in grants for row in grant.addresses}
    assert trunks(node) == [trunk]


def test_it_stays_when_everything_else_is_given_back(make_node):
    node = make_node(TRUNKING, reclaim_after=10, cooldown=1)
    node.boot("shared", "trunk")
    node.add_pod(1)
    node.delete_pod(1)
    node.work(DAY, pace=60)
    assert [eni.type for eni in node.tagged()] == ["Trunk"]
    assert_agree(node)


def test_it_is_known_again_after_a_restart_and_without_the_journal(make_node):
    node = make_node(TRUNKING)
    node.boot("trunk")
    node.work(30)
    (trunk,) = trunks(node)
    node.kill()
    assert node.boot("trunk").trunk().eni_id == trunk.network_interface_id
    node.lose_journal()
    pool = node.boot("trunk")
    node.work(30)
    assert pool.trunk().eni_id == trunk.network_interface_id
    assert trunks(node) == [trunk]


def test_one_that_is_gone_is_made_anew(make_node):
    node = make_node(TRUNKING, reconcile_interval=60)
    pool = node.boot("trunk")
    node.work(30)
    (trunk,) = trunks(node)
    node.region.drop_interface(trunk)
    node.work(300)
    (other,) = trunks(node)
    assert pool.trunk().eni_id == other.network_interface_id != trunk.network_interface_id


def test_pods_leave_its_place_to_it(make_node):
    """Three ENIs of the type are for pods; with a trunk, two are, also before it is there."""
    node = make_node(TRUNKING, max_enis=3)
    pool = node.boot("exclusive", "trunk")
    assert pool.capacity() == 2
    node.work(30)
    assert pool.capacity() == 2
    assert len(trunks(node)) == 1


def test_a_type_without_trunks_is_told(make_node):
    node = make_node("ecs.g7.xlarge")
    with pytest.raises(InvalidConfig, match=r"ecs\.g7\.xlarge takes no trunk ENI"):
        node.boot("trunk")


def test_the_cause_is_told_when_it_cannot_be_made(make_node):
    node = make_node(TRUNKING, max_enis=1)
    pool = node.boot("shared")
    node.allocate("pod")
    pool.start("trunk", threaded=False)
    node.work(10)
    with pytest.raises(RetryLater, match=r"no trunk ENI is attached: the 1 ENIs of pool.max_enis are used"):
        pool.trunk()


def test_limits_that_an_older_version_has_written_down_are_asked_for_again(make_node):
    node = make_node(TRUNKING)
    node.boot("shared")
    node.work(10)
    node.store.write(lambda db: db.execute("UPDATE eni_facts SET value=json_remove(value, '$.members')"))
    node.kill()
    assert node.boot("trunk") is node.pool
