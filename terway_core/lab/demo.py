"""The demonstration: two nodes, six pods, and every way between them, with real packets."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from terway_core.audit import audit
from terway_core.config import load_config
from terway_core.lab import control_plane
from terway_core.lab.api.instance_types import INSTANCE_TYPES
from terway_core.lab.build import Progress, temporary
from terway_core.lab.describe import describe
from terway_core.lab.nodes import executable
from terway_core.lab.paths import INTERNET, Endpoint, PathResult, endpoints, measure
from terway_core.lab.runtime import Runtime
from terway_core.lab.state import IpStack, Lab, LabError, NodeFiles, Spec, open_netns
from terway_core.lab.uml import Machine

NODES: Final = 2
PODS_PER_NODE: Final = 3
#: Seconds after which a path counts as broken.
PATH_LIMIT: Final = 2.0
#: Seconds after which a difference that is still there is real.
SETTLING_LIMIT: Final = 6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What the demonstration saw.

    :param drift: each difference that the audit found, after the name of its node.
    """

    paths: tuple[PathResult, ...]
    drift: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Every path works, and every node's kernel is what its journal says."""
        return not self.drift and all(path.milliseconds is not None for path in self.paths)


def spec_of(mode: str, ip_stack: IpStack, instance_type: str) -> Spec:
    """The lab in which a mode is shown."""
    if mode != control_plane.MODE:
        return Spec(nodes=NODES, drivers=(mode,), ip_stack=ip_stack, instance_type=instance_type)
    # Beside an eniip mode and in a cluster, without which it is not to be had.
    takes_trunk = [one.name for one in INSTANCE_TYPES.values() if one.trunk]
    return Spec(
        nodes=NODES,
        drivers=(mode, "eniip_veth"),
        ip_stack=ip_stack,
        instance_type=instance_type if instance_type in takes_trunk else takes_trunk[0],
        kubernetes="simulated",
    )


def run_demo(lab: Lab, spec: Spec, progress: Progress) -> DemoResult:
    """Build a lab, start pods, try every path, and take all down again, also when something fails.

    :raises TerwayError: the lab or a pod could not be started.
    """
    with temporary(lab, spec, lambda share, step: progress(0.5 * share, step)):
        result = _demonstrate(lab, progress)
        progress(1.0, "taking the lab down")
    return result


def run_demo_inside(machine: Machine, spec: Spec, progress: Progress) -> DemoResult:
    """The same in another kernel.

    :raises LabError: the lab or a pod could not be started there.
    """
    argv = [executable(), "lab", "demo", "--json", "--kernel", "host"]
    argv += ["--dir", str(machine.folder / "lab"), "--drivers", spec.drivers[0]]
    argv += ["--ip-stack", spec.ip_stack, "--instance-type", spec.instance_type]
    stdout, stderr = io.BytesIO(), io.BytesIO()
    machine.run(argv, stdout=stdout, stderr=stderr, waiting=lambda: progress(0.5, "in user-mode Linux"))
    try:
        report = json.loads(stdout.getvalue())
    except ValueError:
        raise LabError(
            "the demonstration in user-mode Linux failed", details=stderr.getvalue().decode(errors="replace")
        ) from None
    paths = [
        PathResult(
            source=Endpoint(name=path["source"], addresses=()),
            target=Endpoint(name=path["target"], addresses=(ip_address(path["address"]),)),
            address=ip_address(path["address"]),
            milliseconds=path["milliseconds"],
        )
        for path in report["paths"]
    ]
    drift = tuple(line.partition(": ")[2] for line in report["drift"])  # it begins with the mode
    return DemoResult(paths=tuple(paths), drift=drift)


def _demonstrate(lab: Lab, progress: Progress) -> DemoResult:
    progress(0.5, "starting pods")
    spread = [node for node in lab.nodes for _ in range(PODS_PER_NODE)]
    places = [(node, f"pod-{number}") for number, node in enumerate(spread, 1)]
    annotations = _networking(lab) if control_plane.MODE in lab.spec.drivers else {}
    with ThreadPoolExecutor() as pool:
        sandboxes = list(
            pool.map(lambda place: Runtime(place[0]).run_pod(place[1], annotations=annotations), places)
        )

    paths = measure(
        _pairs(endpoints(lab)),
        timeout=PATH_LIMIT,
        progress=lambda share, path: progress(0.6 + 0.3 * share, f"{path.source.name} → {path.target.name}"),
    )
    progress(0.9, "comparing journal and kernel")
    drift = _audit(lab.nodes)

    progress(0.95, "deleting pods")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda sandbox: Runtime(lab.node(sandbox.node)).remove_pod(sandbox), sandboxes))
    drift += _audit(lab.nodes)
    return DemoResult(paths=tuple(paths), drift=drift)


def _networking(lab: Lab) -> Mapping[str, str]:
    """Another vSwitch than the nodes', so that everybody sees whose addresses those are."""
    region = describe(lab)["region"]
    vswitch_id = region["vswitches"][1].partition("=")[0]
    return control_plane.add_networking(lab, "demo", [vswitch_id], [region["security_group_id"]])


def _pairs(known: dict[str, Endpoint]) -> Iterator[tuple[Endpoint, Endpoint]]:
    """Every pod to every other pod, to every node and to the internet."""
    pods = [endpoint for endpoint in known.values() if endpoint.node]
    nodes = [endpoint for endpoint in known.values() if not endpoint.node and endpoint.name != INTERNET]
    for source in pods:
        for target in (*pods, *nodes, known[INTERNET]):
            if target is not source:
                yield source, target


def _audit(nodes: tuple[NodeFiles, ...]) -> tuple[str, ...]:
    """What stays different: the pool may be making an ENI meanwhile, or giving one back."""
    deadline = time.monotonic() + SETTLING_LIMIT
    while (found := _differences(nodes)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _differences(nodes: tuple[NodeFiles, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for node in nodes:
        with open_netns(node.netns) as namespace:
            found += (f"{node.name}: {line}" for line in namespace.run(audit, load_config(node.config)))
    return tuple(found)
