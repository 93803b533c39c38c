"""Compares the pool's rows with the journal and the cloud, for ``terway audit``. Changes nothing."""

from __future__ import annotations

from terway_core.cloud import Cloud, ecs
from terway_core.config import PoolConfig
from terway_core.eni.ledger import Ledger
from terway_core.eni.machine import addresses_of
from terway_core.eni.model import Eni, EniAddress, EniState, Tags
from terway_core.errors import CloudError
from terway_core.store import Store

__all__ = ["audit_enis"]


def audit_enis(store: Store, cloud: Cloud, config: PoolConfig) -> list[str]:
    """Each difference in one line. A node that has no ENIs in its rows is not looked at.

    :raises StoreError: the journal cannot be read.
    """
    ledger = Ledger(store)
    enis, addresses = ledger.load()
    if not enis:
        return []
    found = _owners(enis, addresses, set(ledger.journalled()))
    try:
        tags = Tags(cluster=config.cluster, instance_id=cloud.metadata.identity().instance_id)
        actual = {eni.eni_id: eni for eni in ecs.describe_network_interfaces(cloud, tags=tags.ours)}
    except CloudError as error:
        return [*found, f"cloud: cannot be asked: {error}"]
    known = {eni.eni_id: eni for eni in enis if eni.eni_id}
    for eni_id in sorted(set(actual) - set(known)):
        found.append(f"cloud: {eni_id} was made by this node and is in no row")
    for eni in enis:
        if eni.state is not EniState.READY:
            found.append(f"enis: {eni.name} is {eni.state}" + (f": {eni.problem}" if eni.problem else ""))
        elif eni.eni_id not in actual:
            found.append(f"cloud: {eni.eni_id} is in a row and not there")
        else:
            found += _addresses(eni, actual[eni.eni_id], [a for a in addresses if a.token == eni.token])
    return found


def _owners(enis: list[Eni], addresses: list[EniAddress], journalled: set[str]) -> list[str]:
    names = {eni.token: eni.name for eni in enis}
    owned = [(f"{eni.name}", eni.owner) for eni in enis]
    owned += [(f"{row.address} of {names.get(row.token, row.token)}", row.owner) for row in addresses]
    return [
        f"enis: {what} is owned by {owner}, which is in no row of the journal"
        for what, owner in owned
        if owner and owner not in journalled
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
