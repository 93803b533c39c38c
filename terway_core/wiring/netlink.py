"""Just enough rtnetlink to change a namespace fast: encoded here, sent in one piece, acknowledged one by one.

pyroute2 spends about 5 ms of CPU to encode what one pod needs; this takes a tenth of a millisecond. Reading
back (CHECK, gc, audit) is not hot and stays with pyroute2. The layouts are those of
``include/uapi/linux/netlink.h``, ``rtnetlink.h``, ``if_link.h``, ``neighbour.h``, ``fib_rules.h`` and
``pkt_sched.h``.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from terway_core.errors import WiringError
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import Address, IPAddress, IPNetwork, Neighbor, Route, Rule, TokenBucket, Veth

#: Marks our routes, rules and host neighbours (a free number of /etc/iproute2/rt_protos) and, as link group,
#: our links.
OURS = 116
#: Links of this group are about to be deleted, all at once.
DOOMED = 117

#: Messages in one send: their acknowledgements must fit into the receive buffer (net.core.rmem_default).
BATCH = 64

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
NLM_F_DUMP = 0x300
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
RTM_NEWRULE, RTM_DELRULE = 32, 33
RTM_NEWQDISC, RTM_DELQDISC = 36, 37

IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_IFALIAS = 1, 3, 4, 18, 20
IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 27, 28, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
RTEXT_FILTER_SKIP_STATS = 8

IFA_ADDRESS, IFA_LOCAL, IFA_F_NODAD = 1, 2, 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST, RTNH_F_ONLINK, RTPROT_BOOT = 0, 253, 1, 4, 3
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_PRIORITY, FRA_TABLE, FRA_OIFNAME, FRA_PROTOCOL = 1, 2, 3, 6, 15, 17, 21
FR_ACT_TO_TBL, FR_ACT_BLACKHOLE = 1, 6
NDA_DST, NDA_LLADDR, NDA_PROTOCOL, NUD_PERMANENT = 1, 2, 12, 0x80
TCA_KIND, TCA_OPTIONS, TC_H_ROOT, TC_LINKLAYER_ETHERNET = 1, 2, 0xFFFFFFFF, 1
U32_MAX = 0xFFFFFFFF
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6


@dataclass(frozen=True, slots=True)
class Message:
    """One request: its type, extra flags, and the body after the netlink header."""

    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """How the kernel answered one request: 0 or an errno, its explanation, and the payload if it sent any."""

    errno: int = 0
    explanation: str = ""
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What RTM_GETLINK says about a link."""

    index: int
    group: int
    alias: str


@dataclass(frozen=True, slots=True)
class FoundLink:
    """A link that was found by something else than its name."""

    name: str
    index: int


#: Kinds of link that have the MAC address of the link below them.
_INHERITING_KINDS = {b"ipvlan", b"ipvtap", b"macvlan", b"macvtap", b"vlan"}


