"""``terway pods``: the attachments of this node and how they are wired."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table

from terway_core.cli.client import ask
from terway_core.cli.common import AsJson, ConfigFile, console, print_json
from terway_core.config import load_config
from terway_core.errors import UnknownAttachment

app = typer.Typer(no_args_is_help=True, help="The pods attached on this node, and their wiring.")


@app.command("list")
def list_pods(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List all attachments of this node."""
    pods = ask(load_config(config).socket, "GET", "/v1/pods")
    if as_json:
        print_json(pods)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("POD", "IFNAME", "ADDRESSES", "DRIVER", "STATE", "AGE", "SANDBOX"):
        table.add_column(column, overflow="fold")
    for pod in pods:
        table.add_row(
            _name(pod),
            pod["ifname"],
            ", ".join(pod["addresses"]),
            pod["driver"],
            pod["state"] + (f": {pod['problem']}" if pod["problem"] else ""),
            _age(time.time() - pod["created"]),
            pod["container_id"][:13],
        )
    console().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="NAMESPACE/NAME, NAME, or the beginning of a sandbox id.")],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one pod: every object of its wiring, in the words of ip(8), tc(8) and sysctl(8)."""
    found = [
        pod
        for pod in ask(load_config(config).socket, "GET", "/v1/pods")
        if name in (_name(pod), pod["name"]) or pod["container_id"].startswith(name)
    ]
    if not found:
        raise UnknownAttachment(f"no pod {name!r} is attached on this node; see: terway pods list")
    if as_json:
        print_json(found)
        return
    for pod in found:
        typer.echo(f"{_name(pod)}  {pod['ifname']}  {', '.join(pod['addresses'])}")
        for label in ("driver", "state", "problem", "network", "container_id", "netns", "uid"):
            if pod[label]:
                typer.echo(f"  {label.replace('_', ' '):13}{pod[label]}")
        for where, title in (("node", "node, shared"), ("host", "host"), ("pod", "pod")):
            if lines := pod["wiring"].get(where):
                typer.echo(f"  {title}:")
                for line in lines:
                    typer.echo(f"    {line}")


def _name(pod: dict[str, Any]) -> str:
    return f"{pod['namespace']}/{pod['name']}" if pod["namespace"] else pod["name"] or pod["container_id"]


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"
