"""The pool's rows in the journal."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, fields
from ipaddress import ip_address, ip_network

from pydantic import TypeAdapter

from terway_core.database import Statement
from terway_core.eni.model import Eni, EniAddress, Holds, Limits
from terway_core.record import State
from terway_core.store import Store
from terway_core.types import AttachmentKey, IPAddress

_SCHEMA = """
CREATE TABLE IF NOT EXISTS enis (token TEXT PRIMARY KEY, eni TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS eni_addresses (
    address TEXT PRIMARY KEY, token TEXT NOT NULL, block TEXT NOT NULL, is_primary INTEGER NOT NULL,
    owner TEXT NOT NULL, rests_until REAL NOT NULL, leaving INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS eni_facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_PUT = "INSERT OR REPLACE INTO eni_addresses VALUES (?, ?, ?, ?, ?, ?, ?)"

_eni: TypeAdapter[Eni] = TypeAdapter(Eni)


class Ledger:
    """Reads and writes rows. What it has written is on disk when it returns, but for who has an address: that
    a durable write follows, be it of the lease or of what becomes of the address next.

    An address has one row, so two owners cannot even be written down.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        if store.read_only:
            return
        store.write(
            lambda db: [db.execute(statement) for statement in _SCHEMA.split(";") if statement.strip()]
        )

    def load(self) -> tuple[list[Eni], list[EniAddress]]:
        """All rows; none when nobody has written any yet."""
        with self._store.read() as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name='eni_addresses'").fetchone():
                return [], []
            enis = [_eni.validate_json(text) for (text,) in db.execute("SELECT eni FROM enis")]
            addresses = [
                EniAddress(
                    token=token,
                    address=ip_address(address),
                    block=ip_network(block) if block else None,
                    primary=bool(primary),
                    owner=owner,
                    rests_until=rests_until,
                    leaving=bool(leaving),
                )
                for address, token, block, primary, owner, rests_until, leaving in db.execute(
                    "SELECT address, token, block, is_primary, owner, rests_until, leaving FROM eni_addresses"
                )
            ]
        return enis, addresses

    def put(self, eni: Eni, addresses: Iterable[EniAddress] = ()) -> None:
        """Write an ENI, and addresses with it, at once."""
        rows = [_row(address) for address in addresses]

        def change(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO enis VALUES (?, ?)", (eni.token, _eni.dump_json(eni).decode()))
            _put(db, rows)

        self._store.write(change)

    def put_addresses(self, addresses: Iterable[EniAddress], *, durable: bool = True) -> None:
        """Write addresses, new or changed.

        :param durable: False when only whose they are has changed.
        """
        self._store.write(Statement(_PUT, *map(_row, addresses)), durable=durable)

    def remove(self, token: str) -> None:
        """An ENI is gone, and with it its addresses."""

        def change(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM eni_addresses WHERE token=?", (token,))
            db.execute("DELETE FROM enis WHERE token=?", (token,))

        self._store.write(change)

    def remove_addresses(self, addresses: Iterable[IPAddress]) -> None:
        """Addresses are no longer ours."""
        rows = [(str(address),) for address in addresses]
        self._store.write(Statement("DELETE FROM eni_addresses WHERE address=?", *rows))

    def give_back(self, owner: str, addresses: Iterable[IPAddress], rests_until: float) -> None:
        """The owner's addresses rest. What is somebody else's by now stays his."""
        sql = "UPDATE eni_addresses SET owner='', rests_until=? WHERE address=? AND owner=?"
        rows = [(rests_until, str(address), owner) for address in addresses]
        self._store.write(Statement(sql, *rows), durable=False)

    def journalled(self) -> dict[str, tuple[IPAddress, ...]]:
        """Owner → addresses, for each attachment in the journal; none without a lease, or when that is
        being given back: by then nobody uses them."""
        with self._store.read() as db:
            rows = db.execute(
                "SELECT network, container_id, ifname, CASE WHEN state<>? THEN lease END FROM attachments",
                (State.RELEASING.value,),
            ).fetchall()
        return {
            str(AttachmentKey(network, container_id, ifname)): tuple(
                ip_address(text.partition("/")[0])
                for text in (json.loads(lease)["addresses"] if lease else ())
            )
            for network, container_id, ifname, lease in rows
        }

    # -- facts --------------------------------------------------------------------------------------------

    @property
    def holds(self) -> Holds:
        """The operator's switches; they outlive a restart."""
        found = self._fact("holds")
        return Holds(**json.loads(found)) if found else Holds()

    @holds.setter
    def holds(self, holds: Holds) -> None:
        self._set_fact("holds", json.dumps(asdict(holds)))

    def limits(self, instance_type: str) -> Limits | None:
        """What the API said of the instance type the last time it was asked."""
        found = json.loads(self._fact(f"limits {instance_type}") or "{}")
        # An older version has not asked for everything.
        return Limits(**found) if found.keys() == {field.name for field in fields(Limits)} else None

    def remember_limits(self, limits: Limits) -> None:
        """Keep them for a start at which the API does not answer."""
        self._set_fact(f"limits {limits.instance_type}", json.dumps(asdict(limits)))

    def _fact(self, name: str) -> str:
        with self._store.read() as db:
            row = db.execute("SELECT value FROM eni_facts WHERE name=?", (name,)).fetchone()
        return row[0] if row else ""

    def _set_fact(self, name: str, value: str) -> None:
        self._store.write(
            lambda db: db.execute("INSERT OR REPLACE INTO eni_facts VALUES (?, ?)", (name, value))
        )


_Row = tuple[str, str, str, int, str, float, int]


def _row(address: EniAddress) -> _Row:
    return (
        str(address.address),
        address.token,
        str(address.block or ""),
        int(address.primary),
        address.owner,
        address.rests_until,
        int(address.leaving),
    )


def _put(db: sqlite3.Connection, rows: list[_Row]) -> None:
    db.executemany(_PUT, rows)