class NetlinkSocket:
    """A route socket that stays in the namespace in which it was opened. One user at a time.

    Its methods raise WiringError when the kernel cannot be asked at all.
    """

    def __init__(self, namespace: Namespace | None = None) -> None:
        with _trouble_told():
            self._socket = namespace.run(_open) if namespace else _open()
        self._sequence = 0

    def send(self, messages: Sequence[Message]) -> list[Reply]:
        """Send all ``messages`` in one piece and wait for every answer, in their order.

        A message that fails does not keep the kernel from doing those after it.
        """
        replies: list[Reply] = []
        with _trouble_told():
            for start in range(0, len(messages), BATCH):
                replies += self._exchange(messages[start : start + BATCH])
        return replies

    def _exchange(self, messages: Sequence[Message]) -> list[Reply]:
        first = self._sequence + 1
        data = bytearray()
        for message in messages:
            self._sequence += 1
            data += struct.pack(
                "=IHHII",
                16 + len(message.body),
                message.kind,
                message.flags | NLM_F_REQUEST | NLM_F_ACK,
                self._sequence,
                0,
            )
            data += message.body
        self._socket.send(data)
        replies: dict[int, Reply] = {}
        payloads: dict[int, bytes] = {}
        while len(replies) < len(messages):
            for kind, flags, sequence, body in _split(self._socket.recv(1 << 18)):
                if sequence < first:  # left over from a request that was interrupted
                    continue
                if kind == NLMSG_ERROR:
                    errno = -struct.unpack_from("=i", body)[0]
                    replies[sequence] = Reply(
                        errno, _explanation(flags, body) if errno else "", payloads.get(sequence, b"")
                    )
                else:
                    payloads[sequence] = body
        return [replies[first + i] for i in range(len(messages))]

    def links(self, names: Sequence[str]) -> dict[str, LinkInfo]:
        """The links of these names that exist."""
        replies = self.send([get_link(name) for name in names])
        return {
            name: parse_link(reply.payload)
            for name, reply in zip(names, replies, strict=True)
            if not reply.errno
        }

    def find_link(self, mac: str) -> FoundLink | None:
        """The link that has this MAC address of its own, not from a parent; None when there is none."""
        found: FoundLink | None = None
        for index, attributes in self._dump_links():
            info = _attributes(attributes.get(IFLA_LINKINFO, b""), 0)
            own = info.get(IFLA_INFO_KIND, b"").rstrip(b"\0") not in _INHERITING_KINDS
            if own and attributes.get(IFLA_ADDRESS) == _mac(mac):
                found = FoundLink(_text(attributes[IFLA_IFNAME]), index)
        return found

    def aliases(self) -> list[str]:
        """The aliases of all links that have one."""
        found = (_text(attributes.get(IFLA_IFALIAS, b"")) for _, attributes in self._dump_links())
        return [alias for alias in found if alias]

    def _dump_links(self) -> list[tuple[int, dict[int, bytes]]]:
        """Index and attributes of each link."""
        self._sequence += 1
        body = _ifinfo() + _attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        header = struct.pack(
            "=IHHII", 16 + len(body), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0
        )
        found: list[tuple[int, dict[int, bytes]]] = []
        with _trouble_told():
            self._socket.send(header + body)
            while True:
                for kind, _, sequence, payload in _split(self._socket.recv(1 << 18)):
                    if sequence != self._sequence:
                        continue
                    if kind in (NLMSG_DONE, NLMSG_ERROR):
                        return found
                    found.append((struct.unpack_from("=i", payload, 4)[0], _attributes(payload, 16)))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- links ------------------------------------------------------------------------------------------------


def get_link(name: str) -> Message:
    mask = _attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return Message(RTM_GETLINK, 0, _ifinfo() + _attr_str(IFLA_IFNAME, name) + mask)


def parse_link(payload: bytes) -> LinkInfo:
    index: int = struct.unpack_from("=i", payload, 4)[0]
    attributes = _attributes(payload, 16)
    group: int = struct.unpack("=I", attributes.get(IFLA_GROUP, b"\0\0\0\0"))[0]
    return LinkInfo(index, group, _text(attributes.get(IFLA_IFALIAS, b"")))


