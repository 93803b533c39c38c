"""From the pairs of a query to the typed parameters of an action."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terway_core.lab.api.faults import Fault
from terway_core.lab.api.params import Request, decode, unflatten


class Tag(Request):
    key: str
    value: str = ""


class Sample(Request):
    v_switch_id: str
    ipv6_address_count: int = 0
    delete_on_release: bool = True
    private_ip_address: tuple[str, ...] = ()
    tag: tuple[Tag, ...] = ()


def test_types() -> None:
    pairs = {
        "VSwitchId": "vsw-1",
        "Ipv6AddressCount": "3",
        "DeleteOnRelease": "False",
        "PrivateIpAddress.1": "10.0.0.1",
        "PrivateIpAddress.4": "10.0.0.2",
        "Tag.1.Key": "k",
        "Unknown": "ignored",
    }
    assert decode(Sample, pairs.items()) == Sample(
        VSwitchId="vsw-1",
        Ipv6AddressCount=3,
        DeleteOnRelease=False,
        PrivateIpAddress=("10.0.0.1", "10.0.0.2"),
        Tag=(Tag(Key="k"),),
    )


@pytest.mark.parametrize("text", ["true", "True", "TRUE"])
def test_booleans_in_any_case(text: str) -> None:
    assert decode(Sample, [("VSwitchId", "v"), ("DeleteOnRelease", text)]).delete_on_release


@pytest.mark.parametrize(
    ("pairs", "code", "name"),
    [
        ({}, "MissingParameter", "VSwitchId"),
        ({"VSwitchId": "v", "Tag.7.Value": "x"}, "MissingParameter", "Tag.1.Key"),
        ({"VSwitchId": "v", "Ipv6AddressCount": "few"}, "InvalidParameter", "Ipv6AddressCount"),
        ({"VSwitchId": "v", "DeleteOnRelease": "maybe"}, "InvalidParameter", "DeleteOnRelease"),
        ({"VSwitchId": "v", "Tag": "x"}, "InvalidParameter", "Tag"),
        ({"VSwitchId.1": "v"}, "InvalidParameter", "VSwitchId"),
    ],
)
def test_refusals_name_the_parameter(pairs: dict[str, str], code: str, name: str) -> None:
    with pytest.raises(Fault) as caught:
        decode(Sample, pairs.items())
    assert caught.value.code == code
    assert f'"{name}"' in caught.value.message


def test_lists_and_structures_are_put_together() -> None:
    pairs = [
        ("RegionId", "cn-hangzhou"),
        ("Ids.10", "c"),
        ("Ids.2", "b"),
        ("Ids.1", "a"),
        ("Tag.1.Key", "k"),
        ("Tag.1.Value", ""),
        ("Tag.3.Key", "l"),
        ("Config.Queue", "2"),
    ]
    assert unflatten(pairs) == {
        "RegionId": "cn-hangzhou",
        "Ids": ["a", "b", "c"],
        "Tag": [{"Key": "k", "Value": ""}, {"Key": "l"}],
        "Config": {"Queue": "2"},
    }


@pytest.mark.parametrize("pairs", [[("A", "1"), ("A.1", "2")], [("A.1", "2"), ("A", "1")]])
def test_a_parameter_is_a_value_or_a_structure(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(Fault, match="InvalidParameter"):
        unflatten(pairs)


@given(st.lists(st.tuples(st.text(".1aA"), st.text(max_size=3))))
def test_any_parameters_are_put_together_or_refused(pairs: list[tuple[str, str]]) -> None:
    with suppress(Fault):  # and nothing else
        assert isinstance(unflatten(pairs), dict)
