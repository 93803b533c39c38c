"""The ``eniip_ipvlan`` mode: pod addresses are secondary addresses of shared ENIs; ipvlan links of those."""

from typing import Final

from terway_core.types import DriverHooks
from terway_driver_eniip_ipvlan.driver import EniipIpvlanDriver

__all__ = ["EniipIpvlanDriver", "driver"]

driver: Final[DriverHooks] = EniipIpvlanDriver()
