"""kill -9 at each call of a PodENI's life, before or after it is carried out: no leak, and nothing twice."""

import pytest

from tests.unit.trunking.world import Killed, World


def killed(world: World, number: int, *, after: bool) -> bool:
    """Die at that call, and come back; False when there are fewer calls."""
    world.kill_at(number, after=after)
    try:
        world.settle()
    except Killed:
        return True
    finally:
        world.restart()
    return False


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_killed_at_each_step(world, after, fixed):
    world.add_fixed() if fixed else world.add_networking()
    world.region.behaviour.attach_delay = 0.001  # it goes on after the answer
    number = 0
    while True:
        number += 1
        attached = world.attachments()
        world.add_pod()
        come = killed(world, number, after=after)
        assert world.settle()["status"]["phase"] == "Bind"
        (eni,) = world.members_of()
        assert eni.status == "InUse"
        assert world.attachments() == attached + 1

        world.remove_pod()
        gone = killed(world, number, after=after)
        podeni = world.settle()
        if fixed:
            assert podeni["status"]["phase"] == "Unbind"
            (kept,) = world.members_of()
            assert (kept.network_interface_id, kept.status) == (eni.network_interface_id, "Available")
            world.clock.advance(301)
            gone = killed(world, number, after=after) or gone
            podeni = world.settle()
        assert podeni is None
        assert world.members_of() == []
        if not come and not gone:
            break
    assert number > 8


@pytest.mark.parametrize("after", [False, True])
def test_killed_while_a_fixed_address_moves(world, after):
    """Within its zone: the second node is in the zone of the first here."""
    world.add_fixed()
    near = world.add_near_node()
    world.add_pod()
    world.settle()
    (eni,) = world.members_of()
    nodes = ["node-1", near]
    number = 0
    going = True
    while going:
        number += 1
        world.remove_pod()
        node = nodes[number % 2]
        world.add_pod(node=node)
        going = killed(world, number, after=after)
        podeni = world.settle()
        assert (podeni["status"]["phase"], podeni["status"]["trunkENIID"]) == ("Bind", world.trunks[node])
        (moved,) = world.members_of()
        assert moved.network_interface_id == eni.network_interface_id
        assert moved.trunk_id == world.trunks[node]
    assert number > 8
