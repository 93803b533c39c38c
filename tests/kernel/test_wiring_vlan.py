"""VLAN tags on a trunk: pushed by who sends, popped from what comes, read back, taken away."""

import ctypes
import os
import socket
from dataclasses import replace
from ipaddress import ip_interface

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terway_core.errors import WiringError
from terway_core.lab.ping import ping
from terway_core.wiring import bpf, probe, tc
from terway_core.wiring.engine import Engine
from terway_core.wiring.inspect import HostState
from terway_core.wiring.netlink import NetlinkSocket
from terway_core.wiring.objects import (
    Address,
    Clsact,
    LinkUp,
    Neighbor,
    Veth,
    VlanPop,
    VlanPush,
    Wiring,
)

from .conftest import wait_for
from .frames import ETHERTYPES, listening, packet, send
from .wirings import Rig

pytestmark = pytest.mark.kernel

MAC, FAR_MAC = "00:16:3e:00:00:01", "ee:ff:ff:ff:ff:ff"
HERE = ip_interface("192.168.0.2/24"), ip_interface("2001:db8::2/64")
BEYOND = ip_interface("192.168.0.1/24"), ip_interface("2001:db8::1/64")
SHARED = (Clsact(dev="eth1"), VlanPop(dev="eth1"))
FULL = Wiring(node=SHARED, host=tuple(VlanPush(dev="eth1", src=one.ip, vid=7) for one in HERE))
TCA_BPF_ID, BPF_PROG_GET_FD_BY_ID = 11, 13


@pytest.fixture
def rig(terway_netns):
    """A host whose ``eth1`` leads to ``far`` in the namespace ``pod``."""
    rig = Rig(terway_netns(), terway_netns())
    engine = Engine(rig.pod)
    pair = Veth(name="far", peer="eth1", mac=FAR_MAC, peer_mac=MAC)
    engine.apply(Wiring(host=(pair,)), rig.host, "test")
    engine.close()
    yield rig
    rig.engine.close()


def programs(rig):
    """Ids of the programs in filters of ``eth1``."""
    with NetlinkSocket(rig.host) as sock:
        index = sock.links(["eth1"])["eth1"].index
        options = [
            found
            for parent in (tc.CLSACT_INGRESS, tc.CLSACT_EGRESS)
            for _, found in tc.filters(sock, index, parent, "bpf")
        ]
    return {int.from_bytes(found[TCA_BPF_ID], "little") for found in options}


def lives(program):
    bpf_syscall = 321 if os.uname().machine == "x86_64" else 280
    attributes = program.to_bytes(12, "little")
    fd = ctypes.CDLL(None).syscall(bpf_syscall, BPF_PROG_GET_FD_BY_ID, attributes, len(attributes))
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def link_of(dev, own, others, mac):
    """A link with addresses that knows the others; asking would be without a tag."""
    return (
        LinkUp(dev=dev),
        *(Address(dev=dev, address=address) for address in own),
        *(Neighbor(dev=dev, address=address.ip, mac=mac) for address in others),
    )


@pytest.mark.parametrize("kernel", ["this", pytest.param("another", marks=pytest.mark.uml)])
def test_two_who_tag_reach_each_other(rig, kernel):
    trunk = Clsact(dev="far"), VlanPop(dev="far")
    pushes = (VlanPush(dev="far", src=one.ip, vid=7) for one in BEYOND)
    engine = Engine(rig.pod)
    engine.apply(Wiring(host=(*link_of("far", BEYOND, HERE, MAC), *trunk, *pushes)), None, "test")
    rig.engine.apply(Wiring(host=link_of("eth1", HERE, BEYOND, FAR_MAC)), None, "test")

    def reached(timeout):
        return [rig.host.run(ping, address.ip, timeout=timeout) is not None for address in BEYOND]

    assert reached(0.3) == [False, False]
    for _ in range(2):
        rig.apply(FULL)
        assert rig.diff(FULL) == []
    assert reached(10.0) == [True, True]
    rig.remove(FULL)
    assert reached(0.3) == [False, False]
    assert HostState.read(rig.host).snapshot.vlan_filters == set()
    engine.close()


