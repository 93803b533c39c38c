"""Fixtures and markers for tests of terway drivers; pytest finds them by themselves (group ``pytest11``).

pytest imports this file before anything measures coverage, and in projects that only happen to have terway
installed: so it loads nothing of terway before a fixture is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from terway_core.testing.fakes import FakeClock, WatchedStore
    from terway_core.wiring.netns import Namespace

# Before the suite is imported: without it a failure reads "AssertionError" and nothing more.
pytest.register_assert_rewrite(
    *(f"terway_core.testing.{module}" for module in ("conformance", "lease_cases", "wiring_cases"))
)


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known, for ``--strict-markers``."""
    config.addinivalue_line("markers", "kernel: needs root and makes real network namespaces")
    config.addinivalue_line("markers", "uml: runs in user-mode Linux, whose kernel has ipvlan")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where tests are marked ``uml``, have them run in user-mode Linux."""
    if any(item.get_closest_marker("uml") for item in items):
        from terway_core.testing import second_kernel

        second_kernel.take_part(config, items)


@pytest.fixture
def terway_clock() -> FakeClock:
    """A clock for ``Services``; time passes with ``terway_clock.advance(seconds)``."""
    from terway_core.testing.fakes import FakeClock

    return FakeClock()


@pytest.fixture
def terway_store(tmp_path: Path) -> Iterator[WatchedStore]:
    """An empty journal in the test's own folder."""
    from terway_core.testing.fakes import WatchedStore

    store = WatchedStore(tmp_path / "terway.db")
    yield store
    store.close()


@pytest.fixture
def terway_netns() -> Iterator[Callable[[], Namespace]]:
    """Makes new network namespaces, ``lo`` up; gone when the test ends.

    Without the right to make them the test is skipped, but fails where ``CI`` is set: there nobody would
    notice.
    """
    from terway_core.errors import IOFailure
    from terway_core.wiring.engine import Engine
    from terway_core.wiring.netns import Namespace, create_netns, delete_netns
    from terway_core.wiring.objects import LinkUp

    with ExitStack() as stack:

        def make() -> Namespace:
            name = f"terway-test-{os.getpid()}"
            try:
                path = create_netns(name)
            except IOFailure as error:
                reason = f"no network namespaces here: {error}"
                if os.environ.get("CI"):
                    pytest.fail(reason)
                pytest.skip(reason)
            namespace = stack.enter_context(Namespace.open(path))
            delete_netns(name)  # only the descriptor holds it now, so that nothing survives a crash
            engine = Engine(namespace)
            engine.ensure([LinkUp(dev="lo")])
            engine.close()
            return namespace

        yield make
