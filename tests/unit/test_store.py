"""The journal: what was acknowledged is there, whatever happens to the process or the file."""

import contextlib
import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terway_core.database import CHECKPOINT_EVERY
from terway_core.errors import StoreError
from terway_core.record import COLUMNS, Record, State, encode
from terway_core.store import SCHEMA_VERSION, Store
from terway_core.types import Attachment, AttachmentKey, Lease, Pod, Wiring

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=3)
attachments = st.builds(Attachment, runtime_config=json_objects)
leases = st.builds(Lease, data=json_objects)
records = st.builds(
    Record,
    attachment=attachments,
    created=st.floats(min_value=0, max_value=1e11),
    netns_id=st.integers(0, 2**32),
    lease=st.none() | leases,
    wiring=st.none() | st.from_type(Wiring),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "terway.db"


@pytest.fixture
def store(path):
    store = Store(path)
    yield store
    store.close()


def record(container_id="c1", *, ifname="eth0", name="pod", state=State.ALLOCATING, created=1.0):
    pod = Pod(namespace="ns", name=name, uid="u1")
    attachment = Attachment(network="net", container_id=container_id, ifname=ifname, pod=pod)
    return Record(attachment=attachment, driver="vpc", state=state, created=created)


def add_address(address, owner=None):
    return lambda db: db.execute(
        "INSERT INTO addresses (pool, address, owner) VALUES ('p', ?, ?)", (address, owner)
    )


def addresses(store):
    with store.read() as db:
        return {address for (address,) in db.execute("SELECT address FROM addresses")}


def on_file(store):
    """The attachments as another process reads them."""
    with contextlib.closing(Store(store.path, read_only=True)) as reader:
        return reader.records()


# -- rows -------------------------------------------------------------------------------------------------


@given(record=records)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
def test_a_row_comes_back_as_it_was(store, record):
    store.put(record)
    assert store.get(record.key) == record
    assert store.records() == on_file(store) == [record]
    store.remove(record.key)
    assert store.get(record.key) is None
    assert store.records() == on_file(store) == []


def test_put_replaces_and_advance_changes_only_the_state(store):
    store.put(replace(record(), wiring=Wiring(), netns_id=7))
    moved = store.advance(store.get(record().key), State.WIRING, problem="refused")
    assert (moved.state, moved.problem) == (State.WIRING, "refused")
    assert store.get(moved.key) == moved
    released = store.advance(moved, State.RELEASING)
    assert released == replace(moved, state=State.RELEASING, problem="", wiring=None)
    assert store.get(moved.key) == released
    store.put(record())
    assert store.records() == [record()]


changes = st.tuples(
    st.sampled_from(["put", "advance", "remove"]),
    st.sampled_from(["c1", "c2"]),
    st.sampled_from(["", "pod", "other"]),
    st.sampled_from(State),
    st.none() | st.just(Wiring()),
)


@given(steps=st.lists(changes, max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_what_is_known_is_what_is_in_the_file(store, steps):
    for number, (what, container_id, name, state, wiring) in enumerate(steps):
        known = store.get(record(container_id).key)
        if what == "put":
            row = replace(record(container_id, name=name, created=float(number)), state=state, wiring=wiring)
            # As an ADD does: the same attachment, with more known of it.
            store.put(replace(row, attachment=known.attachment) if known and number % 2 else row)
        elif what == "advance" and known:
            store.advance(known, state, problem=name)
        elif what == "remove":
            store.remove(record(container_id).key)
        assert store.records() == on_file(store)
        for found in store.records():
            assert found.attachment.container_id not in {
                other.attachment.container_id for other in store.find(found.attachment)[1]
            }
            twins = {r.key for r in store.records() if r.attachment.pod == found.attachment.pod} - {found.key}
            expected = twins if found.attachment.pod.name else set()
            assert {other.key for other in store.find(found.attachment)[1]} == expected
    for found in store.records():
        store.remove(found.key)


def test_rows_are_told_apart_by_the_whole_key(store):
    store.put(record("c1"))
    store.put(record("c1", ifname="eth1"))
    store.put(record("c2"))
    store.remove(AttachmentKey("net", "c1", "eth0"))
    assert {str(found.key) for found in store.records()} == {"net/c1/eth1", "net/c2/eth0"}


def test_records_are_sorted_by_age(store):
    for created in (3.0, 1.0, 2.0):
        store.put(record(f"c{9 - created}", created=created))
    assert [found.created for found in store.records()] == [1.0, 2.0, 3.0]


def test_find_tells_the_attachment_from_older_sandboxes_of_the_same_interface(store):
    elsewhere = replace(record("c4"), attachment=replace(record("c4").attachment, network="renamed"))
    for old in (
        record("c1"),
        record("c2"),
        record("c2", ifname="eth1"),
        record("c3", name="other"),
        elsewhere,
    ):
        store.put(old)
    assert store.find(record("c1").attachment) == (record("c1"), [record("c2"), elsewhere])
    assert store.find(record("new").attachment) == (None, [record("c1"), record("c2"), elsewhere])


def test_pods_without_a_name_are_not_one_another(store):
    store.put(record("c1", name=""))
    assert store.find(record("c1", name="").attachment) == (record("c1", name=""), [])
    assert store.find(record("c2", name="").attachment) == (None, [])


def test_owner_names_driver_and_attachment():
    assert record().owner == "vpc:net/c1/eth0"


# -- transactions -----------------------------------------------------------------------------------------


def held_up(store):
    """Keep the writer busy; what is written meanwhile is one batch. Call the result to let it go on."""
    busy, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=store.write, args=(lambda db: (busy.set(), go_on.wait()),))
    thread.start()
    assert busy.wait(10)

    def release():
        go_on.set()
        thread.join()

    return release


@pytest.fixture
def synced(monkeypatch):
    """Size of the write-ahead log at each sync of it, of whichever journal."""
    sizes = []

    def sync(file, sync=os.fdatasync):
        sizes.append(os.fstat(file).st_size)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", sync)
    return sizes


def test_a_durable_write_is_on_the_disk(store, path, synced):
    log = Path(f"{path}-wal")
    store.put(record(), durable=False)
    assert synced == []
    store.put(record("c2"))
    assert synced == [log.stat().st_size]


def test_a_sync_that_is_begun_goes_on_beside(store, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda file: (begun.set(), go_on.wait(10)))
    store.put(record(), durable=False)
    wait = store.begin_sync()
    assert begun.wait(10)
    store.put(record("c2"), durable=False)
    assert len(store.records()) == 2
    go_on.set()
    wait()


def test_writers_that_wait_share_one_sync(store, monkeypatch):
    begun, go_on, syncs = threading.Event(), threading.Event(), []
    monkeypatch.setattr(os, "fdatasync", lambda file: (syncs.append(file), begun.set(), go_on.wait(10)))
    with ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(store.write, add_address("10.0.0.1"))]
        assert begun.wait(10)
        writes += [pool.submit(store.write, add_address(f"10.0.0.{number}")) for number in range(2, 9)]
        while store._syncer._asked < 8:
            threading.Event().wait(0.001)
        go_on.set()
        assert all(write.result() for write in writes)
    assert len(syncs) == 2


def test_a_sync_that_fails_is_told_and_so_is_every_later_one(store, monkeypatch):
    def fail(file):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError, match="Input/output error"):
            store.put(record())
    with pytest.raises(StoreError, match="Input/output error"):
        store.put(record("c2"))


