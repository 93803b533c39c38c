"""The ``vpc`` mode: pod addresses from the node's pod CIDR, carried between nodes by the VPC's routes."""

from typing import Final

from terway_core.types import DriverHooks
from terway_driver_vpc.driver import VpcDriver

__all__ = ["VpcDriver", "driver"]

driver: Final[DriverHooks] = VpcDriver()
