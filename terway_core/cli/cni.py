"""``terway cni``: the plugin and the conflist on this host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import typer

from terway_core.cli.common import ConfigFile, print_json
from terway_core.cni import install as installer
from terway_core.config import Config, load_config
from terway_core.registry import Drivers

app = typer.Typer(no_args_is_help=True, help="The CNI plugin and its configuration on this host.")


@app.command()
def install(
    config: ConfigFile = None,
    conflist: bool = typer.Option(
        True, help="Put the conflist in place too; the daemon does so itself once it can serve."
    ),
) -> None:
    """Put the plugin, and the conflist that names it, where the container runtime looks."""
    settings = load_config(config)
    changed = installer.install_binary(settings)
    typer.echo(f"{installer.binary_path(settings)}: {'installed' if changed else 'is in place'}")
    if conflist:
        changed = installer.install_conflist(settings, _transforms(settings))
        typer.echo(f"{installer.conflist_path(settings)}: {'installed' if changed else 'is in place'}")


@app.command()
def uninstall(config: ConfigFile = None) -> None:
    """Take the conflist and the plugin away again. Pods that run keep their network."""
    settings = load_config(config)
    changed = installer.uninstall(settings)
    typer.echo("removed" if changed else "nothing was installed")


@app.command("conflist")
def show_conflist(config: ConfigFile = None) -> None:
    """Print the conflist that would be installed."""
    settings = load_config(config)
    print_json(installer.conflist(settings, _transforms(settings)))


def _transforms(settings: Config) -> list[Callable[[dict[str, Any]], dict[str, Any]]]:
    installed = Drivers.installed()
    return [
        partial(installed.conflist, mode, options=settings.options.get(mode, {})) for mode in settings.drivers
    ]
