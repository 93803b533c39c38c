"""ENIs that carry our tags and are nobody's."""

from dataclasses import replace

from terway_driver_trunking.api import PODENIS
from terway_driver_trunking.members import Trunk, Wanted
from terway_driver_trunking.strays import Strays


def stray(world, owner="11111111-2222-3333-4444-555555555555"):
    groups = [world.region.group]
    return world.members.create(
        Wanted(
            owner=owner,
            name="default/lost",
            vswitch_id=world.region.zone_h.vswitch_id,
            security_group_ids=groups,
            outlives=False,
        )
    )


def test_what_nobody_owns_goes(world):
    world.add_networking()
    world.add_pod()
    world.settle()
    (used,) = world.members_of()
    free, member = stray(world), stray(world, "another")
    trunk = Trunk(
        eni_id=world.trunks["node-1"],
        instance_id=world.region.node.instance_id,
        zone_id="cn-hangzhou-h",
    )
    world.members.attach(member, trunk)
    foreign = world.region.create(Tag=[{"Key": "creator", "Value": "terway-controller"}])

    strays = Strays(world.client, world.members)
    assert strays.round() == []  # it may be in the making
    assert sorted(strays.round()) == sorted([free.eni_id, member.eni_id])
    assert strays.round() == [member.eni_id]  # which was detached first
    assert strays.round() == []
    assert [eni.network_interface_id for eni in world.members_of("db-0")] == [used.network_interface_id]
    assert world.region.status(foreign) == "Available"


def test_what_is_about_to_be_recorded_stays(world):
    """Made, and the control plane killed before it wrote down the id."""
    world.add_networking()
    world.region.behaviour.attach_delay = 3600
    world.add_pod()
    world.look()
    podeni = world.podeni()
    podeni["spec"]["allocations"][0]["eni"].pop("id")
    world.admin.replace(PODENIS, podeni, "default")
    strays = Strays(world.client, world.members)
    assert [strays.round(), strays.round()] == [[], []]


def test_a_second_one_of_the_same_podeni_goes(world):
    world.add_networking()
    world.add_pod()
    owner = world.settle()["metadata"]["uid"]
    second = stray(world, owner)
    strays = Strays(world.client, world.members)
    assert [strays.round(), strays.round()] == [[], [second.eni_id]]
    assert len(world.members_of()) == 1


def test_one_that_cannot_be_taken_keeps_no_other(world):
    first, second = stray(world), stray(world, "another")
    strays = Strays(world.client, world.members)
    strays.round()
    refused = world.region.region.network_interfaces[first.eni_id]
    world.region.region.put_interface(replace(refused, status="Attaching"))
    assert second.eni_id in strays.round()
    assert [eni.network_interface_id for eni in world.members_of()] == [first.eni_id]
