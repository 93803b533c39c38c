"""``terway lab``: a simulated region on this machine, with nodes, pods and real packets."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from terway_core.cli import lab_faults
from terway_core.cli.common import AsJson, print_json, print_table
from terway_core.cli.lab_folder import LabFolder, NewLabFolder
from terway_core.lab.state import (
    DEFAULT_FOLDER,
    DEFAULT_INSTANCE_TYPE,
    IpStack,
    Kernel,
    Kubernetes,
    Lab,
    LabError,
    Spec,
)

if TYPE_CHECKING:
    from terway_core.lab.demo import DemoResult
    from terway_core.lab.paths import PathResult

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="A simulated region on this machine: nodes, pods, real packets.")
pod_app = typer.Typer(no_args_is_help=True, help="Pods on the lab's nodes.")
node_app = typer.Typer(no_args_is_help=True, help="The lab's nodes.")
api_app = typer.Typer(no_args_is_help=True, help="The region's OpenAPI.")
app.add_typer(pod_app, name="pod")
app.add_typer(node_app, name="node")
app.add_typer(api_app, name="api")
app.add_typer(lab_faults.app, name="fault")

Drivers = Annotated[str, typer.Option(help="Modes that the nodes serve, separated by commas.")]
Stack = Annotated[IpStack, typer.Option(help="Families of the pods' addresses.")]
InstanceType = Annotated[
    str, typer.Option(help="ECS instance type of the nodes: how many ENIs and addresses each can have.")
]
VSwitches = Annotated[
    list[str] | None,
    typer.Option(
        "--vswitch",
        metavar="[ZONE=]CIDR",
        help="One more vSwitch, a /29 or larger part of 192.168.0.0/16. May be given several times.",
    ),
]
KernelChoice = Annotated[
    Kernel,
    typer.Option(
        help="This machine's, or user-mode Linux (Debian's user-mode-linux); auto: the latter for modes that"
        " the former cannot serve.",
    ),
]
NodeName = Annotated[str, typer.Argument(help="A node: node-1, node-2…")]
PodName = Annotated[str, typer.Argument(help="The pod's name.")]
PodNamespace = Annotated[str, typer.Option("--namespace", help="The pod's Kubernetes namespace.")]
Command = Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")]


def _pairs(name: str, text: str) -> Any:
    return typer.Option(name, metavar="NAME=VALUE", help=f"{text} May be given several times.")


def _mapping(pairs: Sequence[str] | None) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs or ()]
    if wrong := [name for name, equals, _ in split if not equals]:
        raise typer.BadParameter(f"{wrong[0]!r} is not NAME=VALUE")
    return {name: value for name, _, value in split}


@app.command("up")
def lab_up(
    folder: NewLabFolder = DEFAULT_FOLDER,
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 2,
    drivers: Drivers = "vpc",
    ip_stack: Stack = "ipv4",
    instance_type: InstanceType = DEFAULT_INSTANCE_TYPE,
    vswitches: VSwitches = None,
    kubernetes: Annotated[
        bool,
        typer.Option(
            "--kubernetes",
            help="With an API server: kube-apiserver and etcd of $KUBEBUILDER_ASSETS, else a simulated one.",
        ),
    ] = False,
    kernel: KernelChoice = "auto",
) -> None:
    """Build a lab: the region, its network, and nodes with a daemon each."""
    from terway_core.lab.build import up
    from terway_core.lab.kernel import choose, up_inside
    from terway_core.lab.nodes import executable

    lab = Lab(folder)
    spec = _spec(nodes, drivers, ip_stack, instance_type, vswitches, kubernetes)
    if choose(kernel, spec) == "uml":
        typer.echo("in user-mode Linux, where all commands about this lab will run", err=True)
        raise typer.Exit(up_inside(lab, [executable(), *sys.argv[1:], "--kernel", "host"]))
    with _progress() as show:
        up(lab, spec, show)
    if kubernetes:
        typer.echo(f"{spec.kubernetes} API server: kubeconfig {lab.kubeconfig}")
    for node in lab.nodes:
        typer.echo(f"{node.name} is ready: netns {node.netns.name}, log {node.log}")


@app.command("down")
def lab_down(folder: NewLabFolder = DEFAULT_FOLDER) -> None:
    """Take the lab down: its processes, namespaces and files, whatever is left of them."""
    from terway_core.lab.build import down

    typer.echo("the lab is down" if down(Lab(folder)) else f"no lab was up in {folder}")


@app.command("status")
def lab_status(folder: LabFolder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """Show how each process is doing. Exit code 1: one of them does not serve."""
    from terway_core.lab.build import status

    found = status(Lab(folder))
    if as_json:
        print_json([{**asdict(health), "log": str(health.log)} for health in found])
    else:
        rows = [(health.name, health.state, health.pid or "-", health.log) for health in found]
        print_table(("name", "state", "pid", "log"), rows)
    if any(health.state != "ready" for health in found):
        raise typer.Exit(1)


@app.command("env")
def lab_env(folder: LabFolder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """Show namespaces, sockets, folders, endpoints and credentials, for tools of your own."""
    from terway_core.lab.describe import describe

    found = describe(Lab(folder))
    if as_json:
        print_json(found)
        return
    parts = {name: found[name] for name in ("region", "kubernetes", "internet") if name in found}
    parts |= {node["name"]: node for node in found["nodes"]}
    for part, values in parts.items():
        for name, value in values.items():
            typer.echo(f"{part:10} {name:18} {' '.join(value) if isinstance(value, list) else value}")


@app.command("ping")
def lab_ping(
    source: Annotated[str, typer.Argument(help="A pod, a node, or `internet`.")],
    target: Annotated[str, typer.Argument(help="A pod, a node, `internet`, or an address.")],
    folder: LabFolder = DEFAULT_FOLDER,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.1)] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Send echoes from one to the other, in each family both have. Exit code 1: one got no answer."""
    from terway_core.lab.paths import endpoint, measure

    lab = Lab(folder)
    results = measure([(endpoint(lab, source), endpoint(lab, target))], timeout=timeout)
    if not results:
        raise LabError(f"{source} and {target} have no address family in common")
    if as_json:
        print_json([_as_json(result) for result in results])
    else:
        for result in results:
            typer.echo(f"{source} → {target} {result.address}: {_time(result, ' ms')}")
    if any(result.milliseconds is None for result in results):
        raise typer.Exit(1)


