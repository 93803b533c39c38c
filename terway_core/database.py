"""A SQLite file that one process writes, and any number read.

One caller writes at a time, for all who wait, in one transaction, and none waits for a thread to wake up.
What is written is with the kernel, where no end of the process can harm it.

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from terway_core.batcher import Batcher
from terway_core.errors import StoreError
from terway_core.syncer import Syncer

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Transactions after which the write-ahead log is brought into the tables, beside whoever writes meanwhile.
CHECKPOINT_EVERY = 100
#: Seconds between attempts to get to the log's end while others write on, and how many there are.
CHECKPOINT_PAUSE, CHECKPOINT_ATTEMPTS = 0.05, 100
#: Pages of the log (of 4 KiB) at which a writer has to do it, because it never came to an end.
LONGEST_LOG = 10_000


class Statement:
    """A change that is one statement, for one row of values or several. With one it needs no transaction."""

    def __init__(self, sql: str, *rows: Sequence[object]) -> None:
        self.sql = sql
        self.rows = rows

    def __call__(self, db: sqlite3.Connection) -> None:
        if len(self.rows) == 1:
            db.execute(self.sql, self.rows[0])
        else:
            db.executemany(self.sql, self.rows)


class _Change:
    """A write, and what came of it."""

    def __init__(self, function: Callable[[sqlite3.Connection], object]) -> None:
        self.function = function
        self.result: Any = None
        self.error: BaseException | None = None


class Database:
    """The file ``path``; safe for use by many threads.

    A damaged file is kept beside itself (``….damaged-TIME``) and a new one begun; ``was_damaged`` then holds
    its path.

    :raises StoreError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self.was_damaged: Path | None = None
        self._line = Batcher(self._write_batch)
        self._unchecked = 0  # transactions since the last checkpoint
        self._checkpoint = threading.Thread(target=self._write_checkpoint, daemon=True)
        self._closing = threading.Event()
        self._closed = False
        self._readers: list[sqlite3.Connection] = []  # those that nobody uses at the moment
        self._lock = threading.Lock()
        self._active = 0  # writes under way
        self._settled = threading.Condition(self._lock)
        if read_only:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._writer = self._open_writer()
            self._syncer = Syncer(path.with_name(f"{path.name}-wal"))
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"the journal {path} cannot be opened: {error}") from error

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Bring the schema up to date and load what is kept in memory.

        :raises ValueError: what a table holds is damaged. :raises sqlite3.Error: it cannot be read.
        """

    def close(self) -> None:
        """Finish what is under way and close the file."""
        with self._settled:
            if self._closed:
                return
            self._closed = True
            for reader in self._readers:
                reader.close()
            if self.read_only:
                return
            self._settled.wait_for(lambda: not self._active)
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
        with self._lock:
            if self.read_only or self._closed:
                how = "closed" if self._closed else "open for reading only"
                raise StoreError(f"the journal {self.path} is {how}")
            self._active += 1
        try:
            self._line.do(mine)
            if mine.error:
                raise mine.error
            if durable:
                self.begin_sync()()
        finally:
            with self._lock:
                self._active -= 1
                if self._closed:
                    self._settled.notify_all()
        return mine.result  # type: ignore[no-any-return]

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

    def _write_batch(self, batch: Sequence[_Change]) -> None:
        db = self._writer
        try:
            if len(batch) == 1:
                self._write_alone(db, batch[0])
            else:
                self._write_together(db, batch)
        except BaseException as error:  # SystemExit too: a driver's change must not end this thread
            if db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
            for change in batch:
                change.error = change.error or self._refused(error)
        self._unchecked += 1
        if self._unchecked >= CHECKPOINT_EVERY and not self._checkpoint.is_alive():
            self._unchecked = 0
            self._checkpoint = threading.Thread(target=self._write_checkpoint, name="journal", daemon=True)
            self._checkpoint.start()

    def _write_alone(self, db: sqlite3.Connection, change: _Change) -> None:
        if isinstance(change.function, Statement) and len(change.function.rows) == 1:
            change.function(db)
            return
        db.execute("BEGIN IMMEDIATE")
        change.result = change.function(db)
        db.execute("COMMIT")

    def _write_together(self, db: sqlite3.Connection, batch: Sequence[_Change]) -> None:
        db.execute("BEGIN IMMEDIATE")
        for change in batch:
            db.execute("SAVEPOINT one")
            try:
                change.result = change.function(db)
            except BaseException as error:
                change.error = self._refused(error)
                if not db.in_transaction:  # the disk is full or broken: SQLite has undone everything
                    raise sqlite3.OperationalError(str(error)) from error
                db.execute("ROLLBACK TO one")
            db.execute("RELEASE one")
        db.execute("COMMIT")

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

    def _refused(self, error: BaseException) -> BaseException:
        """What a writer is told of ``error``: that of its own change is its own."""
        if not isinstance(error, OSError | sqlite3.Error):
            return error
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
        # Kept for the next one and not for the thread, of which there are many.
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
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        self.path.chmod(0o600)
        return db
