"""``terway status``, ``doctor``, ``gc`` and ``audit``: is this node all right, and what is not."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from terway_core.cli.client import ask
from terway_core.cli.common import AsJson, ConfigFile, print_json
from terway_core.config import Config, load_config
from terway_core.errors import TerwayError
from terway_core.types import Problem


def status(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Say what the daemon does; exit 1 while it is not ready or not healthy."""
    answer = ask(load_config(config).socket, "GET", "/v1/status")
    if as_json:
        print_json(answer)
    else:
        _print_status(answer)
    if not (answer["ready"] and answer["healthy"]):
        raise typer.Exit(1)


def _print_status(answer: dict[str, Any]) -> None:
    state = "ready" if answer["ready"] else "not ready"
    typer.echo(f"terway {answer['version']} on {answer['node']}, pid {answer['pid']}: {state}")
    for problem in answer["problems"]:
        typer.echo(f"  problem: {problem}")
    for mode, why in answer["drivers"].items():
        typer.echo(f"  driver {mode}: {why or 'started'}")
    for kind, count in answer["attachments"].items():
        typer.echo(f"  attachments {kind}: {count}")
    typer.echo(f"  waiting commands: {answer['queue']}")
    if kube := answer["kube"]:
        state = kube["problem"] or ("pods known" if kube["synced"] else "pods not listed yet")
        typer.echo(f"  kubernetes: {state}")
    gc = answer["gc"]
    typer.echo(f"  last good gc round: {gc['seconds_since_good']:.0f} s ago")
    for problem in gc["problems"]:
        typer.echo(f"  gc: {problem}")


def doctor(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Look for what keeps pods from getting a network here; each problem comes with its remedy."""
    problems = _examine(load_config(config))
    if as_json:
        print_json([{"summary": p.summary, "remedy": p.remedy} for p in problems])
    else:
        for problem in problems:
            typer.echo(f"problem: {problem.summary}\n  remedy: {problem.remedy}")
        if not problems:
            typer.echo("no problem found")
    if problems:
        raise typer.Exit(1)


def gc(
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have the daemon finish what was interrupted and give back what nobody needs, now."""
    path = "/v1/gc?dry_run=true" if dry_run else "/v1/gc"
    report = ask(load_config(config).socket, "POST", path)
    if as_json:
        print_json(report)
    else:
        for line in report["released"]:
            typer.echo(f"{'would release' if dry_run else 'released'}: {line}")
        for line in report["problems"]:
            typer.echo(f"problem: {line}")
        if not report["released"] and not report["problems"]:
            typer.echo("nothing to do")
    if report["problems"]:
        raise typer.Exit(1)


def audit_node(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Compare journal, spool, kernel and cloud; name each difference, exit 1 if there is one."""
    from terway_core.audit import audit

    differences = audit(load_config(config))
    if as_json:
        print_json(differences)
    else:
        for difference in differences:
            typer.echo(difference)
        if not differences:
            typer.echo("no difference")
    if differences:
        raise typer.Exit(1)


# -- doctor -----------------------------------------------------------------------------------------------


def _examine(config: Config) -> list[Problem]:
    return [*_drivers(config), *_daemon(config), *_plugin(config), *_shared(config), *_kubernetes(config)]


def _drivers(config: Config) -> list[Problem]:
    from terway_core.cli.drivers import survey
    from terway_core.registry import Drivers

    if not config.drivers:
        return [
            Problem(
                summary="no driver is configured",
                remedy="name at least one in `drivers` of the configuration; see: terway drivers list",
            )
        ]
    found = []
    for driver in survey(Drivers.installed(), config):
        if not driver.configured:
            continue
        found += [
            Problem(summary=f"driver {driver.info.mode}: {problem.summary}", remedy=problem.remedy)
            for problem in driver.problems
        ]
    return found


def _daemon(config: Config) -> list[Problem]:
    try:
        answer = ask(config.socket, "GET", "/v1/status")
    except TerwayError as error:
        return [
            Problem(summary=str(error), remedy="start the daemon, and read its log if it does not stay up")
        ]
    return [
        Problem(summary=f"daemon: {problem}", remedy="the daemon's log has more; see: terway status")
        for problem in answer["problems"]
    ]


def _plugin(config: Config) -> list[Problem]:
    from terway_core.cni import install

    found = []
    binary, conflist = install.binary_path(config), install.conflist_path(config)
    if not binary.exists():
        found.append(
            Problem(summary=f"the runtime finds no plugin at {binary}", remedy="run: terway cni install")
        )
    if not conflist.exists():
        found.append(
            Problem(
                summary=f"the runtime finds no network configuration at {conflist}",
                remedy="the daemon puts it there once it can serve; see: terway status",
            )
        )
        return found
    first = min(path.name for path in config.cni_conf_dir.iterdir() if path.suffix in _CONFIGURATIONS)
    if first != conflist.name:
        found.append(
            Problem(
                summary=f"the runtime uses {config.cni_conf_dir / first}, which sorts before {conflist.name}",
                remedy=f"remove or rename {config.cni_conf_dir / first}",
            )
        )
    return found


def _shared(config: Config) -> list[Problem]:
    """Sysctls and other objects that all pods of the node rely on."""
    from terway_core.store import Store
    from terway_core.wiring.inspect import diff
    from terway_core.wiring.objects import Wiring

    if not config.database.exists():
        return []
    store = Store(config.database, read_only=True)
    try:
        wirings = [record.wiring for record in store.records() if record.wiring]
    finally:
        store.close()
    shared = dict.fromkeys(obj for wiring in wirings for obj in wiring.node)
    return [
        Problem(summary=f"{difference}, which pods rely on", remedy="bring it back with: terway gc")
        for difference in diff(Wiring(node=tuple(shared)), None)
    ]


def _kubernetes(config: Config) -> list[Problem]:
    if not config.kube.enabled:
        return []
    from terway_core.kube.check import examine
    from terway_core.registry import Drivers

    drivers = Drivers.installed()
    usable = {info.mode for info in drivers.infos if not info.problem} & set(config.drivers)
    return examine(config, [rule for mode in sorted(usable) for rule in drivers.rbac(mode)])


#: What libcni loads from the configuration folder.
_CONFIGURATIONS = frozenset({".conf", ".conflist", ".json"})
