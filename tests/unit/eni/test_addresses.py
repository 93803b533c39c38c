"""What is found by an index is what a look through all rows finds."""

from collections import Counter
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from terway_core.eni.addresses import Addresses
from terway_core.eni.model import EniAddress

KNOWN = [ip_address(text) for text in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2")]
rows = st.builds(
    EniAddress,
    token=st.sampled_from(["a", "b"]),
    address=st.sampled_from(KNOWN),
    block=st.none(),
    owner=st.sampled_from(["", "", "x", "y"]),
    rests_until=st.sampled_from([0.0, 10.0, 20.0]),
    leaving=st.booleans(),
)


@given(first=st.lists(rows, max_size=4), steps=st.lists(rows | st.sampled_from(KNOWN), max_size=30))
def test_any_changes(first, steps):
    addresses = Addresses(first)
    for step in steps:
        if isinstance(step, EniAddress):
            addresses.put(step)
        elif step in addresses:
            addresses.drop(step)
        for now in (0.0, 10.0, 20.0):
            for token in ("a", "b"):
                for family in (4, 6):
                    free = [
                        row
                        for row in addresses.values()
                        if row.token == token and row.address.version == family and row.free(now)
                    ]
                    found = addresses.longest_rested(token, family, now)
                    assert (found in free) if free else found is None
                    assert not found or found.rests_until == min(row.rests_until for row in free)
        for owner in ("x", "y", "z"):
            assert {*addresses.of_owner(owner)} == {row for row in addresses.values() if row.owner == owner}
        assert +addresses.used == Counter(row.token for row in addresses.values() if row.owner)
