"""The conformance suite, with the real pool against the simulated API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from terway_driver_eniip_ipvlan import EniipIpvlanDriver

from terway_core.testing.conformance import DriverConformance
from terway_core.testing.eni_fixtures import SharedEniFixtures


class TestEniipIpvlan(SharedEniFixtures, DriverConformance):
    mode = "eniip_ipvlan"
    supports_dual_stack = True

    @pytest.fixture
    def driver(self) -> EniipIpvlanDriver:
        return EniipIpvlanDriver()

    @pytest.fixture
    def options(self, families: tuple[int, ...]) -> Mapping[str, Any]:
        # The kernel that has ipvlan in the tests has no nftables.
        return {"masquerade": False, "host_stack_cidrs": ["169.254.20.10/32"]}
