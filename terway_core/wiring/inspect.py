"""Reads the kernel back: what differs from a wiring (CHECK, audit), and what is ours but in no wiring (gc).

The reading is done in :mod:`terway_core.wiring.snapshot`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from terway_core.errors import WiringError
from terway_core.wiring import netlink, nft
from terway_core.wiring.changes import ALIAS_PREFIX, SYSCTL_ROOT, device
from terway_core.wiring.engine import Engine
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import (
    MAIN_TABLE,
    Address,
    Clsact,
    Ipvlan,
    LinkUp,
    Masquerade,
    MoveLink,
    Neighbor,
    Redirect,
    Route,
    Rule,
    Sysctl,
    TokenBucket,
    Veth,
    VlanPop,
    VlanPush,
    Wiring,
    WiringObject,
    describe,
)
from terway_core.wiring.snapshot import TICK_NS, Link, Snapshot

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as declared.

    :param where: ``node``, ``host`` or ``pod``.
    :param problem: what the kernel has instead, ``missing`` if nothing.
    """

    where: str
    obj: WiringObject
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {describe(self.obj)}: {self.problem}"


# -- differences ------------------------------------------------------------------------------------------


def _problem(obj: WiringObject, snapshot: Snapshot, owner: str) -> str:
    dev = device(obj)
    if dev and dev not in snapshot.links and not isinstance(obj, Ipvlan):
        return f"missing, and so is its link {dev}"
    match obj:
        case Veth():
            return _link_problem(
                snapshot.links, obj.name, obj.mtu, obj.mac, f"{ALIAS_PREFIX}{owner}" if owner else ""
            )
        case Ipvlan():
            return _ipvlan_problem(obj, snapshot.links)
        case LinkUp():
            return _link_problem(snapshot.links, obj.dev, obj.mtu, "", "")
        case Address():
            return "" if (obj.dev, obj.address) in snapshot.addresses else "missing"
        case Route():
            return _route_problem(obj, snapshot)
        case Rule():
            return "" if _normal(obj) in snapshot.rules else "missing"
        case Neighbor():
            mac, permanent = snapshot.neighbors.get((obj.dev, obj.address), ("", False))
            if not mac:
                return "missing"
            if mac != obj.mac:
                return f"has lladdr {mac}"
            return "" if permanent else "is not permanent"
        case TokenBucket():
            return _bucket_problem(obj, snapshot)
        case Clsact():
            return "" if obj.dev in snapshot.clsacts else "missing"
        case Redirect():
            return _redirect_problem(obj, snapshot)
        case VlanPush():
            return _push_problem(obj, snapshot)
        case VlanPop():
            return "" if obj in snapshot.vlan_filters else "missing"
        case _:
            return ""


def _link_problem(links: Mapping[str, Link], name: str, mtu: int, mac: str, alias: str) -> str:
    link = links.get(name)
    if link is None:
        return "missing"
    problems = []
    if not link.up:
        problems.append("is down")
    if mtu and link.mtu != mtu:
        problems.append(f"has mtu {link.mtu}")
    if mac and link.mac != mac:
        problems.append(f"has mac {link.mac}")
    if alias and link.alias != alias:
        problems.append(f"belongs to {link.alias.removeprefix(ALIAS_PREFIX) or 'nobody'}")
    return ", ".join(problems)


def _ipvlan_problem(obj: Ipvlan, links: Mapping[str, Link]) -> str:
    link = links.get(obj.name)
    if link and link.kind != "ipvlan":
        return f"is a link of kind {link.kind or 'physical'}"
    problems = [_link_problem(links, obj.name, obj.mtu, "", "")]
    if link and link.arp != obj.arp:
        problems.append("resolves neighbours" if link.arp else "does not resolve neighbours")
    return ", ".join(filter(None, problems))


def _redirect_problem(obj: Redirect, snapshot: Snapshot) -> str:
    if obj in snapshot.redirects:
        return ""
    others = [other for other in snapshot.redirects if (other.dev, other.dst) == (obj.dev, obj.dst)]
    return f"is {describe(others[0])} instead" if others else "missing"


def _push_problem(obj: VlanPush, snapshot: Snapshot) -> str:
    pushes = [found for found in snapshot.vlan_filters if isinstance(found, VlanPush)]
    vids = [found.vid for found in pushes if (found.dev, found.src) == (obj.dev, obj.src)]
    if vids == [obj.vid]:
        return ""
    return f"is vlan {vids[0]} instead" if vids else "missing"


def _route_problem(obj: Route, snapshot: Snapshot) -> str:
    if obj in snapshot.routes:
        return ""
    others = [route for route in snapshot.routes if route.dst == obj.dst and route.table == obj.table]
    return f"is {describe(others[0])} instead" if others else "missing"


def _bucket_problem(obj: TokenBucket, snapshot: Snapshot) -> str:
    if obj.dev not in snapshot.buckets:
        return "missing"
    rate, burst, limit = snapshot.buckets[obj.dev]
    rounding = TICK_NS * obj.rate // 1_000_000_000 + 1  # one tick's worth of bytes
    if rate != obj.rate or limit != obj.limit or abs(burst - obj.burst) > rounding:
        return f"has rate {rate} B/s burst {burst} limit {limit}"
    return ""


def _normal(rule: Rule) -> Rule:
    """A rule as the kernel gives it back: the family spelled out, no prefix of length 0."""
    network = rule.src or rule.dst
    return Rule(
        priority=rule.priority,
        table=MAIN_TABLE if rule.blackhole else rule.table,
        src=rule.src if rule.src and rule.src.prefixlen else None,
        dst=rule.dst if rule.dst and rule.dst.prefixlen else None,
        iif=rule.iif,
        oif=rule.oif,
        blackhole=rule.blackhole,
        family=rule.family if network is None else network.version,
    )


