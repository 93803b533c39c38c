"""The life of a PodENI, step by step, against the simulated API server and cloud."""

import itertools

import pytest
from terway_driver_trunking.api import PODENIS, TRUNK_ON
from terway_driver_trunking.keeper import POLL_FIRST, POLL_LAST, STUCK_AFTER, TOLD_AFTER

from terway_core.kube import NODES, PODS
from terway_core.lab.api import InjectedFault

POD_UID = "k8s.aliyun.com/pod-uid"


def test_a_pod_gets_an_eni(world):
    networking = world.add_networking()
    pod = world.add_pod()
    podeni = world.settle()

    (eni,) = world.members_of()
    assert podeni["metadata"]["finalizers"] == ["network.alibabacloud.com/pod-eni"]
    assert podeni["metadata"]["labels"] == {"k8s.aliyun.com/node": "node-1"}
    assert podeni["metadata"]["annotations"] == {POD_UID: pod["metadata"]["uid"]}
    assert podeni["spec"] == {
        "zone": "cn-hangzhou-h",
        "allocations": [
            {
                "allocationType": {"type": "Elastic"},
                "eni": {
                    "id": eni.network_interface_id,
                    "mac": eni.mac,
                    "vpcID": world.region.vpc.vpc_id,
                    "zone": "cn-hangzhou-h",
                    "vSwitchID": world.region.zone_h.vswitch_id,
                    "securityGroupIDs": networking["spec"]["securityGroupIDs"],
                },
                "ipv4": str(eni.private_ip),
                "ipv4CIDR": "10.0.0.0/24",
                "interface": "eth0",
                "defaultRoute": True,
            }
        ],
    }
    assert podeni["status"] == {
        "phase": "Bind",
        "instanceID": world.region.node.instance_id,
        "trunkENIID": world.trunks["node-1"],
        "eniInfos": {
            eni.network_interface_id: {
                "id": eni.network_interface_id,
                "type": "Member",
                "vid": eni.device_index,
                "status": "Bind",
            }
        },
    }
    assert (eni.status, eni.trunk_id) == ("InUse", world.trunks["node-1"])
    assert eni.device_index > 0
    uid = podeni["metadata"]["uid"]
    ours = {"creator": "terway-controller", "ack.aliyun.com": "c1", "terway.pod-eni": uid, "team": "net"}
    assert eni.tags == ours
    assert world.told.reasons == ["SyncPodNetworkingSucceed", "AllocENISucceed"]


def test_dual_stack(world):
    world.ipv6 = True
    world.restart()
    world.add_networking()
    world.add_pod()
    (allocation,) = world.settle()["spec"]["allocations"]
    (eni,) = world.members_of()
    assert allocation["ipv6"] == str(eni.ipv6[0])
    assert allocation["ipv6CIDR"] == "2408:4000:0:1::/64"


@pytest.mark.parametrize("delay", [0.0, 0.03])
def test_the_eni_goes_after_the_pod(world, delay):
    world.region.behaviour.attach_delay = delay
    world.region.behaviour.detach_delay = delay
    world.region.behaviour.delete_delay = delay
    world.add_networking()
    world.add_pod()
    assert world.settle()["status"]["phase"] == "Bind"
    world.remove_pod()
    assert world.settle() is None
    assert world.members_of() == []


def test_a_pod_that_has_ended_needs_no_eni(world):
    world.add_networking()
    world.add_pod()
    world.settle()
    world.admin.patch(PODS, "db-0", {"status": {"phase": "Succeeded"}}, "default", subresource="status")
    assert world.settle() is None
    assert world.members_of() == []


def test_a_pod_keeps_its_eni_when_its_annotations_go(world):
    world.add_networking()
    world.add_pod()
    world.settle()
    world.admin.patch(PODS, "db-0", {"metadata": {"annotations": None}}, "default")
    assert world.settle()["status"]["phase"] == "Bind"
    world.remove_pod()
    assert world.settle() is None


