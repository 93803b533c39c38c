"""Applies wirings to the kernel and takes them away again.

Per namespace there is one batch of messages; a namespace is entered by one short-lived thread, and nothing
forks. What we make on the host is marked (see :data:`~terway_core.wiring.netlink.OURS`): routes, rules and
neighbours by protocol number, links by group and by an alias that names their owner.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from terway_core.batcher import Batcher
from terway_core.errors import TerwayError, WiringError
from terway_core.wiring import netlink, nft
from terway_core.wiring.changes import (
    ALIAS_PREFIX,
    apply_objects,
    belongs_to,
    brought_up,
    device,
    is_unmade,
    raise_for,
    remove_objects,
    write_sysctls,
)
from terway_core.wiring.in_pod import apply_in_pod, name_at_birth, remove_in_pod, rename_in_pod
from terway_core.wiring.netlink import FoundLink, Message, NetlinkSocket, Reply
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import (
    Address,
    Ipvlan,
    LinkUp,
    Masquerade,
    MoveLink,
    Veth,
    Wiring,
    WiringObject,
    describe,
)
from terway_core.wiring.reaper import LinkReaper

T = TypeVar("T")

#: The index of ``lo`` in every namespace (``LOOPBACK_IFINDEX`` of ``include/net/flow.h`` in Linux).
LOOPBACK = 1


class Engine:
    """Wires pods of one host namespace. Safe for use by many threads.

    :param host: the namespace of the ``host`` and ``node`` objects; by default the caller's own.
    """

    def __init__(self, host: Namespace | None = None) -> None:
        self._host = host
        self._home = host or Namespace.current()
        self._socket = NetlinkSocket(host)
        self._lock = threading.Lock()
        # The index of a link by its name and owner. No other link will have it, so it need not be looked up.
        self._made: dict[tuple[str, str], int] = {}
        self._wanted = Batcher(self._apply_all)
        self._reaper = LinkReaper(host)

    def close(self) -> None:
        """Close the sockets; the kernel keeps what was wired."""
        self._socket.close()
        self._reaper.close()
        if self._host is None:
            self._home.close()

    # -- apply --------------------------------------------------------------------------------------------

    def apply(self, wiring: Wiring, pod: Namespace | None, owner: str) -> None:
        """Make the kernel look as the ``host`` and ``pod`` parts say. Applying them again changes nothing.

        The shared part is for :meth:`ensure`, which needs to be called only once for many attachments.

        :param owner: written into the links' alias, so that they can be told apart and taken in again.
        :raises WiringError: the kernel refused an object. What was made before stays: call :meth:`remove`.
        """
        wanted = _Wanted(wiring, pod, owner)
        if (wanted.veths or wanted.moves or wiring.pod) and pod is None:
            raise WiringError("a wiring with pod objects needs the pod's network namespace")
        if needs_pod(wiring):
            self._apply([wanted])
            return
        self._wanted.do(wanted)
        if wanted.problem:
            raise wanted.problem

    def _apply_all(self, batch: Sequence[_Wanted]) -> None:
        """Veth pairs of all who meet: the kernel works at one request at a time, whoever sends it."""
        if len(batch) > 1:
            with contextlib.suppress(TerwayError):  # applying them again shows which of them it was
                self._apply(batch)
                return
        for one in batch:
            try:
                self._apply([one])
            except TerwayError as error:
                one.problem = error

    def _apply(self, batch: Sequence[_Wanted]) -> None:
        with self._lock:
            here, peers = self._make_veths(batch)
            for one in batch:
                for obj in one.moves:
                    self._move_in(obj, one.pod)
            parents = [self._parents(one.children) for one in batch]
        for one, parent_of in zip(batch, parents, strict=True):
            if one.pod:
                known = {veth.peer: peers[veth.name] for veth in one.veths if veth.name in peers}
                known |= {"lo": LOOPBACK} if known else {}
                apply_in_pod(one.pod, one.objects_in_pod(), parent_of, one.owner, self._send, known)
        aliases = {veth.name: ALIAS_PREFIX + one.owner for one in batch for veth in one.veths}
        objects = [obj for one in batch for obj in one.objects_on_host()]
        with self._lock:
            self._on_host(write_sysctls, objects)
            apply_objects(self._socket, objects, where="host", ours=True, aliases=aliases, known=here)

    def find_link(self, mac: str) -> FoundLink | None:
        """The host's link with this MAC address."""
        if found := self._socket.known_link(mac):
            return found
        with self._lock:
            return self._socket.find_link(mac)

    def has_link(self, wiring: Wiring, owner: str) -> bool:
        """Whether a link of the wiring exists that tells of ``owner``'s pod, seen from the host.

        A veth pair has an end here. A child of an ENI has not, but the kernel lets no other child of that ENI
        have an address of it.
        """
        names = [obj.name for obj in wiring.host if isinstance(obj, Veth)]
        with self._lock:
            found = self._socket.links(names).values()
            return any(belongs_to(link, owner) for link in found) or any(map(self._is_taken, _pairs(wiring)))

    def _is_taken(self, address: Address) -> bool:
        """Whether another child of the same ENI has the address (ipvlan_addr4_validator_event() in Linux)."""
        link = self._socket.links([address.dev]).get(address.dev)
        if link is None:
            return False
        (reply,) = self._socket.send([netlink.address(address, link.index)])
        if not reply.errno:
            self._socket.send([netlink.address(address, link.index, delete=True)])
        return reply.errno == errno.EADDRINUSE

    def owners(self) -> set[str]:
        """Whom the host's links say that they belong to; ``""``: to several."""
        with self._lock:
            aliases = self._socket.aliases()
        return {alias.removeprefix(ALIAS_PREFIX) for alias in aliases if alias.startswith(ALIAS_PREFIX)}

    def ensure(self, objects: Iterable[WiringObject]) -> None:
        """Apply shared objects of the host's namespace."""
        objects = tuple(objects)
        with self._lock:
            children = [obj for obj in objects if isinstance(obj, Ipvlan)]
            self._make_children(self._parents(children))
            self._on_host(write_sysctls, objects)
            apply_objects(
                self._socket,
                [*brought_up(children), *objects],
                where="host",
                ours=True,
                aliases={child.name: ALIAS_PREFIX for child in children},
            )
            for obj in objects:
                if isinstance(obj, Masquerade):
                    self._on_host(nft.add_masquerade, obj)

    def _make_veths(self, batch: Sequence[_Wanted]) -> tuple[dict[str, int], dict[str, int]]:
        """Indices by the names of the host's ends: their own, and those of their peers as far as known."""
        wanted = [(veth, one.owner, one.pod.fd) for one in batch if one.pod for veth in one.veths]
        if not wanted:
            return {}, {}
        names = [veth.name for veth, _, _ in wanted]
        making = [netlink.new_veth(veth, pod) for veth, _, pod in wanted]
        getting = [netlink.get_link(name) for name in names]
        # A host without IPv6 refuses, and has no such addresses anyway.
        calming = [netlink.without_link_local(veth.name) for veth, _, _ in wanted if not veth.link_local]
        replies = self._socket.send([*making, *getting, *calming])
        links = netlink.links_of(names, replies[len(making) : len(making) + len(getting)])
        here, peers = {}, {}
        for (veth, owner, _), reply in zip(wanted, replies[: len(making)], strict=True):
            link = links.get(veth.name)
            if reply.errno == errno.EEXIST and not (link and belongs_to(link, owner)):  # not applied before
                taken = f"{veth.name} on the host" if link else f"{veth.peer} in the pod"
                raise WiringError(f"{describe(veth)} cannot be made: a link {taken} exists and is not ours")
            if reply.errno != errno.EEXIST:
                raise_for(veth, reply, "host")
                if link and link.peer:
                    peers[veth.name] = link.peer
            if link:
                here[veth.name] = self._made[veth.name, owner] = link.index
        return here, peers

    def _parents(self, children: Sequence[Ipvlan]) -> dict[Ipvlan, int]:
        """The index of each one's parent."""
        links = self._socket.links([child.parent for child in children])
        for child in children:
            if child.parent not in links:
                raise WiringError(f"{describe(child)} cannot be made: the host has no link {child.parent}")
        return {child: links[child.parent].index for child in children}

    def _make_children(self, parents: Mapping[Ipvlan, int]) -> None:
        """On the host, where they belong to nobody in particular."""
        found = self._socket.links([child.name for child in parents])
        for child in parents:
            if child.name in found and not belongs_to(found[child.name], ""):
                raise WiringError(
                    f"{describe(child)} cannot be made: a link {child.name} exists and is not ours"
                )
        missing = [child for child in parents if child.name not in found]
        replies = self._socket.send([netlink.new_ipvlan(child, parents[child]) for child in missing])
        for child, reply in zip(missing, replies, strict=True):
            raise_for(child, reply, "host")

    def _send(self, messages: Sequence[Message]) -> list[Reply]:
        with self._lock:
            return self._socket.send(messages)

    def _move_in(self, obj: MoveLink, pod: Namespace | None) -> None:
        if pod is None:
            return
        link = self._socket.find_link(obj.mac)
        if link:
            (reply,) = self._socket.send([netlink.move(link.index, pod.fd, obj.name)])
            raise_for(obj, reply, "host")
        elif not pod.run(rename_in_pod, obj):
            raise WiringError(f"{describe(obj)}: neither the host nor the pod has such a link")

    # -- remove -------------------------------------------------------------------------------------------

    def remove(self, wiring: Wiring, pod: Namespace | None, owner: str) -> None:
        """Take away what :meth:`apply` made for one attachment; what is gone already is forgiven.

        Shared (``node``) objects, sysctls and links that existed before stay. A link of the right name that
        belongs to another owner is left alone.

        :param pod: the pod's namespace, None when it no longer exists.
        :raises WiringError: the kernel refused to take something away.
        """
        if pod:
            self.remove_in_pod(wiring, pod, owner)
        (problem,) = self.remove_on_host([(wiring, owner)])
        if problem:
            raise problem

    def remove_in_pod(self, wiring: Wiring, pod: Namespace, owner: str) -> None:
        """The first part of :meth:`remove`, which is nothing if all there goes with veth pairs.

        :raises WiringError: the kernel refused.
        """
        objects, moves, children = _outliving_in_pod(wiring)
        if objects or moves or children:
            names = [name for child in children for name in (child, name_at_birth(child, owner))]
            pod.run(remove_in_pod, objects, moves, self._home.fd, names, owner)

    def remove_on_host(self, wirings: Sequence[tuple[Wiring, str]]) -> list[WiringError | None]:
        """The second part for many wirings, each with its owner, in little more time than for one.

        :returns: for each why it failed, None if it did not.
        """
        veths = [[obj.name for obj in wiring.host if isinstance(obj, Veth)] for wiring, _ in wirings]
        rests = [
            [obj for obj in wiring.host if _outlives(obj, {*names})]
            for (wiring, _), names in zip(wirings, veths, strict=True)
        ]
        try:
            with self._lock:
                remove_objects(self._socket, chain.from_iterable(rests), where="host", ours=True)
            owners = [owner for _, owner in wirings]
            self._delete_links(
                {name: owner for names, owner in zip(veths, owners, strict=True) for name in names}
            )
        except WiringError as error:
            if len(wirings) == 1:
                return [error]
            return [self.remove_on_host([one])[0] for one in wirings]  # which of them it was
        return [None] * len(wirings)

    def _delete_links(self, owners: Mapping[str, str]) -> None:
        made = {name: self._made.pop((name, owner), 0) for name, owner in owners.items()}
        others = {name: owner for name, owner in owners.items() if not made[name]}
        self._reaper.delete([index for index in made.values() if index], others)

    def remove_shared(self, objects: Iterable[WiringObject]) -> None:
        """Take away shared objects that nobody declares any more."""
        objects = tuple(objects)
        with self._lock:
            remove_objects(self._socket, objects, where="host", ours=True)
            for obj in objects:
                if isinstance(obj, Masquerade):
                    self._on_host(nft.delete_masquerade, obj)
        self._reaper.delete((), {obj.name: "" for obj in objects if isinstance(obj, Ipvlan)})

    def delete_link(self, index: int) -> None:
        """Delete one host link by its index; one that is gone is forgiven."""
        self._reaper.delete([index])

    def _on_host(self, function: Callable[..., T], *args: object) -> T:
        return self._host.run(function, *args) if self._host else function(*args)


