"""VLAN tags on a trunk as cls_bpf filters: made, taken away, and read back by name.

cls_bpf needs nothing but BPF, which all kernels of today have; act_vlan and cls_flower are left out of
many. A filter's name tells what its program does. Priority and handle follow from the address that it
looks for, so one message makes one, and one takes it away without reading first. Filters of these
priorities and names are ours.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

from terway_core.errors import WiringError
from terway_core.wiring import bpf, tc
from terway_core.wiring.netlink import Message, NetlinkSocket
from terway_core.wiring.nla import attr_text
from terway_core.wiring.objects import VlanPop, VlanPush, describe

#: Priority, ethertype and offset of the source address, counted from the Ethernet header, by IP version.
_PUSH: Final = {4: (50001, 0x0800, 14 + 12), 6: (50002, 0x86DD, 14 + 8)}
#: Before whatever else looks at what comes in: others see it without its tag.
_POP: Final = 20000
_POP_NAME, _PUSH_NAME = "terway-vlan-pop", "terway-vlan-push-"


def program(obj: VlanPush | VlanPop) -> bytes:
    """The instructions for :func:`terway_core.wiring.bpf.loaded`.

    :raises WiringError: there is no such VLAN.
    """
    last = bpf.move(0, bpf.TC_ACT_UNSPEC) + bpf.leave()
    if isinstance(obj, VlanPop):
        return bpf.pop_vlan() + last
    if not 1 <= obj.vid <= 4094:
        raise WiringError(f"{describe(obj)} cannot be made: VLAN ids are from 1 to 4094")
    _, _, offset = _PUSH[obj.src.version]
    packed = obj.src.packed
    code = bpf.copy(6, 1)
    for place in range(0, len(packed), 4):
        word = int.from_bytes(packed[place : place + 4])
        code += bpf.load_word(offset + place) + bpf.leave_unless(word, bpf.TC_ACT_UNSPEC)
    return code + bpf.copy(1, 6) + bpf.push_vlan(obj.vid) + last


def message(obj: VlanPush | VlanPop, index: int, program: int = -1, *, delete: bool = False) -> Message:
    """``index`` is that of ``dev``; ``program`` a descriptor, which taking away does not need."""
    if isinstance(obj, VlanPop):
        parent, priority, ethertype, handle, name = tc.CLSACT_INGRESS, _POP, bpf.ETH_P_8021Q, 1, _POP_NAME
    else:
        priority, ethertype, _ = _PUSH[obj.src.version]
        parent, handle, name = tc.CLSACT_EGRESS, tc.handle(obj.src), f"{_PUSH_NAME}{obj.vid}-{obj.src}"
    info = priority << 16 | socket.htons(ethertype)
    return tc.bpf_filter(index, parent, info, handle, name, program, delete=delete)


def filters(sock: NetlinkSocket, dev: str, index: int) -> Iterator[VlanPush | VlanPop]:
    """Our filters on a link that has a clsact."""
    for priority, options in tc.filters(sock, index, tc.CLSACT_EGRESS, "bpf"):
        vid, _, src = attr_text(options.get(tc.TCA_BPF_NAME, b"")).removeprefix(_PUSH_NAME).partition("-")
        if src and any(priority == ours for ours, _, _ in _PUSH.values()):
            yield VlanPush(dev=dev, src=ip_address(src), vid=int(vid))
    for priority, options in tc.filters(sock, index, tc.CLSACT_INGRESS, "bpf"):
        if (priority, attr_text(options.get(tc.TCA_BPF_NAME, b""))) == (_POP, _POP_NAME):
            yield VlanPop(dev=dev)
