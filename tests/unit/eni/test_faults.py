"""What the pool does when the cloud refuses, is silent, or sticks."""

from __future__ import annotations

import time

import pytest

from terway_core.errors import NoAddress

from .harness import DAY, assert_agree, assert_agree_but_owners

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


def test_addresses_whose_answer_was_lost_are_soon_known(make_node, account):
    node = make_node(reconcile_interval=DAY, warm_min=4)
    node.boot()
    node.add_pod(1)
    node.work()
    account.fault("lost", "AssignPrivateIpAddresses", times=20)
    node.add_pod(2)
    node.work(200)
    assert len(node.addresses("free")) >= 4
    assert_agree(node)


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


def test_a_new_eni_that_is_not_in_the_lists_yet_is_waited_for(make_node, account):
    node = make_node()
    node.boot()
    account.fault("error", "AttachNetworkInterface", code="ServiceUnavailable")
    future = node.ask("pod")
    node.work(until=lambda: bool(node.states()["attaching"]))
    (eni,) = node.tagged()
    account.region.drop_interface(eni)
    node.work(20)
    account.region.put_interface(eni)
    account.clear()
    node.work(until=future.done)
    assert future.result().eni.eni_id == eni.network_interface_id


@pytest.mark.usefixtures("at_once")
def test_an_account_that_may_have_no_more_enis_says_so_at_once(make_node, account):
    node = make_node()
    node.boot()
    node.work()
    account.behaviour.eni_quota = 0
    for calls in (1, 0):  # what is known is not asked again
        node.forget_calls()
        future = node.ask("pod")
        while not node.pool.waiting():
            time.sleep(0.001)
        while node.pool.settle():
            pass
        with pytest.raises(NoAddress, match=r"CreateNetworkInterface: MaxEniCountExceeded: .*higher quota"):
            future.result(timeout=5)
        assert node.changes().total() == calls


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
