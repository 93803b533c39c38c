"""``terway drivers``: what is installed, what of it can serve here, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from terway_core.cli.common import AsJson, ConfigFile, console, print_json
from terway_core.config import Config, load_config
from terway_core.errors import InvalidConfig, TerwayError, UnknownDriver
from terway_core.registry import DriverInfo, Drivers
from terway_core.types import Node, Problem

__all__ = ["DriverStatus", "app", "survey"]

app = typer.Typer(no_args_is_help=True, help="Installed network drivers, and what each of them needs.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverStatus:
    """Whether a driver can serve on this machine.

    :param status: ``unmet``: it works, this machine lacks something; ``broken``: it cannot be used anywhere.
    :param problems: why it is not ``ready``, each with its remedy.
    """

    info: DriverInfo
    configured: bool
    status: Literal["ready", "unmet", "broken"]
    problems: tuple[Problem, ...] = ()

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.status, "; ".join(p.summary for p in self.problems))))


def survey(drivers: Drivers, config: Config) -> list[DriverStatus]:
    """All drivers that are installed or configured: the configured ones first, in their order."""
    node = Node(
        name=config.node_name,
        mtu=config.mtu,
        vpc_cidrs=config.vpc_cidrs or (),
        service_cidrs=config.service_cidrs,
    )
    rank = {mode: position for position, mode in enumerate(config.drivers)}
    installed = {info.mode for info in drivers.infos}
    absent = [DriverInfo(mode=mode, problem="not installed") for mode in rank if mode not in installed]
    ordered = sorted((*drivers.infos, *absent), key=lambda info: (rank.get(info.mode, len(rank)), info.mode))
    return [
        _status(drivers, info, node, config.options.get(info.mode, {}), configured=info.mode in rank)
        for info in ordered
    ]


def _status(
    drivers: Drivers, info: DriverInfo, node: Node, options: Mapping[str, Any], *, configured: bool
) -> DriverStatus:
    status: Literal["ready", "unmet", "broken"] = "broken"
    if info.problem:
        package = f"terway-driver-{info.mode.replace('_', '-')}"
        remedy = f"mend or uninstall {info.origin}" if info.distribution else f"pip install {package}"
        problems = [Problem(summary=info.problem, remedy=remedy)]
    else:
        try:
            problems = drivers.preflight(info.mode, node, options)
            status = "unmet" if problems else "ready"
        except InvalidConfig as error:
            problems = [Problem(summary=error.message, remedy="mend the configuration")]
            status = "unmet"
        except TerwayError as error:
            problems = [Problem(summary=error.message, remedy=f"tell the authors of {info.origin}")]
    return DriverStatus(info=info, configured=configured, status=status, problems=tuple(problems))


@app.command("list")
def list_drivers(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List the drivers. Exit code 1: one that is configured cannot serve."""
    drivers = Drivers.installed()
    found = survey(drivers, load_config(config))
    if as_json:
        print_json([_as_json(driver) for driver in found])
    else:
        rows = [(d.info.mode, d.info.distribution, d.info.version, str(d), d.info.summary) for d in found]
        _print_table(("MODE", "DISTRIBUTION", "VERSION", "STATUS", "SUMMARY"), rows)
    for wrapper in drivers.wrappers:
        if wrapper.problem:
            typer.echo(f"plugin {wrapper.mode} of {wrapper.origin} is broken: {wrapper.problem}", err=True)
    if any(driver.configured and driver.status != "ready" for driver in found):
        raise typer.Exit(1)


@app.command("show")
def show_driver(
    mode: Annotated[str, typer.Argument(help="The driver's mode, as in the list.")],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one driver: its hooks, its requirements, and what its preflight says on this machine."""
    found = [
        driver for driver in survey(Drivers.installed(), load_config(config)) if driver.info.mode == mode
    ]
    if not found:
        raise UnknownDriver(mode)
    if as_json:
        print_json(_as_json(found[0]))
        return
    for driver in found:  # more than one: packages that offer the same mode
        _print_driver(driver)


def _print_driver(driver: DriverStatus) -> None:
    info = driver.info
    lines = [
        ("mode", info.mode),
        ("summary", info.summary),
        ("distribution", f"{info.distribution} {info.version}".strip()),
        ("configured", "yes" if driver.configured else "no"),
        ("status", driver.status),
        ("hooks", ", ".join(info.hooks)),
        ("requirements", ", ".join(info.requirements)),
    ]
    for problem in driver.problems:
        lines += [("problem", problem.summary), ("remedy", problem.remedy)]
    for label, value in lines:
        typer.echo(f"{label:13} {value or '-'}")


def _as_json(driver: DriverStatus) -> dict[str, object]:
    return {
        "mode": driver.info.mode,
        "distribution": driver.info.distribution,
        "version": driver.info.version,
        "status": driver.status,
        "summary": driver.info.summary,
        "configured": driver.configured,
        "problems": [asdict(problem) for problem in driver.problems],
        "hooks": driver.info.hooks,
        "requirements": driver.info.requirements,
    }


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for a person at a terminal, else aligned columns on whole lines, for grep and awk."""
    terminal = console()
    if terminal.is_terminal:
        table = Table(*titles, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(Text, row))  # Text: a message may hold what looks like markup
        terminal.print(table)
        return
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for line in (titles, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
