"""PodNetworkings: Ready, or why not."""

import pytest
from terway_driver_trunking.api import PODNETWORKINGS
from terway_driver_trunking.networking import RECHECK, RETRY
from terway_driver_trunking.vswitches import BELIEVED, VSwitches

from terway_core.errors import CloudError, NoAddress
from terway_core.lab.api import InjectedFault


def test_ready(world):
    assert world.add_networking()["status"] == {
        "status": "Ready",
        "vSwitches": [
            {"id": world.region.zone_h.vswitch_id, "zone": "cn-hangzhou-h"},
            {"id": world.region.zone_i.vswitch_id, "zone": "cn-hangzhou-i"},
        ],
        "updateAt": "2023-11-14T22:13:20Z",
    }
    world.clock.advance(60)
    version = world.admin.get(PODNETWORKINGS, "net")["metadata"]["resourceVersion"]
    assert world.networkings.look("net") == RECHECK
    assert world.admin.get(PODNETWORKINGS, "net")["metadata"]["resourceVersion"] == version


def test_a_vswitch_that_there_is_not(world):
    status = world.add_networking(vSwitchOptions=[world.region.zone_h.vswitch_id, "vsw-none"])["status"]
    assert status["status"] == "Fail"
    assert "vsw-none" in status["message"]
    assert "vSwitches" not in status
    assert world.networkings.look("net") == RETRY

    world.admin.patch(PODNETWORKINGS, "net", {"spec": {"vSwitchOptions": [world.region.zone_h.vswitch_id]}})
    assert world.networkings.look("net") == RECHECK
    status = world.admin.get(PODNETWORKINGS, "net")["status"]
    assert status["status"] == "Ready"
    assert "message" not in status
    assert world.told.reasons == ["SyncPodNetworkingFailed", "SyncPodNetworkingSucceed"]


def test_one_that_makes_no_sense(world):
    """The webhook refuses it, but it may have been away."""
    status = world.add_networking(allocationType={"type": "Fixed", "releaseStrategy": "TTL"})["status"]
    assert (status["status"], "releaseAfter" in status["message"]) == ("Fail", True)


def test_a_vswitch_that_goes(world):
    world.add_networking(vSwitchOptions=[world.region.zone_i.vswitch_id])
    del world.region.region.vswitches[world.region.zone_i.vswitch_id]
    world.restart()
    assert world.networkings.look("net") == RETRY
    assert world.admin.get(PODNETWORKINGS, "net")["status"]["status"] == "Fail"


def test_a_cloud_that_does_not_answer(world):
    """Is no reason to call one unready that was Ready."""
    world.add_networking()
    world.region.behaviour.faults.append(
        InjectedFault(kind="error", action="DescribeVSwitches", code="Forbidden.RAM")
    )
    world.restart()
    with pytest.raises(CloudError):
        world.networkings.look("net")
    assert world.admin.get(PODNETWORKINGS, "net")["status"]["status"] == "Ready"

    status = world.add_networking("second")["status"]
    assert status["status"] == "Fail"
    assert "Forbidden.RAM" in status["message"]


def test_one_that_is_gone(world):
    assert world.networkings.look("nobody") is None


def test_the_cloud_is_asked_once_a_minute(world):
    now = [0.0]
    vswitches = VSwitches(world.cloud, lambda: now[0])
    ids = [world.region.zone_h.vswitch_id]
    for _ in range(3):
        assert [one.vswitch_id for one in vswitches.get(ids)] == ids
    assert world.region.codes("DescribeVSwitches") == [""]
    now[0] = BELIEVED
    vswitches.get(ids)
    assert world.region.codes("DescribeVSwitches") == ["", ""]


def test_policies(world):
    near, far = (
        world.region.zone_h,
        world.region.region.add_vswitch(world.region.vpc, "10.0.128.0/17", "cn-hangzhou-h"),
    )
    ids = [near.vswitch_id, far.vswitch_id]
    vswitches = world.vswitches
    assert vswitches.choose(ids, "cn-hangzhou-h", "ordered").vswitch_id == near.vswitch_id
    assert vswitches.choose(ids, "cn-hangzhou-h", "most").vswitch_id == far.vswitch_id
    assert {vswitches.choose(ids, "cn-hangzhou-h", "random").vswitch_id for _ in range(100)} == set(ids)
    vswitches.exhausted(far.vswitch_id)
    for policy in ("ordered", "most", "random"):
        assert vswitches.choose(ids, "cn-hangzhou-h", policy).vswitch_id == near.vswitch_id
    vswitches.exhausted(near.vswitch_id)
    with pytest.raises(NoAddress, match="no address is free"):
        vswitches.choose(ids, "cn-hangzhou-h")
