"""What the driver makes of a PodENI, and whom it claims."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from threading import Event
from typing import Any

import pytest
from terway_driver_trunking import TrunkingDriver, api
from terway_driver_trunking.podenis import Member, PodEnis, find_member

from terway_core.daemon.queue import WorkQueue
from terway_core.errors import InvalidConfig, NoAddress, RetryLater
from terway_core.testing.fakes import NoCloud, make_attachment
from terway_core.testing.kube import simulated_cluster
from terway_core.types import Lease, Node, Pod, Services
from terway_core.wiring.objects import Rule, VlanPush

POD = make_attachment(1).pod
TRUNK = "eni-trunk"
NODE = Node(name="node-1", addresses=(ip_address("192.168.0.2"),))


@pytest.fixture
def podeni(bound) -> dict[str, Any]:
    return bound(POD, TRUNK, ("192.168.1.7", "2001:db8::7"))


def test_what_a_bound_podeni_has(podeni):
    addresses = (ip_address("192.168.1.7"), ip_address("2001:db8::7"))
    assert find_member(podeni, POD, "eth0", TRUNK) == Member(f"eni-{POD.name}-eth0", 100, addresses)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda podeni: podeni["metadata"].update(deletionTimestamp="now"), "is being deleted"),
        (lambda podeni: podeni["metadata"]["annotations"].clear(), "an earlier pod of that name"),
        (lambda podeni: podeni["status"].update(phase="Binding", msg="no quota"), "phase Binding: no quota"),
        (lambda podeni: podeni.pop("status"), "is in phase new"),
        (lambda podeni: podeni["status"].update(trunkENIID="eni-2"), "eni-2, this node's is eni-trunk"),
        (lambda podeni: podeni["status"]["eniInfos"].clear(), "does not tell the VLAN"),
        (lambda podeni: podeni["spec"]["allocations"][0].update(interface="net1"), "no ENI for .* eth0"),
        (lambda podeni: podeni["spec"]["allocations"][0].update(ipv4="x"), "is wrong: 'x'"),
        (lambda podeni: next(iter(podeni["status"]["eniInfos"].values())).update(vid="x"), "is wrong: .*'x'"),
    ],
)
def test_why_a_pod_cannot_have_it_yet(podeni, change, why):
    change(podeni)
    found = find_member(podeni, POD, "eth0", TRUNK)
    assert isinstance(found, str)
    assert re.search(why, found)


def test_the_podeni_of_an_earlier_pod_is_waited_out(podeni, bound, tmp_path):
    """As after a StatefulSet's pod came back, before the control plane has noticed."""
    heir = replace(POD, uid="another")
    with simulated_cluster(tmp_path) as simulated:
        simulated.define(api.PODENIS)
        simulated.write(api.PODENIS, podeni)
        podenis = PodEnis(simulated.cluster.client, "node-1")
        podenis.start()
        try:
            assert podenis.member(POD, "eth0", TRUNK, timeout=30).vid == 100
            with pytest.raises(NoAddress, match=f"still serves an earlier pod .* UID {POD.uid}"):
                podenis.member(heir, "eth0", TRUNK, timeout=0)
            annotations = {"metadata": {"annotations": {api.POD_UID: heir.uid}}}
            simulated.objects.patch(api.PODENIS, POD.name, annotations, POD.namespace)
            assert podenis.member(heir, "eth0", TRUNK, timeout=30).vid == 100
        finally:
            podenis.stop()


def test_who_waits_for_a_podeni_keeps_nobody_waiting(podeni, tmp_path):
    line, inside = WorkQueue(1), Event()
    with simulated_cluster(tmp_path) as simulated, ThreadPoolExecutor(1) as pool:
        simulated.define(api.PODENIS)
        podenis = PodEnis(simulated.cluster.client, "node-1", line.aside)
        podenis.start()

        def add() -> Member:
            with line.place(timeout=0):
                inside.set()
                return podenis.member(POD, "eth0", TRUNK, timeout=60)

        try:
            adding = pool.submit(add)
            assert inside.wait(30)
            with line.place(timeout=30):
                assert not adding.done()
                simulated.write(api.PODENIS, podeni)
            assert adding.result().vid == 100
        finally:
            podenis.stop()


def test_a_pod_without_podeni_is_told_what_to_look_for(tmp_path):
    with simulated_cluster(tmp_path) as simulated:
        podenis = PodEnis(simulated.cluster.client, "node-1")
        with pytest.raises(NoAddress, match=r"no PodENI of its name .* controller .* has not told"):
            podenis.member(POD, "eth0", TRUNK, timeout=0)


def test_only_annotated_pods_are_claimed():
    driver = TrunkingDriver()
    assert driver.terway_claim(Pod(annotations={api.POD_ENI: "true"}), NODE)
    assert not driver.terway_claim(Pod(annotations={api.POD_ENI: "false"}), NODE)
    assert not driver.terway_claim(Pod(), NODE)


def test_without_kubernetes_it_does_not_start(terway_store, terway_clock):
    services: Any = Services(
        options={},
        node=NODE,
        store=terway_store,
        cloud=NoCloud(),
        eni_pool=lambda use: None,
        clock=terway_clock,
    )
    with pytest.raises(InvalidConfig, match=r"set kube\.enabled"):
        TrunkingDriver().terway_start(services)


def test_a_del_needs_no_cluster_and_no_cloud(terway_store, terway_clock):
    """It may be that neither answers when the daemon has started."""

    def refuse(use: str) -> Any:
        raise RetryLater("no answer")

    driver = TrunkingDriver()
    services: Any = Services(
        options={},
        node=NODE,
        store=terway_store,
        cloud=NoCloud(),
        eni_pool=refuse,
        kube=object(),
        clock=terway_clock,
    )
    with pytest.raises(RetryLater):
        driver.terway_start(services)
    assert not driver.terway_teardown(make_attachment(1), None).changed


def test_pods_of_one_node_meet_in_the_vpc():
    """What a pod sends leaves by the trunk whoever it is for; only the trunk and the node lead to it."""
    attachment = make_attachment(1)
    lease = Lease(
        addresses=(ip_interface("192.168.1.7/32"),),
        data={"dev": "eth1", "table": 1003, "vid": 7, "vpc_gateways": ["192.168.1.253"]},
    )
    wiring = TrunkingDriver().terway_setup(attachment, lease, NODE)
    pod = ip_network("192.168.1.7")
    assert [obj for obj in wiring.host if isinstance(obj, Rule | VlanPush)] == [
        Rule(priority=511, src=pod, iif=attachment.host_ifname, table=1003),
        Rule(priority=512, dst=pod, iif="eth1"),
        Rule(priority=512, dst=pod, iif="lo"),
        VlanPush(dev="eth1", src=ip_address("192.168.1.7"), vid=7),
    ]
