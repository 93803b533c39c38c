"""``terway lab``: a simulated region on this machine, with nodes, pods and real packets."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from terway_core.lab.build import down, served_calls, status, up
from terway_core.lab.demo import NODES, DemoResult, run_demo
from terway_core.lab.describe import describe
from terway_core.lab.paths import PathResult, endpoint, endpoints, measure
from terway_core.lab.runtime import Runtime, all_pods, execute, find_pod
from terway_core.lab.state import DEFAULT_FOLDER, ENV_FOLDER, IpStack, Lab, LabError, Spec

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="A simulated region on this machine: nodes, pods, real packets.")
pod_app = typer.Typer(no_args_is_help=True, help="Pods on the lab's nodes.")
node_app = typer.Typer(no_args_is_help=True, help="The lab's nodes.")
api_app = typer.Typer(no_args_is_help=True, help="The region's OpenAPI.")
app.add_typer(pod_app, name="pod")
app.add_typer(node_app, name="node")
app.add_typer(api_app, name="api")

Folder = Annotated[Path, typer.Option("--dir", envvar=ENV_FOLDER, help="The folder of the lab's state.")]
Drivers = Annotated[str, typer.Option(help="Modes that the nodes serve, by commas.")]
Stack = Annotated[IpStack, typer.Option(help="Families of the pods' addresses.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
NodeName = Annotated[str, typer.Argument(help="A node: node-1, node-2…")]
PodNamespace = Annotated[str, typer.Option("--namespace", help="The pod's Kubernetes namespace.")]
PodName = Annotated[str, typer.Argument(help="The pod's name.")]
Command = Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")]

_PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@app.command("up")
def lab_up(
    folder: Folder = DEFAULT_FOLDER,
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = NODES,
    drivers: Drivers = "vpc",
    ip_stack: Stack = "ipv4",
) -> None:
    """Build a lab: the region, its network, and nodes with a daemon each."""
    lab = Lab(folder)
    with _progress() as show:
        up(lab, _spec(nodes, drivers, ip_stack), lambda done, total, step: show(done / total, step))
    for node in lab.nodes:
        typer.echo(f"{node.name}  ip netns exec {node.netns.name} …  log {node.log}")


@app.command("down")
def lab_down(folder: Folder = DEFAULT_FOLDER) -> None:
    """Take the lab down: its processes, namespaces and files, whatever is left of them."""
    typer.echo("The lab is down." if down(Lab(folder)) else f"No lab was up in {folder}.")


@app.command("status")
def lab_status(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """Show how each process is doing. Exit code 1: one of them does not serve."""
    found = status(Lab(folder))
    if as_json:
        _print_json([asdict(health) for health in found])
    else:
        _print_table(
            ("name", "state", "pid", "log"), [(one.name, one.state, one.pid or "-", one.log) for one in found]
        )
    if any(health.state != "ready" for health in found):
        raise typer.Exit(1)


@app.command("env")
def lab_env(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """Show namespaces, sockets, folders, endpoints and credentials, for tools of your own."""
    found = describe(Lab(folder))
    if as_json:
        _print_json(found)
        return
    for part in (found["region"], found["internet"], *found["nodes"]):
        for name, value in part.items():
            typer.echo(f"{name:18} {' '.join(value) if isinstance(value, list) else value}")
        typer.echo()


@app.command("ping")
def lab_ping(
    source: Annotated[str, typer.Argument(help="A pod, a node, or `internet`.")],
    target: Annotated[str, typer.Argument(help="A pod, a node, `internet`, or an address.")],
    folder: Folder = DEFAULT_FOLDER,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.1)] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Send echoes from one to the other, by each address family both have. Exit code 1: one got no answer."""
    lab = Lab(folder)
    pair = endpoint(lab, source), endpoint(lab, target)
    results = measure([pair], timeout=timeout)
    if not results:
        raise LabError(f"{source} and {target} have no address family in common")
    if as_json:
        _print_json([_as_json(result) for result in results])
    else:
        for result in results:
            typer.echo(f"{source} → {target} {result.address}: {_cell(result)}")
    if any(result.milliseconds is None for result in results):
        raise typer.Exit(1)


@app.command("demo")
def lab_demo(
    folder: Folder = DEFAULT_FOLDER,
    drivers: Drivers = "vpc",
    ip_stack: Stack = "ipv4",
    as_json: AsJson = False,
) -> None:
    """Build two nodes and six pods, try every way between them, and take all down again.

    Exit code 1: a packet did not come back, or a node's kernel is not what its journal says.
    """
    with _progress() as show:
        result = run_demo(Lab(folder), _spec(NODES, drivers, ip_stack), show)
    if as_json:
        paths = [_as_json(path) for path in result.paths]
        _print_json({"ok": result.ok, "paths": paths, "drift": result.drift})
    else:
        _print_demo(result)
    if not result.ok:
        raise typer.Exit(1)


