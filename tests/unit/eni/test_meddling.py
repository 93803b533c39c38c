"""What the pool does when the cloud's answers are old, or somebody has meddled with its ENIs."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_address

import pytest

from .harness import assert_agree, assert_whole


def test_an_address_that_one_answer_lacks_stays(make_node, account):
    """The API's lists may be older than its answers."""
    node = make_node(reconcile_interval=100, cooldown=0)
    node.boot()
    node.add_pod(1)
    mine = node.add_pod(2).addresses[0].address
    for number in (3, 4, 5):
        node.add_pod(number)
    for number in (3, 4, 5):
        node.delete_pod(number)
    (eni,) = node.tagged()
    for _ in range(2):  # what was seen long ago is not the first of two looks
        account.region.put_interface(replace(eni, secondary_ips=()))
        node.work(until=lambda: bool(node.pool.problems))
        assert len(node.addresses("cooling")) == 3  # in doubt, so nobody gets them
        (problem,) = node.pool.problems
        assert problem.startswith(f"{mine} of ")
        account.region.put_interface(eni)
        node.work(200)
        assert node.pool.problems == []
        assert node.in_rows() == node.in_cloud()
    node.delete_pod(2)
    assert str(mine) in node.addresses("free")
    assert node.changes()["UnassignPrivateIpAddresses"] == 0


@pytest.mark.parametrize("use", ["shared", "exclusive"])
def test_an_eni_that_one_answer_calls_detaching_stays(make_node, account, use):
    node = make_node(reconcile_interval=100)
    node.boot(use)
    eni = node.add_pod(1, use).eni
    if use == "exclusive":
        node.without_link.add(eni.mac)  # it is in the pod
    (actual,) = node.tagged()
    account.region.put_interface(replace(actual, status="Detaching"))
    node.time.after(104, lambda: account.region.put_interface(actual))
    node.work(103)
    assert node.states() == {"attaching": 1}
    assert "is not attached, so" in node.pool.problems[0]
    node.work(150)
    assert node.states() == {"ready": 1}
    assert node.pool.problems == []
    assert node.changes() == {"CreateNetworkInterface": 1, "AttachNetworkInterface": 1}


def test_an_address_that_is_gone_is_given_to_nobody(make_node, account):
    node = make_node(reconcile_interval=100, cooldown=1, max_enis=1, warm_min=2)
    node.boot()
    node.add_pod(1)
    mine = node.add_pod(2).addresses[0].address
    node.work()
    (eni,) = node.tagged()
    free = ip_address(node.addresses("free")[0])
    account.region.put_interface(
        replace(eni, secondary_ips=tuple(one for one in eni.secondary_ips if one not in (mine, free)))
    )
    taker = account.region.add_interface(
        account.vswitch, type="Secondary", private_ip=mine, secondary_ips=(free,), security_group_ids=()
    )
    node.work(110)
    (problem,) = node.pool.problems
    assert problem.startswith(f"{mine} of ")
    assert problem.endswith(f"is not on {eni.network_interface_id} any more; delete that pod")
    node.kill()
    node.boot()
    node.delete_pod(2)
    grants = [node.add_pod(number) for number in range(3, 12)]
    assert not {mine, free} & {row.address for grant in grants for row in grant.addresses}
    assert_whole(node, grants)
    node.work(150)
    assert node.pool.problems == []
    assert account.region.network_interfaces[taker.network_interface_id] == taker
    assert_agree(node)


def test_an_address_that_went_to_another_eni_of_ours_is_there(make_node, account):
    node = make_node("ecs.g7.large", reconcile_interval=50, warm_min=1)
    node.boot()
    node.burst(8)
    first, second = sorted(node.tagged(), key=lambda eni: -len(eni.ipv4))
    free = ip_address(node.addresses("free")[0])
    if free not in second.ipv4:
        first, second = second, first
    account.region.put_interface(
        replace(second, secondary_ips=tuple(one for one in second.secondary_ips if one != free))
    )
    node.pool.release("pod-0")
    account.region.put_interface(replace(first, secondary_ips=(*first.secondary_ips[:-1], free)))
    node.work(51)
    assert node.in_rows()[first.network_interface_id] >= {free}
    assert free not in node.in_rows()[second.network_interface_id]


@pytest.mark.parametrize("use", ["shared", "exclusive"])
def test_an_address_that_went_to_another_eni_of_ours_stays_its_owners(make_node, account, use):
    node = make_node("ecs.g7.xlarge", reconcile_interval=50, cooldown=0)
    node.boot("shared", "exclusive")
    for number in range(15):
        other = node.add_pod(number)
    gone = node.add_pod(15, use)
    mine = gone.addresses[0].address
    account.region.drop_interface(account.region.network_interfaces[gone.eni.eni_id])
    node.delete_pod(14)
    eni = account.region.network_interfaces[other.eni.eni_id]
    kept = tuple(one for one in eni.secondary_ips if one != other.addresses[0].address)
    account.region.put_interface(replace(eni, secondary_ips=(*kept, mine)))
    node.work(120)
    grants = [node.add_pod(number) for number in range(100, 103)]
    assert mine not in {row.address for grant in grants for row in grant.addresses}


def test_addresses_that_only_the_cloud_knows_are_taken_in(make_node, account):
    node = make_node(reconcile_interval=100)
    node.boot()
    node.allocate("pod-1")
    (eni,) = node.tagged()
    extra = next(account.region.free_ipv4(account.vswitch))
    account.region.put_interface(replace(eni, secondary_ips=(extra,)))
    node.work(100)
    assert node.addresses("free") == [str(extra)]
    assert node.pool.allocate("pod-2").addresses[0].address == extra


