"""The data that crosses the driver API: frozen, keyword-only, and JSON all the way down.

A driver receives an :class:`Attachment` and the :class:`Node`, returns a :class:`Lease` and a
:class:`~terway_core.wiring.objects.Wiring`, and never sees the kernel, the store or the runtime.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from terway_core.wiring.objects import (
    IPAddress,
    IPInterface,
    IPNetwork,
    Wiring,
)

if TYPE_CHECKING:
    from terway_core.cloud import Cloud
    from terway_core.eni.pool import Pool
    from terway_core.kube.cluster import Cluster
    from terway_core.store import Store

__all__ = [
    "Attachment",
    "AttachmentKey",
    "DriverHooks",
    "GcReport",
    "IPAddress",
    "IPInterface",
    "IPNetwork",
    "Lease",
    "Node",
    "Outcome",
    "Pod",
    "Problem",
    "Services",
    "Wiring",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    """Who the attachment is for. Without Kubernetes only ``name`` may be known, or nothing at all.

    :param requests: what its containers request of extended resources, such as ``aliyun/eni``.
    """

    namespace: str = ""
    name: str = ""
    uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    requests: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class AttachmentKey(NamedTuple):
    """What the CNI specification identifies an attachment by (SPEC.md, "Parameters")."""

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.network}/{self.container_id}/{self.ifname}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """One interface of one sandbox on one network.

    :param netns: path of the pod's network namespace; ``""`` when the runtime no longer has one.
    :param runtime_config: the conflist's ``runtimeConfig`` (``bandwidth``, ``portMappings``…), as JSON.
    """

    network: str
    container_id: str
    ifname: str
    netns: str = ""
    pod: Pod = field(default_factory=Pod)
    runtime_config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> AttachmentKey:
        """What the journal and the runtime know this attachment by."""
        return AttachmentKey(self.network, self.container_id, self.ifname)

    @property
    def host_ifname(self) -> str:
        """``cali`` and 11 hex digits: the name under which Calico's Felix finds a pod's host interface.

        SHA-1 of ``namespace.name``, and of the interface name unless that is ``eth0``. An attachment
        without a pod takes its container id instead.
        """
        pod = f"{self.pod.namespace}.{self.pod.name}" if self.pod.name else self.container_id
        ifname = "" if self.ifname == "eth0" else self.ifname
        return "cali" + hashlib.sha1(f"{pod}{ifname}".encode()).hexdigest()[:11]

    def mac(self, end: str) -> str:
        """A locally administered unicast MAC address for one ``end`` of this attachment, always the same."""
        digest = hashlib.sha1(f"{self.key}/{end}".encode()).digest()
        return ":".join(f"{byte:02x}" for byte in (0x0A, *digest[:5]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """What ``terway_allocate`` took for an attachment and ``terway_teardown`` must give back.

    :param addresses: the pod's addresses with the prefix length to put on the link; at most one a family.
    :param gateways: next hops that a CNI client is shown, one for each family that has any.
    :param data: the driver's own record (an ENI id, a VLAN id…), as JSON.
    """

    addresses: tuple[IPInterface, ...]
    gateways: tuple[IPAddress, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """The machine the daemon runs on.

    :param addresses: its primary addresses, at most one a family.
    :param pod_cidrs: this node's share of the pod range, if Kubernetes has given it one.
    :param vpc_cidrs: networks that the VPC reaches without address translation.
    :param service_cidrs: where cluster IPs come from.
    """

    name: str
    addresses: tuple[IPAddress, ...] = ()
    mtu: int = 1500
    vpc_cidrs: tuple[IPNetwork, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    region_id: str = ""
    zone_id: str = ""
    vpc_id: str = ""
    instance_id: str = ""
    instance_type: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Answer of ``terway_teardown``. ``changed`` is False when there was nothing left to give back."""

    changed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class GcReport:
    """Answer of ``terway_gc``.

    :param released: what nobody needed and was given back, one line each.
    :param problems: what could not be looked at or given back, one line each; the rest was done all the same.
    """

    released: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that keeps a driver from working here, and what to do about it."""

    summary: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """What the core lends to a driver between ``terway_start`` and ``terway_stop``.

    :param options: the driver's own section of the configuration.
    :param cloud: OpenAPI and instance metadata; nothing is contacted before its first use.
    :param eni_pool: starts the node's pool of ENIs for a use and returns it; CloudError while it cannot.
    :param kube: the Kubernetes cluster; None when ``kube.enabled`` is false.
    :param clock: seconds since the epoch. Everything that rests or expires asks it.
    :param waiting: who waits in ``terway_allocate`` for what others do does so in ``with waiting():``, and
        keeps no other pod waiting meanwhile: so many ADDs work at once, and no more.
    """

    options: Mapping[str, Any]
    node: Node
    store: Store
    cloud: Cloud
    eni_pool: Callable[[Literal["shared", "exclusive", "trunk"]], Pool]
    kube: Cluster | None = None
    clock: Callable[[], float]
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext


class DriverHooks(Protocol):
    """The hooks every driver has. Annotate yours with it and mypy checks the signatures:

    ``driver: Final[DriverHooks] = VpcDriver()``
    """

    def terway_allocate(self, attachment: Attachment, node: Node) -> Lease: ...
    def terway_setup(self, attachment: Attachment, lease: Lease, node: Node) -> Wiring: ...
    def terway_teardown(self, attachment: Attachment, lease: Lease | None) -> Outcome: ...
    def terway_gc(self, live: tuple[Attachment, ...], node: Node) -> GcReport: ...