def new_veth(veth: Veth, peer_netns: int) -> Message:
    """``name`` here, ``peer`` in the namespace of the descriptor ``peer_netns``; both still down.

    The peer's header must not say IFF_UP: veth_open() answers ENOTCONN while the pair is half made.
    """
    mtu = _attr_u32(IFLA_MTU, veth.mtu)
    peer = _ifinfo() + _attr_str(IFLA_IFNAME, veth.peer) + _attr(IFLA_ADDRESS, _mac(veth.peer_mac)) + mtu
    peer += _attr_u32(IFLA_NET_NS_FD, peer_netns)
    info = _attr_str(IFLA_INFO_KIND, "veth") + _attr(IFLA_INFO_DATA, _attr(VETH_INFO_PEER, peer))
    body = _ifinfo() + _attr_str(IFLA_IFNAME, veth.name) + _attr(IFLA_ADDRESS, _mac(veth.mac)) + mtu
    body += _attr_u32(IFLA_GROUP, OURS) + _attr(IFLA_LINKINFO, info)
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def set_up(index: int, *, mtu: int = 0, alias: str = "") -> Message:
    body = _ifinfo(index, IFF_UP, IFF_UP)
    if mtu:
        body += _attr_u32(IFLA_MTU, mtu)
    if alias:
        body += _attr_str(IFLA_IFALIAS, alias)
    return Message(RTM_NEWLINK, 0, body)


def move(index: int, netns: int, name: str) -> Message:
    """Into the namespace of a descriptor, under a new name. The kernel takes it down on the way."""
    body = _ifinfo(index) + _attr_u32(IFLA_NET_NS_FD, netns) + _attr_str(IFLA_IFNAME, name)
    return Message(RTM_NEWLINK, 0, body)


def rename(index: int, name: str) -> Message:
    return Message(RTM_NEWLINK, 0, _ifinfo(index) + _attr_str(IFLA_IFNAME, name))


def doom(index: int) -> Message:
    return Message(RTM_NEWLINK, 0, _ifinfo(index) + _attr_u32(IFLA_GROUP, DOOMED))


def delete_doomed() -> Message:
    return Message(RTM_DELLINK, 0, _ifinfo() + _attr_u32(IFLA_GROUP, DOOMED))


# -- what hangs on links ----------------------------------------------------------------------------------


def address(obj: Address, index: int, *, delete: bool = False) -> Message:
    ip = obj.address
    flags = IFA_F_NODAD if ip.version == 6 else 0
    body = struct.pack("=BBBBI", _family(ip), ip.network.prefixlen, flags, RT_SCOPE_UNIVERSE, index)
    body += _attr(IFA_LOCAL, ip.packed) + _attr(IFA_ADDRESS, ip.packed)
    return _change(RTM_NEWADDR, body, NLM_F_REPLACE, delete)


def route(obj: Route, index: int, *, ours: bool, delete: bool = False) -> Message:
    scope = RT_SCOPE_LINK if obj.via is None and obj.dst.version == 4 else RT_SCOPE_UNIVERSE
    table = obj.table if obj.table < 256 else 0
    flags = RTNH_F_ONLINK if obj.via else 0
    protocol = OURS if ours else RTPROT_BOOT
    family = _family(obj.dst)
    body = struct.pack(
        "=BBBBBBBBI", family, obj.dst.prefixlen, 0, 0, table, protocol, scope, RTN_UNICAST, flags
    )
    if obj.dst.prefixlen:
        body += _attr(RTA_DST, obj.dst.network_address.packed)
    if obj.via:
        body += _attr(RTA_GATEWAY, obj.via.packed)
    body += _attr_u32(RTA_OIF, index) + _attr_u32(RTA_TABLE, obj.table)
    return _change(RTM_NEWROUTE, body, NLM_F_REPLACE, delete)


def neighbor(obj: Neighbor, index: int, *, ours: bool, delete: bool = False) -> Message:
    body = struct.pack("=BBHiHBB", _family(obj.address), 0, 0, index, NUD_PERMANENT, 0, 0)
    body += _attr(NDA_DST, obj.address.packed) + _attr(NDA_LLADDR, _mac(obj.mac))
    if ours:
        body += _attr(NDA_PROTOCOL, bytes([OURS]))
    return _change(RTM_NEWNEIGH, body, NLM_F_REPLACE, delete)


