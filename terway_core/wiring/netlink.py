"""Just enough rtnetlink to change a namespace fast: encoded here, sent in one piece, acknowledged at its end.

pyroute2 spends about 5 ms of CPU to encode what one pod needs, which takes a tenth of a millisecond here, and
a gc round that read the kernel with it left 17 MiB behind. Tests compare the two. The layouts are those of
``include/uapi/linux/netlink.h``, ``rtnetlink.h``, ``if_link.h``, ``neighbour.h`` and ``fib_rules.h``. Queues
and filters are in :mod:`terway_core.wiring.tc`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

from terway_core.errors import WiringError
from terway_core.wiring.netns import Namespace, route_socket
from terway_core.wiring.nla import attr, attr_str, attr_text, attr_u32, parse_attrs
from terway_core.wiring.objects import Address, IPAddress, IPNetwork, Ipvlan, Neighbor, Route, Rule, Veth

#: Marks our routes, rules and host neighbours (a free number of /etc/iproute2/rt_protos) and, as link group,
#: our links.
OURS = 116
#: Links of this group are about to be deleted, all at once.
DOOMED = 117

#: Errors that say that there is nothing to take away.
ALREADY_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENXIO}

#: Messages in one send: their acknowledgements must fit into the receive buffer (net.core.rmem_default).
BATCH = 64
#: Times that a list is read anew because it changed meanwhile.
_ATTEMPTS = 5

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
NLM_F_DUMP, NLM_F_DUMP_INTR = 0x300, 0x10
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11

SIOCGIFHWADDR, SIOCGIFINDEX = 0x8927, 0x8933  # include/uapi/linux/sockios.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

IFF_UP, IFF_NOARP = 0x1, 0x80
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_LINKINFO, IFLA_IFALIAS = 1, 3, 4, 5, 18, 20
IFLA_AF_SPEC, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 26, 8, 1
IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 27, 28, 29, 31, 32
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER, IFLA_IPVLAN_MODE, IPVLAN_MODE_L2 = 1, 2, 1, 1, 0
RTEXT_FILTER_SKIP_STATS = 8

IFA_ADDRESS, IFA_LOCAL, IFA_F_NODAD = 1, 2, 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST, RTNH_F_ONLINK, RTPROT_BOOT = 0, 253, 1, 4, 3
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_PRIORITY, FRA_TABLE, FRA_OIFNAME, FRA_PROTOCOL = 1, 2, 3, 6, 15, 17, 21
FR_ACT_TO_TBL, FR_ACT_BLACKHOLE = 1, 6
NDA_DST, NDA_LLADDR, NDA_PROTOCOL, NUD_PERMANENT = 1, 2, 12, 0x80


class Message(NamedTuple):
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


_DONE = Reply()
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr


#: Kinds of link that have the MAC address of the link below them.
_INHERITING_KINDS = {b"ipvlan", b"ipvtap", b"macvlan", b"macvtap", b"vlan"}


class LinkInfo:
    """What RTM_GETLINK says about a link; read only if somebody asks."""

    def __init__(self, message: bytes) -> None:
        self.message = message

    @property
    def index(self) -> int:
        index: int = struct.unpack_from("=i", self.message, 4)[0]
        return index

    @property
    def peer(self) -> int | None:
        """Of a veth pair the index of the other end, in its namespace; the kernel may keep it to itself."""
        link = self._attributes.get(IFLA_LINK)
        return int.from_bytes(link, sys.byteorder) if link else None

    @property
    def group(self) -> int:
        group: int = struct.unpack("=I", self._attributes.get(IFLA_GROUP, b"\0\0\0\0"))[0]
        return group

    @property
    def alias(self) -> str:
        return attr_text(self._attributes.get(IFLA_IFALIAS, b""))

    @property
    def name(self) -> str:
        return attr_text(self._attributes[IFLA_IFNAME])

    def has_mac(self, mac: str) -> bool:
        """Whether it has this MAC address of its own, not from a parent."""
        attributes = self._attributes
        info = parse_attrs(attributes.get(IFLA_LINKINFO, b""))
        own = info.get(IFLA_INFO_KIND, b"").rstrip(b"\0") not in _INHERITING_KINDS
        return own and attributes.get(IFLA_ADDRESS) == _mac(mac)

    @cached_property
    def _attributes(self) -> dict[int, bytes]:
        return parse_attrs(self.message, 16)


@dataclass(frozen=True, slots=True)
class FoundLink:
    """A link that was found by something else than its name."""

    name: str
    index: int


class NetlinkSocket:
    """A route socket that stays in the namespace in which it was opened. One user at a time.

    Its methods raise WiringError when the kernel cannot be asked at all.
    """

    def __init__(self, namespace: Namespace | None = None) -> None:
        with trouble_told():
            self._socket = _prepared(namespace.run(route_socket) if namespace else route_socket())
        self._sequence = 0
        self._found: dict[str, FoundLink] = {}

    @classmethod
    def of(cls, namespace: Namespace) -> Self:
        """On the namespace's own socket, for which no thread has to enter it again."""
        self = cls.__new__(cls)
        with trouble_told():
            self._socket = _prepared(namespace.route_socket)
        self._sequence = 0
        self._found = {}
        return self

    def send(self, messages: Sequence[Message]) -> list[Reply]:
        """Send all ``messages`` in one piece and wait for every answer, in their order.

        A message that fails does not keep the kernel from doing those after it.
        """
        replies: list[Reply] = []
        if not messages:
            return replies
        with trouble_told():
            for start in range(0, len(messages), BATCH):
                replies += self._exchange(messages[start : start + BATCH])
        return replies

    def _exchange(self, messages: Sequence[Message]) -> list[Reply]:
        first, last = self._sequence + 1, self._sequence + len(messages)
        self._sequence = last
        data = bytearray()
        for sequence, (kind, flags, body) in enumerate(messages, first):
            # They are carried out in order, and an error is told unasked (netlink_rcv_skb() in Linux).
            flags |= NLM_F_REQUEST | NLM_F_ACK if sequence == last else NLM_F_REQUEST
            data += _HEADER.pack(16 + len(body), kind, flags, sequence, 0)
            data += body
        self._socket.send(data)
        replies = [_DONE] * len(messages)
        answered = False
        while not answered:
            for kind, flags, sequence, body in split(self._socket.recv(1 << 18)):
                if sequence < first:  # left over from a request that was interrupted
                    continue
                if kind != NLMSG_ERROR:
                    replies[sequence - first] = Reply(payload=body)
                    continue
                answered = sequence == last
                if errno := -struct.unpack_from("=i", body)[0]:
                    replies[sequence - first] = Reply(errno, _explanation(flags, body))
        return replies

    def links(self, names: Sequence[str]) -> dict[str, LinkInfo]:
        """The links of these names that exist."""
        return links_of(names, self.send([get_link(name) for name in names]))

    def find_link(self, mac: str) -> FoundLink | None:
        """The link that has this MAC address of its own, not from a parent; None when there is none."""
        if found := self.known_link(mac):
            return found
        self._found.pop(mac, None)
        for body in self._dump_links():
            link = LinkInfo(body)
            if link.has_mac(mac):
                found = self._found[mac] = FoundLink(link.name, link.index)
        return self._found.get(mac)

    def known_link(self, mac: str) -> FoundLink | None:
        """One that :meth:`find_link` has found and that is where it was.

        Any thread may ask, and need not wait for what others ask of the kernel: for this it takes no lock.
        """
        if found := self._found.get(mac):
            request = struct.pack("16s24x", found.name.encode())  # struct ifreq
            with contextlib.suppress(OSError):  # no link has that name
                index = fcntl.ioctl(self._socket, SIOCGIFINDEX, request)[16:20]
                address = fcntl.ioctl(self._socket, SIOCGIFHWADDR, request)[18:24]
                # The same link, so of the same kind.
                if (int.from_bytes(index, sys.byteorder), address) == (found.index, _mac(mac)):
                    return found
        return None

    def aliases(self) -> list[str]:
        """The aliases of all links that have one."""
        found = (attr_text(attributes.get(IFLA_IFALIAS, b"")) for _, _, attributes in self.dump_links())
        return [alias for alias in found if alias]

    def dump_links(self) -> list[tuple[int, int, dict[int, bytes]]]:
        """Index, flags and attributes of each link."""
        return [(*struct.unpack_from("=iI", link, 4), parse_attrs(link, 16)) for link in self._dump_links()]

    def _dump_links(self) -> list[bytes]:
        return self.dump(RTM_GETLINK, _ifinfo() + attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS))

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all messages that answer a request for a list.

        :raises WiringError: the list changed each time while it was read, or there is none.
        """
        for _ in range(_ATTEMPTS):
            found, interrupted = self._dump(kind, body)
            if not interrupted:
                return found
        raise WiringError(f"the kernel's tables changed during each of {_ATTEMPTS} attempts to read them")

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._sequence += 1
        header = _HEADER.pack(16 + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0)
        found: list[bytes] = []
        interrupted = False
        with trouble_told():
            self._socket.send(header + body)
            while True:
                for answer, flags, sequence, payload in split(self._socket.recv(1 << 18)):
                    if sequence != self._sequence:
                        continue
                    interrupted |= bool(flags & NLM_F_DUMP_INTR)
                    if answer == NLMSG_ERROR and (number := -struct.unpack_from("=i", payload)[0]):
                        raise OSError(number, os.strerror(number))
                    if answer in (NLMSG_DONE, NLMSG_ERROR):
                        return found, interrupted
                    found.append(payload)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- links ------------------------------------------------------------------------------------------------


def get_link(name: str) -> Message:
    mask = attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return Message(RTM_GETLINK, 0, _ifinfo() + attr_str(IFLA_IFNAME, name) + mask)


def links_of(names: Iterable[str], replies: Iterable[Reply]) -> dict[str, LinkInfo]:
    """The links that exist, from the replies to :func:`get_link` for each of ``names``."""
    answered = zip(names, replies, strict=True)
    return {name: LinkInfo(reply.payload) for name, reply in answered if not reply.errno}


def new_veth(veth: Veth, peer_netns: int) -> Message:
    """``name`` here, ``peer`` in the namespace of the descriptor ``peer_netns``; both still down.

    The peer's header must not say IFF_UP: veth_open() answers ENOTCONN while the pair is half made.
    """
    both = attr_u32(IFLA_MTU, veth.mtu)
    # Unasked the kernel makes as many as there may be processors (veth_get_num_queues() since Linux 5.15),
    # each with folders in sysfs: a third of the time on two of them. Only XDP has a use for more than one.
    both += attr_u32(IFLA_NUM_TX_QUEUES, 1) + attr_u32(IFLA_NUM_RX_QUEUES, 1)
    peer = _ifinfo() + attr_str(IFLA_IFNAME, veth.peer) + attr(IFLA_ADDRESS, _mac(veth.peer_mac)) + both
    peer += attr_u32(IFLA_NET_NS_FD, peer_netns)
    info = attr_str(IFLA_INFO_KIND, "veth") + attr(IFLA_INFO_DATA, attr(VETH_INFO_PEER, peer))
    body = _ifinfo() + attr_str(IFLA_IFNAME, veth.name) + attr(IFLA_ADDRESS, _mac(veth.mac)) + both
    body += attr_u32(IFLA_GROUP, OURS) + attr(IFLA_LINKINFO, info)
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def without_link_local(name: str) -> Message:
    """Not before the link exists: the kernel takes no such wish with the request that makes it."""
    mode = attr(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
    spec = attr(IFLA_AF_SPEC, attr(socket.AF_INET6, mode))
    return Message(RTM_NEWLINK, 0, _ifinfo() + attr_str(IFLA_IFNAME, name) + spec)


def new_ipvlan(obj: Ipvlan, parent: int, netns: int | None = None) -> Message:
    """A child of the link with the index ``parent``, in the namespace of a descriptor or here; still down.

    No link here may have its name, also when it is for another namespace (rtnl_newlink() in Linux).
    """
    # Said each time: a child decides for all of its parent, and unasked the kernel takes L3.
    mode = attr(IFLA_IPVLAN_MODE, struct.pack("=H", IPVLAN_MODE_L2))
    info = attr_str(IFLA_INFO_KIND, "ipvlan") + attr(IFLA_INFO_DATA, mode)
    body = _ifinfo() + attr_str(IFLA_IFNAME, obj.name) + attr_u32(IFLA_LINK, parent)
    body += attr_u32(IFLA_MTU, obj.mtu) + attr_u32(IFLA_GROUP, OURS) + attr(IFLA_LINKINFO, info)
    if netns is not None:
        body += attr_u32(IFLA_NET_NS_FD, netns)
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def set_up(index: int, *, mtu: int = 0, alias: str = "", arp: bool | None = None) -> Message:
    """Up; None leaves alone whether it resolves neighbours."""
    flags = 0 if arp is not False else IFF_NOARP
    changed = 0 if arp is None else IFF_NOARP
    body = _ifinfo(index, IFF_UP | flags, IFF_UP | changed)
    if mtu:
        body += attr_u32(IFLA_MTU, mtu)
    if alias:
        body += attr_str(IFLA_IFALIAS, alias)
    return Message(RTM_NEWLINK, 0, body)


def move(index: int, netns: int, name: str) -> Message:
    """Into the namespace of a descriptor, under a new name. The kernel takes it down on the way."""
    body = _ifinfo(index) + attr_u32(IFLA_NET_NS_FD, netns) + attr_str(IFLA_IFNAME, name)
    return Message(RTM_NEWLINK, 0, body)


def rename(index: int, name: str) -> Message:
    return Message(RTM_NEWLINK, 0, _ifinfo(index) + attr_str(IFLA_IFNAME, name))


def doom(index: int) -> Message:
    return Message(RTM_NEWLINK, 0, _ifinfo(index) + attr_u32(IFLA_GROUP, DOOMED))


def delete_link(index: int) -> Message:
    return Message(RTM_DELLINK, 0, _ifinfo(index))


def delete_doomed() -> Message:
    return Message(RTM_DELLINK, 0, _ifinfo() + attr_u32(IFLA_GROUP, DOOMED))


# -- what hangs on links ----------------------------------------------------------------------------------


def address(obj: Address, index: int, *, delete: bool = False) -> Message:
    ip = obj.address
    flags = IFA_F_NODAD if ip.version == 6 else 0
    body = struct.pack("=BBBBI", _family(ip), ip.network.prefixlen, flags, RT_SCOPE_UNIVERSE, index)
    body += attr(IFA_LOCAL, ip.packed) + attr(IFA_ADDRESS, ip.packed)
    return change(RTM_NEWADDR, body, NLM_F_REPLACE, delete)


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
        body += attr(RTA_DST, obj.dst.network_address.packed)
    if obj.via:
        body += attr(RTA_GATEWAY, obj.via.packed)
    body += attr_u32(RTA_OIF, index) + attr_u32(RTA_TABLE, obj.table)
    return change(RTM_NEWROUTE, body, NLM_F_REPLACE, delete)


def neighbor(obj: Neighbor, index: int, *, ours: bool, delete: bool = False) -> Message:
    body = struct.pack("=BBHiHBB", _family(obj.address), 0, 0, index, NUD_PERMANENT, 0, 0)
    body += attr(NDA_DST, obj.address.packed) + attr(NDA_LLADDR, _mac(obj.mac))
    if ours:
        body += attr(NDA_PROTOCOL, bytes([OURS]))
    return change(RTM_NEWNEIGH, body, NLM_F_REPLACE, delete)


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
    body += attr_u32(FRA_PRIORITY, obj.priority)
    if not obj.blackhole:
        body += attr_u32(FRA_TABLE, obj.table)
    for kind, selector in ((FRA_SRC, obj.src), (FRA_DST, obj.dst)):
        if selector and selector.prefixlen:
            body += attr(kind, selector.network_address.packed)
    for kind, name in ((FRA_IIFNAME, obj.iif), (FRA_OIFNAME, obj.oif)):
        if name:
            body += attr_str(kind, name)
    body += attr(FRA_PROTOCOL, bytes([OURS if ours else RTPROT_BOOT]))
    return change(RTM_NEWRULE, body, NLM_F_EXCL, delete)


# -- encoding ---------------------------------------------------------------------------------------------


def change(kind: int, body: bytes, mode: int, delete: bool) -> Message:
    """The message that makes an object, or the one that takes it away: the next number in each family."""
    return Message(kind + 1, 0, body) if delete else Message(kind, NLM_F_CREATE | mode, body)


@contextlib.contextmanager
def trouble_told() -> Iterator[None]:
    """Raise WiringError where a socket raises OSError."""
    try:
        yield
    except OSError as error:
        raise WiringError(f"the kernel cannot be asked over netlink: {error.strerror}") from error


def _prepared(sock: socket.socket) -> socket.socket:
    sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)  # acknowledgements without a copy of the request
    sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)  # and with the kernel's own words for an error
    return sock


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, index, flags, change)


def _mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _family(ip: IPAddress | IPNetwork) -> int:
    return socket.AF_INET if ip.version == 4 else socket.AF_INET6


def split(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """The messages in what was received: type, flags, sequence number and body of each."""
    found = []
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        found.append((kind, flags, sequence, data[offset + 16 : offset + length]))
        offset += (length + 3) & ~3
    return found


def _explanation(flags: int, body: bytes) -> str:
    """The text after an error: NLMSGERR_ATTR_MSG behind the (capped) copy of the request's header."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    offset = 4 + 16
    if not flags & NLM_F_CAPPED:
        offset = 4 + struct.unpack_from("=I", body, 4)[0]
    return attr_text(parse_attrs(body, offset).get(1, b""))
