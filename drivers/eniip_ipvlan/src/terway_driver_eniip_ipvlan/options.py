"""The driver's section of the configuration, ``options.eniip_ipvlan``."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """What can be set for the eniip_ipvlan mode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cilium_chaining: bool = Field(
        False, description="Chain cilium-cni after the plugin: Services and network policy are Cilium's."
    )
    host_stack_cidrs: tuple[IPv4Network | IPv6Network, ...] = Field(
        (),
        description="More destinations that go through the host's stack (169.254.20.10/32: node-local DNS).",
    )
    masquerade: bool = Field(
        True,
        description="Give the node's address to what the host's stack sends on for pods; false leaves that to"
        " kube-proxy (`masqueradeAll`).",
    )
