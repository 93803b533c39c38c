"""Where addresses come from and go back to: which ENIs, which vSwitches, and with how few calls."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from ipaddress import ip_address

import pytest

from terway_core.errors import NoAddress

TWO_ENIS = {"instance_type": "ecs.g7.4xlarge", "max_enis": 2}


@pytest.mark.parametrize(
    ("node", "settings"),
    [
        ("two ENIs", TWO_ENIS),
        ("two ENIs, dual stack", TWO_ENIS | {"ip_stack": "dual"}),
        ("two ENIs, prefixes", TWO_ENIS | {"prefix_mode": True}),
        ("8 ENIs of 30", {"instance_type": "ecs.g7.4xlarge"}),
        ("32 ENIs of 15", {"instance_type": "ecs.ebmre7p.32xlarge"}),
    ],
)
def test_a_cold_burst_of_50_takes_few_calls(make_node, account, capsys, node, settings):
    account.behaviour.attach_delay = 0.1
    name, node = node, make_node(**settings)
    pool = node.boot(threaded=True)
    futures = [node.ask(f"pod-{number}") for number in range(50)]
    grants = [future.result() for future in futures]
    assert len({row.address for grant in grants for row in grant.addresses}) == 50 * len(pool.families)
    enis = node.states()["ready"]
    changes = node.changes()
    with capsys.disabled():
        print(f"\n  burst of 50, {name}: {changes.total()} calls that change something: {dict(changes)}")
    assert changes.total() <= enis * (math.ceil(50 / 10) + 2)


def test_what_is_too_much_goes_back_from_the_emptiest_eni(make_node, caplog):
    node = make_node("ecs.g7.xlarge", warm_max=4, reclaim_after=300, cooldown=30)
    node.boot()
    grants = {f"pod-{number}": grant for number, grant in enumerate(node.burst(20))}
    count = {}
    for grant in grants.values():
        count[grant.eni.eni_id] = count.get(grant.eni.eni_id, 0) + 1
    full, empty = sorted(count, key=lambda eni: -count[eni])
    assert (count[full], count[empty]) == (15, 5)
    node.forget_calls()
    for owner in [owner for owner, grant in grants.items() if grant.eni.eni_id == empty][:4]:
        node.pool.release(owner)
    for owner in [owner for owner, grant in grants.items() if grant.eni.eni_id == full][:3]:
        node.pool.release(owner)
    node.work(280)
    assert node.changes() == {}
    caplog.set_level(logging.INFO, logger="terway_core.eni")
    node.work(30)
    assert node.changes() == {"UnassignPrivateIpAddresses": 1}
    assert {eni: len(addresses) for eni, addresses in node.in_cloud().items()} == {full: 15, empty: 2}
    assert node.in_cloud() == node.in_rows()
    (record,) = [record for record in caplog.records if record.message == "addresses given back"]
    assert (record.eni, len(record.addresses)) == (empty, 3)
    assert record.reason == "7 addresses are free, 4 are kept warm"
    node.work(600, pace=10)
    assert node.changes() == {"UnassignPrivateIpAddresses": 1}


def test_an_eni_that_nobody_uses_goes_back_whole(make_node, caplog):
    node = make_node(reclaim_after=60)
    node.boot()
    node.burst(18)
    for number in range(18):
        node.pool.release(f"pod-{number}")
    caplog.set_level(logging.INFO, logger="terway_core.eni")
    node.work(120)
    assert node.tagged() == []
    assert node.pool.describe() == []
    assert node.changes()["UnassignPrivateIpAddresses"] == 0
    reasons = [record.reason for record in caplog.records if record.message == "eni is given back"]
    assert reasons == ["18 addresses are free, 0 are kept warm", "3 addresses are free, 0 are kept warm"] or (
        reasons == ["18 addresses are free, 0 are kept warm", "15 addresses are free, 0 are kept warm"]
    )


def test_another_vswitch_helps_out_in_the_middle_of_a_burst(make_node, account):
    """The first one has 12 addresses for pods, of 20 that are wanted."""
    near = account.add_vswitch("192.168.2.0/28")
    far = account.add_vswitch("192.168.3.0/24", zone="cn-hangzhou-i")
    more = account.add_vswitch("192.168.4.0/28")
    taken = account.region.add_interface(
        near, type="Secondary", private_ip=ip_address("192.168.2.1"), security_group_ids=()
    )
    node = make_node(vswitch_ids=(near.vswitch_id, far.vswitch_id, more.vswitch_id), warm_min=0)
    node.boot()
    grants = node.burst(8) + node.burst(12, first=8)
    where = [grant.eni.vswitch_id for grant in grants]
    assert set(where) == {near.vswitch_id, more.vswitch_id}
    assert len({row.address for grant in grants for row in grant.addresses}) == 20
    assert node.in_cloud() == node.in_rows()
    assert taken in account.region.network_interfaces.values()


def test_the_last_addresses_of_a_vswitch_are_used_too(make_node, account):
    small = account.add_vswitch("192.168.2.0/28")  # 12 are usable
    node = make_node(vswitch_ids=(small.vswitch_id,))
    node.boot()
    node.burst(7)
    late = [node.ask(f"late-{number}") for number in range(7)]
    node.work(until=lambda: all(future.done() for future in late))
    failed = [future for future in late if future.exception()]
    assert len(failed) == 2
    assert f"vSwitch {small.vswitch_id} has no free address; add a vSwitch" in str(failed[0].exception())
    node.forget_calls()
    with pytest.raises(NoAddress, match="no free address"):  # at once, and without asking again
        node.allocate("later")
    assert node.changes() == {}


def test_others_enis_count_and_are_not_touched(make_node, account):
    node = make_node("ecs.g7.large", reclaim_after=10, cooldown=0)
    region = account.region
    foreign = region.put_interface(
        replace(
            region.add_interface(
                account.vswitch,
                type="Secondary",
                private_ip=next(region.free_ipv4(account.vswitch)),
                security_group_ids=(),
                tags={"creator": "terway", "terway.cluster": "default", "terway.instance": "i-another"},
            ),
            status="InUse",
            instance_id=node.instance.instance_id,
        )
    )
    node.boot("shared", "exclusive")
    node.burst(6)
    with pytest.raises(NoAddress, match=r"takes 2 ENIs, 1 of them not terway's, with 6 IPv4 addresses each"):
        node.allocate("one too many")
    for number in range(6):
        node.pool.release(f"pod-{number}")
    node.work(3000, pace=20)
    assert node.pool.describe() == []
    assert region.network_interfaces[foreign.network_interface_id] == foreign
    touched = {call.params.get("NetworkInterfaceId") for call in node.calls() if node.changes()[call.action]}
    assert foreign.network_interface_id not in touched


def test_dual_stack_gives_both_from_one_eni(make_node):
    node = make_node("ecs.g7.4xlarge", ip_stack="dual", reclaim_after=60, cooldown=10)
    node.boot()
    grants = node.burst(25)
    for grant in grants:
        four, six = grant.addresses
        assert (four.address.version, six.address.version) == (4, 6)
        assert {four.address, six.address} <= node.in_cloud()[grant.eni.eni_id]
        assert (grant.eni.gateway(4), grant.eni.gateway(6)) == (
            node.account.vswitch.gateway,
            node.account.vswitch.ipv6_gateway,
        )
    for number in range(25):
        node.pool.release(f"pod-{number}")
    node.work(200)
    assert node.tagged() == []


def test_prefixes_serve_16_each_and_go_back_whole(make_node):
    node = make_node("ecs.g7.large", prefix_mode=True, reclaim_after=60, cooldown=10)
    node.boot()
    node.burst(40)
    assert node.changes() == {"CreateNetworkInterface": 1, "AttachNetworkInterface": 1}
    (eni,) = node.tagged()
    assert (len(eni.ipv4_prefixes), len(eni.secondary_ips)) == (3, 0)
    node.allocate("more")
    node.burst(10, first=100)
    (eni,) = node.tagged()
    assert len(eni.ipv4_prefixes) == 4
    assert node.in_cloud() == node.in_rows()
    for number in (*range(40), *range(100, 110)):
        node.pool.release(f"pod-{number}")
    node.work(120)
    (eni,) = node.tagged()
    assert len(eni.ipv4_prefixes) <= 1  # that of the pod which is left
    assert node.in_cloud() == node.in_rows()


def test_prefixes_of_an_earlier_setting_go_back_whole(make_node):
    node = make_node("ecs.g7.large", prefix_mode=True, reclaim_after=60, cooldown=10)
    node.boot()
    node.burst(33)
    node.kill()
    node.boot(prefix_mode=False, warm_max=3)
    for number in range(32):
        node.pool.release(f"pod-{number}")
    node.work(120)
    (eni,) = node.tagged()
    assert len(eni.ipv4_prefixes) <= 1
    assert node.in_cloud() == node.in_rows()


def test_an_eni_of_its_own(make_node):
    node = make_node("ecs.g7.large", cooldown=30, reclaim_after=100, warm_enis=1, wait=60)
    node.boot("exclusive")
    node.work(10)
    assert node.states() == {"ready": 1}
    node.forget_calls()
    grant = node.pool.allocate("pod-1", "exclusive")
    assert node.calls() == []
    assert {row.address for row in grant.addresses} == node.in_cloud()[grant.eni.eni_id]
    other = node.allocate("pod-2", "exclusive")
    assert other.eni.eni_id != grant.eni.eni_id
    node.pool.release("pod-1")
    node.work(10)
    node.kill()
    node.boot("exclusive")
    assert node.pool.allocate("pod-2", "exclusive").eni.eni_id == other.eni.eni_id
    began = node.time.clock()
    assert node.allocate("pod-3", "exclusive").eni.eni_id == grant.eni.eni_id
    assert node.time.clock() - began >= 20
    node.pool.release("pod-2")
    node.pool.release("pod-3")
    node.work(200)
    assert node.states() == {"ready": 1}


def test_both_uses_in_one_pool(make_node):
    node = make_node("ecs.g7.xlarge")
    node.boot("shared", "exclusive")
    shared = node.ask("pod-1")
    own = node.ask("pod-2", "exclusive")
    more = node.ask("pod-3")
    futures = [shared, own, more]
    node.work(until=lambda: all(future.done() for future in futures))
    assert shared.result().eni == more.result().eni
    assert own.result().eni.eni_id != shared.result().eni.eni_id
    assert [eni.tags["terway.use"] for eni in node.tagged()].count("exclusive") == 1
    assert node.changes() == {"CreateNetworkInterface": 2, "AttachNetworkInterface": 2}
    with pytest.raises(NoAddress, match="no ENI is free"):
        node.burst(3, "exclusive", first=10)


def test_tags_are_there_from_the_beginning(make_node, account):
    node = make_node(cluster="c1", tags={"team": "network"})
    node.boot()
    account.fault("error", "AttachNetworkInterface", code="ServiceUnavailable")
    node.ask("pod")
    node.work(until=lambda: bool(node.tagged()))
    (eni,) = node.tagged()
    assert eni.status == "Available"
    assert eni.tags == {
        "team": "network",
        "creator": "terway",
        "terway.cluster": "c1",
        "terway.instance": node.instance.instance_id,
        "terway.use": "shared",
        "terway.token": node.calls("CreateNetworkInterface")[0].params["ClientToken"],
    }
    assert node.calls("TagResources") == []


def test_enis_are_in_the_security_groups_of_the_settings_or_of_the_node(make_node, account):
    group = account.region.add_security_group(account.vpc, "pods").security_group_id
    own, named = make_node(), make_node(security_group_ids=(group,))
    for node, expected in (
        (own, account.region.security_groups_of(account.vpc.vpc_id)[0].security_group_id),
        (named, group),
    ):
        node.boot()
        node.allocate("pod")
        assert [eni.security_group_ids for eni in node.tagged()] == [(expected,)]
