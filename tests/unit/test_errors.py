"""The error tree as a CNI client sees it."""

import re

import pytest

from terway_core import errors
from terway_core.errors import (
    CloudError,
    DriverContractError,
    TerwayError,
    UnknownDriver,
)


def documented():
    """The tree in the module's docstring: name → (parent, code)."""
    tree, path = {}, []
    for line in errors.__doc__.splitlines():
        if found := re.fullmatch(r" {4}([ │├└─]*)(\w+) +(\d+)(?: .*)?", line):
            depth = len(found[1]) // 4
            path = [*path[:depth], found[2]]
            tree[found[2]] = (path[-2] if depth else "Exception", int(found[3]))
    return tree


def actual():
    return {
        name: (cls.__base__.__name__, cls.cni_code)
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, TerwayError)
    }


def test_docstring_shows_the_tree():
    assert documented() == actual()
    assert len(actual()) > 10


def test_cni_object_has_details_only_when_there_are_some():
    assert TerwayError("no").to_cni("1.0.0") == {"cniVersion": "1.0.0", "code": 999, "msg": "no"}
    assert TerwayError("no", details="why").to_cni("0.4.0")["details"] == "why"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UnknownDriver("eniip_veth"), ["'eniip_veth'", "pip install terway-driver-eniip-veth"]),
        (UnknownDriver("vpc", reason="it is a class"), ["'vpc'", "it is a class"]),
        (DriverContractError("vpc", "terway_gc", "returned None"), ["vpc", "terway_gc", "returned None"]),
    ],
)
def test_message_says_who_and_what(error, words):
    assert all(word in error.message for word in words)
    assert str(error) == error.message


def test_cloud_error_keeps_what_support_asks_for():
    error = CloudError("refused", code="Throttling", request_id="8C5B", details="more")
    assert (error.code, error.request_id, error.details) == ("Throttling", "8C5B", "more")
