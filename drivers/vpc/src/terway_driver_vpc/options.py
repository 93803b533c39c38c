"""The driver's section of the configuration, ``options.vpc``."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from terway_core.config import Cidr


class Options(BaseModel):
    """What can be set for the vpc mode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pod_cidrs: tuple[Cidr, ...] = Field(
        min_length=1,
        max_length=2,
        description="This node's share of the pod range: IPv4, IPv6, or one of each. With Kubernetes it may "
        "be absent and is read from the node's object.",
    )
    cluster_cidrs: tuple[Cidr, ...] = Field(
        min_length=1, description="The pod range of the whole cluster; reached without NAT."
    )
    masquerade: bool = Field(
        True, description="Hide pod addresses behind the node's outside VPC and cluster."
    )
    route_controller: bool = Field(
        False, description="Keep the VPC's route entries for this node; otherwise somebody else does (CCM)."
    )
    route_table_id: str = Field(
        "", description="The route table to keep them in. Empty: the VPC's system table."
    )
    rest_seconds: float = Field(30, ge=0, description="How long an address rests before it is used again.")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        families = [cidr.version for cidr in self.pod_cidrs]
        if len(set(families)) < len(families):
            raise ValueError("pod_cidrs holds two CIDRs of one address family")
        for cidr in self.pod_cidrs:
            if not any(_inside(cidr, cluster) for cluster in self.cluster_cidrs):
                raise ValueError(f"pod CIDR {cidr} lies in none of cluster_cidrs")
        return self


def _inside(cidr: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    if isinstance(cidr, IPv4Network) and isinstance(other, IPv4Network):
        return cidr.subnet_of(other)
    if isinstance(cidr, IPv6Network) and isinstance(other, IPv6Network):
        return cidr.subnet_of(other)
    return False
