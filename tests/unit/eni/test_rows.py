"""Rows, where one thing happens between the two halves of another."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from terway_core.eni.ledger import Ledger
from terway_core.eni.model import Eni, EniAddress, EniState
from terway_core.eni.rows import Rows
from terway_core.record import Record, State
from terway_core.store import Store
from terway_core.testing.fakes import make_attachment
from terway_core.types import Lease

NOW = 1000.0


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "terway.db")
    yield store
    store.close()


def load(store):
    return Rows(Ledger(store), (4,), now=NOW, cooldown=30)


@pytest.fixture
def rows(store):
    rows = load(store)
    for token, use in (("a", "shared"), ("b", "shared"), ("own", "exclusive")):
        rows.put(eni(token, use))
    rows.add_addresses([row("a", 1, primary=True), row("a", 2), row("a", 3)])
    return rows


def eni(token, use="shared", **fields):
    return Eni(
        token=token,
        use=use,
        state=EniState.READY,
        vswitch_id="vsw-1",
        security_group_ids=(),
        since=NOW,
        eni_id=f"eni-{token}",
        mac="00:16:3e:00:00:01",
        **fields,
    )


def row(token, last, **fields):
    return EniAddress(token=token, address=ip_address(f"10.0.0.{last}"), **fields)


def on_disk(store):
    again = load(store)
    return again.enis, again.addresses


def test_an_eni_that_somebody_got_hold_of_is_not_retired(store, rows):
    grant = rows.grant("pod", "shared", NOW)
    assert not rows.retire("a", NOW)
    rows.keep(grant)
    rows.give_back("pod", NOW)
    assert rows.retire("a", NOW)
    assert rows.enis["a"].state is EniState.DETACHING
    assert rows.grant("pod", "shared", NOW) is None
    assert on_disk(store) == (rows.enis, rows.addresses)


def test_an_address_that_somebody_got_hold_of_does_not_leave(rows):
    free = rows.of("a")
    grant = rows.grant("pod", "shared", NOW)
    assert {one.address for one in rows.leave(free)} == {one.address for one in free} - {
        one.address for one in grant.addresses
    }


def test_a_prefix_of_which_one_address_is_owned_does_not_leave(rows):
    block = ip_network("10.0.1.0/28")
    rows.add_addresses(EniAddress(token="b", address=address, block=block) for address in block)
    rows.leave(rows.of("a"))
    assert rows.grant("pod", "shared", NOW).eni.token == "b"
    some = [one for one in rows.of("b") if not one.owner][:3]
    assert rows.leave(some) == []
    rows.give_back("pod", NOW)
    assert len(rows.leave(some)) == 16


def test_what_happens_to_an_eni_does_not_change_its_owner(store, rows):
    """A step of the machine began before the grant, and ends after it."""
    before = rows.enis["own"]
    rows.keep(rows.grant("pod", "exclusive", NOW))
    rows.put(replace(before, problem="something"))
    assert rows.enis["own"].owner == "pod"
    rows.give_back("pod", NOW + 30)
    rows.put(replace(before, problem=""))
    assert (rows.enis["own"].owner, rows.enis["own"].rests_until) == ("", NOW + 30)
    assert on_disk(store)[0] == rows.enis


def test_an_address_that_moved_is_not_removed_with_its_old_eni(store, rows):
    """The cloud gives an address to the next ENI before we have noted that the first one lost it."""
    (left,) = rows.leave([row("a", 2)])
    assert rows.add_addresses([row("b", 2)]) == [row("b", 2)]
    rows.remove_addresses("a", [left.address])
    assert rows.addresses[left.address] == row("b", 2)
    rows.remove("a")
    assert set(rows.addresses) == {left.address}
    assert on_disk(store) == (rows.enis, rows.addresses)


def test_an_address_with_an_owner_does_not_move(rows):
    grant = rows.grant("pod", "shared", NOW)
    address = grant.addresses[0].address
    assert rows.add_addresses([EniAddress(token="b", address=address)]) == []
    assert rows.addresses[address].owner == "pod"


def test_a_grant_that_comes_between_the_halves_of_a_release_stays(store, rows):
    """Both the release and a collection give back for one owner; the second finds another owner."""
    rows.keep(rows.grant("pod", "shared", NOW))
    write = store.write
    busy = []

    def second_half(change, **options):
        if not busy:
            busy.append(True)
            rows.give_back("pod", NOW)
            rows.keep(rows.grant("next", "shared", NOW))
        return write(change, **options)

    store.write = second_half
    rows.give_back("pod", NOW)
    assert rows.owners() == {"next"}
    assert on_disk(store) == (rows.enis, rows.addresses)


def test_who_has_an_eni_and_an_address_gives_back_both(store, rows):
    rows.keep(rows.grant("pod", "exclusive", NOW))
    rows.keep(rows.grant("pod", "shared", NOW))
    assert rows.give_back("pod", NOW)
    assert rows.owners() == set()
    assert on_disk(store) == (rows.enis, rows.addresses)


def test_leases_of_the_journal_own_their_addresses(store, rows):
    attachment = make_attachment(1)
    lease = Lease(addresses=(ip_interface("10.0.0.3"), ip_interface("10.0.0.9")))
    record = Record(attachment=attachment, driver="eniip_veth", state=State.READY, created=NOW, lease=lease)
    store.put(record)
    rows.leave([row("a", 3)])
    rows.adopt()
    assert rows.owners() == set()  # what is being unassigned is nobody's any more
    rows.add_addresses([row("b", 9)])  # one whose row was lost
    assert rows.addresses[ip_address("10.0.0.9")].owner == str(attachment.key)
    store.advance(record, State.RELEASING)
    rows.add_addresses([row("b", 10)])
    rows.give_back(str(attachment.key), NOW)
    rows.adopt()
    assert rows.owners() == set()
