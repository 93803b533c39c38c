"""The planner, in a world where every operation succeeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terway_core.eni.model import EniState, Holds, Limits
from terway_core.eni.planner import (
    Assign,
    NewEni,
    Retire,
    Unassign,
)

from .world import World

SMALL = Limits(instance_type="small", enis=2, ipv4=6, ipv6=6)
LARGE = Limits(instance_type="large", enis=7, ipv4=30, ipv6=30)
FEW_IPV6 = Limits(instance_type="few", enis=3, ipv4=15, ipv6=1)
HUGE = Limits(instance_type="huge", enis=2, ipv4=60, ipv6=60)

configs = st.fixed_dictionaries(
    {
        "ip_stack": st.sampled_from(["ipv4", "dual"]),
        "prefix_mode": st.booleans(),
        "warm_min": st.integers(0, 12),
        "warm_max": st.integers(0, 20),
        "warm_enis": st.integers(0, 2),
        "max_enis": st.integers(0, 3),
    }
)
limits = st.sampled_from([SMALL, LARGE, FEW_IPV6, HUGE])
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(1, 40)),
        st.tuples(st.just("own"), st.integers(1, 2)),
        st.tuples(st.just("go"), st.integers(1, 40)),
        st.tuples(st.just("wait"), st.integers(1, 60)),
        st.tuples(st.just("begin"), st.integers(0, 2**16)),
        st.tuples(st.just("settle"), st.just(0)),
        st.tuples(st.just("doubt"), st.integers(0, 6)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("hold"), st.integers(0, 3)),
        st.tuples(st.just("foreign"), st.integers(0, 1)),
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(config=configs, limits=limits, script=happenings)
def test_no_plan_breaks_the_rules_and_supply_meets_demand(
    config: dict[str, Any], limits: Limits, script: list[tuple[str, int]]
) -> None:
    """Quotas, one operation for each ENI, the switches, no reclaim while somebody waits: ``World`` checks
    them at each plan. In the end everybody has an address for whom there is one."""
    world = World(limits, **config)
    for what, number in script:
        _happen(world, what, number)
        world.plan()
    world.holds = Holds()
    world.busy.clear()
    world.incoming.clear()
    world.now += 60  # everything has rested
    world.come(0)
    world.settle()
    if world.waiting["shared"]:
        # All that is left to make an ENI of went to those who have one of their own, or is full.
        assert world.planner.can_create(world.view()) == 0 or world.capacity() <= world.used()
        assert not world.planner.has_room(world.view())
    elif world.planner.can_create(world.view()):
        assert world.free() >= min(config["warm_min"], world.capacity() - world.used())
        assert not world.waiting["exclusive"]
    # Later, what is too much goes back, and nothing flaps.
    world.waiting = {"shared": 0, "exclusive": 0}
    world.now += 3600
    world.settle()
    assert world.settle() == 0


def _happen(world: World, what: str, number: int) -> None:
    tokens = sorted(world.enis)
    match what:
        case "come":
            world.come(number)
        case "own":
            world.come(number, "exclusive")
        case "go":
            world.go(number)
        case "wait":
            world.now += number
            world.serve()
        case "begin":  # some operations end at once, others stay under way
            world.busy.clear()
            world.incoming.clear()
            for index, operation in enumerate(world.plan()):
                if number >> index & 1 or isinstance(operation, NewEni):
                    world.apply(operation)
                else:
                    world.busy.add(operation.token)
                    if isinstance(operation, Assign):
                        world.incoming[operation.token] = operation.gain
            world.serve()
        case "settle":
            world.settle()
        case "doubt" if tokens:
            token = tokens[number % len(tokens)]
            if world.enis[token].state is EniState.READY:
                world.suspects.add(token)
        case "leave" if tokens and not world.config.prefix_mode:
            rows = world.rows[tokens[number % len(tokens)]]
            for index, row in enumerate(rows[:number]):
                if not row.owner and not row.primary:
                    rows[index] = replace(row, leaving=True)
        case "hold":
            world.holds = Holds(releasing=bool(number & 1), calling=bool(number & 2))
        case "foreign":
            taken = sum(eni.state is not EniState.DELETING for eni in world.enis.values())
            world.foreign = min(number, world.limits.enis - taken)


@pytest.mark.parametrize(
    ("limits", "config", "pods", "enis"),
    [
        (LARGE, {}, 50, 2),
        (LARGE, {}, 210, 7),
        (HUGE, {}, 100, 2),
        (SMALL, {}, 12, 2),
        (LARGE, {"prefix_mode": True}, 50, 1),
        (LARGE, {"ip_stack": "dual"}, 10, 1),
        (LARGE, {"ip_stack": "dual", "max_enis": 1}, 30, 1),
        (FEW_IPV6, {"ip_stack": "dual"}, 3, 3),
    ],
)
def test_a_burst_fills_as_few_enis_as_can_be(
    limits: Limits, config: dict[str, Any], pods: int, enis: int
) -> None:
    world = World(limits, **config)
    world.come(pods)
    world.settle()
    assert world.used() == pods
    assert len(world.enis) == enis


def test_one_family_does_not_grow_beyond_the_other() -> None:
    """Addresses without a partner would serve nobody."""
    world = World(replace(LARGE, ipv4=30, ipv6=12), ip_stack="dual", max_enis=1)
    world.come(40)
    world.settle()
    (rows,) = world.rows.values()
    assert sum(row.address.version == 4 for row in rows) == 12
    assert world.waiting["shared"] == 28


def test_what_one_family_lacks_is_made_up() -> None:
    """As after a kill between the two calls."""
    world = World(LARGE, ip_stack="dual", max_enis=1)
    world.come(3)
    world.settle()
    (token,) = world.enis
    world._add(token, 5, 0)
    world.waiting["shared"] = 5
    assert [(one.ipv4, one.ipv6, one.gain) for one in world.plan() if isinstance(one, Assign)] == [(0, 5, 5)]


def test_a_prefix_goes_back_only_as_a_whole() -> None:
    world = World(LARGE, prefix_mode=True)
    world.come(40)  # the primary address, and three prefixes
    world.settle()
    world.go(39)
    world.now += 60
    world.settle()
    (rows,) = world.rows.values()
    blocks = {row.block for row in rows if row.block}
    assert world.used() == 1
    assert len(blocks) <= 1
    assert len(rows) == 1 + 16 * len(blocks)


def test_the_emptiest_eni_is_given_back_first() -> None:
    world = World(SMALL, warm_max=3)
    world.come(12)
    world.settle()
    first, second = world.enis
    for index, row in enumerate(world.rows[first][:5]):
        world.rows[first][index] = replace(row, owner="")
    for index, row in enumerate(world.rows[second][:2]):
        world.rows[second][index] = replace(row, owner="")
    world.now += 60
    (operation,) = world.plan()
    assert isinstance(operation, Unassign)
    assert operation.token == first
    assert "7 addresses are free, 3 are kept warm" in operation.reason
    world.settle()
    assert {token: len(rows) for token, rows in world.rows.items()} == {first: 2, second: 6}


def test_an_eni_that_nobody_uses_goes_whole() -> None:
    world = World(SMALL)
    world.come(6)
    world.settle()
    world.go(6)
    world.now += 20
    assert world.plan() == []  # its addresses still rest
    world.now += 20
    (operation,) = world.plan()
    assert operation == Retire(next(iter(world.enis)), "6 addresses are free, 0 are kept warm")
    world.settle()
    assert world.enis == {}


def test_a_scarce_vswitch_is_asked_for_one_at_a_time() -> None:
    world = World(SMALL)
    world.come(2)
    world.settle()
    (token,) = world.enis
    world.scarce = frozenset({"vsw-1"})
    world.waiting["shared"] = 9
    one_more = Assign(token, 1, 0, 1)
    assert world.plan() == [one_more]
    world.vswitches = ["vsw-1", "vsw-2"]
    assert world.plan() == [one_more, NewEni("shared", "vsw-2", 6)]
    world.vswitches = ["vsw-1"]
    for _ in range(4):
        assert world.plan() == [one_more]
        world.apply(one_more)
        world.serve()
    assert world.plan() == [NewEni("shared", "vsw-1", 1)]
    world.exhausted = frozenset({"vsw-1"})
    assert world.plan() == []


def test_an_eni_being_deleted_leaves_its_place_to_another() -> None:
    world = World(replace(SMALL, enis=1))
    world.come(1)
    world.settle()
    (token,) = world.enis
    world.rows[token] = []
    for state, made in ((EniState.DETACHING, 0), (EniState.DELETING, 1)):
        world.enis[token] = replace(world.enis[token], state=state)
        world.waiting["shared"] = 1
        assert sum(isinstance(one, NewEni) for one in world.plan()) == made


def test_nothing_is_given_back_while_somebody_waits_or_just_came_or_it_is_held() -> None:
    world = World(SMALL, max_enis=1)
    world.come(6)
    world.settle()
    world.go(3)
    world.now += 60
    assert [type(one) for one in world.plan()] == [Unassign]
    world.waiting["exclusive"] = 1  # for whom there is no place
    assert world.plan() == []
    world.waiting["exclusive"] = 0
    world.quiet_since = world.now - 9
    assert world.plan() == []
    world.quiet_since = world.now - 10
    world.holds = Holds(releasing=True)
    assert world.plan() == []


def test_what_is_on_its_way_out_goes_once_nobody_has_it() -> None:
    world = World(SMALL)
    world.come(3)
    world.settle()
    (token,) = world.enis
    mine, *_, idle = world.rows[token]
    world.rows[token] = [replace(mine, leaving=True), replace(idle, owner="", leaving=True)]
    (operation,) = world.plan()
    assert isinstance(operation, Unassign)
    assert operation.addresses == (world.rows[token][1],)


def test_what_is_on_its_way_in_is_not_ordered_again() -> None:
    world = World(SMALL)
    world.come(1)
    world.settle()
    (token,) = world.enis
    world.waiting["shared"] = 3
    world.busy, world.incoming = {token}, {token: 3}
    assert world.plan() == []
    world.incoming = {token: 2}  # and it takes another one then, for which no ENI need be made
    assert world.plan() == []
    world.waiting["shared"] = world.limits.ipv4
    assert world.plan() == [NewEni("shared", "vsw-1", 1)]