@app.command("demo")
def lab_demo(
    folder: NewLabFolder = DEFAULT_FOLDER,
    drivers: Annotated[
        str,
        typer.Option(help="Modes to show one after the other, separated by commas; default: all installed."),
    ] = "",
    ip_stack: Stack = "ipv4",
    instance_type: InstanceType = DEFAULT_INSTANCE_TYPE,
    kernel: KernelChoice = "auto",
    as_json: AsJson = False,
) -> None:
    """Build two nodes and six pods for each mode, try every way between them, and take all down again.

    Exit code 1: a packet did not come back, or a node's kernel is not what its journal says.
    """
    from terway_core.lab import uml
    from terway_core.lab.demo import run_demo, run_demo_inside, spec_of
    from terway_core.lab.kernel import choose

    specs = [spec_of(mode, ip_stack, instance_type) for mode in _modes(drivers) or _installed_modes()]
    places = [choose(kernel, spec) for spec in specs]
    results: dict[str, DemoResult] = {}
    with ExitStack() as stack:
        machine: uml.Machine | None = None
        for spec, place in zip(specs, places, strict=True):
            mode = spec.drivers[0]
            with _progress(f"{mode}: ") as show:
                if place == "host":
                    results[mode] = run_demo(Lab(folder), spec, show)
                else:
                    show(0.0, "booting user-mode Linux")
                    machine = machine or stack.enter_context(uml.booted())
                    results[mode] = run_demo_inside(machine, spec, show)
            if not as_json:
                _print_demo(mode, results[mode])
    paths = [{"mode": mode, **_as_json(path)} for mode, result in results.items() for path in result.paths]
    drift = [f"{mode}: {line}" for mode, result in results.items() for line in result.drift]
    ok = all(result.ok for result in results.values())
    if as_json:
        print_json({"ok": ok, "paths": paths, "drift": drift})
    else:
        works = sum(path["milliseconds"] is not None for path in paths)
        found = "differences" if drift else "no difference"
        typer.echo(f"{works} of {len(paths)} paths work, audit found {found}")
    if not ok:
        raise typer.Exit(1)


@pod_app.command("add")
def pod_add(
    node: NodeName,
    name: PodName,
    folder: LabFolder = DEFAULT_FOLDER,
    namespace: PodNamespace = "default",
    labels: Annotated[list[str] | None, _pairs("--label", "With Kubernetes: a label.")] = None,
    annotations: Annotated[list[str] | None, _pairs("--annotation", "An annotation.")] = None,
    requests: Annotated[list[str] | None, _pairs("--request", "A request, as aliyun/eni=1.")] = None,
) -> None:
    """Start a pod on a node."""
    from terway_core.lab.paths import endpoints
    from terway_core.lab.runtime import Runtime

    lab = Lab(folder)
    runtime = Runtime(lab.node(node))
    if name in endpoints(lab):
        raise LabError(f"{name!r} is in the lab already; choose another name")
    pod = runtime.run_pod(
        name,
        namespace,
        labels=_mapping(labels),
        annotations=_mapping(annotations),
        requests=_mapping(requests),
    )
    typer.echo(f"{name} on {node}: {' '.join(map(str, pod.addresses))}")