@pod_app.command("add")
def pod_add(
    node: NodeName, name: PodName, folder: Folder = DEFAULT_FOLDER, namespace: PodNamespace = "default"
) -> None:
    """Start a pod on a node."""
    lab = Lab(folder)
    if name in endpoints(lab):
        raise LabError(f"{name!r} is in the lab already; choose another name")
    pod = Runtime(lab.node(node)).run_pod(name, namespace)
    typer.echo(f"{name} on {node}: {' '.join(map(str, pod.addresses))}")


@pod_app.command("list")
def pod_list(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """List the pods of all nodes."""
    pods = all_pods(Lab(folder))
    if as_json:
        _print_json([asdict(pod) for pod in pods])
        return
    rows = [(p.name, p.namespace, p.node, " ".join(map(str, p.addresses)), Path(p.netns).name) for p in pods]
    _print_table(("name", "namespace", "node", "addresses", "netns"), rows)


@pod_app.command("delete")
def pod_delete(name: PodName, folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop and remove a pod."""
    lab = Lab(folder)
    pod = find_pod(lab, name)
    Runtime(lab.node(pod.node)).remove_pod(pod)


@pod_app.command("exec", context_settings=_PASS_ON)
def pod_exec(name: PodName, command: Command, folder: Folder = DEFAULT_FOLDER) -> None:
    """Run a command in a pod's network namespace; its exit code is ours."""
    raise typer.Exit(execute(Path(find_pod(Lab(folder), name).netns), command))


@node_app.command("exec", context_settings=_PASS_ON)
def node_exec(node: NodeName, command: Command, folder: Folder = DEFAULT_FOLDER) -> None:
    """Run a command in a node's network namespace; its exit code is ours."""
    raise typer.Exit(execute(Lab(folder).node(node).netns, command))


@api_app.command("log")
def api_log(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """List the API calls that the region served."""
    lab = Lab(folder)
    calls = served_calls(lab)
    if as_json:
        _print_json(calls)
        return
    rows = [
        (
            datetime.fromtimestamp(call["time"]).strftime("%H:%M:%S.%f")[:-3],
            call["source_ip"],
            call["action"],
            call["code"] or call["status"],
            " ".join(f"{name}={value}" for name, value in call["params"].items()),
        )
        for call in calls
    ]
    _print_table(("time", "from", "action", "answer", "parameters"), rows)


def _spec(nodes: int, drivers: str, ip_stack: IpStack) -> Spec:
    return Spec(nodes=nodes, drivers=tuple(drivers.replace(",", " ").split()), ip_stack=ip_stack)


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error. SIGTERM ends the work in it as Ctrl-C does, so that all is taken down."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda share, step: bar.update(task, completed=share, description=step)
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_demo(result: DemoResult) -> None:
    """Two dimensions for two ends: sources down, targets across, round-trip times in milliseconds."""
    for version in sorted({path.address.version for path in result.paths}):
        paths = [path for path in result.paths if path.address.version == version]
        cells = {(path.source.name, path.target.name): _cell(path, unit="") for path in paths}
        sources, targets = (sorted(dict.fromkeys(names)) for names in zip(*cells, strict=True))
        table = Table("from / to", *targets, box=SIMPLE, title=f"IPv{version}, round trip in ms")
        for source in sources:
            table.add_row(source, *(Text(cells.get((source, target), "")) for target in targets))
        _console().print(table)
    for line in result.drift:
        typer.echo(f"audit of {line}", err=True)
    broken = [path for path in result.paths if path.milliseconds is None]
    for path in broken:
        typer.echo(f"no answer: {path.source.name} → {path.target.name} {path.address}", err=True)
    verdict = f"{len(result.paths) - len(broken)} of {len(result.paths)} paths work"
    audit = "audit found differences" if result.drift else "audit found no difference"
    typer.echo(f"{verdict}; {audit}.")


def _cell(path: PathResult, unit: str = " ms") -> str:
    return "no answer" if path.milliseconds is None else f"{path.milliseconds:.3f}{unit}"


def _as_json(path: PathResult) -> dict[str, Any]:
    return {
        "source": path.source.name,
        "target": path.target.name,
        "address": str(path.address),
        "milliseconds": path.milliseconds,
    }


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, default=str))


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(*titles, box=SIMPLE)
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    _console().print(table)


def _console() -> Console:
    """As wide as the terminal; what reads a pipe gets whole lines."""
    console = Console()
    return console if console.is_terminal else Console(width=200)
