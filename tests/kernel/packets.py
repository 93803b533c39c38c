"""Datagrams between namespaces, from any address."""

import itertools
import socket
from ipaddress import ip_address

from terway_core.types import IPAddress
from terway_core.wiring.netns import Namespace

#: Send from an address that the machine does not have (linux/in.h, linux/in6.h).
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75

_ports = itertools.count(20000)


def free_port() -> int:
    """One that nobody in these tests has used."""
    return next(_ports)


def udp(address: IPAddress) -> socket.socket:
    """A datagram socket of the address's family."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return socket.socket(family, socket.SOCK_DGRAM)


def arrives(sender: Namespace, source: str, receiver: Namespace, target: str, timeout: float = 0.3) -> bool:
    """Whether a datagram from ``source``, an address that ``sender`` need not have, gets to ``target``."""
    port = free_port()

    def send() -> None:
        with udp(ip_address(source)) as sock:
            if ip_address(source).version == 4:
                sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            sock.bind((source, 0))
            sock.sendto(b"hello", (target, port))

    with receiver.run(udp, ip_address(target)) as sock:
        sock.bind((target, port))
        sock.settimeout(timeout)
        sender.run(send)
        try:
            return sock.recvfrom(16)[1][0] == source
        except TimeoutError:
            return False