@pod_app.command("list")
def pod_list(folder: LabFolder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """List the pods of all nodes."""
    from terway_core.lab.runtime import all_pods

    pods = all_pods(Lab(folder))
    if as_json:
        print_json([asdict(pod) for pod in pods])
        return
    rows = [(p.name, p.namespace, p.node, " ".join(map(str, p.addresses)), Path(p.netns).name) for p in pods]
    print_table(("name", "namespace", "node", "addresses", "netns"), rows)


@pod_app.command("delete")
def pod_delete(name: PodName, folder: LabFolder = DEFAULT_FOLDER) -> None:
    """Stop and remove a pod."""
    from terway_core.lab.runtime import Runtime, find_pod

    lab = Lab(folder)
    pod = find_pod(lab, name)
    Runtime(lab.node(pod.node)).remove_pod(pod)


@pod_app.command("exec")
def pod_exec(name: PodName, command: Command, folder: LabFolder = DEFAULT_FOLDER) -> None:
    """Run a command in a pod's network namespace; its exit code is ours."""
    from terway_core.lab.runtime import find_pod

    _execute(Path(find_pod(Lab(folder), name).netns), command)


@node_app.command("exec")
def node_exec(node: NodeName, command: Command, folder: LabFolder = DEFAULT_FOLDER) -> None:
    """Run a command in a node's network namespace; its exit code is ours."""
    _execute(Lab(folder).node(node).netns, command)


@api_app.command("log")
def api_log(folder: LabFolder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """List the API calls that the region served."""
    from terway_core.lab.build import served_calls

    calls = served_calls(Lab(folder))
    if as_json:
        print_json(calls)
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
    print_table(("time", "from", "action", "answer", "parameters"), rows)


def _execute(netns: Path, command: Sequence[str]) -> None:
    from terway_core.lab.runtime import execute

    # Ctrl-C is for the command. (Ignoring it would be inherited; a handler is not.)
    signal.signal(signal.SIGINT, lambda *_: None)
    raise typer.Exit(execute(netns, command))


def _modes(drivers: str) -> tuple[str, ...]:
    return tuple(drivers.replace(",", " ").split())


def _installed_modes() -> tuple[str, ...]:
    from terway_core.registry import Drivers as Installed

    return tuple(info.mode for info in Installed.installed().infos if not info.problem)


def _spec(
    nodes: int,
    drivers: str,
    ip_stack: IpStack,
    instance_type: str,
    vswitches: Sequence[str] | None = None,
    kubernetes: bool = False,
) -> Spec:
    return Spec(
        nodes=nodes,
        drivers=_modes(drivers),
        ip_stack=ip_stack,
        instance_type=instance_type,
        vswitches=tuple(vswitches or ()),
        kubernetes=_api_server() if kubernetes else "none",
    )


def _api_server() -> Kubernetes:
    from terway_core.lab.kubernetes import real

    return "real" if real.find() else "simulated"


@contextmanager
def _progress(prefix: str = "") -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error, and the way to end the work below it.

    A signal is heeded at the next step, where no thread is in the middle of anything and all can be taken
    down; a second Ctrl-C does not wait for that.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    heeded = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    interrupted: list[int] = []

    def note(number: int, _: object) -> None:
        interrupted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def show(share: float, step: str) -> None:
        if interrupted:
            raise KeyboardInterrupt
        bar.update(task, completed=share, description=prefix + step)

    before = {number: signal.signal(number, note) for number in heeded}
    try:
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        screen = Console(stderr=True)
        with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
            task = bar.add_task("", total=1.0)
            yield show
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_demo(mode: str, result: DemoResult) -> None:
    """Sources down, targets across: two dimensions for the two ends of a path."""
    for version in sorted({path.address.version for path in result.paths}):
        paths = [path for path in result.paths if path.address.version == version]
        cells = {(path.source.name, path.target.name): _time(path) for path in paths}
        sources = list(dict.fromkeys(source for source, _ in cells))
        targets = [*sources, *dict.fromkeys(target for _, target in cells if target not in sources)]
        rows = [(source, *(cells.get((source, target), "") for target in targets)) for source in sources]
        print_table((f"{mode}, IPv{version}, ms", *targets), rows)
    for path in result.paths:
        if path.milliseconds is None:
            typer.echo(f"no answer: {path.source.name} → {path.target.name} {path.address}")
    for line in result.drift:
        typer.echo(f"audit: {line}")


def _time(path: PathResult, unit: str = "") -> str:
    return "none" if path.milliseconds is None else f"{path.milliseconds:.2f}{unit}"


def _as_json(path: PathResult) -> dict[str, Any]:
    return {
        "source": path.source.name,
        "target": path.target.name,
        "address": str(path.address),
        "milliseconds": path.milliseconds,
    }
