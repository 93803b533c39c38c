"""What several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def print_table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for people, as wide as it needs to be."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(*titles, box=SIMPLE)
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))  # Text: a path may look like markup
    console().print(table)
