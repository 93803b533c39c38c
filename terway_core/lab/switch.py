"""The VPC's network, made to obey the API: the namespace *switch*, and the links that lead into the nodes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from terway_core.errors import TerwayError
from terway_core.lab import fabric, trunk
from terway_core.lab.api import NetworkInterface, Region, VSwitch
from terway_core.lab.state import Lab, LabError, Spec
from terway_core.wiring import netlink, nft
from terway_core.wiring.engine import Engine
from terway_core.wiring.netlink import NetlinkSocket
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import IPNetwork, LinkUp, Rule, Wiring, WiringObject

log = logging.getLogger(__name__)

#: Tells of links that come, change and go (rtnetlink(7)).
_RTMGRP_LINK: Final = 1


class Switch:
    """The network in the calling thread's namespace, which is the switch's."""

    def __init__(self, region: Region, engine: Engine) -> None:
        self._region = region
        self._engine = engine
        #: Network namespace of each instance.
        self._nodes: dict[str, Path] = {}
        self._walls: set[Rule] = set()

    def build(self, lab: Lab) -> None:
        """Make the VPC, its vSwitches and every node's instance, and wire them."""
        spec = lab.spec
        vswitches = self._add_vswitches(spec)
        backbone = fabric.backbone(vswitches, nat=nft.preflight() is None)
        self._engine.ensure(backbone.node)
        with Namespace.open(lab.netns("internet")) as internet:
            self._engine.apply(backbone, internet, "lab")
        for node in lab.nodes:
            instance = self._region.add_instance(
                node.name, instance_type=spec.instance_type, vswitch=vswitches[0]
            )
            self._nodes[instance.instance_id] = node.netns
            eni = self._region.network_interfaces[instance.network_interface_id]
            wiring = Wiring(
                host=(fabric.link(eni, "eth0"), *fabric.port(eni, vswitches[0], eni.mac)),
                pod=fabric.booted(instance, vswitches[0]),
            )
            with Namespace.open(node.netns) as namespace:
                self._engine.apply(wiring, namespace, eni.network_interface_id)

    def add_route(self, cidr: IPNetwork, instance_id: str) -> None:
        """Carry out a new entry of the VPC's route table."""
        entry = fabric.route_entry(cidr, self._region.instances[instance_id])
        self._engine.apply(entry, None, str(cidr))

    def remove_route(self, cidr: IPNetwork, instance_id: str) -> None:
        """Take back what :meth:`add_route` did."""
        entry = fabric.route_entry(cidr, self._region.instances[instance_id])
        self._engine.remove(entry, None, str(cidr))

    def change_interface(self, before: NetworkInterface, after: NetworkInterface) -> None:
        """Carry out what became of an ENI: plug it in, pull it out, or change what it owns."""
        others = self._region.network_interfaces | {after.network_interface_id: after}
        walls = fabric.walls(eni for eni in others.values() if eni.plugged)
        self._engine.apply(Wiring(host=tuple(walls - self._walls)), None, "")  # before somebody could pass
        self._walls |= walls
        if after.plugged and not before.plugged:
            self._plug_in(after, "eth")
        elif before.plugged and not after.plugged:
            self._pull_out(before)
        elif before.plugged:
            owner = after.network_interface_id
            old, new = self._port(before), self._port(after)
            self._engine.remove(Wiring(host=tuple(one for one in old if one not in new)), None, owner)
            self._engine.apply(Wiring(host=tuple(one for one in new if one not in old)), None, owner)
        self._engine.remove(Wiring(host=tuple(self._walls - walls)), None, "")
        self._walls = walls

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Bring NICs back to their instance whose namespace is destroyed, as the kernel does with real ones.

        The ends of ENIs here are veth, which die with the namespace they are in. A real NIC falls back to the
        first namespace, down and without addresses, and as ``devN`` if its name is taken there.
        """
        loop = asyncio.get_running_loop()
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        with events:
            events.setblocking(False)
            events.bind((0, _RTMGRP_LINK))
            loop.add_reader(events, self._links_changed, events)
            try:
                yield
            finally:
                loop.remove_reader(events)

    def _links_changed(self, events: socket.socket) -> None:
        try:
            while events.recv(1 << 16):
                pass
        except BlockingIOError:
            pass
        except OSError:
            pass  # ENOBUFS: some were lost; that there were any is all that counts
        here = {name for _, name in socket.if_nameindex()}
        # Members come after their trunk: with its port they have lost what leads to theirs.
        for eni in sorted(self._region.network_interfaces.values(), key=lambda eni: bool(eni.trunk_id)):
            lost = fabric.port_name(eni.trunk_id or eni.network_interface_id) not in here
            if lost and eni.plugged and eni.type != "Primary":
                try:
                    self._plug_in(eni, "dev")
                except TerwayError as error:
                    log.error("%s is lost: %s", eni.network_interface_id, error)

    def _add_vswitches(self, spec: Spec) -> list[VSwitch]:
        dual = spec.ip_stack != "ipv4"
        vpc = self._region.add_vpc(fabric.VPC_CIDR, fabric.VPC_IPV6_CIDR if dual else None)
        return [
            self._region.add_vswitch(vpc, cidr, zone, fabric.vswitch_ipv6_cidr(number) if dual else None)
            for number, (zone, cidr) in enumerate(fabric.all_vswitches(spec.vswitches))
        ]

    def _port(self, eni: NetworkInterface) -> tuple[WiringObject, ...]:
        carrier = self._region.network_interfaces[eni.trunk_id] if eni.trunk_id else eni
        return fabric.port(eni, self._region.vswitches[eni.vswitch_id], carrier.mac)

    def _pull_out(self, eni: NetworkInterface) -> None:
        if eni.trunk_id:
            trunk.disconnect(fabric.port_name(eni.trunk_id), eni.device_index)
        # Wherever the other end is: a NIC that is pulled out is gone from a pod's namespace too.
        wiring = Wiring(host=(fabric.link(eni, ""), *self._port(eni)))
        self._engine.remove(wiring, None, eni.network_interface_id)

    def _plug_in(self, eni: NetworkInterface, kind: str) -> None:
        """Have an ENI on its trunk, or in its instance, down, as the next free ``kind`` with a number."""
        if eni.trunk_id:
            self._join_trunk(eni)
            return
        with Namespace.open(self._nodes[eni.instance_id]) as node:
            taken = {name for _, name in node.run(socket.if_nameindex)}
            dev = next(name for number in count() if (name := f"{kind}{number}") not in taken)
            link = fabric.link(eni, dev)
            # Not by the engine, which would bring up the instance's end as well.
            with NetlinkSocket() as sock:
                (reply,) = sock.send([netlink.new_veth(link, node.fd)])
        if reply.errno:
            raise LabError(f"{eni.network_interface_id} cannot be plugged in: {os.strerror(reply.errno)}")
        objects = (LinkUp(dev=link.name, mtu=link.mtu), *self._port(eni))
        self._engine.apply(Wiring(host=objects), None, eni.network_interface_id)

    def _join_trunk(self, eni: NetworkInterface) -> None:
        port = fabric.port_name(eni.network_interface_id)
        wiring = Wiring(host=(fabric.link(eni, f"x{port}"), *self._port(eni)))
        with Namespace.current() as switch:  # the other end has no use but to be there
            self._engine.apply(wiring, switch, eni.network_interface_id)
        trunk.connect(port, fabric.port_name(eni.trunk_id), eni.device_index)
