"""Alibaba Cloud: signed OpenAPI calls, credentials, and the instance metadata service."""

from terway_core.cloud.client import Cloud
from terway_core.cloud.metadata import Identity, Metadata

__all__ = ["Cloud", "Identity", "Metadata"]
