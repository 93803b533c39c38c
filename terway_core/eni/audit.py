"""Compares the pool's rows with the journal and the cloud, for ``terway audit``. Changes nothing."""

from __future__ import annotations

from terway_core.cloud import Cloud, ecs
from terway_core.config import PoolConfig
from terway_core.eni.ledger import Ledger
from terway_core.eni.machine import addresses_of
from terway_core.eni.model import Eni, EniAddress, EniState, Tags
from terway_core.errors import CloudError
from terway_core.store import Store
from terway_core.types import IPAddress

__all__ = ["audit_enis"]


def audit_enis(store: Store, cloud: Cloud, config: PoolConfig) -> list[str]:
    """Each difference in one line. A node that has no ENIs in its rows is not looked at.

    :raises StoreError: the journal cannot be read.
    """
    ledger = Ledger(store)
    enis, addresses = ledger.load()
    if not enis:
        return []
    found = _owners(enis, addresses, ledger.journalled())
    try:
        instance_id = cloud.metadata.identity().instance_id
        tags = Tags(cluster=config.cluster, instance_id=instance_id)
        tagged = ecs.describe_network_interfaces(cloud, tags=tags.ours)
        ids = [eni.eni_id for eni in enis if eni.eni_id]
        known = ecs.describe_network_interfaces(cloud, eni_ids=ids) if ids else []
    except CloudError as error:
        return [*found, f"cloud: cannot be asked: {error}"]
    ours = {eni.eni_id for eni in enis}
    found += [
        f"cloud: {eni.eni_id} was made by this node and is in no row"
        for eni in tagged
        if eni.eni_id not in ours
    ]
    actual = {eni.eni_id: eni for eni in known}
    for eni in enis:
        there = actual.get(eni.eni_id)
        if eni.state is not EniState.READY:
            found.append(f"enis: {eni.name} is {eni.state}" + (f": {eni.problem}" if eni.problem else ""))
        elif not there:
            found.append(f"cloud: {eni.eni_id} is in a row and not there")
        elif (there.instance_id, there.status) != (instance_id, "InUse"):
            where = f" at {there.instance_id}" if there.instance_id else ""
            found.append(f"cloud: {eni.eni_id} is {there.status}{where}, not InUse here")
        else:
            found += _addresses(eni, there, [row for row in addresses if row.token == eni.token])
    return found


def _owners(
    enis: list[Eni], addresses: list[EniAddress], leases: dict[str, tuple[IPAddress, ...]]
) -> list[str]:
    by_token = {eni.token: eni for eni in enis}
    owned = [(eni.name, eni.owner) for eni in enis]
    owned += [(f"{row.address} of {by_token[row.token].name}", row.owner) for row in addresses]
    found = [
        f"enis: {what} is owned by {owner}, which is in no row of the journal"
        for what, owner in owned
        if owner and owner not in leases
    ]
    owners = {row.address: row.owner or by_token[row.token].owner for row in addresses}
    return found + [
        f"journal: {owner} has {address}, which belongs to {owners[address] or 'nobody'}"
        for owner, leased in leases.items()
        for address in leased
        if owners.get(address, owner) != owner
    ]


def _addresses(eni: Eni, actual: ecs.NetworkInterface, rows: list[EniAddress]) -> list[str]:
    there = {address.address for address in addresses_of(eni, actual)}
    ours = {row.address for row in rows}
    return [
        *(f"cloud: {address} is on {eni.eni_id} and in no row" for address in sorted(there - ours, key=str)),
        *(
            f"cloud: {address} is in a row and not on {eni.eni_id}"
            for address in sorted(ours - there, key=str)
        ),
    ]
