"""Which addresses of a vSwitch are free, and picking some of them for an ENI."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from itertools import count, islice
from typing import Final

from terway_core.lab.api.faults import Fault, invalid_parameter
from terway_core.lab.api.model import VSwitch
from terway_core.lab.api.region import Region

PREFIX_LENGTH: Final = 28


def available(region: Region, vswitch: VSwitch) -> int:
    """How many more IPv4 addresses ENIs can have."""
    return vswitch.usable - len(region.taken(vswitch))


def pick_ipv4(
    region: Region, vswitch: VSwitch, wanted: Sequence[IPv4Address], number: int
) -> tuple[IPv4Address, ...]:
    """The ``wanted`` addresses, and ``number`` more: the lowest that are free.

    :raises Fault: one is not free or not to be had, or there are not enough.
    """
    if len(set(wanted)) < len(wanted):
        raise Fault(400, "InvalidPrivateIpAddress.Duplicated", "The private IP addresses are duplicated.")
    taken = region.taken(vswitch)
    for address in wanted:
        if not vswitch.assignable(address):
            raise Fault(403, "InvalidVSwitchId.IpInvalid", f"{address} is not an address of the VSwitch.")
        if address in taken:
            raise Fault(403, "InvalidIp.IpAssigned", f"The IP {address} is already assigned.")
    free = (address for address in region.free_ipv4(vswitch) if address not in wanted)
    picked = tuple(islice(free, number))
    if len(picked) < number:
        raise _exhausted(vswitch)
    return (*wanted, *picked)


def pick_ipv4_prefixes(
    region: Region,
    vswitch: VSwitch,
    wanted: Sequence[IPv4Network],
    number: int,
    *,
    beside: Sequence[IPv4Address] = (),
) -> tuple[IPv4Network, ...]:
    """The ``wanted`` /28 blocks, and ``number`` more: the highest that are free.

    Real ones come from a reserved CIDR block of the vSwitch. Taking them from the other end than single
    addresses serves the same purpose, to find blocks that are whole.

    :param beside: addresses picked for the same ENI.
    :raises Fault: one is not free or no such block, or there are not enough.
    """
    taken = region.taken(vswitch).union(beside)

    def is_free(block: IPv4Network) -> bool:
        return all(vswitch.assignable(address) and address not in taken for address in block)

    for block in wanted:
        if block.prefixlen != PREFIX_LENGTH or not block.subnet_of(vswitch.cidr) or not is_free(block):
            raise invalid_parameter("Ipv4Prefix", f"{block} is no free /{PREFIX_LENGTH} of the VSwitch")
    blocks = vswitch.cidr.subnets(new_prefix=max(PREFIX_LENGTH, vswitch.cidr.prefixlen))
    free = (block for block in reversed(list(blocks)) if is_free(block) and block not in wanted)
    picked = tuple(islice(free, number))
    if len(picked) < number:
        raise _exhausted(vswitch)
    return (*wanted, *picked)


def pick_ipv6(
    region: Region, vswitch: VSwitch, wanted: Sequence[IPv6Address], number: int
) -> tuple[IPv6Address, ...]:
    """The ``wanted`` addresses, and ``number`` more.

    :raises Fault: one is not free or not of the vSwitch, or the vSwitch has no IPv6.
    """
    if not wanted and not number:
        return ()
    if vswitch.ipv6_cidr is None:
        raise Fault(403, "InvalidVSwitch.Ipv6NotTurnOn", "The VSwitch does not turn on IPv6.")
    taken = region.taken_ipv6(vswitch)
    for address in wanted:
        if address not in vswitch.ipv6_cidr:
            raise Fault(403, "InvalidIp.Address", f"{address} is not an address of the VSwitch.")
        if address in taken or wanted.count(address) > 1:
            raise Fault(403, "InvalidIp.IpAssigned", f"The IP {address} is already assigned.")
    free = (address for address in _ipv6(vswitch) if address not in taken and address not in wanted)
    return (*wanted, *islice(free, number))


def _ipv6(vswitch: VSwitch) -> Iterator[IPv6Address]:
    # Above all that instances have, whose host part is that of their IPv4 address.
    return (vswitch.ipv6_cidr[0x1_0000 + number] for number in count(1)) if vswitch.ipv6_cidr else iter(())


def _exhausted(vswitch: VSwitch) -> Fault:
    return Fault(
        403,
        "InvalidVSwitchId.IpNotEnough",
        f'The specified VSwitch "{vswitch.vswitch_id}" has not enough IpAddress.',
    )
