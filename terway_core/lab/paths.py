"""Who can be reached in a lab, and whether they reach each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from terway_core.lab import fabric
from terway_core.lab.api import Region
from terway_core.lab.ping import ping
from terway_core.lab.runtime import Runtime
from terway_core.lab.state import Lab, LabError, open_netns
from terway_core.types import IPAddress

INTERNET = "internet"
#: Echo requests under way at the same time; more would measure the interpreter's lock.
_AT_ONCE = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A pod, a node, the host on the internet, or a bare address.

    :param netns: where its packets come from; None for a bare address.
    :param node: the node that a pod is on; ``""`` for everything else.
    """

    name: str
    addresses: tuple[IPAddress, ...]
    netns: Path | None = None
    node: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathResult:
    """One direction between two endpoints by one address.

    :param milliseconds: the round-trip time; None when no echo came back.
    """

    source: Endpoint
    target: Endpoint
    address: IPAddress
    milliseconds: float | None


def endpoints(lab: Lab) -> dict[str, Endpoint]:
    """Everything in the lab that has a name: nodes, pods, and the host on the internet.

    :raises LabError: there is no lab.
    """
    dual = lab.spec.ip_stack != "ipv4"
    instances = {one.name: one for one in Region.load(lab.region_state).instances.values()}
    internet = (fabric.INTERNET_HOST, *((fabric.INTERNET_HOST_IPV6,) if dual else ()))
    found = [Endpoint(name=INTERNET, addresses=internet, netns=lab.netns("internet"))]
    for node in lab.nodes:
        instance = instances[node.name]
        addresses = (instance.private_ip, *((instance.ipv6,) if instance.ipv6 else ()))
        found.append(Endpoint(name=node.name, addresses=addresses, netns=node.netns))
        found += [
            Endpoint(name=pod.name, addresses=pod.addresses, netns=Path(pod.netns), node=node.name)
            for pod in Runtime(node).pods()
        ]
    return {endpoint.name: endpoint for endpoint in found}


def endpoint(lab: Lab, name: str) -> Endpoint:
    """The endpoint called ``name``, or the address it spells.

    :raises LabError: it is neither.
    """
    known = endpoints(lab)
    if name in known:
        return known[name]
    try:
        return Endpoint(name=name, addresses=(ip_address(name),))
    except ValueError:
        raise LabError(
            f"{name!r} is no address and nothing in the lab; known are {', '.join(known)}"
        ) from None


def measure(
    pairs: Iterable[tuple[Endpoint, Endpoint]],
    *,
    timeout: float,
    progress: Callable[[float, PathResult], None] = lambda share, result: None,
) -> list[PathResult]:
    """Send echoes from each source to each address of its target that is of a family the source has.

    :param timeout: seconds after which a path counts as broken.
    :param progress: called after each path, with the share of paths that are done.
    :returns: the results in the order of ``pairs``.
    """
    asked = [
        (source, target, address)
        for source, target in pairs
        for address in target.addresses
        if address.version in {own.version for own in source.addresses}
    ]
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        futures = [pool.submit(_measure, *one, timeout=timeout) for one in asked]
        for done, future in enumerate(as_completed(futures), 1):
            progress(done / len(futures), future.result())
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)  # on an interrupt: what has not begun need not


def _measure(source: Endpoint, target: Endpoint, address: IPAddress, *, timeout: float) -> PathResult:
    if source.netns is None:
        raise LabError(f"{source.name} is only an address; packets can be sent from pods and nodes")
    with open_netns(source.netns) as namespace:
        seconds = namespace.run(ping, address, timeout=timeout)
    milliseconds = None if seconds is None else round(seconds * 1000, 3)
    return PathResult(source=source, target=target, address=address, milliseconds=milliseconds)
