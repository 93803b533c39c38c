"""What several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from terway_core.lab.state import ENV_FOLDER, Lab

ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file.", show_default=False)]


def _where_the_lab_runs(folder: Path) -> Path:
    """A lab with a kernel of its own has its sockets and namespaces there, so commands run there."""
    lab = Lab(folder)
    if lab.kernel_dir.exists():
        from terway_core.lab.kernel import machine
        from terway_core.lab.nodes import executable

        if found := machine(lab):
            raise typer.Exit(found.run([executable(), *sys.argv[1:]]))
    return folder


def _lab_folder(callback: Callable[[Path], Path] | None) -> Any:
    return typer.Option("--dir", envvar=ENV_FOLDER, help="The folder of the lab's state.", callback=callback)


#: Of a lab that is there, and of one that comes or goes.
LabFolder = Annotated[Path, _lab_folder(_where_the_lab_runs)]
NewLabFolder = Annotated[Path, _lab_folder(None)]
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
