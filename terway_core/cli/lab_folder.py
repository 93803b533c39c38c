"""The folder of a lab, as an option of its commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from terway_core.lab.state import ENV_FOLDER, Lab

__all__ = ["LabFolder", "NewLabFolder"]


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
