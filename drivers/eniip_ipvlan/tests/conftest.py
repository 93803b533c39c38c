"""What of the tests needs a kernel with ipvlan runs in user-mode Linux."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cases of the conformance suite that wire real namespaces."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("kernel"):
            item.add_marker(pytest.mark.uml)