def test_pods_of_others_and_pods_without_a_node_get_nothing(world):
    world.add_networking()
    world.api.add_pod("plain")
    world.add_pod("waits", node="")
    assert world.settle("plain") is None
    assert world.settle("waits") is None
    assert world.members_of() == []


def test_a_new_pod_of_the_name_gets_a_new_eni(world):
    world.add_networking()
    world.add_pod()
    first = world.settle()
    world.remove_pod()
    world.add_pod(node="node-2")
    second = world.settle()
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["status"]["trunkENIID"] == world.trunks["node-2"]
    assert len(world.members_of()) == 1


def test_a_podeni_deleted_by_hand_stays_while_its_pod_runs(world):
    world.add_networking()
    world.add_pod()
    world.settle()
    world.admin.delete(PODENIS, "db-0", "default")
    assert world.settle()["status"]["phase"] == "Bind"
    assert len(world.members_of()) == 1
    world.remove_pod()
    assert world.settle() is None
    assert world.members_of() == []


def test_the_eni_of_another_is_never_touched(world):
    """Somebody who may write PodENIs names an ENI that is not ours."""
    foreign = world.region.attached()
    body = {
        "metadata": {"name": "db-0", "finalizers": ["network.alibabacloud.com/pod-eni"]},
        "spec": {"allocations": [{"eni": {"id": foreign["NetworkInterfaceId"]}, "ipv4": "10.0.0.9"}]},
    }
    world.admin.create(PODENIS, body, "default")
    assert world.settle() is None
    assert world.region.status(foreign) == "InUse"

    world.add_networking()
    body["metadata"]["annotations"] = {POD_UID: world.add_pod()["metadata"]["uid"]}
    world.admin.create(PODENIS, body, "default")
    podeni = world.settle()
    assert podeni["spec"]["allocations"][0]["eni"]["id"] != foreign["NetworkInterfaceId"]
    assert "ENILost" in world.told.reasons
    assert world.region.status(foreign) == "InUse"


def test_an_eni_that_somebody_deleted_is_replaced(world):
    world.add_networking()
    world.region.behaviour.attach_delay = 3600
    world.add_pod()
    assert world.look() == POLL_FIRST
    (eni,) = world.members_of()
    world.region.region.drop_interface(eni)
    world.region.behaviour.attach_delay = 0
    assert world.settle()["status"]["phase"] == "Bind"
    (second,) = world.members_of()
    assert second.network_interface_id != eni.network_interface_id


def test_an_eni_that_does_not_come(world):
    """It is looked at less and less often, and somebody is told."""
    world.add_networking()
    world.region.behaviour.attach_delay = 3600
    world.add_pod()
    assert world.look() == POLL_FIRST
    world.clock.advance(10)
    assert world.look() == 5
    world.clock.advance(TOLD_AFTER - 10)
    assert world.look() == POLL_LAST
    world.clock.advance(1)
    assert "has been Attaching for 61 s" in world.refused()
    assert "61 s" in world.podeni()["status"]["msg"]
    assert world.attachments() == 1


@pytest.mark.parametrize("action", ["DetachNetworkInterface", "DeleteNetworkInterface"])
def test_an_eni_that_sticks_is_asked_again(world, action):
    world.add_networking()
    world.add_pod()
    world.settle()
    world.region.behaviour.faults.append(InjectedFault(kind="stuck", action=action, times=1))
    world.remove_pod()
    for _ in range(10):
        world.look()
    assert world.region.codes(action) == [""]
    world.clock.advance(STUCK_AFTER + 1)
    assert world.settle() is None
    assert world.region.codes(action) == ["", ""]
    assert world.members_of() == []


def test_why_a_pod_waits(world):
    world.add_pod()
    assert "no PodNetworking net" in world.refused()
    world.add_networking(securityGroupIDs=["sg-none"])
    message = world.refused()
    assert "InvalidSecurityGroupId.NotFound" in message
    assert world.podeni()["status"]["msg"] == message
    assert "AllocENIFailed" in world.told.reasons
    assert world.members_of() == []
    world.remove_pod()
    assert world.settle() is None


