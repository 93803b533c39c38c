"""What somebody needs to know to use a lab with tools of their own."""

from __future__ import annotations

from typing import Any

from terway_core.lab import fabric
from terway_core.lab.api import Region
from terway_core.lab.cluster import Cluster
from terway_core.lab.state import Lab


def describe(lab: Lab) -> dict[str, Any]:
    """Names, addresses, paths and credentials, as JSON.

    :raises LabError: there is no lab.
    """
    spec = lab.spec
    region = Region.load(lab.region_state)
    (vpc,) = region.vpcs.values()
    instances = {one.name: one for one in region.instances.values()}
    key = next(key for key in region.access_keys.values() if not key.security_token)
    return {
        "folder": str(lab.folder),
        "drivers": spec.drivers,
        "ip_stack": spec.ip_stack,
        "region": {
            "region_id": region.region_id,
            "endpoint": f"http://{fabric.OPENAPI}",
            "metadata_url": f"http://{fabric.METADATA}",
            "access_key_id": key.access_key_id,
            "access_key_secret": key.access_key_secret,
            "vpc_id": vpc.vpc_id,
            "route_table_id": vpc.route_table_id,
            "security_group_id": region.security_groups_of(vpc.vpc_id)[0].security_group_id,
            "vswitches": [
                f"{one.vswitch_id}={one.zone_id}={one.cidr}" for one in region.vswitches_of(vpc.vpc_id)
            ],
            "netns": str(lab.netns("switch")),
            "socket": str(lab.region_socket),
            "log": str(lab.region_log),
        },
        **({"kubernetes": _kubernetes(lab)} if spec.kubernetes != "none" else {}),
        "internet": {
            "netns": str(lab.netns("internet")),
            "addresses": [str(fabric.INTERNET_HOST)]
            + ([str(fabric.INTERNET_HOST_IPV6)] if vpc.ipv6_cidr else []),
        },
        "nodes": [
            {
                "name": node.name,
                "instance_id": instances[node.name].instance_id,
                "instance_type": instances[node.name].instance_type,
                "addresses": [
                    str(address)
                    for address in (instances[node.name].private_ip, instances[node.name].ipv6)
                    if address
                ],
                "netns": str(node.netns),
                "config": str(node.config),
                "socket": str(node.socket),
                "cni_bin_dir": str(node.cni_bin_dir),
                "cni_conf_dir": str(node.cni_conf_dir),
                "state_dir": str(node.state_dir),
                "log": str(node.log),
            }
            for node in lab.nodes
        ],
    }


def _kubernetes(lab: Lab) -> dict[str, str]:
    return {
        "kind": lab.spec.kubernetes,
        "server": Cluster(lab).server,
        "kubeconfig": str(lab.kubeconfig),
        "netns": str(lab.netns("switch")),
    }