@given(
    st.dictionaries(st.ip_addresses().filter(int), st.integers(1, 4094), min_size=1, max_size=5),
    st.data(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_source_has_its_own_tag_and_others_none(rig, vids, data):
    near = data.draw(st.sampled_from(sorted(vids, key=str)))
    flipped = type(near)(int(near) ^ 1 << data.draw(st.integers(0, near.max_prefixlen - 1)))
    wiring = Wiring(
        node=(Clsact(dev="eth1"),),
        host=tuple(VlanPush(dev="eth1", src=src, vid=vid) for src, vid in vids.items()),
    )
    rig.apply(wiring)
    with listening(rig.pod, "far") as vlan_of:
        for src in (*vids, flipped):
            frame = packet(src)
            send(rig.host, "eth1", frame)
            assert vlan_of(frame[-16:]) == vids.get(src)
    assert HostState.read(rig.host).snapshot.vlan_filters == set(wiring.host)
    rig.remove(wiring)


@pytest.mark.parametrize("src", [one.ip for one in BEYOND])
def test_what_comes_in_loses_its_tag(rig, src):
    rig.apply(FULL)
    with (
        listening(rig.host, "eth1") as before,
        listening(rig.host, "eth1", ETHERTYPES[src.version]) as behind,
    ):
        for vid in (None, 7, 4094):
            frame = packet(src, vid, MAC)
            send(rig.pod, "far", frame)
            assert (before(frame[-16:]), behind(frame[-16:])) == (vid, None)


def test_filters_behind_the_pop_see_ip(rig):
    rig.apply(FULL)
    frame = packet(BEYOND[0].ip, 7, MAC)
    with NetlinkSocket(rig.host) as sock:
        index, info = sock.links(["eth1"])["eth1"].index, 30000 << 16 | socket.htons(ETHERTYPES[4])
        back = bpf.move(1, index) + bpf.move(2, 0) + bpf.call(bpf.REDIRECT) + bpf.leave()
        with bpf.loaded(back) as program:
            (reply,) = sock.send([tc.bpf_filter(index, tc.CLSACT_INGRESS, info, 1, "back", program)])
    assert reply.errno == 0
    with listening(rig.pod, "far", ETHERTYPES[4]) as vlan_of:
        send(rig.pod, "far", frame)
        assert vlan_of(frame[-16:]) is None


def test_another_vlan_takes_the_place_of_the_first(rig):
    """As when a pod with a fixed address comes back with another member ENI."""
    rig.apply(replace(FULL, host=tuple(replace(push, vid=9) for push in FULL.host)))
    assert rig.diff(FULL) == [
        f"host: vlan 7 pushed onto what {one.ip} sends by eth1: is vlan 9 instead" for one in HERE
    ]
    rig.apply(FULL)
    assert rig.diff(FULL) == []


def test_what_others_put_in_the_place_of_ours_is_a_difference(rig):
    rig.apply(FULL)
    place = f"pref 50001 protocol ip handle {int(HERE[0].ip):#x}"
    rig.by_hand("host", f"tc filter replace dev eth1 egress {place} bpf da bytecode '1,6 0 0 0,'")
    rig.by_hand("host", "tc filter del dev eth1 ingress pref 20000")
    assert rig.diff(FULL) == [
        "node: vlan popped from what comes in by eth1: missing",
        "host: vlan 7 pushed onto what 192.168.0.2 sends by eth1: missing",
    ]
    rig.apply(FULL)
    assert rig.diff(FULL) == []


def test_filters_that_nobody_declares_are_strays(rig):
    rig.apply(FULL)
    assert HostState.read(rig.host).strays([FULL]) == []
    lost, kept = FULL.host
    strays = HostState.read(rig.host).strays([Wiring(node=SHARED, host=(kept,))])
    assert [stray.description for stray in strays] == [f"vlan 7 pushed onto what {lost.src} sends by eth1"]
    for stray in HostState.read(rig.host).strays([]):
        stray.remove(rig.engine)
    assert {line.partition(": ")[0] for line in rig.diff(FULL)} == {"node", "host"}
    for place in ("ingress prio 3 protocol 802.1Q", "egress prio 50001 protocol ip"):
        rig.by_hand("host", f"tc filter add dev eth1 {place} bpf da bytecode '1,6 0 0 0,'")
    assert HostState.read(rig.host).strays([]) == []  # others' filters are not ours


def test_programs_go_with_their_filters(rig):
    rig.apply(FULL)
    first = programs(rig)
    assert len(first) == 3
    rig.apply(FULL)
    second = programs(rig)
    assert not first & second
    open_files = [os.readlink(entry) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry)]
    assert not [name for name in open_files if "bpf-prog" in name]
    rig.remove(FULL)
    wait_for(lambda: not any(map(lives, first | second)), "the kernel has freed all programs")


def test_what_there_cannot_be_is_named(rig):
    for vid in (0, 4095):
        wrong = Wiring(node=SHARED, host=(VlanPush(dev="eth1", src=HERE[0].ip, vid=vid),))
        message = rf"vlan {vid} pushed onto what 192\.168\.0\.2 sends by eth1 cannot be made: VLAN ids are"
        with pytest.raises(WiringError, match=message):
            rig.apply(wrong)
        rig.remove(wrong)  # forgives that it never was


def test_a_kernel_without_bpf_is_named(monkeypatch):
    samples = Clsact(dev=probe.LINK), VlanPop(dev=probe.LINK)
    assert probe.preflight(samples, "run another") is None
    monkeypatch.setattr(bpf, "_SYSCALL", 1 << 20)
    problem = probe.preflight(samples, "run another")
    assert problem
    assert problem.summary == "the kernel lacks vlan-pop (Function not implemented)"
