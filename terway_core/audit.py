"""Compares what should be with what is: journal, addresses, spool, kernel, cloud, and the pods of Kubernetes.

Works with and without a daemon, and changes nothing. While pods come and go a difference may be one that is
just being made; what is still there the second time is real.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface

from terway_core.cloud import Cloud
from terway_core.config import Config
from terway_core.eni.audit import audit_enis
from terway_core.errors import IOFailure
from terway_core.record import Record, State
from terway_core.store import Store
from terway_core.wiring.inspect import HostState, diff_pod
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import Wiring

__all__ = ["audit"]


def audit(config: Config) -> list[str]:
    """Each difference in one line; empty when all agree.

    :raises StoreError: the journal cannot be read. :raises WiringError: the kernel cannot be.
    """
    found = [f"spool: {path.name} has not been carried out" for path in sorted(config.spool.glob("*.del"))]
    state = HostState.read()  # before the journal: see HostState
    records: list[Record] = []
    if config.database.exists():
        store = Store(config.database, read_only=True)
        try:
            records = store.records()
            found += _addresses(store, records)
            found += audit_enis(store, Cloud(config.cloud), config.pool)
        finally:
            store.close()
    wirings = [record.wiring for record in records if record.wiring]
    host = HostState.read()  # and after it, so that it has what a new row declares
    shared = dict.fromkeys(obj for wiring in wirings for obj in wiring.node)
    found += (f"kernel: {difference}" for difference in host.diff(Wiring(node=tuple(shared))))
    for record in records:
        found += _attachment(record, host)
    if config.kube.enabled:
        from terway_core.kube.check import audit_pods

        found += audit_pods(config, records)
    found += (f"kernel: {stray.description} belongs to no attachment" for stray in state.strays(wirings))
    return found


def _attachment(record: Record, host: HostState) -> Iterator[str]:
    who = _name(record)
    if record.state is not State.READY:
        yield f"journal: {who} is {record.state}" + (f": {record.problem}" if record.problem else "")
        return
    if record.wiring is None:
        yield f"journal: {who} is ready but has no wiring"
        return
    differences = host.diff(replace(record.wiring, node=()), owner=record.owner)
    if record.attachment.netns:  # otherwise taken in from the kernel: only its host side is known
        try:
            with Namespace.open(record.attachment.netns) as pod:
                if record.netns_id not in (0, pod.identity):
                    yield f"journal: {who}: another network namespace is at {record.attachment.netns}"
                    return
                differences += diff_pod(record.wiring, pod)
        except IOFailure as error:
            yield f"journal: {who}: {error}"
            return
    yield from (f"kernel: {who}: {difference}" for difference in differences)


def _addresses(store: Store, records: list[Record]) -> Iterator[str]:
    with store.read() as db:
        owned = {
            (owner, ip_address(address))
            for owner, address in db.execute("SELECT owner, address FROM addresses WHERE owner IS NOT NULL")
        }
        leases = {
            (f"{network}/{container_id}/{ifname}", ip_interface(text).ip)
            for network, container_id, ifname, lease in db.execute(
                "SELECT network, container_id, ifname, lease FROM attachments WHERE lease IS NOT NULL"
            )
            for text in json.loads(lease)["addresses"]
        }
    known = {str(record.key) for record in records}
    yield from (
        f"addresses: {address} is owned by {owner}, which is in no row of the journal"
        for owner, address in sorted(owned, key=str)
        if owner not in known
    )
    seen: dict[object, str] = {}
    for owner, address in sorted(leases, key=str):
        if address in seen:
            yield f"addresses: {address} is leased to {seen[address]} and to {owner}"
        seen[address] = owner


def _name(record: Record) -> str:
    pod = record.attachment.pod
    return f"{pod.namespace}/{pod.name} ({record.key})" if pod.name else str(record.key)
