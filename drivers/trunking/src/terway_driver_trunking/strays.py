"""ENIs that carry our tags and belong to no PodENI: what somebody lost by removing objects without us."""

from __future__ import annotations

import logging

from terway_core.cloud.ecs import NetworkInterface
from terway_core.errors import CloudError
from terway_core.kube import KubeClient
from terway_driver_trunking.api import OWNER_TAG, PODENIS, allocation
from terway_driver_trunking.members import Members

log = logging.getLogger(__name__)


class Strays:
    """Deletes what two rounds in a row found to be nobody's."""

    def __init__(self, client: KubeClient, members: Members) -> None:
        self._client = client
        self._members = members
        self._suspects: frozenset[str] = frozenset()

    def round(self) -> list[str]:
        """One round; the ids of the ENIs that were detached or deleted.

        :raises CloudError: the cloud does not tell which there are. :raises KubeError: nor the API server.
        """
        # In this order: what is made in between has its PodENI before it has its tags.
        tagged = self._members.all()
        named = {
            podeni["metadata"]["uid"]: allocation(podeni).get("eni", {}).get("id", "")
            for podeni in self._client.list(PODENIS).items
        }
        ids = set(named.values())

        def is_stray(eni: NetworkInterface) -> bool:
            if eni.eni_id in ids:
                return False
            # Of one that names no ENI yet, any that carries its UID may be about to be recorded.
            return bool(named.get(eni.tags.get(OWNER_TAG, ""), "gone"))

        strays = [eni for eni in tagged if is_stray(eni)]
        taken = []
        for eni in strays:
            if eni.eni_id not in self._suspects:
                continue
            try:
                self._members.delete(eni)
            except CloudError as error:
                log.warning("stray ENI is still there", extra={"eni": eni.eni_id, "problem": str(error)})
            else:
                log.info("stray ENI", extra={"eni": eni.eni_id, "status": eni.status})
                taken.append(eni.eni_id)
        self._suspects = frozenset(eni.eni_id for eni in strays)
        return taken
