"""Go's durations, in which times are given in custom resources."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``1h30m`` or ``0``.

    :raises ValueError: it is none, or negative.
    """
    if text == "0":
        return 0.0
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no duration such as 5m0s")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
