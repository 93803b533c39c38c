"""Member ENIs in the cloud: made, attached to a trunk, detached and deleted, each step as often as one likes.

Only ENIs that carry our tags are ever touched: a PodENI may name whatever its author wrote there.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from terway_core.cloud import Cloud, ecs
from terway_core.cloud.ecs import NetworkInterface
from terway_core.errors import RetryLater
from terway_driver_trunking.api import CLUSTER_TAG, CREATOR, CREATOR_TAG, OWNER_TAG, TRUNK_ON

#: Seconds for which it is believed which trunk a node has.
BELIEVED: Final = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Trunk:
    """A node's trunk ENI."""

    eni_id: str
    instance_id: str
    zone_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """An ENI to be made.

    :param owner: UID of the PodENI. :param name: shown in the cloud's console.
    :param outlives: it stays when the instance is released, for an address that is kept.
    """

    owner: str
    name: str
    vswitch_id: str
    security_group_ids: Sequence[str]
    outlives: bool


@dataclass(slots=True)
class Members:
    """The member ENIs of one cluster.

    :param tags: more tags for new ones.
    """

    cloud: Cloud
    cluster: str
    tags: Mapping[str, str] = field(default_factory=dict)
    ipv6: bool = False
    monotonic: Callable[[], float] = time.monotonic
    _trunks: dict[str, tuple[float, Trunk]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ours(self) -> dict[str, str]:
        """The tags by which we know our own."""
        return {CREATOR_TAG: CREATOR, CLUSTER_TAG: self.cluster}

    def create(self, wanted: Wanted) -> NetworkInterface:
        """Make an ENI; the same wish again, also of another process, gives the same ENI.

        :raises CloudError: codes ``EXHAUSTED_VSWITCH``, ``ENI_QUOTA``, and others.
        """
        params: dict[str, Any] = {
            "vswitch_id": wanted.vswitch_id,
            "security_group_ids": list(wanted.security_group_ids),
            "tags": {**self.tags, **self.ours, OWNER_TAG: wanted.owner},
            "name": wanted.name[:128],
            "ipv6_count": int(self.ipv6),
            "delete_on_release": not wanted.outlives,
        }
        # Of all that is asked for: the service refuses a token that comes with other parameters.
        token = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(params, sort_keys=True))
        return ecs.create_network_interface(self.cloud, client_token=str(token), **params)

    def find(self, owner: str, eni_id: str = "") -> list[NetworkInterface]:
        """The ENIs of a PodENI: those that carry its UID, and the one it names if that is ours."""
        found = ecs.describe_network_interfaces(self.cloud, tags={**self.ours, OWNER_TAG: owner})
        if eni_id and eni_id not in {eni.eni_id for eni in found}:
            found += [one for one in self._look(eni_id) if self.is_ours(one)]
        return found

    def get(self, eni_id: str) -> NetworkInterface | None:
        """One of ours; None: there is none, or it is not ours."""
        return next((one for one in self._look(eni_id) if self.is_ours(one)), None)

    def is_ours(self, eni: NetworkInterface) -> bool:
        """Whether it carries our tags."""
        return self.ours.items() <= eni.tags.items()

    def all(self) -> list[NetworkInterface]:
        """All of this cluster."""
        return ecs.describe_network_interfaces(self.cloud, tags=self.ours)

    def attach(self, eni: NetworkInterface, trunk: Trunk) -> bool:
        """One step towards being a member of ``trunk``; True when it is. From another place it is detached
        first.

        :raises CloudError: codes ``ENI_QUOTA``, and others.
        """
        match eni.status:
            case "InUse" if (eni.instance_id, eni.trunk_eni_id) == (trunk.instance_id, trunk.eni_id):
                return True
            case "InUse":
                self.detach(eni)
            case "Available":
                try:
                    ecs.attach_network_interface(
                        self.cloud, eni.eni_id, trunk.instance_id, trunk_eni_id=trunk.eni_id
                    )
                except RetryLater:
                    self._forget(trunk)
                    raise
        return False

    def detach(self, eni: NetworkInterface, *, stuck: bool = False) -> bool:
        """One step towards ``Available``; True when it is.

        :param stuck: it has been on its way for long: ask once more, as the API's documentation advises.
        """
        if eni.status == "InUse" or (stuck and eni.status == "Detaching"):
            ecs.detach_network_interface(
                self.cloud, eni.eni_id, eni.instance_id, trunk_eni_id=eni.trunk_eni_id
            )
        return eni.status == "Available"

    def delete(self, eni: NetworkInterface, *, stuck: bool = False) -> None:
        """One step towards being gone."""
        if self.detach(eni, stuck=stuck) or (stuck and eni.status == "Deleting"):
            ecs.delete_network_interface(self.cloud, eni.eni_id)

    def trunk_of(self, node: Mapping[str, Any]) -> Trunk:
        """The trunk ENI of a node, which the node's own daemon makes.

        :raises RetryLater: it has none, or not yet.
        """
        name = node["metadata"]["name"]
        told = (node["metadata"].get("annotations") or {}).get(TRUNK_ON, "")
        # region.instance, as the cloud controller manager writes it.
        instance = str(node.get("spec", {}).get("providerID") or "").rpartition("/")[2].rpartition(".")[2]
        if not told and not instance:
            raise RetryLater(
                f"node {name} says neither which instance it is (spec.providerID) nor which trunk ENI it has "
                f"(annotation {TRUNK_ON}); its daemon with the driver trunking writes the latter"
            )
        key = told or instance
        with self._lock:
            asked, trunk = self._trunks.get(key, (0.0, None))
            if trunk and self.monotonic() - asked < BELIEVED:
                return trunk
        if told:
            found = ecs.describe_network_interfaces(self.cloud, eni_ids=[told])
        else:
            found = ecs.describe_network_interfaces(self.cloud, instance_id=instance, type="Trunk")
        eni = next((one for one in found if (one.type, one.status) == ("Trunk", "InUse")), None)
        if eni is None:
            raise RetryLater(
                f"node {name} ({key}) has no trunk ENI; see that its daemon runs with the driver trunking, "
                "and that its instance type supports trunks"
            )
        trunk = Trunk(eni_id=eni.eni_id, instance_id=eni.instance_id, zone_id=eni.zone_id)
        with self._lock:
            self._trunks[key] = self.monotonic(), trunk
        return trunk

    def _look(self, eni_id: str) -> list[NetworkInterface]:
        return ecs.describe_network_interfaces(self.cloud, eni_ids=[eni_id])

    def _forget(self, trunk: Trunk) -> None:
        """It may not be the node's trunk any more."""
        with self._lock:
            self._trunks = {key: known for key, known in self._trunks.items() if known[1] != trunk}
