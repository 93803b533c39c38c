"""The command tree. What a command needs is imported when it runs: ``terway --help`` loads no netlink."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from terway_core import __version__
from terway_core.cli import cni, drivers, enis, kube, lab, manifests, node, pods, ram
from terway_core.cli.common import ConfigFile


def build(arguments: Sequence[str] = ()) -> typer.Typer:
    """The whole tree; a driver's own commands are loaded only when ``arguments`` may mean one."""
    app = typer.Typer(
        name="terway",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Pod networking for Kubernetes on Alibaba Cloud, one driver package per network mode.",
    )
    app.callback()(_root)
    app.command()(daemon)
    app.add_typer(drivers.app, name="drivers")
    app.add_typer(pods.app, name="pods")
    app.add_typer(enis.enis, name="enis")
    app.add_typer(enis.pool, name="pool")
    app.command()(node.status)
    app.command()(node.doctor)
    app.command()(node.gc)
    app.command(name="audit")(node.audit_node)
    app.command()(ram.ram_policy)
    app.command()(manifests.manifests)
    app.add_typer(cni.app, name="cni")
    app.add_typer(kube.app, name="kube")
    app.add_typer(lab.app, name="lab")
    own = {
        command.name or (command.callback.__name__ if command.callback else "")
        for command in app.registered_commands
    }
    own |= {group.name for group in app.registered_groups if group.name}
    if not arguments or arguments[0] not in own:
        _add_driver_commands(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"terway {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What stands before every command; the option's callback has done all there is to do."""


def daemon(config: ConfigFile = None) -> None:
    """Serve this node: run the daemon in the foreground, logging JSON to standard error."""
    # The same process, as a new program: a daemon has no use for what a command line is made of, nor for
    # glibc's heap for each thread, as only one at a time runs Python.
    argv = [sys.executable, "-P", "-m", "terway_core.daemon", *([str(config)] if config else [])]
    os.execve(sys.executable, argv, {"MALLOC_ARENA_MAX": "1", **os.environ})


def _add_driver_commands(app: typer.Typer) -> None:
    from terway_core.registry import Drivers

    installed = Drivers.installed()
    for info in installed.infos:
        if not info.problem and (commands := installed.commands(info.mode)):
            app.add_typer(commands, name=info.mode.replace("_", "-"))
