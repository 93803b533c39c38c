"""The driver's section of the configuration, ``options.eni``."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """What can be set for the eni mode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host_peer: bool = Field(
        True,
        description="Give each pod `veth1`, by which Services and `host_stack_cidrs` go through the host.",
    )
    every_pod: bool = Field(
        False,
        description="With Kubernetes: serve pods that do not request `aliyun/eni`, too.",
    )
    host_stack_cidrs: tuple[IPv4Network | IPv6Network, ...] = Field(
        (),
        description="More destinations that go through the host's stack (169.254.20.10/32: node-local DNS).",
    )
