"""Queues and filters, the tc part of rtnetlink, as messages, and our filters read back.

The layouts are those of ``include/uapi/linux/pkt_sched.h``, ``pkt_cls.h`` and ``include/uapi/linux/tc_act/``.

A :class:`Redirect` is a flower filter. Priority and handle follow from the address that it looks for, so one
message makes one, and one takes it away without reading first. Filters of these priorities are ours.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from terway_core.wiring.netlink import NLM_F_REPLACE, Message, NetlinkSocket, change
from terway_core.wiring.nla import attr, attr_str, attr_text, attr_u32, parse_attrs
from terway_core.wiring.objects import IPAddress, IPNetwork, Redirect, TokenBucket

RTM_NEWQDISC, RTM_GETQDISC, RTM_NEWTFILTER, RTM_GETTFILTER = 36, 38, 44, 46
TCA_KIND, TCA_OPTIONS = 1, 2
TC_H_ROOT, TC_H_CLSACT, CLSACT_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
CLSACT_INGRESS, CLSACT_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
TC_LINKLAYER_ETHERNET = 1
U32_MAX = 0xFFFFFFFF
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6

TCA_FLOWER_ACT, TCA_FLOWER_KEY_ETH_TYPE = 3, 8
TCA_ACT_KIND, TCA_ACT_OPTIONS = 1, 2
TC_ACT_PIPE, TC_ACT_STOLEN = 3, 4
TCA_TUNNEL_KEY_PARMS, TCA_TUNNEL_KEY_ACT_RELEASE = 2, 2
TCA_SKBEDIT_PARMS, TCA_SKBEDIT_PTYPE, PACKET_HOST = 2, 7, 0
TCA_MIRRED_PARMS, TCA_INGRESS_REDIR = 2, 3
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT = 6, 7, 8, 1


@dataclass(frozen=True, slots=True)
class _Family:
    """How a destination of one IP version is written.

    :param priority: that of a filter for a single address; the shorter the prefix, the later it is asked.
    :param key: flower's attribute for the destination; the next one is the mask.
    """

    ethertype: int
    priority: int
    bits: int
    key: int


_FAMILIES: Final = {
    4: _Family(ethertype=0x0800, priority=40100, bits=32, key=12),
    6: _Family(ethertype=0x86DD, priority=40200, bits=128, key=16),
}


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
    body = _tcmsg(index, handle(obj.dst.broadcast_address), CLSACT_EGRESS, info) + attr_str(
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
    for priority, options in filters(sock, index, CLSACT_EGRESS, "flower"):
        for family in _FAMILIES.values():
            if family.priority <= priority <= family.priority + family.bits:
                everything = bytes(family.bits // 8)  # of which the kernel says nothing
                mask = options.get(family.key + 1, everything)
                size = int.from_bytes(mask).bit_count()
                parameters = _action_of(options, "mirred").get(TCA_MIRRED_PARMS, bytes(28))
                to: int = struct.unpack_from("=I", parameters, 24)[0]
                yield ip_network((options.get(family.key, everything), size)), to


def bpf_filter(
    index: int, parent: int, info: int, handle: int, name: str, program: int = -1, *, delete: bool = False
) -> Message:
    """A program, by its descriptor, whose verdict is what becomes of the packet.

    :param info: priority and, in network order, ethertype.
    """
    body = _tcmsg(index, handle, parent, info) + attr_str(TCA_KIND, "bpf")
    if not delete:
        options = attr_u32(TCA_BPF_FD, program) + attr_str(TCA_BPF_NAME, name)
        options += attr_u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT)
        body += attr(TCA_OPTIONS, options)
    return change(RTM_NEWTFILTER, body, NLM_F_REPLACE, delete)


def filters(
    sock: NetlinkSocket, index: int, parent: int, kind: str
) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Priority and options of the filters of a kind on a link that has a clsact."""
    for message in sock.dump(RTM_GETTFILTER, _tcmsg(index, 0, parent)):
        handle, _, info = struct.unpack_from("=III", message, 8)
        attributes = parse_attrs(message, 20)
        if handle and attr_text(attributes[TCA_KIND]) == kind:
            yield info >> 16, parse_attrs(attributes[TCA_OPTIONS])


def _action_of(options: dict[int, bytes], kind: str) -> dict[int, bytes]:
    """The options of a filter's action of a kind; empty when it has none."""
    for action in parse_attrs(options.get(TCA_FLOWER_ACT, b"")).values():
        attributes = parse_attrs(action)
        if attr_text(attributes[TCA_ACT_KIND]) == kind:
            return parse_attrs(attributes[TCA_ACT_OPTIONS])
    return {}


def handle(address: IPAddress) -> int:
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
