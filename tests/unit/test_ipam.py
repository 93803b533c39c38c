"""Addresses: one owner each, none before its rest is over, none that is nobody's to give."""

import contextlib
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from terway_core.errors import NoAddress
from terway_core.ipam import AddressPool, GivenAddresses
from terway_core.record import Record, State
from terway_core.testing.fakes import FakeClock, WatchedStore
from terway_core.types import Attachment, Lease

REST = 30.0


def attachment(number):
    return Attachment(network="net", container_id=f"c{number}", ifname="eth0")


def owner(number):
    return str(attachment(number).key)


def row(number, *addresses):
    lease = Lease(addresses=tuple(map(ip_interface, addresses)))
    return Record(attachment=attachment(number), driver="vpc", state=State.READY, created=number, lease=lease)


@pytest.fixture
def make(terway_store, terway_clock):
    """Open a pool on the test's store and clock."""

    def make(cidr, *, name="pool", rest=REST, reserve=()):
        reserved = [ip_address(address) for address in reserve]
        return AddressPool(
            terway_store, name, ip_network(cidr), rest=rest, clock=terway_clock, reserve=reserved
        )

    return make


def drain(pool):
    """Allocate until nothing is left; the addresses as text."""
    return list(_drain(pool))


def _drain(pool):
    with contextlib.suppress(NoAddress):
        for number in range(1000, 1100):
            yield str(pool.allocate(owner(number)))


@pytest.mark.parametrize(
    ("cidr", "usable"),
    [
        ("10.0.0.7/32", ["10.0.0.7"]),
        ("10.0.0.6/31", ["10.0.0.6", "10.0.0.7"]),  # RFC 3021: no network, no broadcast address
        ("10.0.0.4/30", ["10.0.0.5", "10.0.0.6"]),
        ("10.0.0.8/29", [f"10.0.0.{i}" for i in range(9, 15)]),
        ("fd00::7/128", ["fd00::7"]),
        ("fd00::6/127", ["fd00::6", "fd00::7"]),  # RFC 6164: no subnet-router anycast address
        ("fd00::4/126", ["fd00::5", "fd00::6", "fd00::7"]),
    ],
)
def test_exactly_the_usable_addresses_are_given(make, cidr, usable):
    assert drain(make(cidr)) == usable


def test_a_large_ipv6_network_is_not_walked_through(make):
    pool = make("fd00::/64")
    assert [str(pool.allocate(owner(i))) for i in range(3)] == ["fd00::1", "fd00::2", "fd00::3"]


def test_what_is_reserved_is_not_given(make):
    reserve = ["10.0.0.1", "10.0.0.4", "192.0.2.1", "fd00::1"]
    assert drain(make("10.0.0.0/29", reserve=reserve)) == ["10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6"]


def test_the_same_owner_gets_the_same_address(make):
    pool = make("10.0.0.0/30")
    assert pool.allocate(owner(1)) == pool.allocate(owner(1)) != pool.allocate(owner(2))
    assert pool.owners() == {owner(1): ip_address("10.0.0.1"), owner(2): ip_address("10.0.0.2")}


def test_exhaustion_says_what_holds_the_addresses(make):
    pool = make("10.0.0.0/29")
    drain(pool)
    pool.release(owner(1000))
    with pytest.raises(NoAddress, match=r"10\.0\.0\.0/29: 5 are owned by pods and 1 rest for up to 30 s"):
        pool.allocate(owner(1))


def test_release_says_whether_there_was_anything(make):
    pool = make("10.0.0.0/30")
    pool.allocate(owner(1))
    assert [pool.release(owner(1)), pool.release(owner(1)), pool.release(owner(2))] == [True, False, False]


def test_the_longest_unused_address_is_given_first(make):
    pool = make("10.0.0.0/29", rest=0)
    given = []
    for i in range(8):
        given.append(str(pool.allocate(owner(i))))
        pool.release(owner(i))
    assert given == [f"10.0.0.{i}" for i in (1, 2, 3, 4, 5, 6, 1, 2)]


def test_rest_is_over_to_the_second(make, terway_clock):
    pool = make("10.0.0.1/32")
    pool.allocate(owner(1))
    pool.release(owner(1))
    terway_clock.advance(REST - 0.001)
    with pytest.raises(NoAddress):
        pool.allocate(owner(2))
    terway_clock.advance(0.001)
    assert pool.allocate(owner(2)) == ip_address("10.0.0.1")


