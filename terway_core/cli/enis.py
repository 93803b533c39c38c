"""``terway enis`` and ``terway pool``: the ENIs of this node and the addresses on them."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer
from rich.table import Table

from terway_core.cli.client import ask
from terway_core.cli.common import AsJson, ConfigFile, console, print_json
from terway_core.config import load_config
from terway_core.errors import InvalidConfig

enis = typer.Typer(no_args_is_help=True, help="The ENIs that this node manages.")
pool = typer.Typer(no_args_is_help=True, help="The pool of addresses, and its switches for bad days.")

#: What an address can be, in the order in which it is shown.
_STATES = ("free", "used", "cooling", "leaving")


@enis.command("list")
def list_enis(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List the ENIs, with how many addresses of each are in which state."""
    answer = ask(load_config(config).socket, "GET", "/v1/enis")
    if as_json:
        print_json(answer["enis"])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("ENI", "USE", "STATE", *(state.upper() for state in _STATES), "VSWITCH", "OWNER"):
        table.add_column(column, overflow="fold")
    for eni in answer["enis"]:
        counts = Counter(address["state"] for address in eni["addresses"])
        table.add_row(
            eni["eni"] or "(being made)",
            eni["use"],
            eni["state"] + (f": {eni['problem']}" if eni["problem"] else ""),
            *(str(counts[state]) for state in _STATES),
            eni["vswitch"],
            eni["owner"],
        )
    console().print(table)


@enis.command()
def show(
    eni_id: Annotated[str, typer.Argument(help="Id of the ENI, or the beginning of it.")],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one ENI with each of its addresses."""
    answer = ask(load_config(config).socket, "GET", "/v1/enis")
    found = [eni for eni in answer["enis"] if eni["eni"].startswith(eni_id)]
    if not found:
        raise InvalidConfig(f"this node manages no ENI {eni_id!r}; see: terway enis list")
    if as_json:
        print_json(found)
        return
    for eni in found:
        typer.echo(f"{eni['eni']}  {eni['use']}  {eni['state']}  {eni['mac']}  {eni['vswitch']}")
        for label in ("owner", "problem"):
            if eni[label]:
                typer.echo(f"  {label}: {eni[label]}")
        for address in eni["addresses"]:
            prefix = f"  of {address['prefix']}" if address["prefix"] else ""
            typer.echo(f"  {address['address']:40}{address['state']:9}{address['owner']}{prefix}")


@pool.command("show")
def show_pool(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show the addresses by state and by ENI, the switches, and what the cloud disagrees with."""
    answer = ask(load_config(config).socket, "GET", "/v1/enis")
    if as_json:
        print_json(answer)
        return
    _print_pool(answer)


@pool.command()
def hold(
    releases: Annotated[bool, typer.Option("--releases", help="Give nothing back to the cloud.")] = False,
    calls: Annotated[bool, typer.Option("--calls", help="Make no call to the cloud at all.")] = False,
    config: ConfigFile = None,
) -> None:
    """Stop what may do harm on a bad day; pods are still served from what is there."""
    if not (releases or calls):
        raise InvalidConfig("say what to hold: --releases or --calls")
    wanted = ({"releasing": True} if releases else {}) | ({"calling": True} if calls else {})
    _print_pool(ask(load_config(config).socket, "POST", "/v1/pool/holds", wanted))


@pool.command()
def resume(config: ConfigFile = None) -> None:
    """End what `hold` began."""
    wanted = {"releasing": False, "calling": False}
    _print_pool(ask(load_config(config).socket, "POST", "/v1/pool/holds", wanted))


def _print_pool(answer: dict[str, Any]) -> None:
    if answer["holds"] is None:
        typer.echo("no driver on this node uses the pool")
        return
    total: Counter[str] = Counter()
    for eni in answer["enis"]:
        if eni["use"] != "shared":
            continue
        counts = Counter(address["state"] for address in eni["addresses"])
        total.update(counts)
        typer.echo(f"{eni['eni'] or '(being made)'}: " + _in_words(counts))
    typer.echo("all: " + _in_words(total))
    own = Counter("used" if eni["owner"] else "free" for eni in answer["enis"] if eni["use"] == "exclusive")
    if own:
        typer.echo("ENIs for pods: " + ", ".join(f"{own[state]} {state}" for state in ("free", "used")))
    for switch, what in (("releasing", "releases to the cloud"), ("calling", "calls to the cloud")):
        if answer["holds"][switch]:
            typer.echo(f"held: {what}; end that with: terway pool resume")
    for problem in answer["problems"]:
        typer.echo(f"problem: {problem}")


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in _STATES)
