"""Queues and filters, the tc part of rtnetlink, as messages, and our filters read back.

The layouts are those of ``include/uapi/linux/pkt_sched.h``, ``pkt_cls.h`` and ``include/uapi/linux/tc_act/``.

A :class:`Redirect`, a :class:`VlanPush` and a :class:`VlanPop` are flower filters. Priority and handle follow
from the address that they look for, so one message makes one, and one takes it away without reading first.
Filters of these priorities are ours.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from terway_core.wiring.netlink import NLM_F_REPLACE, Message, NetlinkSocket, change
from terway_core.wiring.nla import attr, attr_str, attr_text, attr_u32, parse_attrs
from terway_core.wiring.objects import IPAddress, IPNetwork, Redirect, TokenBucket, VlanPush

RTM_NEWQDISC, RTM_GETQDISC, RTM_NEWTFILTER, RTM_GETTFILTER = 36, 38, 44, 46
TCA_KIND, TCA_OPTIONS = 1, 2
TC_H_ROOT, TC_H_CLSACT, CLSACT_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
CLSACT_INGRESS, CLSACT_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
TC_LINKLAYER_ETHERNET = 1
U32_MAX = 0xFFFFFFFF
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6

TCA_FLOWER_ACT, TCA_FLOWER_KEY_ETH_TYPE = 3, 8
TCA_ACT_KIND, TCA_ACT_OPTIONS = 1, 2
TC_ACT_RECLASSIFY, TC_ACT_PIPE, TC_ACT_STOLEN = 1, 3, 4
TCA_TUNNEL_KEY_PARMS, TCA_TUNNEL_KEY_ACT_RELEASE = 2, 2
TCA_SKBEDIT_PARMS, TCA_SKBEDIT_PTYPE, PACKET_HOST = 2, 7, 0
TCA_MIRRED_PARMS, TCA_INGRESS_REDIR = 2, 3
TCA_VLAN_PARMS, TCA_VLAN_PUSH_VLAN_ID, TCA_VLAN_ACT_POP, TCA_VLAN_ACT_PUSH = 2, 3, 1, 2
ETH_P_8021Q = 0x8100


@dataclass(frozen=True, slots=True)
class _Family:
    """How a destination of one IP version is written.

    :param priority: that of a filter for a single address; the shorter the prefix, the later it is asked.
    :param push: priority of a filter that pushes a VLAN tag.
    :param source: flower's attribute for the source, ``key`` for the destination; the next one is the mask.
    """

    ethertype: int
    priority: int
    push: int
    bits: int
    source: int
    key: int


_FAMILIES: Final = {
    4: _Family(ethertype=0x0800, priority=40100, push=50001, bits=32, source=10, key=12),
    6: _Family(ethertype=0x86DD, priority=40200, push=50002, bits=128, source=14, key=16),
}
#: Before whatever else looks at what comes in: others see it without its tag.
_POP: Final = 20000


def token_bucket(obj: TokenBucket, index: int, *, delete: bool = False) -> Message:
    # The kernel takes rate and burst in bytes (TCA_TBF_BURST) and needs no table of ticks for Ethernet.
    rate32 = min(obj.rate, U32_MAX)
    spec = struct.pack("=BBHhHI", 0, TC_LINKLAYER_ETHERNET, 0, 0, 0, rate32)
    parameters = spec + bytes(12) + struct.pack("=III", obj.limit, 0, 0)
    options = attr(TCA_TBF_PARMS, parameters) + attr_u32(TCA_TBF_BURST, obj.burst)
    if obj.rate > U32_MAX:
        options += attr(TCA_TBF_RATE64, struct.pack("=Q", obj.rate))
    body = _tcmsg(index, 0x10000, TC_H_ROOT) + attr_str(TCA_KIND, "tbf")
    if not delete:
        body += attr(TCA_OPTIONS, options)
    return change(RTM_NEWQDISC, body, NLM_F_REPLACE, delete)


def clsact(index: int) -> Message:
    """Without flags: one that is there already, with the filters on it, stays."""
    body = _tcmsg(index, CLSACT_HANDLE, TC_H_CLSACT) + attr_str(TCA_KIND, "clsact")
    return change(RTM_NEWQDISC, body, 0, False)


def redirect(obj: Redirect, index: int, to: int, *, delete: bool = False) -> Message:
    """``index`` is that of ``dev``, ``to`` that of the other; taking away needs only the first."""
    family = _FAMILIES[obj.dst.version]
    priority = family.priority + family.bits - obj.dst.prefixlen
    info = priority << 16 | socket.htons(family.ethertype)
    # Its last address, as the priority is that of one prefix length.
    body = _tcmsg(index, _handle(obj.dst.broadcast_address), CLSACT_EGRESS, info) + attr_str(
        TCA_KIND, "flower"
    )
    if not delete:
        # Before Linux 5.16 the packet would keep the pod's route on its way in, unless it is released; and
        # it still bears the MAC address of the VPC's gateway, so the host would take it for somebody else's.
        actions = (
            _action(
                "tunnel_key",
                attr(TCA_TUNNEL_KEY_PARMS, _general(TC_ACT_PIPE, "i", TCA_TUNNEL_KEY_ACT_RELEASE)),
            ),
            _action(
                "skbedit",
                attr(TCA_SKBEDIT_PARMS, _general(TC_ACT_PIPE))
                + attr(TCA_SKBEDIT_PTYPE, struct.pack("=H", PACKET_HOST)),
            ),
            _action("mirred", attr(TCA_MIRRED_PARMS, _general(TC_ACT_STOLEN, "iI", TCA_INGRESS_REDIR, to))),
        )
        options = attr(TCA_FLOWER_KEY_ETH_TYPE, struct.pack("!H", family.ethertype))
        options += attr(family.key, obj.dst.network_address.packed)
        options += attr(family.key + 1, obj.dst.netmask.packed)
        options += attr(
            TCA_FLOWER_ACT, b"".join(attr(order, action) for order, action in enumerate(actions, 1))
        )
        body += attr(TCA_OPTIONS, options)
    return change(RTM_NEWTFILTER, body, NLM_F_REPLACE, delete)


def redirects(sock: NetlinkSocket, index: int) -> Iterator[tuple[IPNetwork, int]]:
    """Our filters on a link that has a clsact: destination, and index of the link that receives."""
    for priority, options in _flowers(sock, index, CLSACT_EGRESS):
        for family in _FAMILIES.values():
            if family.priority <= priority <= family.priority + family.bits:
                everything = bytes(family.bits // 8)  # of which the kernel says nothing
                mask = options.get(family.key + 1, everything)
                size = int.from_bytes(mask).bit_count()
                parameters = _action_of(options, "mirred").get(TCA_MIRRED_PARMS, bytes(28))
                to: int = struct.unpack_from("=I", parameters, 24)[0]
                yield ip_network((options.get(family.key, everything), size)), to


def vlan_push(obj: VlanPush, index: int, *, delete: bool = False) -> Message:
    """``index`` is that of ``dev``."""
    family = _FAMILIES[obj.src.version]
    action = _action(
        "vlan",
        attr(TCA_VLAN_PARMS, _general(TC_ACT_PIPE, "i", TCA_VLAN_ACT_PUSH))
        + attr(TCA_VLAN_PUSH_VLAN_ID, struct.pack("=H", obj.vid)),
    )
    options = attr(TCA_FLOWER_KEY_ETH_TYPE, struct.pack("!H", family.ethertype))
    options += attr(family.source, obj.src.packed) + attr(family.source + 1, b"\xff" * (family.bits // 8))
    options += attr(TCA_FLOWER_ACT, attr(1, action))
    info = family.push << 16 | socket.htons(family.ethertype)
    body = _tcmsg(index, _handle(obj.src), CLSACT_EGRESS, info) + attr_str(TCA_KIND, "flower")
    return change(
        RTM_NEWTFILTER, body + (b"" if delete else attr(TCA_OPTIONS, options)), NLM_F_REPLACE, delete
    )


def vlan_pushes(sock: NetlinkSocket, index: int) -> Iterator[tuple[IPAddress, int]]:
    """Our filters on a link that has a clsact: source, and VLAN id."""
    for priority, options in _flowers(sock, index, CLSACT_EGRESS):
        for family in _FAMILIES.values():
            if priority == family.push and family.source in options:
                vid = _action_of(options, "vlan").get(TCA_VLAN_PUSH_VLAN_ID, bytes(2))
                yield ip_address(options[family.source]), struct.unpack("=H", vid)[0]


def vlan_pop(index: int, *, delete: bool = False) -> Message:
    # Classified anew, for filters behind it that look for IP.
    action = _action("vlan", attr(TCA_VLAN_PARMS, _general(TC_ACT_RECLASSIFY, "i", TCA_VLAN_ACT_POP)))
    body = _tcmsg(index, 1, CLSACT_INGRESS, _POP << 16 | socket.htons(ETH_P_8021Q))
    body += attr_str(TCA_KIND, "flower")
    if not delete:
        body += attr(TCA_OPTIONS, attr(TCA_FLOWER_ACT, attr(1, action)))
    return change(RTM_NEWTFILTER, body, NLM_F_REPLACE, delete)


def has_vlan_pop(sock: NetlinkSocket, index: int) -> bool:
    """Whether a link that has a clsact has our filter."""
    return any(priority == _POP for priority, _ in _flowers(sock, index, CLSACT_INGRESS))


def _flowers(sock: NetlinkSocket, index: int, parent: int) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Priority and options of the flower filters of a link that has a clsact."""
    for message in sock.dump(RTM_GETTFILTER, _tcmsg(index, 0, parent)):
        handle, _, info = struct.unpack_from("=III", message, 8)
        attributes = parse_attrs(message, 20)
        if handle and attr_text(attributes[TCA_KIND]) == "flower":
            yield info >> 16, parse_attrs(attributes[TCA_OPTIONS])


def _action_of(options: dict[int, bytes], kind: str) -> dict[int, bytes]:
    """The options of a filter's action of a kind; empty when it has none."""
    for action in parse_attrs(options.get(TCA_FLOWER_ACT, b"")).values():
        attributes = parse_attrs(action)
        if attr_text(attributes[TCA_ACT_KIND]) == kind:
            return parse_attrs(attributes[TCA_ACT_OPTIONS])
    return {}


def _handle(address: IPAddress) -> int:
    """Tells filters of one priority apart, and is not 0: in IPv6 by the address's hash."""
    if address.version == 4:
        return int(address)
    return int.from_bytes(hashlib.sha1(address.packed).digest()[:4])


def _tcmsg(index: int, handle: int, parent: int, info: int = 0) -> bytes:
    return struct.pack("=BBHiIII", 0, 0, 0, index, handle, parent, info)


def _action(kind: str, options: bytes) -> bytes:
    return attr_str(TCA_ACT_KIND, kind) + attr(TCA_ACT_OPTIONS, options)


def _general(control: int, more: str = "", *values: int) -> bytes:
    """``tc_gen``, with which the parameters of every action begin, and what follows it."""
    return struct.pack(f"=IIiii{more}", 0, 0, control, 0, 0, *values)
