"""What the kernel tells of links that are deleted."""

from __future__ import annotations

import ctypes
import select
import socket
import struct

from terway_core.wiring.netlink import RTM_DELLINK, split, trouble_told
from terway_core.wiring.netns import Namespace, route_socket

RTMGRP_LINK, SO_ATTACH_FILTER = 1, 26


class LinkNews:
    """Listens to which of a namespace's links are deleted, from its construction on."""

    def __init__(self, namespace: Namespace | None = None) -> None:
        with trouble_told():
            self._socket = namespace.run(_listen) if namespace else _listen()
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def deleted(self, timeout: float) -> set[int]:
        """Indices of links that have gone since the last call; waits ``timeout`` seconds for the first."""
        if not self._poll.poll(timeout * 1000):
            return set()
        gone = set()
        try:
            while True:
                news = split(self._socket.recv(1 << 12, socket.MSG_DONTWAIT))
                # A bridge that loses a port says RTM_DELLINK too, of its own family.
                gone |= {
                    struct.unpack_from("=i", body, 4)[0]
                    for kind, _, _, body in news
                    if kind == RTM_DELLINK and body[0] == socket.AF_UNSPEC
                }
        except OSError:  # EAGAIN: that was all; ENOBUFS: more has happened than the buffer holds
            return gone

    def close(self) -> None:
        self._socket.close()


def _listen() -> socket.socket:
    """Hears of deletions only: before one the kernel tells twice of each end that it goes down, and whoever
    has to listen to that keeps others from working."""
    sock = route_socket()
    # Instructions of <linux/filter.h>: load the message's type, which is in the host's byte order, and take
    # the message whole or not at all.
    wanted = int.from_bytes(struct.pack("=H", RTM_DELLINK))
    code = ((0x28, 0, 0, 4), (0x15, 0, 1, wanted), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(code), ctypes.addressof(program))
    )
    sock.bind((0, RTMGRP_LINK))
    return sock
