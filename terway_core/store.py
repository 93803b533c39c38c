"""The journal: one SQLite file that says what was promised to whom.

Every side effect of an attachment is written here before it happens, so that a start after ``kill -9`` can
finish or undo it. One caller writes at a time, for all who wait, in one transaction, and none waits for a
thread to wake up. What is written is with the kernel, where no end of the process can harm it.

A *durable* write returns only after a sync, of which many share one. A power cut may undo others, but none
without undoing all that were written after it. They are for what a power cut makes untrue anyway, because it
ends all pods, and for what a sync follows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from terway_core.errors import StoreError
from terway_core.syncer import Syncer
from terway_core.types import Attachment, AttachmentKey, Lease
from terway_core.wiring.objects import Wiring

log = logging.getLogger(__name__)
T = TypeVar("T")

SCHEMA_VERSION = 1
#: Transactions after which the write-ahead log is brought into the tables, beside whoever writes meanwhile.
CHECKPOINT_EVERY = 100
#: Seconds between attempts to get to the log's end while others write on, and how many there are.
CHECKPOINT_PAUSE, CHECKPOINT_ATTEMPTS = 0.05, 100
#: Pages of the log (of 4 KiB) at which a writer has to do it, because it never came to an end.
LONGEST_LOG = 10_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS attachments (
    network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
    namespace TEXT NOT NULL, name TEXT NOT NULL,
    driver TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, netns_id INTEGER NOT NULL,
    attachment TEXT NOT NULL, lease TEXT, wiring TEXT, problem TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (network, container_id, ifname)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS attachments_by_pod ON attachments (namespace, name);
CREATE TABLE IF NOT EXISTS addresses (
    pool TEXT NOT NULL, address TEXT NOT NULL, owner TEXT, rests_until REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (pool, address)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS addresses_by_owner ON addresses (pool, owner);
"""

_COLUMNS = "attachment, driver, state, created, netns_id, lease, wiring, problem"
#: What these have in one row.
_Row = tuple[str, str, str, float, int, str | None, str | None, str]
#: Namespace, name, and the interface's.
_PodName = tuple[str, str, str]

_attachment: TypeAdapter[Attachment] = TypeAdapter(Attachment)
_lease: TypeAdapter[Lease] = TypeAdapter(Lease)
_wiring: TypeAdapter[Wiring] = TypeAdapter(Wiring)


