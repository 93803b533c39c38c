"""Applies wirings to the kernel and takes them away again.

Per namespace there is one batch of messages; a namespace is entered by one short-lived thread, and nothing
forks. What we make on the host is marked (see :data:`~terway_core.wiring.netlink.OURS`): routes, rules and
neighbours by protocol number, links by group and by an alias that names their owner.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TypeVar

from terway_core.errors import WiringError
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
        veths = [obj for obj in wiring.host if isinstance(obj, Veth)]
        moves = [obj for obj in wiring.host if isinstance(obj, MoveLink)]
        children = [obj for obj in wiring.pod if isinstance(obj, Ipvlan)]
        if (veths or moves or wiring.pod) and pod is None:
            raise WiringError("a wiring with pod objects needs the pod's network namespace")
        with self._lock:
            here, inside = self._make_veths(veths, pod, owner)
            for obj in moves:
                self._move_in(obj, pod)
            parents = self._parents(children)
        if pod:
            ends: list[WiringObject] = [LinkUp(dev=veth.peer, mtu=veth.mtu) for veth in veths]
            ends += [LinkUp(dev=obj.name, mtu=obj.mtu) for obj in moves]
            ends += brought_up(children)
            apply_in_pod(pod, [*ends, *wiring.pod], parents, owner, self._send, inside)
        with self._lock:
            ends = [LinkUp(dev=veth.name, mtu=veth.mtu) for veth in veths]
            aliases = {veth.name: ALIAS_PREFIX + owner for veth in veths}
            rest = [obj for obj in wiring.host if not isinstance(obj, Veth | MoveLink)]
            self._on_host(write_sysctls, rest)
            apply_objects(self._socket, [*ends, *rest], where="host", ours=True, aliases=aliases, known=here)

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

    def _make_veths(
        self, veths: Sequence[Veth], pod: Namespace | None, owner: str
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Indices of links by name: of the host's ends, and of what is known to be in the pod."""
        inside: dict[str, int] = {}
        if not veths or pod is None:
            return {}, inside
        names = [veth.name for veth in veths]
        making = [netlink.new_veth(veth, pod.fd) for veth in veths]
        getting = [netlink.get_link(name) for name in names]
        # A host without IPv6 refuses, and has no such addresses anyway.
        calming = [netlink.without_link_local(veth.name) for veth in veths if not veth.link_local]
        replies = self._socket.send([*making, *getting, *calming])
        links = netlink.links_of(names, replies[len(veths) : 2 * len(veths)])
        for veth, reply in zip(veths, replies[: len(veths)], strict=True):
            if reply.errno == errno.EEXIST:
                found = links.get(veth.name)
                if found and belongs_to(found, owner):
                    continue  # applied before
                taken = f"{veth.name} on the host" if found else f"{veth.peer} in the pod"
                raise WiringError(f"{describe(veth)} cannot be made: a link {taken} exists and is not ours")
            raise_for(veth, reply, "host")
            if (link := links.get(veth.name)) and (peer := link.peer):
                inside |= {veth.peer: peer, "lo": LOOPBACK}
        outside = {name: link.index for name, link in links.items()}
        self._made |= {(name, owner): index for name, index in outside.items()}
        return outside, inside

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
