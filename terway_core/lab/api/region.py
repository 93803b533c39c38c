"""The state of a simulated region, and the only place that changes it."""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from pydantic import BaseModel, Field, PrivateAttr

from terway_core.lab.api.model import (
    AccessKey,
    Instance,
    IPNetwork,
    NetworkInterface,
    RouteEntry,
    RouteTable,
    SecurityGroup,
    Vpc,
    VSwitch,
    new_id,
    new_mac,
)
from terway_core.lab.api.oidc import OidcRole, issue

DEFAULT_RAM_ROLE: Final = "TerwayLabNodeRole"
#: The account that all of this belongs to.
OWNER_ID: Final = "1234567890123456"
#: Where the cloud's own services are (DNS, metadata, OpenAPI); every route table has it.
SERVICE_CIDR: Final = IPv4Network("100.64.0.0/10")

#: Told of an ENI that came or changed, by its id; None: it is gone.
InterfaceWatcher: TypeAlias = Callable[[str, NetworkInterface | None], None]


class Region(BaseModel):
    """Everything that exists in one region, by id. Make one with :meth:`create` or :meth:`load`."""

    region_id: str
    vpcs: dict[str, Vpc] = {}
    vswitches: dict[str, VSwitch] = {}
    security_groups: dict[str, SecurityGroup] = {}
    instances: dict[str, Instance] = {}
    network_interfaces: dict[str, NetworkInterface] = {}
    route_tables: dict[str, RouteTable] = {}
    route_entries: dict[str, RouteEntry] = {}
    access_keys: dict[str, AccessKey] = {}
    oidc_roles: dict[str, OidcRole] = {}
    oidc_secret: str = Field(default_factory=secrets.token_hex, repr=False)

    _path: Path | None = PrivateAttr(None)
    _clock: Callable[[], float] = PrivateAttr(time.time)
    _watchers: list[InterfaceWatcher] = PrivateAttr(default_factory=list)

    @classmethod
    def create(
        cls,
        *,
        region_id: str = "cn-hangzhou",
        path: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """An empty region. With ``path``, the file is written now and at every change."""
        region = cls(region_id=region_id)
        region._path, region._clock = path, clock
        region._changed()
        return region

    @classmethod
    def load(cls, path: Path, *, clock: Callable[[], float] = time.time) -> Self:
        """The region in a file that another one wrote; it goes on being written there."""
        region = cls.model_validate_json(path.read_bytes())
        region._path, region._clock = path, clock
        return region

    def now(self) -> float:
        """Seconds since the epoch, by the region's clock."""
        return self._clock()

    def add_vpc(self, cidr: str | IPv4Network, ipv6_cidr: str | IPv6Network | None = None) -> Vpc:
        """A VPC with its system route table and a security group."""
        vpc = Vpc(
            vpc_id=self._id("vpc"),
            cidr=IPv4Network(cidr),
            ipv6_cidr=IPv6Network(ipv6_cidr) if ipv6_cidr else None,
            router_id=self._id("vrt"),
            route_table_id=self._id("vtb"),
            created=self.now(),
        )
        table = RouteTable(
            table_id=vpc.route_table_id, vpc_id=vpc.vpc_id, router_id=vpc.router_id, created=vpc.created
        )
        self.vpcs[vpc.vpc_id] = vpc
        self.route_tables[table.table_id] = table
        self._add_system_route(vpc, SERVICE_CIDR, "service")
        self.add_security_group(vpc, "default")
        return vpc

    def add_security_group(self, vpc: Vpc, name: str) -> SecurityGroup:
        """A security group of a VPC."""
        group = SecurityGroup(
            security_group_id=self._id("sg"), vpc_id=vpc.vpc_id, name=name, created=self.now()
        )
        self.security_groups[group.security_group_id] = group
        self._changed()
        return group

    def security_groups_of(self, vpc_id: str) -> list[SecurityGroup]:
        """The security groups of one VPC; the first is its default."""
        return [group for group in self.security_groups.values() if group.vpc_id == vpc_id]

    def add_vswitch(
        self,
        vpc: Vpc,
        cidr: str | IPv4Network,
        zone: str,
        ipv6_cidr: str | IPv6Network | None = None,
    ) -> VSwitch:
        """A vSwitch and the system route entries that lead to it.

        :raises ValueError: a CIDR is outside its VPC or overlaps another vSwitch.
        """
        vswitch = VSwitch(
            vswitch_id=self._id("vsw"),
            vpc_id=vpc.vpc_id,
            zone_id=zone,
            cidr=IPv4Network(cidr),
            ipv6_cidr=IPv6Network(ipv6_cidr) if ipv6_cidr else None,
            created=self.now(),
        )
        if not vswitch.cidr.subnet_of(vpc.cidr) or vswitch.cidr.prefixlen > 29:
            raise ValueError(f"vSwitch {vswitch.cidr} is no /29 or larger part of {vpc.vpc_id} {vpc.cidr}")
        if vswitch.ipv6_cidr and not (vpc.ipv6_cidr and vswitch.ipv6_cidr.subnet_of(vpc.ipv6_cidr)):
            raise ValueError(f"vSwitch {vswitch.ipv6_cidr} is no part of {vpc.vpc_id} {vpc.ipv6_cidr}")
        for other in self.vswitches_of(vpc.vpc_id):
            if vswitch.cidr.overlaps(other.cidr):
                raise ValueError(f"vSwitch {vswitch.cidr} overlaps {other.vswitch_id} {other.cidr}")
        self.vswitches[vswitch.vswitch_id] = vswitch
        self._add_system_route(vpc, vswitch.cidr, "local")
        if vswitch.ipv6_cidr:
            self._add_system_route(vpc, vswitch.ipv6_cidr, "local")
        self._changed()
        return vswitch

    def add_instance(
        self,
        name: str,
        *,
        instance_type: str,
        vswitch: VSwitch,
        private_ip: str | IPv4Address | None = None,
        mac: str | None = None,
        ram_role: str = DEFAULT_RAM_ROLE,
    ) -> Instance:
        """A running instance with its primary ENI.

        :param ram_role: the role whose STS credentials the metadata service hands out; ``""`` for none.
        :raises ValueError: the address is not free in the vSwitch, or none is.
        """
        address = IPv4Address(private_ip) if private_ip else next(self.free_ipv4(vswitch), None)
        if address is None or address in self.taken(vswitch) or not vswitch.assignable(address):
            what = f"{address} is not" if address else "no address is"
            raise ValueError(f"{what} free in {vswitch.vswitch_id} {vswitch.cidr}")
        instance = Instance(
            instance_id=self._id("i"),
            name=name,
            instance_type=instance_type,
            vpc_id=vswitch.vpc_id,
            vswitch_id=vswitch.vswitch_id,
            zone_id=vswitch.zone_id,
            network_interface_id=self._id("eni"),
            mac=mac or new_mac(),
            private_ip=address,
            # The same host part in both families is easy on the reader's eye, and as unique.
            ipv6=vswitch.ipv6_cidr[int(address) - int(vswitch.cidr[0])] if vswitch.ipv6_cidr else None,
            ram_role=ram_role,
            created=self.now(),
        )
        self.instances[instance.instance_id] = instance
        self.put_interface(
            NetworkInterface(
                network_interface_id=instance.network_interface_id,
                type="Primary",
                status="InUse",
                mac=instance.mac,
                vpc_id=instance.vpc_id,
                vswitch_id=instance.vswitch_id,
                zone_id=instance.zone_id,
                private_ip=address,
                ipv6=(instance.ipv6,) if instance.ipv6 else (),
                security_group_ids=(self.security_groups_of(instance.vpc_id)[0].security_group_id,),
                instance_id=instance.instance_id,
                created=instance.created,
            )
        )
        return instance

    def add_interface(self, vswitch: VSwitch, **fields: Any) -> NetworkInterface:
        """An ENI that is ``Available``. Checks nothing.

        :param fields: those of :class:`NetworkInterface` that neither the vSwitch nor this region decide.
        """
        return self.put_interface(
            NetworkInterface(
                network_interface_id=self._id("eni"),
                status="Available",
                mac=new_mac(),
                vpc_id=vswitch.vpc_id,
                vswitch_id=vswitch.vswitch_id,
                zone_id=vswitch.zone_id,
                created=self.now(),
                **fields,
            )
        )

    def put_interface(self, eni: NetworkInterface) -> NetworkInterface:
        """Store an ENI, new or changed."""
        self.network_interfaces[eni.network_interface_id] = eni
        self._interface_changed(eni.network_interface_id)
        return eni

    def drop_interface(self, eni: NetworkInterface) -> None:
        """Forget an ENI; its addresses are free."""
        del self.network_interfaces[eni.network_interface_id]
        self._interface_changed(eni.network_interface_id)

    def watch_interfaces(self, watcher: InterfaceWatcher) -> None:
        """Have ``watcher`` called at every change from now on."""
        self._watchers.append(watcher)

    def interfaces_of(self, instance_id: str) -> list[NetworkInterface]:
        """The ENIs of one instance, those about to come or go included; the primary one first."""
        return [eni for eni in self.network_interfaces.values() if eni.instance_id == instance_id]

    def taken(self, vswitch: VSwitch) -> set[IPv4Address]:
        """The addresses of a vSwitch that ENIs have, prefixes included."""
        enis = [eni for eni in self.network_interfaces.values() if eni.vswitch_id == vswitch.vswitch_id]
        return {address for eni in enis for address in eni.ipv4} | {
            address for eni in enis for prefix in eni.ipv4_prefixes for address in prefix
        }

    def taken_ipv6(self, vswitch: VSwitch) -> set[IPv6Address]:
        """The IPv6 addresses of a vSwitch that ENIs have."""
        enis = self.network_interfaces.values()
        return {address for eni in enis if eni.vswitch_id == vswitch.vswitch_id for address in eni.ipv6}

    def free_ipv4(self, vswitch: VSwitch) -> Iterator[IPv4Address]:
        """The addresses of a vSwitch that an ENI may have and none has, from the lowest."""
        taken = self.taken(vswitch)
        return (one for one in vswitch.cidr if vswitch.assignable(one) and one not in taken)

    def add_access_key(self) -> AccessKey:
        """A permanent key pair that may do everything."""
        return self._keep(AccessKey.permanent())

    def add_sts_credentials(self, lifetime: float) -> AccessKey:
        """Temporary credentials that the API accepts for ``lifetime`` seconds."""
        return self._keep(AccessKey.temporary(expires=self.now() + lifetime))

    def disable_access_key(self, access_key_id: str) -> None:
        """Calls with this key are refused from now on."""
        self._keep(dataclasses.replace(self.access_keys[access_key_id], enabled=False))

    def add_oidc_role(self, name: str, service_account: str) -> OidcRole:
        """A RAM role for a Kubernetes service account, which is named ``NAMESPACE:NAME``."""
        role = OidcRole(
            role_arn=f"acs:ram::{OWNER_ID}:role/{name.lower()}",
            provider_arn=f"acs:ram::{OWNER_ID}:oidc-provider/lab",
            subject=f"system:serviceaccount:{service_account}",
        )
        self.oidc_roles[role.role_arn] = role
        self._changed()
        return role

    def issue_oidc_token(self, service_account: str, lifetime: float) -> str:
        """A token of a service account, as the cluster's API server projects it into pods."""
        return issue(self.oidc_secret, f"system:serviceaccount:{service_account}", self.now() + lifetime)

    def add_route(
        self, table: RouteTable, cidr: IPNetwork, instance: Instance, *, name: str = "", description: str = ""
    ) -> RouteEntry:
        """A custom entry that leads to an instance, Pending at first. Checks nothing."""
        return self.put_route(
            RouteEntry(
                entry_id=self._id("rte"),
                table_id=table.table_id,
                cidr=cidr,
                type="Custom",
                status="Pending",
                next_hop_type="Instance",
                next_hop_id=instance.instance_id,
                name=name,
                description=description,
            )
        )

    def put_route(self, entry: RouteEntry) -> RouteEntry:
        """Store an entry, new or changed."""
        entry = dataclasses.replace(entry, modified=self.now())
        self.route_entries[entry.entry_id] = entry
        self._changed()
        return entry

    def drop_route(self, entry: RouteEntry) -> None:
        """Forget an entry."""
        del self.route_entries[entry.entry_id]
        self._changed()

    def vswitches_of(self, vpc_id: str) -> Iterator[VSwitch]:
        """The vSwitches of one VPC."""
        return (vswitch for vswitch in self.vswitches.values() if vswitch.vpc_id == vpc_id)

    def routes_of(self, table_id: str) -> Iterator[RouteEntry]:
        """The entries of one route table."""
        return (entry for entry in self.route_entries.values() if entry.table_id == table_id)

    def save(self, path: Path) -> None:
        """Write the whole state, secrets included, so that a crash leaves the old file or the new one."""
        temporary = path.with_name(path.name + ".tmp")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _interface_changed(self, network_interface_id: str) -> None:
        for watcher in self._watchers:
            watcher(network_interface_id, self.network_interfaces.get(network_interface_id))
        self._changed()

    def _changed(self) -> None:
        if self._path:
            self.save(self._path)

    def _id(self, kind: str) -> str:
        return new_id(kind, self.region_id)

    def _keep(self, key: AccessKey) -> AccessKey:
        self.access_keys[key.access_key_id] = key
        self._changed()
        return key

    def _add_system_route(self, vpc: Vpc, cidr: IPNetwork, next_hop_type: str) -> None:
        entry = RouteEntry(
            entry_id=self._id("rte"),
            table_id=vpc.route_table_id,
            cidr=cidr,
            type="System",
            status="Available",
            next_hop_type=next_hop_type,
            next_hop_id="",
            modified=self.now(),
        )
        self.route_entries[entry.entry_id] = entry
