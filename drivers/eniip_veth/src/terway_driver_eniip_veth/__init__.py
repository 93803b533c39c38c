"""The ``eniip_veth`` mode: pod addresses are secondary addresses of shared ENIs; veth and policy routing."""

from typing import Final

from terway_core.types import DriverHooks
from terway_driver_eniip_veth.driver import EniipVethDriver

__all__ = ["EniipVethDriver", "driver"]

driver: Final[DriverHooks] = EniipVethDriver()