class State(StrEnum):
    """Where an attachment is on its way. A state is written before the work that it names begins."""

    ALLOCATING = "allocating"
    WIRING = "wiring"
    READY = "ready"
    UNWIRING = "unwiring"
    RELEASING = "releasing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row of the journal. A row that is gone is the last state.

    :param driver: the mode that served the ADD and therefore serves the DEL.
    :param created: seconds since the epoch.
    :param netns_id: tells the pod's namespace from a later one at the same path; 0 when it is not known.
    :param problem: why the last step failed; ``""`` when it did not.
    """

    attachment: Attachment
    driver: str
    state: State
    created: float
    netns_id: int = 0
    lease: Lease | None = None
    wiring: Wiring | None = None
    problem: str = ""

    @property
    def key(self) -> AttachmentKey:
        """What the runtime knows the attachment by."""
        return self.attachment.key

    @property
    def owner(self) -> str:
        """What its links on the host say they belong to: enough to take them in when the journal is lost."""
        return f"{self.driver}:{self.key}"


class _Change:
    """A write that waits for its transaction. ``turn`` is released when it is done, or first in line."""

    def __init__(self, function: Callable[[sqlite3.Connection], object]) -> None:
        self.function = function
        self.result: object = None
        self.error: BaseException | None = None
        self.done = False
        self.turn = threading.Lock()
        self.turn.acquire()


class Store:
    """The journal in ``path``; safe for use by many threads, and by readers in other processes.

    A damaged file is kept beside itself (``….damaged-TIME``) and a new one begun; ``was_damaged`` then holds
    its path, and the daemon takes in from the kernel what still runs.

    :raises StoreError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._line: list[_Change] = []
        self._writing = False
        self._unchecked = 0  # transactions since the last checkpoint
        self._checkpoint = threading.Thread(target=self._write_checkpoint, daemon=True)
        self._closing = threading.Event()
        self.was_damaged: Path | None = None
        self.read_only = read_only
        self._closed = False
        self._decoded: dict[AttachmentKey, tuple[_Row, Record]] = {}  # rows as they were the last time
        self._named: dict[AttachmentKey, _PodName] = {}  # at least those that have a row
        self._names: Counter[_PodName] = Counter()  # how many have each
        self._readers: list[sqlite3.Connection] = []  # those that nobody uses at the moment
        self._lock = threading.Lock()
        self._durable = 0  # writes that are not on disk yet
        self._settled = threading.Condition(self._lock)
        if read_only:
            self.records()  # fail now, not at the first question
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._writer = self._open_writer()
            self._syncer = Syncer(path.with_name(f"{path.name}-wal"))
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"the journal {path} cannot be opened: {error}") from error

    def close(self) -> None:
        """Finish what is queued and close the file."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for reader in self._readers:
                reader.close()
            if self.read_only:
                return
            last = _Change(lambda db: None)
            leads = self._stand_in_line(last)
        self._carry_out(last, leads)
        with self._settled:
            self._settled.wait_for(lambda: not self._durable)
        self._closing.set()
        self._syncer.close()
        if self._checkpoint.is_alive():
            self._checkpoint.join()
        self._writer.close()

    # -- transactions -------------------------------------------------------------------------------------

    def write(self, change: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run ``change`` in the writer's transaction; return its result once it is on disk.

        An exception of ``change`` undoes what it did, and nothing else.

        :param durable: False: return when it is written, and leave it to a later sync to bring it to disk.
        :raises StoreError: the disk did not take it, or the journal is closed; nothing of it was kept, unless
            it was the sync that failed.
        """
        mine = _Change(change)
        with self._lock:  # nothing comes behind the end of the line
            if self.read_only or self._closed:
                how = "closed" if self._closed else "open for reading only"
                raise StoreError(f"the journal {self.path} is {how}")
            leads = self._stand_in_line(mine)
            self._durable += durable
        try:
            self._carry_out(mine, leads)
            if mine.error:
                raise mine.error
            if durable:
                self.begin_sync()()
        finally:
            if durable:
                with self._settled:
                    self._durable -= 1
                    self._settled.notify_all()
        return mine.result  # type: ignore[return-value]

    def begin_sync(self) -> Callable[[], None]:
        """Have all that is written by now brought to disk; the answer is a function that waits until it is.

        :raises StoreError: it cannot be; the function may raise it too.
        """
        try:
            number = self._syncer.begin()
        except OSError as error:
            raise self._refused(error) from error

        def wait() -> None:
            try:
                self._syncer.wait(number)
            except OSError as error:
                raise self._refused(error) from error

        return wait

    def _stand_in_line(self, change: _Change) -> bool:
        """True: nobody writes, so whoever brought the change does. Call it with the lock."""
        self._line.append(change)
        leads, self._writing = not self._writing, True
        return leads

    def _carry_out(self, mine: _Change, leads: bool) -> None:
        """Return when the change is written, or refused. Somebody else may have written it; or else this is
        the first in line, and writes for all who wait."""
        if not leads:
            mine.turn.acquire()
            if mine.done:
                return
        with self._lock:
            batch, self._line = self._line, []
        self._write_batch(batch)
        for change in batch:
            change.done = True
        with self._lock:
            following = self._line[:1]
            self._writing = bool(following)
        for change in (*following, *batch):
            change.turn.release()

    def _write_batch(self, batch: Sequence[_Change]) -> None:
        db = self._writer
        try:
            db.execute("BEGIN IMMEDIATE")
            for change in batch:
                db.execute("SAVEPOINT one")
                try:
                    change.result = change.function(db)
                except BaseException as error:  # SystemExit too: a driver's change must not end this thread
                    if not db.in_transaction:  # the disk is full or broken: SQLite has undone everything
                        raise
                    db.execute("ROLLBACK TO one")
                    change.error = self._refused(error) if isinstance(error, sqlite3.Error) else error
                db.execute("RELEASE one")
            db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            for change in batch:
                change.error = change.error or self._refused(error)
        self._unchecked += 1
        if self._unchecked >= CHECKPOINT_EVERY and not self._checkpoint.is_alive():
            self._unchecked = 0
            self._checkpoint = threading.Thread(target=self._write_checkpoint, name="journal", daemon=True)
            self._checkpoint.start()

    def _write_checkpoint(self) -> None:
        """Bring the log into the tables, so that it is written from its beginning again: a sync of what makes
        the file longer takes twice as long. A caller who did this would wait ten times as long as to write.
        """
        try:
            with contextlib.closing(sqlite3.connect(self.path)) as db:
                for _ in range(CHECKPOINT_ATTEMPTS):
                    if self._closing.wait(CHECKPOINT_PAUSE):
                        return
                    _, length, done = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    if length == done:
                        return
        except sqlite3.Error as error:
            log.warning("journal", extra={"problem": f"no checkpoint: {error}"})

    def _refused(self, error: BaseException) -> StoreError:
        log.error("the journal %s refused a write: %s", self.path, error)
        return StoreError(f"the journal {self.path} refused a write: {error}")

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for questions, until the block ends.

        :raises StoreError: the file cannot be read, or the journal is closed.
        """
        try:
            reader = self._take_reader()
            try:
                yield reader
            finally:
                self._put_back(reader)
        except sqlite3.Error as error:
            raise StoreError(f"the journal {self.path} cannot be read: {error}") from error

    # -- attachments --------------------------------------------------------------------------------------

    def put(self, record: Record, *, durable: bool = True) -> None:
        """Write a whole row, new or in place of the old one."""
        key, (namespace, name, _) = record.key, _pod_name(record.attachment)
        row = _encode(record, *self._decoded.get(key, ()))
        self._name(key, _pod_name(record.attachment))
        self.write(
            lambda db: db.execute(
                "INSERT OR REPLACE INTO attachments (network, container_id, ifname, namespace, name, "
                f"{_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key.network, key.container_id, key.ifname, namespace, name, *row),
            ),
            durable=durable,
        )
        self._decoded[key] = row, record

    def advance(self, record: Record, state: State, *, problem: str = "") -> Record:
        """Write that ``record`` is in ``state`` now. Not durable.

        The rest of the row stays, but for the wiring of one that is releasing: that is gone by then, and what
        looks like it belongs to somebody else.
        """
        key = record.key
        wiring = ", wiring=NULL" if state is State.RELEASING else ""
        self.write(
            lambda db: db.execute(
                f"UPDATE attachments SET state=?, problem=?{wiring} "
                "WHERE network=? AND container_id=? AND ifname=?",
                (state.value, problem, key.network, key.container_id, key.ifname),
            ),
            durable=False,
        )
        record = replace(record, state=state, problem=problem)
        return replace(record, wiring=None) if wiring else record

    def remove(self, key: AttachmentKey) -> None:
        """The attachment is gone. Not durable: a row that comes back is one whose pod a power cut ended."""
        self.write(
            lambda db: db.execute(
                "DELETE FROM attachments WHERE network=? AND container_id=? AND ifname=?",
                (key.network, key.container_id, key.ifname),
            ),
            durable=False,
        )
        self._decoded.pop(key, None)
        self._name(key, None)

    def get(self, key: AttachmentKey) -> Record | None:
        """The row of one attachment."""
        rows = self._select(
            "WHERE network=? AND container_id=? AND ifname=?", (key.network, key.container_id, key.ifname)
        )
        return rows[0] if rows else None

    def records(self) -> list[Record]:
        """All rows, oldest first."""
        found = self._select("ORDER BY created", ())
        for key in {*self._decoded} - {record.key for record in found}:
            self._decoded.pop(key, None)  # removed while somebody read it
        return found

    def find(self, attachment: Attachment) -> tuple[Record | None, list[Record]]:
        """The row of an attachment, and rows of other sandboxes for the same interface of the same pod: their
        runtime has replaced them.

        On whatever network: that may have another name since, the host's end of the link has not.
        """
        key, pod = attachment.key, attachment.pod
        if not (self.read_only or key in self._named or self._names[_pod_name(attachment)]):
            return None, []  # as mostly when a pod is new
        found = self._select(
            "WHERE (network=? AND container_id=? AND ifname=?) OR "
            "(namespace=? AND name=? AND name<>'' AND ifname=? AND container_id<>?)",
            (
                key.network,
                key.container_id,
                key.ifname,
                pod.namespace,
                pod.name,
                key.ifname,
                key.container_id,
            ),
        )
        own = next((record for record in found if record.key == key), None)
        return own, [record for record in found if record is not own]

    def _name(self, key: AttachmentKey, name: _PodName | None) -> None:
        with self._lock:
            if former := self._named.pop(key, None):
                self._names[former] -= 1
                if not self._names[former]:
                    del self._names[former]
            if name:
                self._named[key] = name
                self._names[name] += 1

    def _select(self, where: str, values: tuple[object, ...]) -> list[Record]:
        with self.read() as db:
            rows = db.execute(
                f"SELECT network, container_id, ifname, {_COLUMNS} FROM attachments {where}", values
            ).fetchall()
        try:
            return [self._decode(AttachmentKey(*row[:3]), row[3:]) for row in rows]
        except ValueError as error:
            raise StoreError(f"a row of the journal {self.path} cannot be decoded: {error}") from error

    def _decode(self, key: AttachmentKey, row: _Row) -> Record:
        """Decoding takes far longer than reading, and few rows are other than they were the last time."""
        known, record = self._decoded.get(key, (None, None))
        if record is None or known != row:
            record = _record(row, known, record)
            self._decoded[key] = row, record
        return record

    # -- files --------------------------------------------------------------------------------------------

    def _take_reader(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise StoreError(f"the journal {self.path} is closed")
            if self._readers:
                return self._readers.pop()
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    def _put_back(self, reader: sqlite3.Connection) -> None:
        # Kept for the next one and not for the thread: each request of the daemon has a thread of its own.
        with self._lock:
            if self._closed:
                reader.close()
            else:
                self._readers.append(reader)

    def _open_writer(self) -> sqlite3.Connection:
        try:
            return self._connect_writer()
        except (sqlite3.DatabaseError, ValueError) as error:
            # A file that is locked, a full disk or a missing permission is not damage; a missing table is.
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            if isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
                raise
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            log.error("the journal %s is damaged (%s); kept as %s", self.path, error, aside)
            os.replace(self.path, aside)
            for suffix in ("-wal", "-shm"):  # they belong to the damaged file and would spoil the new one
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
            self.was_damaged = aside
            return self._connect_writer()

    def _connect_writer(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA wal_autocheckpoint={LONGEST_LOG}")
            # A checkpoint syncs the log before the tables, and them before the log is written anew; a commit
            # syncs nothing, which is left to the Syncer.
            db.execute("PRAGMA synchronous=NORMAL")
            if (found := db.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"the journal {self.path} was written by a newer terway (schema {version}, this one "
                    f"knows {SCHEMA_VERSION}); install that version again or a newer one"
                )
            if version < SCHEMA_VERSION:
                db.executescript(f"{_SCHEMA} PRAGMA user_version={SCHEMA_VERSION};")
            self._decoded = _decode_all(db)
            self._named = {key: _pod_name(record.attachment) for key, (_, record) in self._decoded.items()}
            self._names = Counter(self._named.values())
        except BaseException:
            db.close()
            raise
        self.path.chmod(0o600)
        return db


def _pod_name(attachment: Attachment) -> _PodName:
    return attachment.pod.namespace, attachment.pod.name, attachment.ifname


def _encode(record: Record, known: _Row | None = None, former: Record | None = None) -> _Row:
    """A record as a row.

    :param known: a row of the same attachment. :param former: what it was made of.
    """
    same = known and former and former.attachment is record.attachment
    return (
        known[0] if known and same else _attachment.dump_json(record.attachment).decode(),
        record.driver,
        record.state.value,
        record.created,
        record.netns_id,
        _lease.dump_json(record.lease).decode() if record.lease else None,
        _wiring.dump_json(record.wiring).decode() if record.wiring else None,
        record.problem,
    )


def _record(row: _Row, known: _Row | None = None, former: Record | None = None) -> Record:
    """What a row says.

    :param known: a row of the same attachment. :param former: what it said.
    :raises ValueError: the row is damaged.
    """
    attachment, driver, state, created, inode, lease, wiring, problem = row
    if known and former and (known[0], *known[5:7]) == (attachment, lease, wiring):
        return replace(
            former, driver=driver, state=State(state), created=created, netns_id=inode, problem=problem
        )
    return Record(
        attachment=_attachment.validate_json(attachment),
        driver=driver,
        state=State(state),
        created=created,
        netns_id=inode,
        lease=_lease.validate_json(lease) if lease else None,
        wiring=_wiring.validate_json(wiring) if wiring else None,
        problem=problem,
    )


def _decode_all(db: sqlite3.Connection) -> dict[AttachmentKey, tuple[_Row, Record]]:
    """All attachments. SQLite checks its pages, but does not know what the bytes in them mean.

    :raises ValueError: a row is damaged.
    """
    for (address,) in db.execute("SELECT address FROM addresses"):
        ip_address(address)
    rows = db.execute(f"SELECT {_COLUMNS} FROM attachments").fetchall()
    found = ((row, _record(row)) for row in rows)
    return {record.key: (row, record) for row, record in found}
