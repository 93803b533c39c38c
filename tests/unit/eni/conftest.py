from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .harness import Account, Node


@pytest.fixture
def account() -> Iterator[Account]:
    with Account().served() as account:
        yield account


@pytest.fixture
def make_node(account: Account, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Nodes of the account; ``boot`` them."""
    with ExitStack() as stack:

        def make(instance_type: str = "ecs.g7.xlarge", **settings: Any) -> Node:
            path = tmp_path / f"node-{len(account.region.instances)}" / "terway.db"
            node = Node(account, path, instance_type, **settings)
            stack.callback(node.close)
            return node

        yield make


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request waits for others of its burst: for tests with very many requests, one after the other."""
    monkeypatch.setattr("terway_core.eni.line.GATHER", 0.0)
