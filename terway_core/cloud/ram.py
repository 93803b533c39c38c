"""The least RAM policy: what a node with a given configuration may need to call, and nothing else."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, Final

from terway_core.cloud import ecs, vpc
from terway_core.cloud.client import Feature
from terway_core.config import Config

#: What each mode needs, whatever its options.
_NEEDS: Final[dict[str, frozenset[Feature]]] = {
    "vpc": frozenset(),
    "eni": frozenset({"enis"}),
    "trunking": frozenset({"enis"}),  # of the control plane, too
    "eniip_veth": frozenset({"enis", "addresses"}),
    "eniip_ipvlan": frozenset({"enis", "addresses"}),
}


def features(config: Config) -> frozenset[Feature]:
    """What of terway the configured modes use; of a mode that is not known here, nothing is."""
    needed = frozenset[Feature]().union(*(_NEEDS.get(mode, ()) for mode in config.drivers))
    if "addresses" in needed and 6 in config.pool.families:
        needed |= {"ipv6"}
    if "vpc" in config.drivers and config.options.get("vpc", {}).get("route_controller"):
        needed |= {"routes"}
    return needed


def unknown(config: Config) -> tuple[str, ...]:
    """The configured modes of which it is not known what they call."""
    return tuple(mode for mode in config.drivers if mode not in _NEEDS)


def policy(needed: AbstractSet[Feature]) -> dict[str, Any]:
    """A policy document. For all resources: of ENIs that are yet to be made, none can be named."""
    tables = {"ecs": ecs.NEEDED_BY, "vpc": vpc.NEEDED_BY}
    actions = [
        f"{product}:{action}"
        for product, table in tables.items()
        for action, users in table.items()
        if not needed.isdisjoint(users)
    ]
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    return {"Version": "1", "Statement": [statement] if actions else []}
