"""The rows in words."""

from __future__ import annotations

from typing import Any

from terway_core.eni.model import EniAddress
from terway_core.eni.rows import Rows


def describe(rows: Rows, now: float) -> list[dict[str, Any]]:
    """Each ENI, the oldest first, and its addresses."""
    with rows.changed:
        enis, by_eni = list(rows.enis.values()), rows.by_eni()
    return [
        {
            "eni": eni.eni_id,
            "state": eni.state.value,
            "use": eni.use,
            "vswitch": eni.vswitch_id,
            "mac": eni.mac,
            "owner": eni.owner,
            "problem": eni.problem,
            "addresses": [_address(row, now) for row in sorted(by_eni[eni.token], key=_by_address)],
        }
        for eni in sorted(enis, key=lambda eni: eni.since)
    ]


def _address(row: EniAddress, now: float) -> dict[str, str]:
    state = "used" if row.owner else "leaving" if row.leaving else "free" if row.free(now) else "cooling"
    return {
        "address": str(row.address),
        "prefix": str(row.block or ""),
        "owner": row.owner,
        "state": state,
    }


def _by_address(row: EniAddress) -> tuple[int, int]:
    return row.address.version, int(row.address)