def test_an_eni_that_is_gone_is_reported_and_forgotten_with_its_last_pod(make_node, account):
    node = make_node(reconcile_interval=100, cooldown=1)
    node.boot("shared", "exclusive")
    gone = [node.add_pod(1).eni.eni_id, node.add_pod(2, "exclusive").eni.eni_id]
    for eni in gone:
        account.region.drop_interface(account.region.network_interfaces[eni])
    node.work(300)
    problems = sorted(node.pool.problems)
    assert [any(eni in problem for problem in problems) for eni in gone] == [True, True]
    assert all("is not attached, so" in problem for problem in problems)
    used = node.addresses("used")
    grants = [node.add_pod(number) for number in (3, 4)]  # another ENI serves
    assert not {str(row.address) for grant in grants for row in grant.addresses} & {*used}
    node.kill()
    node.boot("shared", "exclusive")
    for number in (1, 2):
        node.delete_pod(number)
    node.work(300)
    assert node.pool.problems == []
    assert not {*gone} & {*node.in_rows()}
    assert_agree(node)


def test_an_eni_that_somebody_detached_is_attached_again(make_node, account):
    node = make_node(reconcile_interval=100)
    node.boot()
    grant = node.add_pod(1)
    account.region.put_interface(replace(node.tagged()[0], status="Available", instance_id=""))
    node.work(110)
    assert node.tagged()[0].instance_id == node.instance.instance_id
    assert node.states() == {"ready": 1}
    assert node.pool.allocate(str(node.store.records()[0].key)).eni.eni_id == grant.eni.eni_id
    assert_agree(node)


def test_an_eni_that_pods_have_is_attached_again_as_soon_as_it_can_be(make_node, account):
    node = make_node(reconcile_interval=100)
    node.boot()
    grant = node.add_pod(1)
    account.fault("error", "AttachNetworkInterface", code="Forbidden.RAM")
    account.region.put_interface(replace(node.tagged()[0], status="Available", instance_id=""))
    node.work(900, pace=5)
    (eni,) = node.pool.describe()
    assert (eni["state"], eni["problem"]) == ("attaching", "was not attached within 120 s (status Available)")
    account.clear()
    node.work(130)
    assert node.states() == {"ready": 1}
    assert_whole(node, [grant])
    assert_agree(node)


def test_an_eni_that_somebody_attached_elsewhere_is_not_fought_for(make_node, account):
    node = make_node(reconcile_interval=100, cooldown=1)
    other = make_node()
    node.boot()
    node.add_pod(1)
    (eni,) = node.tagged()
    taken = account.region.put_interface(replace(eni, instance_id=other.instance.instance_id))
    node.work(110)
    assert "is not attached, so" in node.pool.problems[0]
    assert node.add_pod(2).eni.eni_id != eni.network_interface_id
    node.delete_pod(1)
    node.work(300)
    assert account.region.network_interfaces[eni.network_interface_id] == taken
    assert node.changes()["DetachNetworkInterface"] == 0
    (problem,) = node.pool.problems
    assert "carries this node's tags and is attached to" in problem


def test_tags_that_somebody_removed_do_not_matter_to_an_eni_that_is_known(make_node, account):
    node = make_node(reconcile_interval=100)
    node.boot()
    grant = node.add_pod(1)
    (eni,) = node.tagged()
    account.region.put_interface(replace(eni, tags={}))
    node.work(400, pace=5)
    assert node.states() == {"ready": 1}
    assert node.pool.problems == []
    assert node.add_pod(2).eni.eni_id == grant.eni.eni_id


@pytest.mark.parametrize("change", ["unassign", "assign", "delete"])
def test_a_comparison_that_is_overtaken_changes_nothing(make_node, change):
    """Its answer is from before an operation that has ended meanwhile."""
    node = make_node(reconcile_interval=100, reclaim_after=5, cooldown=1)
    node.boot()
    node.burst(4)
    before = node.in_rows()
    changed = []

    def is_over():
        return node.in_rows() == {} if change == "delete" else node.in_rows() != before

    def overtake(action, params):
        if action == "DescribeNetworkInterfaces" and params.get("Tag") and not changed:
            changed.append(change)
            if change == "assign":
                changed.extend(node.ask(f"late-{number}") for number in range(5))
            else:
                for number in range(1 if change == "unassign" else 0, 4):
                    node.pool.release(f"pod-{number}")
                node.time.advance(6)
            end = time.monotonic() + 20
            while not is_over() and time.monotonic() < end:
                node.pool.step()
                time.sleep(0.01)
                node.time.advance(1 if change == "delete" else 0)

    node.cloud.on_answer = overtake
    node.time.advance(100)
    node.pool.settle()
    assert changed
    assert before != node.in_rows() == node.in_cloud()


def test_an_eni_that_has_too_many_addresses_to_be_attached_again(make_node, account):
    """Somebody detached it and gave it more than the instance type allows."""
    node = make_node("ecs.g7.large", reconcile_interval=100)
    node.boot()
    grants = [node.add_pod(number) for number in range(3)]
    (eni,) = node.tagged()
    free = account.region.free_ipv4(account.vswitch)
    more = (*eni.secondary_ips, *(next(free) for _ in range(9)))
    account.region.put_interface(replace(eni, status="Available", instance_id="", secondary_ips=more))
    node.work(150)
    assert node.states() == {"ready": 1}
    assert_whole(node, grants)
    assert_agree(node)
