"""The actions served. Importing this package registers them."""

from terway_core.lab.api.actions import ecs, routes, vpc

__all__ = ["ecs", "routes", "vpc"]
