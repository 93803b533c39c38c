"""What the pool does after a start: the API is away, the node was rebooted, the journal is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from terway_core.errors import CloudError, NoAddress

from .harness import DAY, assert_agree, assert_agree_but_owners, assert_whole


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


def test_what_is_there_is_looked_at_before_more_is_asked_for(make_node, account):
    """The answer that would have told of an address was lost with the process."""
    node = make_node()
    node.boot()
    node.add_pod(1)
    node.kill()
    (eni,) = node.tagged()
    extra = next(account.region.free_ipv4(account.vswitch))
    account.region.put_interface(replace(eni, secondary_ips=(extra,)))
    account.fault("slow", "DescribeNetworkInterfaces", seconds=0.2)
    node.forget_calls()
    node.boot(threaded=True)
    assert node.pool.allocate("pod-2").addresses[0].address == extra
    assert node.changes() == {}


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


def test_an_eni_with_running_pods_is_not_lost_with_the_journal(make_node, account):
    """Not even if somebody has just detached it."""
    node = make_node()
    node.boot()
    grants = [node.add_pod(1), node.add_pod(2)]
    account.region.put_interface(replace(node.tagged()[0], status="Available", instance_id=""))
    node.lose_journal()
    node.boot()
    node.work(400, pace=5)
    assert_whole(node, grants)
    assert_agree(node)


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
