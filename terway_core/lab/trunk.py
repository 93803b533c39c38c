"""Member ENIs at the far end of their trunk: a VLAN tag tells there whose a packet is.

A member's port has no near end. What comes in by the trunk with its tag is received from the port, without
the tag; what would leave by the port leaves by the trunk, with it. To all that is declared about ports, a
member is an ENI like any other.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from terway_core.lab.state import LabError
from terway_core.wiring import bpf, tc
from terway_core.wiring.netlink import ALREADY_GONE, NetlinkSocket

_VLAN_TCI, _VLAN_ID = 24, 0xFFF  # of struct __sk_buff
_BPF_F_INGRESS: Final = 1
#: Priority and ethertype of the filters.
_TAGGED: Final = 1 << 16 | socket.htons(bpf.ETH_P_8021Q)
_ALL: Final = 1 << 16 | socket.htons(0x0003)


def connect(port: str, trunk: str, vid: int) -> None:
    """Join a member's port to its trunk's, both in the calling thread's namespace; once or several times.

    :raises LabError: the kernel refused.
    """
    try:
        member, carrier = socket.if_nametoindex(port), socket.if_nametoindex(trunk)
        to_member = bpf.copy(6, 1) + bpf.load_field(0, 1, _VLAN_TCI) + bpf.mask(0, _VLAN_ID)
        to_member += bpf.leave_unless(vid, bpf.TC_ACT_UNSPEC)
        to_member += bpf.copy(1, 6) + bpf.pop_vlan() + _redirect(member, _BPF_F_INGRESS)
        to_trunk = bpf.push_vlan(vid) + _redirect(carrier, 0)
        with bpf.loaded(to_member) as inwards, bpf.loaded(to_trunk) as outwards, NetlinkSocket() as sock:
            replies = sock.send(
                [
                    tc.clsact(member),
                    tc.clsact(carrier),
                    tc.bpf_filter(member, tc.CLSACT_EGRESS, _ALL, 1, f"vlan-{vid}", outwards),
                    tc.bpf_filter(carrier, tc.CLSACT_INGRESS, _TAGGED, vid, f"vlan-{vid}", inwards),
                ]
            )
        for reply in replies:
            if reply.errno:
                raise OSError(reply.errno, reply.explanation or os.strerror(reply.errno))
    except OSError as error:
        raise LabError(f"VLAN {vid} of {trunk} cannot be led to {port}: {error}") from error


def disconnect(trunk: str, vid: int) -> None:
    """Take a member off its trunk's port; what is on its own goes with that.

    :raises LabError: the kernel refused.
    """
    try:
        carrier = socket.if_nametoindex(trunk)
    except OSError:
        return  # the trunk is gone
    message = tc.bpf_filter(carrier, tc.CLSACT_INGRESS, _TAGGED, vid, "", delete=True)
    with NetlinkSocket() as sock:
        (reply,) = sock.send([message])
    if reply.errno and reply.errno not in ALREADY_GONE:
        raise LabError(f"VLAN {vid} cannot be taken off {trunk}: {os.strerror(reply.errno)}")


def _redirect(index: int, flags: int) -> bytes:
    return bpf.move(1, index) + bpf.move(2, flags) + bpf.call(bpf.REDIRECT) + bpf.leave()
