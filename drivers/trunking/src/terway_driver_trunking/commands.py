"""``terway trunking``: the control plane, and what a cluster needs for it."""

from __future__ import annotations

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Pods with ENIs of their own: the control plane.")
