"""Per-API throttling as ECS does it: who is over the limit waits for the next minute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from terway_core.lab.api.faults import gateway_fault

WINDOW: Final = 60


class Throttle:
    """Counts calls by action in fixed windows of one minute."""

    def __init__(self) -> None:
        self._window = 0
        self._calls: dict[str, int] = {}

    def admit(self, action: str, limits: Mapping[str, int], now: float) -> None:
        """Count one call.

        :param limits: calls per minute by action; ``*`` is any action not named.
        :raises Fault: Throttling.
        """
        if (window := int(now // WINDOW)) != self._window:
            self._window, self._calls = window, {}
        calls = self._calls[action] = self._calls.get(action, 0) + 1
        limit = limits.get(action, limits.get("*"))
        if limit is not None and calls > limit:
            raise gateway_fault(400, "Throttling", "Request was denied due to request throttling.")
