"""``terway lab fault``: the cloud's bad days, on demand."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from terway_core.cli.common import AsJson, print_json, print_table
from terway_core.cli.lab_folder import LabFolder
from terway_core.lab.state import DEFAULT_FOLDER, Lab, LabError

if TYPE_CHECKING:
    from terway_core.lab.api import InjectedFault

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Make the lab's cloud misbehave, and behave again.")
set_app = typer.Typer(
    no_args_is_help=True,
    help="Inject a fault. Without --times and --for it stays until terway lab fault clear takes it out.",
)
app.add_typer(set_app, name="set")

ActionName = Annotated[
    str, typer.Argument(help="An action, as AssignPrivateIpAddresses, or * for every one.")
]
Times = Annotated[
    int | None, typer.Option("--times", min=1, help="So many calls suffer from it, and no more.")
]
Lifetime = Annotated[
    float | None,
    typer.Option("--for", metavar="SECONDS", min=0.1, help="It passes by itself after this long."),
]
Seconds = Annotated[float, typer.Argument(min=0.1, max=600, help="How long.")]


class Sticky(StrEnum):
    """What may get stuck, in short."""

    attach = "attach"
    detach = "detach"
    delete = "delete"


@set_app.command("error")
def set_error(
    action: ActionName,
    code: Annotated[str, typer.Argument(help="The code of the refusal, as InvalidVSwitchId.IpNotEnough.")],
    folder: LabFolder = DEFAULT_FOLDER,
    times: Times = None,
    lifetime: Lifetime = None,
) -> None:
    """Refuse an action with a code."""
    _inject(folder, lifetime, kind="error", action=action, code=code, times=times)


@set_app.command("throttle")
def set_throttle(action: ActionName = "*", folder: LabFolder = DEFAULT_FOLDER) -> None:
    """Refuse an action as too frequent until the current minute is over, as the real service does."""
    from terway_core.lab.api import InjectedFault

    _put(folder, InjectedFault.throttled(action, time.time()))


@set_app.command("slow")
def set_slow(
    action: ActionName,
    seconds: Seconds,
    folder: LabFolder = DEFAULT_FOLDER,
    times: Times = None,
    lifetime: Lifetime = None,
) -> None:
    """Let an action take longer."""
    _inject(folder, lifetime, kind="slow", action=action, seconds=seconds, times=times)


@set_app.command("lost")
def set_lost(
    action: ActionName, folder: LabFolder = DEFAULT_FOLDER, times: Times = None, lifetime: Lifetime = None
) -> None:
    """Carry an action out, but close the connection without an answer."""
    _inject(folder, lifetime, kind="lost", action=action, times=times)


@set_app.command("stuck")
def set_stuck(
    what: Annotated[Sticky, typer.Argument(help="What never ends.")],
    folder: LabFolder = DEFAULT_FOLDER,
    times: Times = None,
    lifetime: Lifetime = None,
) -> None:
    """Leave ENIs Attaching, Detaching or Deleting.

    What is stuck goes on when the fault is cleared. Detaching and deleting may also be asked for again, which
    helps if the fault is over by then (--times).
    """
    action = f"{what.value.title()}NetworkInterface"
    _inject(folder, lifetime, kind="stuck", action=action, times=times)


@set_app.command("down")
def set_down(
    action: ActionName = "*",
    folder: LabFolder = DEFAULT_FOLDER,
    times: Times = None,
    lifetime: Lifetime = None,
) -> None:
    """Close the connection without an answer, and carry nothing out.

    For an API that is up but answers 503, use: terway lab fault set error '*' ServiceUnavailable
    """
    _inject(folder, lifetime, kind="down", action=action, times=times)


@set_app.command("metadata-lag")
def set_metadata_lag(seconds: Seconds, folder: LabFolder = DEFAULT_FOLDER, lifetime: Lifetime = None) -> None:
    """Let the metadata service show ENIs as they were some time ago."""
    _inject(folder, lifetime, kind="metadata-lag", seconds=seconds)


@set_app.command("metadata-down")
def set_metadata_down(folder: LabFolder = DEFAULT_FOLDER, lifetime: Lifetime = None) -> None:
    """Let the metadata service close connections without an answer."""
    _inject(folder, lifetime, kind="metadata-down")


@app.command("list")
def list_faults(folder: LabFolder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """List the faults, also those that are over: how many calls each has met, and how many it is for."""
    from terway_core.lab.faults import injected

    faults = injected(Lab(folder))
    if as_json:
        print_json([fault.model_dump() for fault in faults])
        return
    now = time.time()
    rows = [
        (
            fault.id,
            fault.kind,
            fault.action,
            fault.code or (f"{fault.seconds:g} s" if fault.seconds else ""),
            f"{fault.used}" + (f" of {fault.times}" if fault.times else ""),
            "" if fault.until is None else "over" if fault.is_over(now) else f"{fault.until - now:.0f} s",
        )
        for fault in faults
    ]
    print_table(("id", "fault", "action", "how", "calls", "left"), rows)


@app.command("clear")
def clear_faults(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of faults; none: all of them.")
    ] = None,
    folder: LabFolder = DEFAULT_FOLDER,
) -> None:
    """Take faults out again; ENIs that they kept stuck go on."""
    from terway_core.lab.faults import clear

    cleared = clear(Lab(folder), ids or ())
    if missing := sorted(set(ids or ()) - {fault.id for fault in cleared}):
        raise LabError(f"no fault has the id {', '.join(missing)}; see: terway lab fault list")
    typer.echo(f"cleared {len(cleared)}")


def _inject(folder: Path, lifetime: float | None, **fields: Any) -> None:
    from terway_core.lab.api import InjectedFault

    _put(folder, InjectedFault(until=time.time() + lifetime if lifetime else None, **fields))


def _put(folder: Path, fault: InjectedFault) -> None:
    from terway_core.lab.faults import inject

    typer.echo(f"fault {inject(Lab(folder), fault).id}")
