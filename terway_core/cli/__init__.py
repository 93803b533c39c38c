"""The ``terway`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: errors that terway raises on purpose become one line and exit status 1."""
    from terway_core.cli.app import build
    from terway_core.errors import TerwayError

    try:
        build(sys.argv[1:])()
    except TerwayError as error:
        sys.stderr.write(f"terway: {error}\n")
        if error.details:
            sys.stderr.write("".join(f"  {line}\n" for line in error.details.splitlines()))
        sys.exit(1)
