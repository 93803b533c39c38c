"""What the eni mode needs of a machine."""

import pytest
from terway_driver_eni import EniDriver

from terway_core.registry import Drivers
from terway_core.types import Node, Problem
from terway_core.wiring import nft

PROBLEM = Problem(summary="no nf_tables", remedy="another kernel")


@pytest.mark.parametrize(
    ("lacking", "options", "problems"),
    [(PROBLEM, {}, [PROBLEM]), (PROBLEM, {"host_peer": False}, []), (None, {}, [])],
)
def test_only_the_way_by_the_hosts_stack_is_masqueraded(monkeypatch, lacking, options, problems):
    monkeypatch.setattr(nft, "preflight", lambda: lacking)
    drivers = Drivers()
    drivers.register("eni", EniDriver())
    assert drivers.preflight("eni", Node(name="node-1"), options) == problems
