"""The ``terway`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point."""
    from terway_core.cli.app import build
    from terway_core.errors import told

    with told():
        build(sys.argv[1:])()