def test_an_address_released_before_the_clock_jumped_back_is_not_lost(make, terway_clock):
    pool = make("10.0.0.1/32")
    pool.allocate(owner(1))
    pool.release(owner(1))
    terway_clock.advance(-86_400)
    with pytest.raises(NoAddress):
        pool.allocate(owner(2))
    terway_clock.advance(REST)
    assert pool.allocate(owner(2)) == ip_address("10.0.0.1")


def test_pools_of_other_names_have_nothing_to_do_with_each_other(make):
    one, other = make("10.0.0.1/32", name="a"), make("10.0.0.1/32", name="b")
    assert one.allocate(owner(1)) == other.allocate(owner(2))
    other.release(owner(1))
    assert one.owners() == {owner(1): ip_address("10.0.0.1")}


def test_collect_spares_who_is_in_the_journal(make, terway_store):
    pool = make("10.0.0.0/29")
    for i in range(4):
        pool.allocate(owner(i))
    terway_store.put(row(1))
    assert pool.collect([owner(0)]) == [
        f"address 10.0.0.3 of {owner(2)}",
        f"address 10.0.0.4 of {owner(3)}",
    ]
    assert set(pool.owners()) == {owner(0), owner(1)}
    assert pool.collect([owner(0)]) == []


def test_who_comes_back_while_his_old_address_is_collected_keeps_the_new_one(make, terway_store, monkeypatch):
    """A runtime may use a container id again as soon as its DEL is answered."""
    pool = make("10.0.0.0/29", rest=0)
    pool.allocate(owner(1))

    def come_back():
        pool.release(owner(1))  # the end of the DEL
        terway_store.put(row(1))
        pool.allocate(owner(1))

    thread = threading.Thread(target=come_back)
    records = terway_store.records

    def slowly():
        found = records()
        thread.start()
        thread.join(0.2)
        return found

    monkeypatch.setattr(terway_store, "records", slowly)
    pool.collect([])
    thread.join()
    assert set(pool.owners()) == {owner(1)}


def test_leases_in_the_journal_are_owned_although_their_rows_are_lost(make, terway_store):
    terway_store.put(row(1, "10.0.0.1/32", "fd00::1/128"))
    terway_store.put(row(2, "192.0.2.1/32"))
    pool = make("10.0.0.0/30")
    assert pool.owners() == {owner(1): ip_address("10.0.0.1")}
    assert drain(pool) == ["10.0.0.2"]


def test_a_lease_takes_no_address_from_another_owner(make, terway_store):
    assert make("10.0.0.1/32").allocate(owner(1)) == ip_address("10.0.0.1")
    terway_store.put(row(2, "10.0.0.1/32"))
    assert make("10.0.0.1/32").owners() == {owner(1): ip_address("10.0.0.1")}


def test_a_released_address_whose_lease_is_still_there_is_taken_in_again(make, terway_store):
    pool = make("10.0.0.1/32")
    terway_store.put(row(1, f"{pool.allocate(owner(1))}/32"))
    pool.release(owner(1))
    assert make("10.0.0.1/32").owners() == {owner(1): ip_address("10.0.0.1")}


def test_threads_get_different_addresses(make):
    pool = make("10.0.0.0/25")
    with ThreadPoolExecutor(16) as threads:
        given = list(threads.map(pool.allocate, [owner(i % 100) for i in range(200)]))
    assert given[:100] == given[100:]
    assert len(set(given)) == 100


