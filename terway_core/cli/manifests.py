"""``terway manifests``: everything that a cluster needs, for ``kubectl apply -f -``."""

from __future__ import annotations

from typing import Annotated

import typer
import yaml

from terway_core.cli.common import ConfigFile
from terway_core.config import load_config
from terway_core.errors import InvalidConfig


def manifests(
    image: Annotated[
        str, typer.Option(help="Container image with `terway` and the drivers.", show_default=False)
    ],
    drivers: Annotated[
        str,
        typer.Option(
            help="Modes to serve, separated by commas, in the order in which they are asked; default: "
            "those of the configuration.",
            show_default=False,
        ),
    ] = "",
    config: ConfigFile = None,
) -> None:
    """Print what a cluster needs: roles, settings, a DaemonSet, and what its drivers have beside it.

    What the configuration says of one node only, its name and its way to the API, is left out.
    """
    from terway_core.kube.manifests import daemon
    from terway_core.registry import Drivers

    settings = load_config(config)
    modes = tuple(drivers.replace(",", " ").split()) or settings.drivers
    if not modes:
        raise InvalidConfig("no driver is chosen; name at least one with --drivers")
    settings = settings.model_copy(
        update={"drivers": modes, "kube": settings.kube.model_copy(update={"enabled": True})}
    )
    installed = Drivers.installed()
    rules = [rule for mode in modes for rule in installed.rbac(mode)]
    found = daemon(settings, image, rules)
    for mode in modes:
        found += installed.manifests(mode, settings, image)
    typer.echo(yaml.dump_all(found, Dumper=_Dumper, sort_keys=False), nl=False)


class _Dumper(yaml.SafeDumper):
    """For readers: no aliases for what stands in several places, and text in its own lines."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)
