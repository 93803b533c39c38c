"""What several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def print_json(data: Any) -> None:
    """For programs: no colours, no wrapping."""
    typer.echo(json.dumps(data, indent=2))


def console() -> Console:
    """For people: tables of the terminal's width; of a generous one when the output is a file or a pipe."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=160)
