"""The process is killed at every point where a call or a write begins or ends, and started again."""

from __future__ import annotations

from itertools import count

import pytest

from terway_core.testing.fakes import make_attachment

from .harness import Account, Fuse, Killed, Node, addresses_of

#: What a pool does in its life, in few steps: each line adds calls or writes that a kill can come between.
SETTINGS = {"ip_stack": "dual", "cooldown": 1, "reclaim_after": 10, "warm_max": 0}


def script(node: Node, held: dict[int, object]) -> None:
    """Pods come and go; ``held`` are those that got an answer and have not been told to go."""
    node.boot("shared", "exclusive", fuse=node.fuse, **SETTINGS)

    def add(number, use="shared"):
        held[number] = node.add_pod(number, use)

    def delete(number):
        held.pop(number)
        node.delete_pod(number)

    add(1)  # create, attach
    add(2)  # assign
    add(3, "exclusive")
    delete(2)
    node.work(16)  # unassign
    delete(3)
    node.work(16)  # retire, detach, delete
    add(4)


def check(node: Node, held: dict[int, object]) -> None:
    """Nobody lost what he was given, nothing is anybody else's, and nothing was left behind."""
    owned: dict[object, str] = {}
    for number, grant in held.items():
        assert node.pool.allocate(str(make_attachment(number).key)).addresses == grant.addresses
        for row in grant.addresses:
            assert owned.setdefault(row.address, row.owner) == row.owner
    there = {address for eni in node.enis() for address in addresses_of(eni)}
    assert set(owned) <= there
    assert node.in_cloud() == node.in_rows()
    assert node.audit() == []
    assert node.pool.problems == []


@pytest.fixture(scope="module")
def big_account():
    with Account("192.168.0.0/18").served() as account:
        yield account


@pytest.mark.usefixtures("at_once")
def test_at_every_call_and_every_write(big_account, tmp_path, capsys):
    points: list[str] = []
    for number in count(1):
        node = Node(big_account, tmp_path / str(number) / "terway.db")
        node.fuse = Fuse(blow_at=number)
        held: dict[int, object] = {}
        try:
            script(node, held)
        except Killed:
            points.append(node.fuse.passed[-1])
        else:
            break
        finally:
            node.kill()
        try:
            node.boot("shared", "exclusive")
            node.recover()
            node.work(40)  # enough for a second look
            check(node, held)
            for pod in range(5):  # also one whose answer went down with the process
                node.delete_pod(pod)
            node.work(60)
            assert node.tagged() == []
            assert node.pool.describe() == []
        except BaseException as error:
            error.add_note(f"killed at point {number}: {', '.join(points[-3:])}")
            raise
        finally:
            node.close()
    with capsys.disabled():
        print(f"\n  killed at {len(points)} points")
    # Every call of the pool and every kind of write were among them, before and after.
    for action in (
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "AssignPrivateIpAddresses",
        "AssignIpv6Addresses",
        "UnassignPrivateIpAddresses",
        "UnassignIpv6Addresses",
        "DetachNetworkInterface",
        "DeleteNetworkInterface",
        "DescribeNetworkInterfaces",
    ):
        assert {action, f"{action} answered"} <= set(points)
    assert {"write", "written"} <= set(points)
