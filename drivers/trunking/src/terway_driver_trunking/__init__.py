"""The ``trunking`` mode: a member ENI for each pod that a PodNetworking selects, and its control plane."""

from typing import Final

from terway_core.types import DriverHooks
from terway_driver_trunking.driver import TrunkingDriver

__all__ = ["TrunkingDriver", "driver"]

driver: Final[DriverHooks] = TrunkingDriver()
