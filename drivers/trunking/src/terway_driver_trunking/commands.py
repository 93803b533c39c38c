"""``terway trunking``: the control plane, and what a cluster needs for it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

from terway_core.cli.common import ConfigFile
from terway_core.config import load_config

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Pods with ENIs of their own: the control plane.")

Host = Annotated[
    str,
    typer.Option(
        help="ADDRESS:PORT at which the API server finds the webhook, when that is not its Service.",
        show_default=False,
    ),
]


@app.command()
def crds() -> None:
    """Print the definitions of PodNetworking and PodENI, for `kubectl apply -f -`."""
    from terway_driver_trunking.crds import manifests

    _print(manifests())


@app.command()
def rbac(config: ConfigFile = None) -> None:
    """Print the least that the control plane's service account must be allowed to do."""
    from terway_driver_trunking.rbac import manifests

    _print(manifests(load_config(config).kube.namespace))


@app.command()
def webhook(config: ConfigFile = None, host: Host = "") -> None:
    """Print what leads the API server to the webhook; the control plane fills in its certificate."""
    from terway_driver_trunking.webhooks import manifests

    _print(manifests(load_config(config).kube.namespace, host))


@app.command()
def controller(config: ConfigFile = None, host: Host = "", port: int = 4443) -> None:
    """Run a control plane: the webhook, and, if none of the others does, the work on the custom resources."""
    from terway_core.daemon import log
    from terway_driver_trunking.controller import Settings, serve

    settings = load_config(config)
    log.configure(settings.log_level)
    serve(settings, Settings(host=host, port=port))


def _print(manifests: list[dict[str, Any]]) -> None:
    typer.echo(yaml.safe_dump_all(manifests, sort_keys=False), nl=False)
