"""Addresses that outlive their pods."""

import pytest
from terway_driver_trunking.api import PODENIS


def address(podeni):
    return podeni["spec"]["allocations"][0]["ipv4"]


def test_a_fixed_address_waits_and_follows_its_pod(world):
    world.add_fixed()
    near = world.add_near_node()
    world.add_pod()
    first = world.settle()
    assert first["status"]["podLastSeen"] == "2023-11-14T22:13:20Z"

    world.clock.advance(100)
    world.remove_pod()
    kept = world.settle()
    assert kept["status"] == {"phase": "Unbind", "podLastSeen": "2023-11-14T22:15:00Z"}
    (eni,) = world.members_of()
    assert (eni.status, eni.delete_on_release) == ("Available", False)

    world.clock.advance(299)
    pod = world.add_pod(node=near)
    second = world.settle()
    assert address(second) == address(first)
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert second["metadata"]["labels"]["k8s.aliyun.com/node"] == near
    assert second["metadata"]["annotations"]["k8s.aliyun.com/pod-uid"] == pod["metadata"]["uid"]
    assert (second["status"]["phase"], second["status"]["trunkENIID"]) == ("Bind", world.trunks[near])


def test_a_pod_that_is_not_scheduled_yet_keeps_its_address(world):
    world.add_fixed()
    world.add_pod()
    world.settle()
    world.remove_pod()
    world.settle()
    world.add_pod(node="")
    world.clock.advance(3600)
    assert world.settle()["status"]["phase"] == "Unbind"


def test_ttl(world):
    world.add_fixed(releaseAfter="1h0m0s")
    world.add_pod()
    world.settle()
    world.remove_pod()
    world.settle()
    assert world.look() == 600  # not the whole hour: clocks may leap
    world.clock.advance(3590)
    assert world.look() == pytest.approx(10)
    assert len(world.members_of()) == 1
    world.clock.advance(11)
    assert world.settle() is None
    assert world.members_of() == []


def test_never(world):
    world.add_fixed(releaseStrategy="Never", releaseAfter="")
    world.add_pod()
    world.settle()
    world.remove_pod()
    world.settle()
    world.clock.advance(10 * 365 * 24 * 3600)
    assert world.settle()["status"]["phase"] == "Unbind"
    world.admin.delete(PODENIS, "db-0", "default")
    assert world.settle() is None
    assert world.members_of() == []


def test_what_cannot_be_understood_is_kept(world):
    world.add_fixed()
    world.add_pod()
    podeni = world.settle()
    world.remove_pod()
    allocation = podeni["spec"]["allocations"][0]
    allocation["allocationType"]["releaseAfter"] = "soon"
    world.admin.patch(PODENIS, "db-0", {"spec": {"allocations": [allocation]}}, "default")
    world.settle()
    world.clock.advance(10 * 365 * 24 * 3600)
    assert world.settle()["status"]["phase"] == "Unbind"


def test_only_pods_of_statefulsets(world):
    world.add_fixed()
    world.add_pod(owner="ReplicaSet")
    assert world.settle()["spec"]["allocations"][0]["allocationType"] == {"type": "Elastic"}
    world.remove_pod()
    assert world.settle() is None


def test_another_zone(world):
    """Which the webhook's node affinity prevents; a pod that names its node goes past it."""
    world.add_fixed()
    world.add_pod()
    first = world.settle()
    world.remove_pod()
    world.add_pod(node="node-2")
    assert f"with {address(first)} is in zone cn-hangzhou-h" in world.refused()
    world.remove_pod()
    world.add_pod(node="node-1")
    assert address(world.settle()) == address(first)


def test_a_lost_node(world):
    """Its instance is released, and takes with it what is deleted on release."""
    world.add_fixed()
    near = world.add_near_node()
    world.add_pod()
    first = world.settle()
    world.release_instance("node-1")
    world.remove_pod()
    world.add_pod(node=near)
    assert address(world.settle()) == address(first)
