"""The journal: one SQLite file that says what was promised to whom.

Every side effect of an attachment is written here before it happens, so that a start after ``kill -9`` can
finish or undo it. The daemon is the only one that writes attachments, so it knows them without asking the
file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from terway_core.database import Database, Statement
from terway_core.errors import StoreError
from terway_core.record import COLUMNS, Record, State, decode, encode, encode_rest
from terway_core.types import Attachment, AttachmentKey

__all__ = ["SCHEMA_VERSION", "Store"]

SCHEMA_VERSION = 2
# Attachments have row ids: the wiring makes a row too long for a page of an index, and what is left over, on
# other pages, would be written with each change of the state.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS attachments (
    network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
    driver TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, netns_id INTEGER NOT NULL,
    attachment TEXT NOT NULL, lease TEXT, wiring TEXT, problem TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (network, container_id, ifname)
);
CREATE TABLE IF NOT EXISTS addresses (
    pool TEXT NOT NULL, address TEXT NOT NULL, owner TEXT, rests_until REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (pool, address)
) WITHOUT ROWID;
"""
# Version 1 also had the pod's name in columns of their own, and looked for an address by its owner.
_FROM_1 = "ALTER TABLE attachments RENAME TO attachments_1; DROP INDEX IF EXISTS addresses_by_owner;"
_FROM_1_ROWS = f"""
INSERT INTO attachments (network, container_id, ifname, {COLUMNS})
    SELECT network, container_id, ifname, {COLUMNS} FROM attachments_1;
DROP TABLE attachments_1;
"""
_WHERE_KEY = "WHERE network=? AND container_id=? AND ifname=?"
_INSERT = (
    f"INSERT OR REPLACE INTO attachments (network, container_id, ifname, {COLUMNS}) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE = (
    "UPDATE attachments SET driver=?, state=?, created=?, netns_id=?, lease=?, wiring=?, problem=? "
    f"{_WHERE_KEY}"
)
#: Namespace, name, and the interface's.
_PodName = tuple[str, str, str]


class Store(Database):
    """The journal in ``path``; safe for use by many threads, and by readers in other processes.

    An attachment is changed by one caller at a time. When the file was damaged (``was_damaged``) the daemon
    takes in from the kernel what still runs.

    :raises StoreError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._records: dict[AttachmentKey, Record] = {}
        self._sandboxes: dict[_PodName, list[AttachmentKey]] = {}
        super().__init__(path, read_only=read_only)
        if read_only:
            self.records()  # fail now, not at the first question

    def put(self, record: Record, *, durable: bool = True) -> None:
        """Write a whole row, new or in place of the old one."""
        key = record.key
        known = self._records.get(key)
        if known and known.attachment is record.attachment:
            change = Statement(_UPDATE, (*encode_rest(record), *key))
        else:
            change = Statement(_INSERT, (*key, *encode(record)))
        self.write(change, durable=durable)
        self._remember(record)

    def advance(self, record: Record, state: State, *, problem: str = "") -> Record:
        """Write that ``record`` is in ``state`` now. Not durable.

        The rest of the row stays, but for the wiring of one that is releasing: that is gone by then, and what
        looks like it belongs to somebody else.
        """
        return self.advance_all([record], state, problem=problem)[0]

    def advance_all(self, records: Sequence[Record], state: State, *, problem: str = "") -> list[Record]:
        """The same for many: all of them or none."""
        if not records:
            return []
        releasing = state is State.RELEASING
        sql = f"UPDATE attachments SET state=?, problem=?{', wiring=NULL' if releasing else ''} {_WHERE_KEY}"
        self.write(
            Statement(sql, *((state.value, problem, *record.key) for record in records)), durable=False
        )
        advanced = [
            replace(record, state=state, problem=problem, wiring=None if releasing else record.wiring)
            for record in records
        ]
        for record in advanced:
            self._remember(record)
        return advanced

    def remove(self, key: AttachmentKey) -> None:
        """The attachment is gone. Not durable: a row that comes back is one whose pod a power cut ended."""
        self.write(Statement(f"DELETE FROM attachments {_WHERE_KEY}", key), durable=False)
        with self._lock:
            self._forget(key)

    def get(self, key: AttachmentKey) -> Record | None:
        """The row of one attachment."""
        return self._known().get(key)

    def records(self) -> list[Record]:
        """All rows, oldest first."""
        return sorted(self._known().values(), key=lambda record: record.created)

    def find(self, attachment: Attachment) -> tuple[Record | None, list[Record]]:
        """The row of an attachment, and rows of other sandboxes for the same interface of the same pod: their
        runtime has replaced them.

        On whatever network: that may have another name since, the host's end of the link has not.
        """
        key, known = attachment.key, self._known()
        with self._lock:
            sandboxes = self._sandboxes.get(_pod_name(attachment), ()) if attachment.pod.name else ()
            others = [known[other] for other in sandboxes if other.container_id != key.container_id]
        return known.get(key), others

    def _known(self) -> dict[AttachmentKey, Record]:
        if self._closed:
            raise StoreError(f"the journal {self.path} is closed")
        if self.read_only:
            with self.read() as db:
                self._load(db)
        return self._records

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"the journal {self.path} was written by a newer terway (schema {version}, this one "
                f"knows {SCHEMA_VERSION}); install that version again or a newer one"
            )
        if version < SCHEMA_VERSION:
            steps = (_FROM_1, _SCHEMA, _FROM_1_ROWS) if version == 1 else (_SCHEMA,)
            db.executescript(f"BEGIN; {' '.join(steps)} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        for (address,) in db.execute("SELECT address FROM addresses"):
            ip_address(address)  # SQLite checks its pages, but does not know what the bytes in them mean
        self._load(db)

    def _load(self, db: sqlite3.Connection) -> None:
        try:
            rows = db.execute(f"SELECT {COLUMNS} FROM attachments").fetchall()
            records = [decode(row) for row in rows]
        except ValueError as error:
            if self.read_only:
                raise StoreError(f"a row of the journal {self.path} cannot be decoded: {error}") from error
            raise
        self._records.clear()
        self._sandboxes.clear()
        for record in records:
            self._remember(record)

    def _remember(self, record: Record) -> None:
        key = record.key
        with self._lock:
            former = self._records.get(key)
            if former is None or _pod_name(former.attachment) != _pod_name(record.attachment):
                self._forget(key)
                self._sandboxes.setdefault(_pod_name(record.attachment), []).append(key)
            self._records[key] = record

    def _forget(self, key: AttachmentKey) -> None:
        """Call it with the lock."""
        if former := self._records.pop(key, None):
            name = _pod_name(former.attachment)
            self._sandboxes[name].remove(key)
            if not self._sandboxes[name]:
                del self._sandboxes[name]


def _pod_name(attachment: Attachment) -> _PodName:
    return attachment.pod.namespace, attachment.pod.name, attachment.ifname
