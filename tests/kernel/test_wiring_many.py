"""Many pods at once: nothing is mixed up, nothing is left, and links are deleted together."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from terway_core.wiring import netlink
from terway_core.wiring.engine import needs_pod
from terway_core.wiring.inspect import HostState, diff_pod
from terway_core.wiring.netlink import NetlinkSocket

from .conftest import require, wait_for
from .wirings import Rig, dump, wiring

pytestmark = pytest.mark.kernel

PODS, THREADS = 100, 16


def owner(number):
    return f"m:net/c{number}/eth0"


@pytest.fixture
def rig(terway_netns):
    require("ip", "tc", "nft")
    rig = Rig(terway_netns(), terway_netns())
    yield rig
    rig.engine.close()


@pytest.fixture
def deletions(monkeypatch):
    """One entry for each time that the kernel was asked to delete links."""
    asked = []
    original = netlink.delete_doomed
    monkeypatch.setattr(netlink, "delete_doomed", lambda: asked.append(1) or original())
    return asked


def test_a_hundred_pods_come_and_go(rig, terway_netns, deletions):
    before = dump(rig.host)
    pods = {number: terway_netns() for number in range(1, PODS + 1)}

    def come(number):
        rig.engine.apply(wiring(number), pods[number], owner(number))
        return diff_pod(wiring(number), pods[number])

    def go(number):
        rig.engine.remove(wiring(number), pods[number], owner(number))
        with NetlinkSocket(rig.host) as sock:
            return sock.links([f"cali{number}"])  # gone as soon as it is said to be

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(come, pods)) == [[]] * PODS
        host = HostState.read(rig.host)
        for number in pods:
            assert host.diff(wiring(number), owner=owner(number)) == []
        assert list(threads.map(go, pods)) == [{}] * PODS
    assert dump(rig.host) == before
    assert len(deletions) < PODS


def held(batcher, monkeypatch):
    """Let a batcher's work wait until the result is called; what comes meanwhile is one batch."""
    go_on, work = threading.Event(), batcher._work
    monkeypatch.setattr(batcher, "_work", lambda batch: (go_on.wait(10), work(batch)))
    return go_on.set


def test_what_one_of_those_that_meet_cannot_have_the_others_have(rig, terway_netns, monkeypatch):
    pods = {number: terway_netns() for number in range(1, 6)}
    assert not any(needs_pod(wiring(number)) for number in pods)
    rig.engine.apply(
        wiring(3), terway_netns(), "m:net/other/eth0"
    )  # and so has the name of a later one's link
    go_on = held(rig.engine._wanted, monkeypatch)
    with ThreadPoolExecutor(len(pods)) as threads:
        applied = {
            number: threads.submit(rig.engine.apply, wiring(number), pod, owner(number))
            for number, pod in pods.items()
        }
        wait_for(lambda: len(rig.engine._wanted) == len(pods) - 1, "all others stand in line")
        go_on()
        problems = {number: future.exception() for number, future in applied.items()}
    assert "a link cali3 on the host exists and is not ours" in str(problems.pop(3))
    assert set(problems.values()) == {None}
    host = HostState.read(rig.host)
    for number in problems:
        assert host.diff(wiring(number), owner=owner(number)) == diff_pod(wiring(number), pods[number]) == []
    assert host.diff(wiring(3), owner="m:net/other/eth0") == []
    assert diff_pod(wiring(3), pods[3]) != []


def test_deletions_that_meet_are_one(rig, terway_netns, deletions, monkeypatch):
    pods = {number: terway_netns() for number in range(1, 9)}
    for number, pod in pods.items():
        rig.engine.apply(wiring(number), pod, owner(number))
    with NetlinkSocket(rig.host) as sock:
        links = {name: link.index for name, link in sock.links([f"cali{n}" for n in pods]).items()}
    del links["cali8"]
    reaper = rig.engine._reaper
    go_on = held(reaper._batcher, monkeypatch)
    threads = [threading.Thread(target=rig.engine.delete_link, args=(index,)) for index in links.values()]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(reaper._batcher) == len(links) - 1, "all others stand in line")
    assert deletions == []
    go_on()
    for thread in threads:
        thread.join()
    assert deletions == [1, 1]
    with NetlinkSocket(rig.host) as sock:
        assert set(sock.links([f"cali{n}" for n in pods])) == {"cali8"}


def test_a_link_that_is_gone_already_is_forgiven_and_the_others_go(rig, terway_netns):
    for number in (1, 2):
        rig.engine.apply(wiring(number), terway_netns(), owner(number))
    with NetlinkSocket(rig.host) as sock:
        index = {name: link.index for name, link in sock.links(["cali1", "cali2"]).items()}
    rig.engine.delete_link(index["cali1"])
    rig.engine._reaper.delete([index["cali1"], index["cali2"]])
    with NetlinkSocket(rig.host) as sock:
        assert sock.links(["cali1", "cali2"]) == {}


def test_more_links_than_one_batch_holds(rig, terway_netns):
    pods = {number: terway_netns() for number in range(1, netlink.BATCH + 10)}
    for number, pod in pods.items():
        rig.engine.apply(wiring(number), pod, owner(number))
    names = [f"cali{number}" for number in pods]
    with NetlinkSocket(rig.host) as sock:
        found = sock.links(names)
        assert set(found) == set(names)
        assert len(sock.aliases()) == len(pods)
    rig.engine._reaper.delete([link.index for link in found.values()])
    assert rig.engine.owners() == set()