class Pool(RuleBasedStateMachine):
    """Any order of events, any restart, any clock."""

    CIDRS = ("10.0.0.0/29", "10.0.0.0/31", "10.0.0.9/32", "fd00::/126", "fd00::/128")

    @initialize(cidr=st.sampled_from(CIDRS), reserved=st.integers(0, 7))
    def start(self, cidr, reserved):
        self.stack = contextlib.ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.store = WatchedStore(Path(folder) / "terway.db")
        self.stack.callback(self.store.close)
        self.clock = FakeClock()
        self.cidr = ip_network(cidr)
        # The last one of a /32 cannot be spared.
        self.reserve = [self.cidr[reserved]] if reserved < self.cidr.num_addresses > 1 else []
        hosts = set(self.cidr.hosts()) | ({self.cidr[-1]} if self.cidr.version == 6 else set())
        self.usable = hosts - set(self.reserve)
        self.owned = {}  # owner → address
        self.resting = {}  # address → until
        self.rows = set()  # numbers of attachments in the journal
        self.open()

    def open(self):
        self.pool = AddressPool(
            self.store, "pool", self.cidr, rest=REST, clock=self.clock, reserve=self.reserve
        )

    def release(self, name):
        self.resting[self.owned.pop(name)] = self.clock() + REST

    @rule(number=st.integers(0, 9))
    def allocate(self, number):
        now, name = self.clock(), owner(number)
        if name in self.owned:
            assert self.pool.allocate(name) == self.owned[name]
            return
        # However far the clock has jumped back, a rest is over in REST seconds.
        self.resting = {a: min(until, now + REST) for a, until in self.resting.items() if until > now}
        free = self.usable - set(self.owned.values()) - set(self.resting)
        if free:
            self.owned[name] = self.pool.allocate(name)
            assert self.owned[name] in free
        else:
            with pytest.raises(NoAddress, match=f"{len(self.owned)} are owned.*{len(self.resting)} rest"):
                self.pool.allocate(name)

    @rule(number=st.integers(0, 9))
    def write_row(self, number):
        """The lease goes into the journal."""
        if address := self.owned.get(owner(number)):
            self.store.put(replace(row(number, str(address))))
            self.rows.add(number)

    @rule(number=st.integers(0, 9))
    def take_down(self, number):
        """The address goes back, then the row goes."""
        name = owner(number)
        assert self.pool.release(name) == (name in self.owned)
        if name in self.owned:
            self.release(name)
        self.store.remove(attachment(number).key)
        self.rows.discard(number)

    @rule(live=st.sets(st.integers(0, 9)))
    def collect(self, live):
        dead = {name for name in self.owned if name not in map(owner, live | self.rows)}
        lines = self.pool.collect([owner(number) for number in live])
        assert sorted(lines) == sorted(f"address {self.owned[name]} of {name}" for name in dead)
        for name in dead:
            self.release(name)

    @rule()
    def restart(self):
        self.open()

    @rule(seconds=st.sampled_from([0.5, REST - 1, REST, 3600, -1, -REST, -3600]))
    def pass_time(self, seconds):
        self.clock.advance(seconds)

    @precondition(lambda self: hasattr(self, "pool"))
    @invariant()
    def owners_are_known(self):
        assert self.pool.owners() == self.owned
        assert len(set(self.owned.values())) == len(self.owned)

    def teardown(self):
        if hasattr(self, "stack"):
            self.stack.close()


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# ---- addresses that somebody else chooses


@pytest.fixture
def given(terway_store, terway_clock):
    return GivenAddresses(terway_store, "trunking", clock=terway_clock)


def test_a_given_address_has_one_owner(given):
    first, second, third = map(ip_address, ("192.168.1.7", "2001:db8::7", "192.168.1.8"))
    for _ in range(2):
        given.take(owner(1), [first, second])
    with pytest.raises(NoAddress, match=r"192\.168\.1\.7 is still that of net/c1/eth0"):
        given.take(owner(2), [third, first])
    given.take(owner(3), [third])  # nothing of what was refused was taken
    assert given.release(owner(1))
    assert not given.release(owner(1))
    given.take(owner(2), [first])  # at once: it does not rest
    assert given.owners() == {owner(2): first, owner(3): third}


def test_given_addresses_of_attachments_are_taken_in_and_those_of_nobody_given_back(
    terway_store, terway_clock
):
    first, second = ip_address("192.168.1.7"), ip_address("192.168.1.8")
    terway_store.put(replace(row(1, "192.168.1.7/32"), driver="trunking"))
    terway_store.put(row(2, "192.168.1.9/32"))  # another driver's
    given = GivenAddresses(terway_store, "trunking", clock=terway_clock)
    assert given.owners() == {owner(1): first}
    given.take(owner(3), [second])
    assert given.collect([]) == [f"address 192.168.1.8 of {owner(3)}"]
    assert given.owners() == {owner(1): first}
