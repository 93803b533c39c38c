"""Instance types, and what of ENIs and addresses they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class InstanceType:
    """One type.

    :param enis: attached to the instance itself, the primary one included.
    :param total_enis: members of its trunk included.
    :param ipv4: per ENI, the primary address included; a prefix counts as one.
    :param memory: GiB.
    """

    name: str
    enis: int
    total_enis: int
    ipv4: int
    ipv6: int
    trunk: bool
    cores: int
    memory: int


#: ENIs and IPv4 addresses as the ECS documentation has them (instance families, 2021), and the quotas that
#: clients report of the largest. It has no IPv6 quota but that of g6.large, and says of none here but the
#: largest whether it can have a trunk: those of g7 are plausible, no more.
INSTANCE_TYPES: Final = {
    one.name: one
    for one in (
        InstanceType("ecs.g6.large", 2, 2, 6, 1, trunk=False, cores=2, memory=8),
        InstanceType("ecs.g7.large", 3, 3, 6, 6, trunk=False, cores=2, memory=8),
        InstanceType("ecs.g7.xlarge", 4, 4, 15, 15, trunk=False, cores=4, memory=16),
        InstanceType("ecs.g7.4xlarge", 8, 40, 30, 30, trunk=True, cores=16, memory=64),
        InstanceType("ecs.ebmre7p.32xlarge", 32, 110, 15, 1, trunk=True, cores=128, memory=2048),
    )
}


def instance_type(name: str) -> InstanceType:
    """The type called ``name``; one that is not known here holds the primary ENI and nothing else."""
    return INSTANCE_TYPES.get(name) or InstanceType(name, 1, 1, 1, 0, trunk=False, cores=1, memory=1)