def _compare(
    where: str,
    objects: Iterable[WiringObject],
    snapshot: Snapshot,
    masquerades: Collection[Masquerade] = (),
    owner: str = "",
) -> list[Difference]:
    """What of ``objects`` the calling thread's namespace, which ``snapshot`` shows, has not as declared."""
    found = []
    for obj in objects:
        match obj:
            case Sysctl():
                problem = _sysctl_problem(obj)
            case Masquerade():
                problem = "" if obj in masquerades else "missing"
            case _:
                problem = _problem(obj, snapshot, owner)
        if problem:
            found.append(Difference(where, obj, problem))
    return found


def _sysctl_problem(obj: Sysctl) -> str:
    try:
        value = (SYSCTL_ROOT / obj.key).read_text().split()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if value == obj.value.split() else f"is {' '.join(value)}"


def diff(
    wiring: Wiring, pod: Namespace | None, *, owner: str = "", host: Namespace | None = None
) -> list[Difference]:
    """Everything in which the kernel differs from ``wiring``. For many wirings of one host see HostState.

    :param pod: the pod's namespace; None says that it is gone, and leaves its part out.
    :param owner: who the links must belong to; ``""`` does not ask.
    :param host: the host's namespace, the caller's own by default.
    """
    found = _in(host, lambda: HostState.read().diff(wiring, owner=owner))
    return found + diff_pod(wiring, pod) if pod else found


def diff_pod(wiring: Wiring, pod: Namespace) -> list[Difference]:
    """What a pod's namespace does not have as declared."""
    ends = tuple(
        Veth(name=veth.peer, peer=veth.name, mac=veth.peer_mac, peer_mac=veth.mac, mtu=veth.mtu)
        for veth in wiring.host
        if isinstance(veth, Veth)
    )
    moves = [obj for obj in wiring.host if isinstance(obj, MoveLink)]

    def compare() -> list[Difference]:
        snapshot = Snapshot.take()
        moved = [(obj, _link_problem(snapshot.links, obj.name, obj.mtu, obj.mac, "")) for obj in moves]
        found = _compare("pod", (*ends, *wiring.pod), snapshot)
        return found + [Difference("pod", obj, problem) for obj, problem in moved if problem]

    return pod.run(compare)


# -- strays -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stray:
    """Something on the host that carries our mark and that no wiring declares."""

    description: str
    remove: Callable[[Engine], None]


@dataclass(frozen=True, slots=True)
class HostState:
    """What of the host is ours, as it was when it was read. Read it *before* the journal: what is wired later
    has a row already, so nothing of a pod that is being added is taken for a stray."""

    snapshot: Snapshot
    masquerades: frozenset[Masquerade]

    @classmethod
    def read(cls, host: Namespace | None = None) -> HostState:
        """Read the host's namespace."""
        return _in(host, lambda: cls(Snapshot.take(), frozenset(_masquerades())))

    def diff(self, wiring: Wiring, *, owner: str = "") -> list[Difference]:
        """What the host does not have of the ``node`` and ``host`` parts as declared.

        Sysctls are read now: call it in the host's namespace.

        :param owner: who the links must belong to; ``""`` does not ask.
        """
        return [
            *_compare("node", wiring.node, self.snapshot, self.masquerades),
            *_compare("host", wiring.host, self.snapshot, self.masquerades, owner),
        ]

    def owned_links(self) -> dict[str, str]:
        """Our links: name → owner, ``""`` for one that all share or that a kill left unnamed."""
        return {
            link.name: link.alias.removeprefix(ALIAS_PREFIX)
            for link in self.snapshot.links.values()
            if link.alias.startswith(ALIAS_PREFIX)
            or (link.group in {netlink.OURS, netlink.DOOMED} and not link.alias)
        }

    def strays(self, wirings: Iterable[Wiring]) -> list[Stray]:
        """What is ours and in none of ``wirings``."""
        declared: set[WiringObject] = set()
        for wiring in wirings:
            declared.update(wiring.node, wiring.host)
        names = {obj.name for obj in declared if isinstance(obj, Veth | Ipvlan)}
        rules = {_normal(obj) for obj in declared if isinstance(obj, Rule)}
        doomed = set(self.owned_links()) - names
        found = [_stray_link(self.snapshot.links[name]) for name in sorted(doomed)]
        for route, protocol in self.snapshot.routes.items():
            if protocol == netlink.OURS and route not in declared and route.dev not in doomed:
                found.append(_stray_object(route))
        for rule, protocol in self.snapshot.rules.items():
            if protocol == netlink.OURS and rule not in rules:
                found.append(_stray_object(rule))
        found += map(_stray_object, sorted(self.snapshot.redirects - declared, key=describe))
        found += map(_stray_object, sorted(self.snapshot.vlan_filters - declared, key=describe))
        found += map(_stray_object, sorted(self.masquerades - declared, key=describe))
        return found


def _stray_link(link: Link) -> Stray:
    owner = link.alias.removeprefix(ALIAS_PREFIX) or "nobody"
    return Stray(f"link {link.name} of {owner}", lambda engine: engine.delete_link(link.index))


def _stray_object(obj: WiringObject) -> Stray:
    return Stray(describe(obj), lambda engine: engine.remove_shared([obj]))


def _masquerades() -> Iterable[Masquerade]:
    try:
        return nft.masquerades()
    except WiringError:  # no libnftables, or a kernel without nftables: then nobody has made any
        return ()


def _in(namespace: Namespace | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return namespace.run(function, *args, **kwargs) if namespace else function(*args, **kwargs)
