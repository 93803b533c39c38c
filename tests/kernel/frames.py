"""Frames as they are on a link: sent with a VLAN tag or without, and heard with the tag told."""

import os
import socket
import struct
from contextlib import contextmanager

from terway_core.types import IPAddress
from terway_core.wiring.netns import Namespace

ETH_P_ALL, ETH_P_8021Q = 0x0003, 0x8100
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
# include/uapi/linux/if_packet.h: where the kernel tells of a tag that it has taken off a frame.
SOL_PACKET, PACKET_AUXDATA, TP_STATUS_VLAN_VALID = 263, 8, 1 << 4


def packet(src: IPAddress, vid: int | None = None, dst_mac: str = "ee:ff:ff:ff:ff:ff") -> bytes:
    """A frame with nothing but headers and something to know it by."""
    ethernet = bytes.fromhex(dst_mac.replace(":", "")) + bytes.fromhex("00163e000001")
    tag = struct.pack("!HH", ETH_P_8021Q, vid) if vid is not None else b""
    token = os.urandom(16)
    if src.version == 4:
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 36, 0, 0, 64, 253, 0, src.packed, bytes(4))
    else:
        ip = struct.pack("!IHBB16s16s", 0x60000000, 16, 253, 64, src.packed, bytes(16))
    return ethernet + tag + struct.pack("!H", ETHERTYPES[src.version]) + ip + token


def send(namespace: Namespace, dev: str, frame: bytes) -> None:
    """Out of the link ``dev``."""
    with namespace.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((dev, int.from_bytes(frame[12:14])))
        sock.send(frame)


@contextmanager
def listening(namespace: Namespace, dev: str, ethertype: int = ETH_P_ALL):
    """A function that waits for the frame with a token and tells its VLAN id, None if it has no tag.

    :param ethertype: with any other than ``ETH_P_ALL`` it hears what the link's filters have let through, as
        they have made it.
    """
    with namespace.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        sock.bind((dev, ethertype))
        sock.settimeout(10)

        def vlan_of(token: bytes) -> int | None:
            while True:
                frame, ancillary, _, _ = sock.recvmsg(2048, 64)
                if frame.endswith(token):
                    ((_, _, auxdata),) = ancillary
                    status, _, _, _, _, tci, _ = struct.unpack("=IIIHHHH", auxdata)
                    return tci & 0xFFF if status & TP_STATUS_VLAN_VALID else None

        yield vlan_of
