"""ICMP echo: how the lab asks whether one address reaches another, without needing ``ping`` installed."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from contextlib import suppress

from terway_core.wiring.objects import IPAddress

#: (request type, reply type) of ICMP (RFC 792) and ICMPv6 (RFC 4443).
_ECHO = {4: (8, 0), 6: (128, 129)}


def ping(address: IPAddress, *, timeout: float = 3.0, interval: float = 0.25) -> float | None:
    """Send echo requests from the calling thread's namespace until one is answered.

    :param timeout: seconds after which the address counts as unreachable. It is kept in requests, not by a
        clock: a busy machine that lets this thread wait does not make the address unreachable.
    :param interval: seconds between two requests.
    :returns: the round-trip time in seconds of the answered request; None when none was.
    """
    protocol = socket.IPPROTO_ICMP if address.version == 4 else socket.IPPROTO_ICMPV6
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    token = os.urandom(16)  # raw sockets see the replies to everybody's requests
    sent: list[float] = []
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        for number in range(max(1, round(timeout / interval))):
            sent.append(time.monotonic())
            with suppress(OSError):  # no route, or no neighbour answers: that may still change
                sock.sendto(_request(address.version, number, token), (str(address), 0))
            if (sequence := _reply(sock, address, token, interval)) is not None:
                return time.monotonic() - sent[sequence]
    return None


def _request(version: int, sequence: int, token: bytes) -> bytes:
    # An identifier for each call: connection tracking would take two calls of a process for one flow.
    body = token[:2] + struct.pack("!H", sequence & 0xFFFF) + token
    # The kernel fills in the ICMPv6 checksum itself (RFC 3542 section 3.1).
    checksum = _checksum(struct.pack("!BBH", _ECHO[version][0], 0, 0) + body) if version == 4 else 0
    return struct.pack("!BBH", _ECHO[version][0], 0, checksum) + body


def _reply(sock: socket.socket, address: IPAddress, token: bytes, seconds: float) -> int | None:
    """The sequence number of the reply that is there already or comes within ``seconds``."""
    until = time.monotonic() + seconds
    while select.select([sock], [], [], max(0.0, until - time.monotonic()))[0]:
        packet, (source, *_) = sock.recvfrom(2048)
        if address.version == 4:  # raw IPv4 sockets deliver the IP header too
            packet = packet[(packet[0] & 0x0F) * 4 :]
        if packet[0] == _ECHO[address.version][1] and packet[8:] == token and source == str(address):
            return int.from_bytes(packet[6:8], "big")
    return None


def _checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
