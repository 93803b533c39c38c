"""Reboots, namespaces that vanish, a journal that is damaged, a disk that is full, a clock that jumps."""

import contextlib
import os
import random
import sqlite3

import pytest

from terway_core.wiring.netns import Namespace, delete_netns

pytestmark = pytest.mark.kernel


@pytest.fixture
def fresh(make_node):
    return make_node()


# -- namespaces -------------------------------------------------------------------------------------------


def test_reboot(fresh):
    fresh.start()
    before = fresh.kernel()
    pods = [fresh.pod() for _ in range(3)]
    for pod in pods:
        fresh.add(pod)
    fresh.add(pods[0], ifname="eth1", network="second")
    fresh.reboot()
    assert fresh.audit() != []
    fresh.start()
    assert fresh.audit() == []
    assert fresh.journal() == []
    assert set(fresh.kernel()) == set(before)
    for pod in pods:
        fresh.delete(pod, env={"CNI_NETNS": ""})
    new = fresh.pod(pods[0].name)
    assert all(fresh.reaches(address) for address in fresh.add(new))
    assert fresh.audit() == []


@pytest.mark.parametrize("netns", ["path of nothing", "empty"])
def test_namespace_is_gone_before_the_delete(node, netns):
    pod = node.pod()
    node.add(pod)
    delete_netns(pod.netns.name)
    node.delete(pod, env={} if netns == "path of nothing" else {"CNI_NETNS": ""})
    assert node.journal() == []
    assert node.audit() == []


def test_another_namespace_took_the_path_before_the_delete(node):
    pod = node.pod()
    node.add(pod, ifname="eth1", network="second")
    node.renew(pod)
    pod.ip("link", "add", "eth1", "type", "veth", "peer", "far")
    pod.ip("link", "set", "eth1", "up")
    pod.ip("rule", "add", "oif", "eth1", "lookup", "99", "priority", "512")
    before = pod.ip("rule"), {link["ifname"] for link in pod.ip("link")}
    assert "another network namespace is at" in str(node.audit())
    assert "another network namespace" in node.cni("CHECK", pod, ifname="eth1", network="second").text
    node.delete(pod, ifname="eth1", network="second")
    assert (pod.ip("rule"), {link["ifname"] for link in pod.ip("link")}) == before
    assert node.journal() == []


def test_pods_live_as_long_as_their_links(node):
    """A daemon that was started without the runtime's mounts sees no namespace at any path."""
    pod = node.pod()
    addresses = node.add(pod)
    with Namespace.open(pod.netns):
        node.remove(pod)
        node.ask("POST", "/v1/gc")
        assert [row["container_id"] for row in node.journal()] == [pod.container_id]
        assert all(node.reaches(address) for address in addresses)
    node.wait_until_clean()
    assert node.journal() == []


def test_a_path_that_cannot_be_opened_is_not_a_pod_that_is_gone(node, tmp_path):
    pod = node.pod()
    (tmp_path / "loop").symlink_to("loop")
    link = tmp_path / "netns"
    link.symlink_to(pod.netns)
    addresses = node.add(pod, env={"CNI_NETNS": str(link)})
    link.unlink()
    link.symlink_to("loop")
    report = node.ask("POST", "/v1/gc")
    assert "cannot be opened" in str(report["problems"])
    assert all(node.reaches(address) for address in addresses)
    node.delete(pod)  # which takes the pair away from the host's side
    assert node.audit() == []


# -- the journal ------------------------------------------------------------------------------------------


def overwrite(path, offset, content):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def break_a_row(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE attachments SET attachment='{}' WHERE ifname='eth0'")


DAMAGES = {
    "random bytes": lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)),
    "random page": lambda path: overwrite(path, 4096, random.Random(2).randbytes(4096)),
    "random header": lambda path: overwrite(path, 0, random.Random(3).randbytes(100)),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "truncated within a page": lambda path: os.truncate(path, 5000),
    "empty": lambda path: os.truncate(path, 0),
    "removed": lambda path: path.unlink(),
    "a row that says nothing": break_a_row,
}


def damage_when_stopped(node, how):
    node.stop()
    assert not node.config.database.with_name("terway.db-wal").exists()
    DAMAGES[how](node.config.database)


def lose_the_log(node):
    node.kill()
    os.truncate(node.config.database.with_name("terway.db-wal"), 0)


@pytest.mark.parametrize("how", [*DAMAGES, "write-ahead log lost"])
def test_damaged_journal(fresh, how):
    fresh.start()
    before = fresh.kernel()
    running, other = fresh.pod(), fresh.pod()
    addresses = [*fresh.add(running), *fresh.add(running, ifname="eth1", network="second")]
    addresses += fresh.add(other)
    wired = fresh.kernel()

    if how == "write-ahead log lost":
        lose_the_log(fresh)
    else:
        damage_when_stopped(fresh, how)
    fresh.start()
    fresh.ask("POST", "/v1/gc")
    assert set(fresh.kernel()) == set(wired)
    assert all(fresh.reaches(address) for address in addresses)
    assert fresh.audit() == []
    assert {row["container_id"] for row in fresh.journal()} == {running.container_id, other.container_id}
    kept = list(fresh.config.database.parent.glob("terway.db.damaged-*"))
    assert bool(kept) == (how not in ("empty", "removed", "write-ahead log lost"))

    new = fresh.pod()
    assert not {*fresh.add(new)} & {*addresses}
    fresh.delete(new)
    assert set(fresh.kernel()) == set(wired)  # and with it what the pods share

    fresh.delete(running, ifname="eth1", network="second")
    fresh.delete(running, env={"CNI_NETNS": ""})
    fresh.remove(other)
    # What was taken in lives as long as its link, so nothing is wrong until the kernel has taken that away.
    fresh.wait_for(lambda: fresh.ask("POST", "/v1/gc") and not fresh.journal(), "the other pod is gone")
    assert fresh.audit() == []
    assert set(fresh.kernel()) == set(before)