@given(writes=st.lists(st.booleans(), min_size=1, max_size=12), share=st.floats(0, 1))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_power_cut_undoes_the_last_writes_and_none_that_is_durable(synced, writes, share):
    """What a disk holds then is what was synced, and of what came after it any part, but in its order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "terway.db")
        after = Path(folder, "after.db")
        store = Store(path)
        synced[:] = [Path(f"{path}-wal").stat().st_size]
        kept = 0
        for number, durable in enumerate(writes):
            store.write(add_address(f"10.0.0.{number}"), durable=durable)
            if durable:
                kept = number + 1
        written = Path(f"{path}-wal").read_bytes()
        after.write_bytes(path.read_bytes())
        on_disk = synced[-1] + round(share * (len(written) - synced[-1]))
        Path(f"{after}-wal").write_bytes(written[:on_disk])
        store.close()
        store = Store(after)
        found = addresses(store)
        store.close()
    assert store.was_damaged is None
    assert kept <= len(found)
    assert found == {f"10.0.0.{number}" for number in range(len(found))}


def test_the_log_is_brought_into_the_tables_beside_the_writers(store, path):
    before = path.stat().st_mtime_ns
    for number in range(CHECKPOINT_EVERY):
        store.write(add_address(f"10.0.0.{number}"), durable=False)
    for thread in threading.enumerate():
        if thread.name == "journal":
            thread.join()
    assert path.stat().st_mtime_ns > before
    with contextlib.closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as db:  # without its log
        assert db.execute("SELECT count(*) FROM addresses").fetchone()[0] >= CHECKPOINT_EVERY - 1


def test_writers_that_wait_share_one_commit(store):
    statements = []
    store.write(lambda db: db.set_trace_callback(statements.append))
    release = held_up(store)
    with ThreadPoolExecutor(32) as pool:
        writes = [pool.submit(store.write, add_address(f"10.0.0.{i}")) for i in range(32)]
        while len(store._line) < 32:
            threading.Event().wait(0.001)
        del statements[:]
        release()
        assert all(write.result() for write in writes)
    store.write(lambda db: db.set_trace_callback(None))
    assert len(addresses(store)) == 32
    assert statements.count("COMMIT") <= 3  # what was held up, the 32, and the end of tracing


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), StoreError("own")])
def test_an_exception_undoes_its_own_change_only(store, error):
    def fail(db):
        add_address("10.0.0.66")(db)
        raise error

    outcomes = one_batch(store, [add_address("10.0.0.1"), fail, add_address("10.0.0.2")])
    assert outcomes[1] is error
    assert addresses(store) == {"10.0.0.1", "10.0.0.2"}


def test_a_change_that_sqlite_refuses_spoils_no_other(store):
    twice = [add_address("10.0.0.1"), add_address("10.0.0.1"), lambda db: db.execute("nonsense")]
    outcomes = one_batch(store, [*twice, add_address("10.0.0.2")])
    assert [type(outcome) for outcome in outcomes] == [sqlite3.Cursor, StoreError, StoreError, sqlite3.Cursor]
    assert "UNIQUE" in str(outcomes[1])
    assert addresses(store) == {"10.0.0.1", "10.0.0.2"}


def one_batch(store, changes):
    """Results, or exceptions, of changes that are written together."""
    release = held_up(store)
    with ThreadPoolExecutor(len(changes)) as pool:
        writes = []
        for number, change in enumerate(changes, 1):
            writes.append(pool.submit(store.write, change))
            while len(store._line) < number:
                threading.Event().wait(0.001)
        release()
        return [write.exception() or write.result() for write in writes]


def test_a_full_disk_is_an_error_for_those_it_hits_and_passes(store):
    def fill(db):
        db.execute("PRAGMA max_page_count=1")  # the least it can be is the present size

    store.write(fill)
    big = "x" * 1_000_000
    outcomes = one_batch(store, [add_address("10.0.0.1"), add_address(big)])
    assert "full" in str(outcomes[1])
    refused = {name for name, o in zip(("10.0.0.1", big), outcomes, strict=True) if isinstance(o, StoreError)}
    assert addresses(store) == {"10.0.0.1", big} - refused
    store.write(lambda db: db.execute("PRAGMA max_page_count=100000"))
    store.put(record())
    assert store.get(record().key) == record()


def test_many_threads_read_and_write(store):
    def work(worker):
        for i in range(20):
            mine = record(f"c{worker}-{i}")
            store.put(mine)
            assert store.get(mine.key) == mine
            if i % 2:
                store.remove(mine.key)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(store.records()) == 8 * 10


def test_readers_are_as_many_as_read_at_the_same_time(store):
    store.put(record())
    for _ in range(100):
        thread = threading.Thread(target=addresses, args=(store,))
        thread.start()
        thread.join()
    opened = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and fd.exists()]
    assert opened.count(str(store.path)) <= 3


def test_a_reader_cannot_write(store):
    with pytest.raises(StoreError, match="readonly"), store.read() as db:
        add_address("10.0.0.1")(db)


# -- the end ----------------------------------------------------------------------------------------------


def test_close_finishes_what_is_queued(path):
    store = Store(path)
    acknowledged, refused, started = set(), [], threading.Barrier(9)

    def work(worker):
        started.wait()
        for i in range(100_000):
            try:
                store.put(record(f"c{worker}-{i}"))
            except StoreError as error:
                refused.append(str(error))
                return
            acknowledged.add(f"c{worker}-{i}")

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    started.wait()
    while len(acknowledged) < 50:
        threading.Event().wait(0.001)
    store.close()
    for thread in threads:
        thread.join()
    assert len(refused) == 8
    assert all("is closed" in problem for problem in refused)
    again = Store(path)
    assert {found.attachment.container_id for found in again.records()} == acknowledged
    again.close()


def test_a_sync_after_the_end_is_refused(store):
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.begin_sync()


def test_a_process_that_forgets_to_close_ends_all_the_same(path):
    code = (
        "import sys; from pathlib import Path; from terway_core.store import Store; Store(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60)


def test_after_close_everything_is_refused(path):
    store = Store(path)
    store.put(record())
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.put(record())
    with pytest.raises(StoreError, match="is closed"):
        store.records()


CHILD = """
import sys, threading
sys.path.insert(0, "")
from pathlib import Path
from terway_core.record import COLUMNS, Record, State, encode
from terway_core.store import Store
from terway_core.types import Attachment
store = Store(Path(sys.argv[1]))
start = int(sys.argv[2])
lock = threading.Lock()
def work(worker):
    for i in range(1_000_000):
        name = f"{start}-{worker}-{i}"
        a = Attachment(network="net", container_id=name, ifname="eth0")
        store.put(Record(attachment=a, driver="vpc", state=State.READY, created=1.0))
        with lock:
            print(name, flush=True)
