"""The example driver of terway; see docs/write-a-driver.md there."""

from terway_driver_example.driver import ExampleDriver, driver

__all__ = ["ExampleDriver", "driver"]
