"""``terway kube``: what a cluster needs for terway."""

from __future__ import annotations

import typer
import yaml

from terway_core.cli.common import ConfigFile
from terway_core.config import load_config

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="What a Kubernetes cluster needs for terway.")


@app.command("rbac")
def kube_rbac(config: ConfigFile = None) -> None:
    """Print the least that the daemon's service account must be allowed to do, for `kubectl apply -f -`."""
    from terway_core.kube.rbac import manifests
    from terway_core.registry import Drivers

    settings, drivers = load_config(config), Drivers.installed()
    of_drivers = [rule for mode in settings.drivers for rule in drivers.rbac(mode)]
    typer.echo(yaml.safe_dump_all(manifests(settings.kube, of_drivers), sort_keys=False), nl=False)


@app.callback()
def _group() -> None:
    """Keeps the name of the only command."""