def test_journal_of_a_newer_version_is_left_alone(fresh):
    fresh.start()
    fresh.stop()
    with contextlib.closing(sqlite3.connect(fresh.config.database, isolation_level=None)) as db:
        db.execute("PRAGMA user_version=99")
    assert "was written by a newer terway" in fresh.terway("daemon", status=1)
    assert list(fresh.config.database.parent.glob("*damaged*")) == []


# -- the disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def disk(fresh, mounted):
    """The node's state is on a small disk; write to the result and it is full."""
    state = fresh.folder / "state"
    state.mkdir()
    mounted(state, "-t", "tmpfs", "-o", "size=1m", "terway-test")
    return state / "ballast"


@contextlib.contextmanager
def full(ballast):
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    ballast.unlink()


def test_full_disk(fresh, disk):
    fresh.start()
    deleted, pod = fresh.pod(), fresh.pod()
    addresses = fresh.add(deleted)
    before = fresh.kernel()
    with full(disk):
        answer = fresh.cni("ADD", pod)
        assert answer.code == 102
        assert "the journal" in answer.text
        assert "full" in answer.text
        assert set(fresh.kernel()) == set(before)
        assert fresh.cni("DEL", pod).status == 0  # nobody knows it
        answer = fresh.cni("DEL", deleted)
        assert answer.code == 102
        assert all(fresh.reaches(address) for address in addresses)
        assert [row["state"] for row in fresh.journal()] == ["ready"]
        assert fresh.cni("CHECK", deleted).status == 0
    fresh.delete(deleted)
    fresh.add(pod)
    assert fresh.audit() == []


@pytest.mark.parametrize("step", ["allocate", "setup", "apply"])
def test_disk_is_full_in_the_middle_of_an_add(fresh, disk, step):
    fresh.start_with_faults()
    before = fresh.kernel()
    pod = fresh.pod()
    with contextlib.ExitStack() as stack:
        with fresh.held(step):
            add = fresh.call("ADD", pod)
            fresh.wait_for((fresh.faults / f"held-{step}").exists, f"the ADD is in {step}")
            stack.enter_context(full(disk))
        answer = fresh.answer(add)
        assert answer.code == 102
        assert "undoing it failed and will be retried" in answer.text
        assert set(fresh.kernel()) == set(before)  # the journal alone remembers the address
        assert fresh.cni("DEL", pod).code == 102
        assert "full" in str(fresh.ask("POST", "/v1/gc")["problems"])
    fresh.wait_until_clean()
    assert set(fresh.kernel()) == set(before)
    assert fresh.journal() == []
    fresh.add(pod)


def test_daemon_is_killed_while_the_disk_is_full(fresh, disk):
    fresh.start()
    kept, deleted = fresh.pod(), fresh.pod()
    addresses = fresh.add(kept)
    fresh.add(deleted)
    with full(disk):
        fresh.kill()
        answer = fresh.cni("DEL", deleted)
        assert answer.code == 5
        assert "cannot be left for it in" in answer.text
    fresh.start()
    assert all(fresh.reaches(address) for address in addresses)
    fresh.delete(deleted)
    assert fresh.audit() == []


def test_state_that_cannot_be_written(fresh, mounted):
    fresh.start()
    pod = fresh.pod()
    addresses = fresh.add(pod)
    fresh.stop()
    state = fresh.folder / "state"
    mounted(state, "--bind", str(state))
    mounted(state, "-o", "remount,ro,bind")
    said = fresh.terway("daemon", status=1)
    assert f"the journal {fresh.config.database} cannot be opened" in said
    assert all(fresh.reaches(address) for address in addresses)
    mounted(state, "-o", "remount,rw,bind")
    fresh.start()
    fresh.delete(pod)
    assert fresh.audit() == []


# -- the clock --------------------------------------------------------------------------------------------


def test_address_rests_whatever_the_clock_does(make_node):
    node = make_node(vpc={"pod_cidrs": ["172.20.1.0/30"], "rest_seconds": 1000})
    clock = node.faults / "clock"
    node.start_with_faults()
    pods = [node.pod() for _ in range(2)]
    for pod in pods:
        node.add(pod)
    node.delete(pods[0])

    def can_add():
        answer = node.cni("ADD", pods[0])
        if answer.code == 11:
            assert "1 rest" in answer.text
        else:
            node.delete(pods[0])
        return answer.status == 0

    assert not can_add()
    with node.away():
        pass
    assert not can_add()  # a restart is no rest
    clock.write_text("1001")
    assert can_add()
    clock.write_text("-100000")
    for _ in range(2):
        assert not can_add()  # or the jump would end the rest of all of them
    clock.write_text("-98999")
    assert can_add()  # ... and not the time until the clock is where it was
    assert node.audit() == []