def rule(obj: Rule, *, ours: bool, delete: bool = False) -> Message:
    network = obj.src or obj.dst
    family = _family(network) if network else {4: socket.AF_INET, 6: socket.AF_INET6}[obj.family]
    table = obj.table if obj.table < 256 else 0
    action = FR_ACT_BLACKHOLE if obj.blackhole else FR_ACT_TO_TBL
    body = struct.pack(
        "=BBBBBBBBI",
        family,
        obj.dst.prefixlen if obj.dst else 0,
        obj.src.prefixlen if obj.src else 0,
        0,
        0 if obj.blackhole else table,
        0,
        0,
        action,
        0,
    )
    body += _attr_u32(FRA_PRIORITY, obj.priority)
    if not obj.blackhole:
        body += _attr_u32(FRA_TABLE, obj.table)
    for kind, selector in ((FRA_SRC, obj.src), (FRA_DST, obj.dst)):
        if selector and selector.prefixlen:
            body += _attr(kind, selector.network_address.packed)
    for kind, name in ((FRA_IIFNAME, obj.iif), (FRA_OIFNAME, obj.oif)):
        if name:
            body += _attr_str(kind, name)
    body += _attr(FRA_PROTOCOL, bytes([OURS if ours else RTPROT_BOOT]))
    return _change(RTM_NEWRULE, body, NLM_F_EXCL, delete)


def token_bucket(obj: TokenBucket, index: int, *, delete: bool = False) -> Message:
    # The kernel takes rate and burst in bytes (TCA_TBF_BURST) and needs no table of ticks for Ethernet.
    rate32 = min(obj.rate, U32_MAX)
    spec = struct.pack("=BBHhHI", 0, TC_LINKLAYER_ETHERNET, 0, 0, 0, rate32)
    parameters = spec + bytes(12) + struct.pack("=III", obj.limit, 0, 0)
    options = _attr(TCA_TBF_PARMS, parameters) + _attr_u32(TCA_TBF_BURST, obj.burst)
    if obj.rate > U32_MAX:
        options += _attr(TCA_TBF_RATE64, struct.pack("=Q", obj.rate))
    body = struct.pack("=BBHiIII", 0, 0, 0, index, 0x10000, TC_H_ROOT, 0) + _attr_str(TCA_KIND, "tbf")
    if not delete:
        body += _attr(TCA_OPTIONS, options)
    return _change(RTM_NEWQDISC, body, NLM_F_REPLACE, delete)


# -- encoding ---------------------------------------------------------------------------------------------


def _change(kind: int, body: bytes, mode: int, delete: bool) -> Message:
    """The message that makes an object, or the one that takes it away: the next number in each family."""
    return Message(kind + 1, 0, body) if delete else Message(kind, NLM_F_CREATE | mode, body)


@contextlib.contextmanager
def _trouble_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WiringError(f"the kernel cannot be asked over netlink: {error.strerror}") from error


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)  # acknowledgements without a copy of the request
    sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)  # and with the kernel's own words for an error
    return sock


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, index, flags, change)


def _attr(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def _attr_u32(kind: int, value: int) -> bytes:
    return struct.pack("=HHI", 8, kind, value)


def _attr_str(kind: int, value: str) -> bytes:
    return _attr(kind, value.encode() + b"\0")


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _family(ip: IPAddress | IPNetwork) -> int:
    return socket.AF_INET if ip.version == 4 else socket.AF_INET6


def _split(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
        found.append((kind, flags, sequence, data[offset + 16 : offset + length]))
        offset += (length + 3) & ~3
    return found


def _attributes(data: bytes, offset: int) -> dict[int, bytes]:
    found = {}
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _text(attribute: bytes) -> str:
    return attribute.rstrip(b"\0").decode(errors="replace")


def _explanation(flags: int, body: bytes) -> str:
    """The text after an error: NLMSGERR_ATTR_MSG behind the (capped) copy of the request's header."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    offset = 4 + 16
    if not flags & NLM_F_CAPPED:
        offset = 4 + struct.unpack_from("=I", body, 4)[0]
    return _text(_attributes(body, offset).get(1, b""))
