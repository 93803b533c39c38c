"""Keeps the VPC's route entries that lead the node's pod CIDRs to the node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from terway_core.cloud import Cloud, vpc
from terway_core.types import IPNetwork

#: Seconds after which entries that were right are looked at again; somebody may have removed them.
RECHECK: Final = 600.0


class RouteKeeper:
    """Writes what is missing; an entry for our CIDR that leads elsewhere is an error, never overwritten.

    :param table_id: the route table; ``""`` is the system table of the instance's VPC.
    """

    def __init__(
        self, cloud: Cloud, cidrs: Sequence[IPNetwork], table_id: str, clock: Callable[[], float]
    ) -> None:
        self._cloud = cloud
        self._cidrs = cidrs
        self._table_id = table_id
        self._clock = clock
        self._checked: float | None = None

    def keep(self) -> None:
        """Make sure of the entries, unless they were right a short while ago.

        :raises CloudError: the metadata or the API refused or did not answer.
        """
        now = self._clock()
        if self._checked is not None and 0 <= now - self._checked < RECHECK:
            return
        identity = self._cloud.metadata.identity()
        if not self._table_id:
            self._table_id = vpc.find_system_route_table(self._cloud, identity.vpc_id).table_id
        present = {
            entry.destination
            for entry in vpc.list_route_entries(self._cloud, self._table_id)
            if entry.leads_to(identity.instance_id) and entry.status == "Available"
        }
        for cidr in self._cidrs:
            if cidr not in present:
                vpc.create_route_entry(
                    self._cloud, self._table_id, cidr, identity.instance_id, name="terway-pod-cidr"
                )
        self._checked = now