def test_a_networking_that_is_not_ready_is_not_used(world):
    networking = world.add_networking(vSwitchOptions=["vsw-none"])
    assert networking["status"]["status"] == "Fail"
    world.add_pod()
    assert "not Ready" in world.refused()
    assert world.podeni() is None


def test_a_zone_without_a_vswitch(world):
    world.add_networking(vSwitchOptions=[world.region.zone_h.vswitch_id])
    world.add_pod(node="node-2")
    assert "is in zone cn-hangzhou-i" in world.refused()


def test_the_next_vswitch_when_one_is_exhausted(world):
    """Of which the cloud tells only when an ENI is made: what it said of free addresses was old."""
    region = world.region.region
    small = region.add_vswitch(world.region.vpc, "10.0.9.0/29", "cn-hangzhou-h")
    policy = {"vSwitchSelectionPolicy": "ordered"}
    world.add_networking(
        vSwitchOptions=[small.vswitch_id, world.region.zone_h.vswitch_id], vSwitchSelectOptions=policy
    )
    for address in list(region.free_ipv4(small)):
        region.add_interface(small, type="Secondary", private_ip=address, security_group_ids=())
    world.add_pod()
    assert "IpNotEnough" in world.refused()
    (allocation,) = world.settle()["spec"]["allocations"]
    assert allocation["eni"]["vSwitchID"] == world.region.zone_h.vswitch_id
    assert len(world.members_of()) == 1


def test_free_addresses_decide(world):
    region = world.region.region
    small = region.add_vswitch(world.region.vpc, "10.0.9.0/28", "cn-hangzhou-h")
    world.add_networking(vSwitchOptions=[small.vswitch_id, world.region.zone_h.vswitch_id])
    world.add_pod()
    (allocation,) = world.settle()["spec"]["allocations"]
    assert allocation["eni"]["vSwitchID"] == world.region.zone_h.vswitch_id


def test_a_node_without_a_trunk(world):
    world.add_networking()
    world.api.add_node("bare")
    world.add_pod(node="bare")
    assert TRUNK_ON in world.refused()
    world.admin.patch(NODES, "bare", {"metadata": {"annotations": {TRUNK_ON: world.trunks["node-1"]}}})
    assert world.settle()["status"]["instanceID"] == world.region.node.instance_id


def test_a_podeni_of_the_first_releases_is_served_to_its_end(world):
    """It is read as it was written then: spec.allocation and status.status."""
    tags = {"creator": "terway-controller", "ack.aliyun.com": "c1"}
    created = world.region.create(Tag=[{"Key": key, "Value": value} for key, value in tags.items()])
    eni = created["NetworkInterfaceId"]
    body = {
        "metadata": {"name": "db-0", "finalizers": ["network.alibabacloud.com/pod-eni"]},
        "spec": {
            "allocation": {
                "eni": {"id": eni, "mac": created["MacAddress"], "zone": "cn-hangzhou-h"},
                "ipType": {"releaseAfter": "0s", "type": "Elastic"},
                "ipv4": created["PrivateIpAddress"],
            }
        },
    }
    world.admin.create(PODENIS, body, "default")
    world.admin.patch(PODENIS, "db-0", {"status": {"status": "Bind"}}, "default", subresource="status")
    world.api.add_pod("db-0")
    assert world.settle()["status"] == {"status": "Bind"}
    world.remove_pod()
    assert world.settle() is None
    assert world.members_of() == []


def test_a_change_by_another_is_not_overwritten(world):
    """Two that believe to lead: the slower one sees that the object is not what it read."""
    world.add_networking()
    world.add_pod()
    world.settle()
    world.remove_pod()
    get = world.client.get
    numbers = itertools.count()

    def changed_meanwhile(resource, name, namespace="", **options):
        found = get(resource, name, namespace, **options)
        if resource is PODENIS:
            labels = {"touched": str(next(numbers))}
            world.admin.patch(PODENIS, name, {"metadata": {"labels": labels}}, namespace)
        return found

    world.client.get = changed_meanwhile
    assert "has been modified" in world.refused()
    assert world.podeni()["status"]["phase"] == "Bind"
    del world.client.get
    assert world.settle() is None
