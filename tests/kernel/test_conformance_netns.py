"""The namespaces that the test kit makes."""

import os
from pathlib import Path

import pytest

from terway_core.wiring.snapshot import Snapshot

pytestmark = pytest.mark.kernel


def test_namespaces_are_new_and_leave_no_name(terway_netns):
    first, second = terway_netns(), terway_netns()
    assert first.identity != second.identity
    assert list(Path("/run/netns").glob(f"terway-test-{os.getpid()}*")) == []


def test_loopback_is_up_and_alone(terway_netns):
    links = terway_netns().run(Snapshot.take).links
    assert {name: link.up for name, link in links.items()} == {"lo": True}