for worker in range(4):
    threading.Thread(target=work, args=(worker,)).start()
"""


def test_every_acknowledged_write_survives_kill_9(path):
    acknowledged = set()
    for round_ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, path, str(round_)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(10 + 15 * round_):
            acknowledged.add(child.stdout.readline().strip())
        child.send_signal(signal.SIGKILL)
        acknowledged.update(line.strip() for line in child.communicate()[0].splitlines(True) if "\n" in line)
        reader = Store(path, read_only=True)
        assert acknowledged <= {found.attachment.container_id for found in reader.records()}
        reader.close()
    store = Store(path)
    assert store.was_damaged is None
    assert acknowledged <= {found.attachment.container_id for found in store.records()}
    store.close()


# -- other processes --------------------------------------------------------------------------------------

READER = """
import sys
from pathlib import Path
from terway_core.store import Store
store = Store(Path(sys.argv[1]), read_only=True)
for line in sys.stdin:
    print(*sorted(str(record.key) for record in store.records()), flush=True)
"""


def test_another_process_sees_what_is_committed(store, path):
    store.put(record("c1"))
    with subprocess.Popen(
        [sys.executable, "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:

        def seen():
            reader.stdin.write("?\n")
            reader.stdin.flush()
            return reader.stdout.readline().split()

        assert seen() == ["net/c1/eth0"]
        store.put(record("c2"))
        assert seen() == ["net/c1/eth0", "net/c2/eth0"]
        store.remove(record("c1").key)
        assert seen() == ["net/c2/eth0"]
        reader.stdin.close()


def test_read_only_never_writes(path):
    store = Store(path)
    store.put(record())
    store.close()
    before = path.read_bytes()
    reader = Store(path, read_only=True)
    assert reader.records() == [record()]
    with pytest.raises(StoreError, match="for reading only"):
        reader.put(record("c2"))
    reader.close()
    assert path.read_bytes() == before
    assert reader.was_damaged is None


@pytest.mark.parametrize("content", [None, b"", b"not a database", b"SQLite format 3\0" + b"\xff" * 4096])
def test_read_only_refuses_what_it_cannot_read_and_leaves_it(tmp_path, content):
    path = tmp_path / "terway.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=str(path)):
        Store(path, read_only=True)
    assert [file.name for file in tmp_path.iterdir()] == ([] if content is None else ["terway.db"])
    assert content is None or path.read_bytes() == content


# -- files ------------------------------------------------------------------------------------------------


def test_file_and_folder_are_private(store, path):
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["a b", "100%25", "what?", "#1", "ü"])
def test_any_folder_will_do(tmp_path, name):
    store = Store(tmp_path / name / "terway.db")
    store.put(record())
    assert store.records() == [record()]
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("blocker", ["file", "folder"])
def test_a_path_that_cannot_be_used_is_named(tmp_path, blocker):
    path = tmp_path / "x" / "terway.db"
    if blocker == "file":
        (tmp_path / "x").touch()
    else:
        path.mkdir(parents=True)
    with pytest.raises(StoreError, match=str(path)):
        Store(path)


SCHEMA_1 = """
CREATE TABLE attachments (
    network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
    namespace TEXT NOT NULL, name TEXT NOT NULL,
    driver TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, netns_id INTEGER NOT NULL,
    attachment TEXT NOT NULL, lease TEXT, wiring TEXT, problem TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (network, container_id, ifname)
) WITHOUT ROWID;
CREATE INDEX attachments_by_pod ON attachments (namespace, name);
CREATE TABLE addresses (
    pool TEXT NOT NULL, address TEXT NOT NULL, owner TEXT, rests_until REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (pool, address)
) WITHOUT ROWID;
CREATE INDEX addresses_by_owner ON addresses (pool, owner);
PRAGMA user_version=1;
"""


def test_a_journal_of_schema_1_is_taken_over(path):
    old = replace(record(state=State.READY), wiring=Wiring(), lease=Lease(addresses=()), netns_id=7)
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(SCHEMA_1)
        db.execute(
            f"INSERT INTO attachments (network, container_id, ifname, namespace, name, {COLUMNS}) "
            "VALUES ('net', 'c1', 'eth0', 'ns', 'pod', ?, ?, ?, ?, ?, ?, ?, ?)",
            encode(old),
        )
        add_address("10.0.0.1", "net/c1/eth0")(db)
        db.commit()
    with contextlib.closing(Store(path)) as store:
        assert store.was_damaged is None
        assert store.records() == on_file(store) == [old]
        assert addresses(store) == {"10.0.0.1"}
        store.put(record("c2"))
        assert len(on_file(store)) == 2
    with contextlib.closing(sqlite3.connect(path)) as db:
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")}
    assert names == {"attachments", "addresses"}


def test_a_newer_schema_is_refused_and_left_alone(path):
    store = Store(path)
    store.put(record())
    store.close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(StoreError, match="newer terway"):
        Store(path)
    assert [file.name for file in path.parent.iterdir() if "damaged" in file.name] == []
    assert Store(path, read_only=True).records() == [record()]


@pytest.fixture
def written(tmp_path):
    """A journal with a few rows, closed in order. (Not its bytes: hypothesis would print them.)"""
    path = tmp_path / "written.db"
    store = Store(path)
    for i in range(20):
        store.put(record(f"c{i:02}", state=State.READY))
        store.write(add_address(f"10.0.0.{i}", f"net/c{i:02}/eth0"))
    store.close()
    return path


def no_text(data):
    return b"hello, world\n" * 100


def torn(data):
    return data[: len(data) // 2]


def zeroed(data):
    return data[:4096] + bytes(len(data) - 4096)


def other_application(data):
    return b"SQLite format 4\0" + data[16:]


def no_json(data):
    return data.replace(b'"container_id"', b'"container id"')


def no_state(data):
    return data.replace(b"ready", b"bread")


def no_address(data):
    return data.replace(b"10.0.0.7", b"10.0.0.x")


def no_table(data):
    return data.replace(b"attachments", b"attachmentz")


DAMAGES = [no_text, torn, zeroed, other_application, no_json, no_state, no_address, no_table]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_kept_aside(path, written, damage):
    path.parent.mkdir()
    path.write_bytes(damage(written.read_bytes()))
    store = Store(path)
    assert store.was_damaged is not None
    assert store.was_damaged.read_bytes() == damage(written.read_bytes())
    assert store.records() == []
    store.put(record())
    store.close()
    again = Store(path)
    assert again.was_damaged is None
    assert again.records() == [record()]
    again.close()


def test_the_log_of_a_damaged_file_spoils_no_new_one(path, written):
    path.parent.mkdir()
    path.write_bytes(no_text(written.read_bytes()))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).write_bytes(b"stale" * 1000)
    store = Store(path)
    store.put(record())
    assert store.records() == [record()]
    store.close()
    again = Store(path)
    assert again.was_damaged is None
    assert again.records() == [record()]
    again.close()


def test_an_empty_file_is_a_new_journal(path):
    path.parent.mkdir()
    path.touch()
    store = Store(path)
    assert store.was_damaged is None
    assert store.records() == []
    store.close()


# Not those of user_version, for a newer schema is refused, nor those that make a file read-only: they say
# what somebody may have meant (https://www.sqlite.org/fileformat.html, "The Database Header").
positions = (st.integers(0, 2**16) | st.integers(0, 200)).filter(
    lambda at: at not in (18, 19, 60, 61, 62, 63)
)


@given(flips=st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=4), keep=positions)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
def test_whatever_happens_to_its_bytes_the_journal_opens(path, written, flips, keep):
    path.parent.mkdir(exist_ok=True)
    spoiled = bytearray(written.read_bytes())
    for at, byte in flips:
        spoiled[at % len(spoiled)] = byte
    path.write_bytes(spoiled[:keep] if keep % 4 == 0 else spoiled)
    with contextlib.closing(Store(path)) as store:
        assert not store.records() or store.was_damaged is None
        store.put(record("fresh"))
        assert store.get(record("fresh").key) == record("fresh")
    for leftover in path.parent.iterdir():
        leftover.unlink()


def test_a_wiring_is_kept_as_readable_json(store):
    store.put(replace(record(), wiring=Wiring(), lease=Lease(addresses=())))
    with store.read() as db:
        for text in db.execute("SELECT attachment, lease, wiring FROM attachments").fetchone():
            with contextlib.suppress(TypeError):
                assert json.loads(text)
