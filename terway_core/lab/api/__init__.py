"""The simulated region's OpenAPI: ECS and VPC over the real wire protocol.

A :class:`Region` is what exists (VPCs, vSwitches, instances, ENIs, route tables, access keys);
:func:`build_app` serves it as the cloud does, signatures verified. The interface for the rest of the lab::

    region = Region.create(region_id="cn-hangzhou", path=None, clock=time.time)
    region = Region.load(path, clock=time.time)    # with a path, every change is written there, atomically
    key = region.add_access_key()                   # .access_key_id .access_key_secret
    vpc = region.add_vpc("10.0.0.0/8", ipv6_cidr=None)            # brings its system route table
    vswitch = region.add_vswitch(vpc, "10.0.0.0/24", zone="cn-hangzhou-h", ipv6_cidr=None)
    node = region.add_instance(
        "node-1", instance_type="ecs.g7.large", vswitch=vswitch, private_ip=None, mac=None, ram_role=…
    )

    region.vpcs / .vswitches / .security_groups / .instances / .network_interfaces / .route_tables
          / .route_entries / .access_keys: dict by id
    region.security_groups_of(vpc.vpc_id)[0].security_group_id    # every VPC has one
    region.interfaces_of(instance.instance_id)                    # the primary ENI first
    vpc.vpc_id .cidr .ipv6_cidr .route_table_id
    vswitch.vswitch_id .vpc_id .zone_id .cidr .ipv6_cidr .gateway
    instance.instance_id .name .instance_type .vpc_id .vswitch_id .zone_id .private_ip .ipv6 .mac
            .network_interface_id .ram_role
    entry.entry_id .table_id .cidr .type .status .next_hop_type .next_hop_id

    eni.network_interface_id .type .status .instance_id .mac .vswitch_id .ipv4 .ipv6 .ipv4_prefixes .tags

    behaviour = Behaviour(attach_delay=2.0, limits=REAL_LIMITS, faults=[…])
    app = build_app(region, behaviour=behaviour, on_route_added=…, on_route_removed=…, on_interface_changed=…)

Arguments accept text or ``ipaddress`` objects, fields are ``ipaddress`` objects. ``private_ip=None`` takes
the vSwitch's first free address, ``mac=None`` makes one with the real prefix 00:16:3e; an instance in a
vSwitch with an IPv6 CIDR has an IPv6 address too.

``on_route_added(cidr, instance_id)`` and ``on_route_removed(cidr, instance_id)`` may be plain or async
functions; ``cidr`` is an ``IPv4Network`` or ``IPv6Network``. An entry reads ``Available`` only after
``on_route_added`` returned, and is gone only after ``on_route_removed`` returned; if they raise, the table
stays as it was. They are called for custom entries only, not for the system's own, and not for what
``Region.load`` found: a fabric that starts reads ``region.route_entries`` first. In the same way
``on_interface_changed(before, after)`` is told of ENIs that are attached or detached, or that change their
addresses or groups: those of an ENI that is ``.plugged`` carry traffic, and a call is answered only after the
function returned.

The app answers OpenAPI calls on ``/``. Beside them, for the lab itself, ``GET /lab/calls`` lists every call
served, ``GET`` / ``PATCH /lab/behaviour`` shows and changes delays and limits, and ``POST`` / ``DELETE
/lab/faults`` injects faults and clears them; in a test, ``behaviour.faults`` may be changed at any time.
Run it without an access log (``AppRunner(app, access_log=None)``): the query of an RPC-signed call holds the
STS token.

A region belongs to the event loop that serves it: change it from there, or before serving starts. Tests that
have no loop serve it from a thread: ``with serving(build_app(region)) as endpoint: …``
"""

from terway_core.lab.api.injection import InjectedFault
from terway_core.lab.api.model import (
    AccessKey,
    Instance,
    NetworkInterface,
    RouteEntry,
    RouteTable,
    SecurityGroup,
    Vpc,
    VSwitch,
)
from terway_core.lab.api.region import Region
from terway_core.lab.api.server import CALLS, ServedCall, build_app
from terway_core.lab.api.service import REAL_LIMITS, Behaviour, InterfaceListener, RouteListener
from terway_core.lab.api.serving import serving

__all__ = [
    "AccessKey",
    "Behaviour",
    "CALLS",
    "InjectedFault",
    "Instance",
    "InterfaceListener",
    "NetworkInterface",
    "REAL_LIMITS",
    "Region",
    "RouteEntry",
    "RouteListener",
    "RouteTable",
    "SecurityGroup",
    "ServedCall",
    "VSwitch",
    "Vpc",
    "build_app",
    "serving",
]
