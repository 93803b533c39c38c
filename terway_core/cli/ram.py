"""``terway ram-policy``: what the node's RAM role must be allowed to do."""

from __future__ import annotations

import typer

from terway_core.cli.common import ConfigFile, print_json
from terway_core.config import load_config


def ram_policy(config: ConfigFile = None) -> None:
    """Print the least RAM policy for the configured drivers, as JSON.

    An empty list of statements means that nothing is called. Give the policy to the instance's RAM role, or
    to the role or user whose credentials terway has.
    """
    from terway_core.cloud import ram

    settings = load_config(config)
    for mode in ram.unknown(settings):
        typer.echo(f"terway: what the driver {mode!r} calls is not known; add that yourself", err=True)
    print_json(ram.policy(ram.features(settings)))
