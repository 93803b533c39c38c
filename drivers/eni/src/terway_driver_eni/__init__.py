"""The ``eni`` mode: the pod owns an ENI."""

from typing import Final

from terway_core.types import DriverHooks
from terway_driver_eni.driver import EniDriver

__all__ = ["EniDriver", "driver"]

driver: Final[DriverHooks] = EniDriver()
