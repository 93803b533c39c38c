"""The actions served. Importing this package registers them."""

from terway_core.lab.api.actions import ecs, eni, eni_addresses, eni_describe, routes, sts, tags, vpc

__all__ = ["ecs", "eni", "eni_addresses", "eni_describe", "routes", "sts", "tags", "vpc"]
