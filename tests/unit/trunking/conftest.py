from collections.abc import Iterator

import pytest

from tests.unit.trunking.world import World, running_world


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    with running_world(tmp_path) as world:
        yield world