@dataclass
class _Wanted:
    """What shall be applied for one owner, and why that failed."""

    wiring: Wiring
    pod: Namespace | None
    owner: str
    problem: TerwayError | None = None

    def __post_init__(self) -> None:
        self.veths = [obj for obj in self.wiring.host if isinstance(obj, Veth)]
        self.moves = [obj for obj in self.wiring.host if isinstance(obj, MoveLink)]
        self.children = [obj for obj in self.wiring.pod if isinstance(obj, Ipvlan)]

    def objects_in_pod(self) -> list[WiringObject]:
        return [
            *(LinkUp(dev=veth.peer, mtu=veth.mtu) for veth in self.veths),
            *(LinkUp(dev=obj.name, mtu=obj.mtu) for obj in self.moves),
            *brought_up(self.children),
            *self.wiring.pod,
        ]

    def objects_on_host(self) -> list[WiringObject]:
        return [
            *(LinkUp(dev=veth.name, mtu=veth.mtu) for veth in self.veths),
            *(obj for obj in self.wiring.host if not isinstance(obj, Veth | MoveLink)),
        ]


def _pairs(wiring: Wiring) -> list[Address]:
    """The addresses of ipvlan links in the pod, as a child of the same parent on the host would have them."""
    on_host = {obj.parent: obj.name for obj in wiring.node if isinstance(obj, Ipvlan)}
    in_pod = {obj.name: obj.parent for obj in wiring.pod if isinstance(obj, Ipvlan)}
    return [
        Address(dev=on_host[in_pod[obj.dev]], address=obj.address)
        for obj in wiring.pod
        if isinstance(obj, Address) and in_pod.get(obj.dev) in on_host
    ]


def needs_pod(wiring: Wiring) -> bool:
    """Whether :meth:`Engine.remove` has anything to do in the pod: not if all there goes with veth pairs."""
    return any(_outliving_in_pod(wiring))


def _outliving_in_pod(wiring: Wiring) -> tuple[list[WiringObject], list[MoveLink], list[str]]:
    """What does not go with a veth pair: objects, links that moved in, and names of ipvlan links."""
    moves = [obj for obj in wiring.host if isinstance(obj, MoveLink)]
    children = [obj.name for obj in wiring.pod if isinstance(obj, Ipvlan)]
    going = {obj.peer for obj in wiring.host if isinstance(obj, Veth)} | {obj.name for obj in moves}
    going.update(children)
    return [obj for obj in wiring.pod if is_unmade(obj) and _outlives(obj, going)], moves, children


def _outlives(obj: WiringObject, links: set[str]) -> bool:
    return not isinstance(obj, Veth | MoveLink | Ipvlan) and device(obj) not in links
