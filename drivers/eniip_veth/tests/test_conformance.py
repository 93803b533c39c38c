"""The conformance suite, with the real pool against the simulated API."""

from __future__ import annotations

import pytest
from terway_driver_eniip_veth import EniipVethDriver

from terway_core.testing.conformance import DriverConformance
from terway_core.testing.eni_fixtures import SharedEniFixtures


class TestEniipVeth(SharedEniFixtures, DriverConformance):
    mode = "eniip_veth"
    supports_dual_stack = True

    @pytest.fixture
    def driver(self) -> EniipVethDriver:
        return EniipVethDriver()
