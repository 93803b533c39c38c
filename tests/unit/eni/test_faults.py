"""What the pool does on bad days: the cloud refuses, is silent, sticks, forgets, or somebody meddles."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_address

import pytest

from terway_core.errors import CloudError, NoAddress

from .harness import DAY, addresses_of

LIFE = (
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "AssignPrivateIpAddresses",
    "AssignIpv6Addresses",
    "UnassignPrivateIpAddresses",
    "UnassignIpv6Addresses",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
)


def live_a_life(node):
    """Everything that the pool can ask of the cloud, once or twice."""
    node.add_pod(1)
    node.add_pod(2)
    node.delete_pod(2)
    node.work(40)  # one address goes back
    node.add_pod(3)
    for number in (1, 3):
        node.delete_pod(number)
    node.work(400, pace=5)  # the ENI goes


def settings_of_a_life(**settings):
    return {"ip_stack": "dual", "max_enis": 1, "cooldown": 1, "reclaim_after": 10, **settings}


def assert_agree(node):
    assert node.in_cloud() == node.in_rows()
    assert node.audit() == []


def assert_whole(node, grants):
    """Each has addresses of its own, which are on an ENI of this node."""
    given = [row.address for grant in grants for row in grant.addresses]
    assert len(set(given)) == len(given)
    there = {address for eni in node.enis() for address in addresses_of(eni)}
    assert set(given) <= there


@pytest.mark.parametrize("action", LIFE)
@pytest.mark.parametrize(("kind", "times"), [("lost", 1), ("lost", 12), ("down", 12), ("error", 12)])
def test_each_call_may_fail_and_its_answer_may_be_lost(make_node, account, kind, action, times):
    node = make_node(**settings_of_a_life())
    node.boot()
    code = {"code": "ServiceUnavailable"} if kind == "error" else {}
    fault = account.fault(kind, action, times=times, **code)
    live_a_life(node)
    node.work(900, pace=5)
    assert fault.used
    assert node.tagged() == []
    assert_agree(node)
    assert len({call.params["ClientToken"] for call in node.calls("CreateNetworkInterface")}) == 1


def test_a_lost_answer_makes_no_second_eni_also_after_a_kill(make_node, account):
    node = make_node(wait=0.3)
    node.boot()
    account.fault("lost", "CreateNetworkInterface")
    with pytest.raises(NoAddress, match="CreateNetworkInterface: no answer from"):
        node.allocate("pod")
    (eni,) = node.tagged()
    node.kill()
    account.clear()
    node.boot()
    node.work()
    assert node.in_cloud() == node.in_rows() == {eni.network_interface_id: {eni.private_ip}}
    assert len({call.params["ClientToken"] for call in node.calls("CreateNetworkInterface")}) == 1


def test_throttled_for_a_minute(make_node, account):
    node = make_node(warm_min=1)
    node.boot()
    node.work()
    account.fault("error", "*", code="Throttling")
    began = node.time.monotonic()
    node.time.after(60, account.clear)
    node.forget_calls()
    assert node.pool.allocate("warm").addresses  # who needs no call does not notice
    node.allocate("cold")
    assert 60 <= node.time.monotonic() - began < 200
    assert len(node.calls("AssignPrivateIpAddresses")) < 5
    node.work(60)
    assert_agree_but_owners(node)


def assert_agree_but_owners(node):
    """The owners of a test that keeps no journal are in none."""
    assert node.in_cloud() == node.in_rows()
    assert [line for line in node.audit() if "owned by" not in line] == []


def test_an_attach_that_never_ends_is_given_up_and_replaced(make_node, account):
    node = make_node()
    node.boot()
    account.fault("stuck", "AttachNetworkInterface", times=1)
    grant = node.allocate("pod")
    stuck = next(eni for eni in node.tagged() if eni.network_interface_id != grant.eni.eni_id)
    assert stuck.status == "Attaching"
    (row,) = [eni for eni in node.pool.describe() if eni["eni"] == stuck.network_interface_id]
    assert row["state"] == "detaching"
    assert "was not attached within 120 s (status Attaching)" in row["problem"]
    account.clear()  # now it arrives after all, and is not wanted any more
    node.work(until=lambda: list(node.in_rows()) == [grant.eni.eni_id])
    assert list(node.in_cloud()) == [grant.eni.eni_id]
    assert_agree_but_owners(node)


def test_an_eni_whose_link_never_comes_is_replaced(make_node):
    node = make_node()
    node.boot()
    future = node.ask("pod")
    node.work(until=lambda: bool(node.tagged()))
    node.without_link.add(node.tagged()[0].mac)
    node.work(until=future.done)
    node.work(60)
    assert node.find_link(future.result().eni.mac)
    assert list(node.in_cloud()) == [future.result().eni.eni_id]


@pytest.mark.parametrize("action", ["DetachNetworkInterface", "DeleteNetworkInterface"])
def test_a_call_that_sticks_is_made_again(make_node, account, action):
    node = make_node(**settings_of_a_life())
    node.boot()
    fault = account.fault("stuck", action, times=1)
    live_a_life(node)
    assert fault.used == 1
    assert len(node.calls(action)) == 2
    assert node.tagged() == []
    assert_agree(node)


@pytest.mark.parametrize(
    ("action", "state"), [("DetachNetworkInterface", "detaching"), ("DeleteNetworkInterface", "deleting")]
)
def test_an_eni_that_sticks_does_not_hold_up_the_others(make_node, account, action, state):
    node = make_node("ecs.g7.xlarge", cooldown=1, reclaim_after=10)
    node.boot()
    node.allocate("pod-1")
    account.fault("stuck", action)
    node.pool.release("pod-1")
    node.work(60)
    assert node.states() == {state: 1}
    node.burst(16, first=10)
    for number in range(10, 26):
        node.pool.release(f"pod-{number}")
    node.allocate("pod-2", "shared")
    assert node.states()[state] >= 1
    # One that is only waiting to be deleted is off the instance, so all three may be in use again.
    if state == "deleting":
        assert len(node.burst(44, first=100)) == 44
    account.clear()
    node.work(until=lambda: not node.states()[state])


@pytest.mark.parametrize("action", ["DescribeVSwitches", "DescribeNetworkInterfaces"])
def test_a_comparison_that_fails_keeps_nobody_from_anything(make_node, account, action):
    node = make_node(reconcile_interval=60)
    node.boot()
    node.allocate("pod-1")
    account.fault("error", action, code="Forbidden.RAM")
    node.work(300)
    assert node.allocate("pod-2").addresses
    account.clear()
    node.work(40)
    assert node.burst(20)


# -- the API is away ---------------------------------------------------------------------------------------


def test_without_the_api_pods_come_and_go_as_long_as_there_are_addresses(make_node, account):
    node = make_node(warm_min=2, cooldown=5, wait=0.3)
    node.boot()
    node.add_pod(1)
    node.work(20)
    node.kill()
    account.fault("down")
    node.boot()  # from what is known
    node.recover()
    kept = node.store.records()[0].lease.addresses[0].ip
    assert node.add_pod(2).addresses[0].address != kept
    assert node.add_pod(3).addresses
    with pytest.raises(NoAddress, match=r"no answer from 127.0.0.1:\d+ .*Check the network"):
        node.add_pod(4)
    node.delete_pod(2)
    node.time.advance(6)
    assert node.add_pod(5).addresses
    account.clear()
    node.work(120)
    assert node.add_pod(6).addresses
    assert_agree(node)


def test_without_the_api_a_node_without_enis_does_not_start(make_node, account):
    node = make_node()
    account.fault("down")
    with pytest.raises(CloudError, match="no answer from"):
        node.boot()
    account.clear()
    node.pool.start("shared", threaded=False)
    assert node.allocate("pod").addresses


def test_an_eni_can_be_made_soon_after_the_api_is_back(make_node, account):
    """Although the comparison at the start failed and the next one would be due in a day."""
    node = make_node("ecs.g7.large", reconcile_interval=DAY)
    node.boot()
    node.burst(6)
    node.kill()
    account.fault("down")
    node.boot()
    node.work(60)
    account.clear()
    assert node.allocate("one more").addresses


# -- the node is rebooted, the journal lost ----------------------------------------------------------------


def test_a_reboot_after_which_links_come_late(make_node):
    node = make_node(cooldown=0)
    node.boot("shared", "exclusive")
    grants = [node.add_pod(1), node.add_pod(2), node.add_pod(3, "exclusive")]
    node.kill()
    node.without_link.add("*")
    node.boot("shared", "exclusive")
    assert node.states() == {"attaching": 1, "ready": 1}  # the link of an ENI that a pod has is in the pod
    for number in (1, 2, 3):  # after a reboot no sandbox is left
        node.delete_pod(number)
    node.work(20)
    assert not node.addresses("used")
    future = node.ask("new")
    own = node.ask("own", "exclusive")
    node.work(10)
    assert not future.done()
    node.without_link.clear()
    node.work(until=lambda: future.done() and own.done())
    assert future.result().eni.eni_id == grants[0].eni.eni_id
    assert own.result().eni.eni_id == grants[2].eni.eni_id
    assert node.find_link(own.result().eni.mac)
    assert node.changes() == {
        "CreateNetworkInterface": 2,
        "AttachNetworkInterface": 2,
        "AssignPrivateIpAddresses": 1,
    }


def test_an_eni_without_a_link_serves_nobody(make_node):
    node = make_node("ecs.g7.large", cooldown=0)
    node.boot()
    eni = node.burst(4)[0].eni
    node.pool.release("pod-0")
    assert node.pool.link_of(eni) == node.find_link(eni.mac)
    node.without_link.add(eni.mac)
    with pytest.raises(Exception, match=f"no link with MAC address {eni.mac}, that of {eni.eni_id}"):
        node.pool.link_of(eni)
    late = node.ask("late")
    node.work(30)
    assert node.states() == {"attaching": 1}
    node.without_link.clear()
    node.work(until=late.done)
    assert late.result().eni.eni_id == eni.eni_id


def test_a_lost_journal_is_rebuilt_without_disturbing_running_pods(make_node):
    node = make_node(warm_min=3, cooldown=5)
    node.boot("shared", "exclusive")
    grants = {1: node.add_pod(1), 2: node.add_pod(2), 3: node.add_pod(3, "exclusive")}
    node.work()
    records = node.store.records()
    before = node.in_cloud()
    node.lose_journal()
    node.forget_calls()
    node.boot("shared", "exclusive")
    assert node.in_rows() == node.in_cloud() == before
    for number, grant in grants.items():
        again = node.pool.allocate(str(records[number - 1].key), "exclusive" if number == 3 else "shared")
        assert again.eni.eni_id == grant.eni.eni_id
        assert again.eni.gateway(4) == grant.eni.gateway(4)
        assert {row.address for row in grant.addresses} == {row.address for row in again.addresses}
    new = [node.add_pod(number) for number in range(4, 10)]
    assert_whole(node, [*new, *grants.values()])
    node.work(120)
    assert_agree(node)
    assert node.changes()["DeleteNetworkInterface"] == 0


def test_enis_that_were_lost_are_deleted_after_a_second_look(make_node, account):
    node = make_node(cluster="c1")
    region = account.region
    tags = {"creator": "terway", "terway.cluster": "c1", "terway.instance": node.instance.instance_id}

    def add(**fields):
        return region.add_interface(
            account.vswitch,
            type="Secondary",
            private_ip=next(region.free_ipv4(account.vswitch)),
            security_group_ids=(),
            **fields,
        )

    lost = add(tags={**tags, "terway.token": "t1"})
    others = [
        add(tags={}),
        add(tags={**tags, "terway.cluster": "c2"}),
        add(tags={**tags, "terway.instance": "i-another"}),
        add(tags={"creator": "somebody"}),
    ]
    elsewhere = region.put_interface(replace(add(tags=tags), status="InUse", instance_id="i-another"))
    node.boot()
    node.work(25)
    assert lost.network_interface_id in region.network_interfaces
    assert node.pool.problems == [
        f"{elsewhere.network_interface_id} carries this node's tags and is attached to i-another; "
        "remove its tags or detach it there"
    ]
    node.work(10)
    assert lost.network_interface_id not in region.network_interfaces
    node.work(900, pace=10)
    for eni in (*others, elsewhere):
        assert region.network_interfaces[eni.network_interface_id] == eni
    assert [call.params["NetworkInterfaceId"] for call in node.calls("DeleteNetworkInterface")] == [
        lost.network_interface_id
    ]


def test_a_second_eni_of_one_token_is_found_and_deleted(make_node, account):
    """The service promises that there is none; for how long, nobody says."""
    node = make_node()
    node.boot()
    grant = node.allocate("pod")
    (eni,) = node.tagged()
    twin = account.region.add_interface(
        account.vswitch,
        type="Secondary",
        private_ip=next(account.region.free_ipv4(account.vswitch)),
        security_group_ids=(),
        tags=eni.tags,
    )
    node.work(400, pace=5)
    assert [one.network_interface_id for one in node.tagged()] == [grant.eni.eni_id]
    assert twin.network_interface_id not in account.region.network_interfaces
    assert_agree_but_owners(node)


# -- what the cloud says is old, or somebody has meddled ---------------------------------------------------


def test_an_address_that_one_answer_lacks_stays(make_node, account):
    """The API's lists may be older than its answers."""
    node = make_node(warm_min=3, reconcile_interval=100)
    node.boot()
    node.add_pod(1)
    node.work()
    (eni,) = node.tagged()
    account.region.put_interface(replace(eni, secondary_ips=()))
    node.time.advance(100)
    node.pool.settle()
    assert len(node.addresses("cooling")) == 3  # in doubt, so nobody gets them
    account.region.put_interface(replace(node.tagged()[0], secondary_ips=eni.secondary_ips))
    node.work(100)
    assert node.in_rows() == node.in_cloud()
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
    node.work(200)
    assert node.in_rows()[first.network_interface_id] >= {free}
    assert free not in node.in_rows()[second.network_interface_id]


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


@pytest.mark.parametrize("change", ["unassign", "assign"])
def test_a_comparison_that_is_overtaken_changes_nothing(make_node, change):
    """Its answer is from before an operation that has ended meanwhile."""
    node = make_node(reconcile_interval=100, reclaim_after=5, cooldown=1)
    node.boot()
    node.burst(4)
    before = node.in_rows()
    changed = []

    def overtake(action, params):
        if action == "DescribeNetworkInterfaces" and params.get("Tag") and not changed:
            changed.append(change)
            if change == "assign":
                changed.extend(node.ask(f"late-{number}") for number in range(5))
            else:
                for number in range(1, 4):
                    node.pool.release(f"pod-{number}")
                node.time.advance(6)
            end = time.monotonic() + 20
            while node.in_rows() == before and time.monotonic() < end:
                node.pool.step()
                time.sleep(0.01)

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
