"""Applies wirings to the kernel and takes them away again.

Per namespace there is one batch of messages; a namespace is entered by one short-lived thread, and nothing
forks. What we make on the host is marked (see :data:`~terway_core.wiring.netlink.OURS`): routes, rules and
neighbours by protocol number, links by group and by an alias that names their owner.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from terway_core.errors import WiringError
from terway_core.wiring import netlink, nft
from terway_core.wiring.netlink import FoundLink, LinkInfo, Message, NetlinkSocket, Reply
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import (
    Address,
    LinkUp,
    Masquerade,
    MoveLink,
    Neighbor,
    Route,
    Rule,
    Sysctl,
    TokenBucket,
    Veth,
    Wiring,
    WiringObject,
    describe,
)

T = TypeVar("T")

ALIAS_PREFIX = "terway:"
SYSCTL_ROOT = Path("/proc/sys/net")

#: Kinds in the order in which the kernel wants them; a link that is up accepts routes.
_ORDER = (LinkUp, Address, Neighbor, Route, Rule, TokenBucket)
_ALREADY_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENXIO}
#: An object that the kernel cannot have, so it refused to make it too: malformed, or of a family it lacks.
_NEVER_THERE = {errno.EINVAL, errno.ERANGE, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}


class Engine:
    """Wires pods of one host namespace. Safe for use by many threads.

    :param host: the namespace of the ``host`` and ``node`` objects; by default the caller's own.
    """

    def __init__(self, host: Namespace | None = None) -> None:
        self._host = host
        self._home = host or Namespace.current()
        self._socket = NetlinkSocket(host)
        self._lock = threading.Lock()
        self._reaper = _LinkReaper(host)

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
        if (veths or moves or wiring.pod) and pod is None:
            raise WiringError("a wiring with pod objects needs the pod's network namespace")
        with self._lock:
            self._make_veths(veths, pod, owner)
            for obj in moves:
                self._move_in(obj, pod)
        if pod:
            ends: list[WiringObject] = [LinkUp(dev=veth.peer, mtu=veth.mtu) for veth in veths]
            ends += [LinkUp(dev=obj.name, mtu=obj.mtu) for obj in moves]
            pod.run(_apply_in_pod, [*ends, *wiring.pod])
        with self._lock:
            ends = [LinkUp(dev=veth.name, mtu=veth.mtu) for veth in veths]
            aliases = {veth.name: ALIAS_PREFIX + owner for veth in veths}
            rest = [obj for obj in wiring.host if not isinstance(obj, Veth | MoveLink)]
            self._on_host(_write_sysctls, rest)
            _apply_objects(self._socket, [*ends, *rest], where="host", ours=True, aliases=aliases)

    def find_link(self, mac: str) -> FoundLink | None:
        """The host's link with this MAC address."""
        with self._lock:
            return self._socket.find_link(mac)

    def has_link(self, wiring: Wiring, owner: str) -> bool:
        """Whether one of the wiring's veth pairs is there and belongs to ``owner``."""
        names = [obj.name for obj in wiring.host if isinstance(obj, Veth)]
        with self._lock:
            return any(_belongs_to(link, owner) for link in self._socket.links(names).values())

    def owners(self) -> set[str]:
        """Whom the host's links say that they belong to."""
        with self._lock:
            aliases = self._socket.aliases()
        return {alias.removeprefix(ALIAS_PREFIX) for alias in aliases if alias.startswith(ALIAS_PREFIX)}

    def ensure(self, objects: Iterable[WiringObject]) -> None:
        """Apply shared objects of the host's namespace."""
        objects = tuple(objects)
        with self._lock:
            self._on_host(_write_sysctls, objects)
            _apply_objects(self._socket, objects, where="host", ours=True)
            for obj in objects:
                if isinstance(obj, Masquerade):
                    self._on_host(nft.add_masquerade, obj)

    def _make_veths(self, veths: Sequence[Veth], pod: Namespace | None, owner: str) -> None:
        if not veths or pod is None:
            return
        replies = self._socket.send([netlink.new_veth(veth, pod.fd) for veth in veths])
        for veth, reply in zip(veths, replies, strict=True):
            if reply.errno == errno.EEXIST:
                found = self._socket.links([veth.name]).get(veth.name)
                if found and _belongs_to(found, owner):
                    continue  # applied before
                taken = f"{veth.name} on the host" if found else f"{veth.peer} in the pod"
                raise WiringError(f"{describe(veth)} cannot be made: a link {taken} exists and is not ours")
            _raise_for(veth, reply, "host")

    def _move_in(self, obj: MoveLink, pod: Namespace | None) -> None:
        if pod is None:
            return
        link = self._socket.find_link(obj.mac)
        if link:
            (reply,) = self._socket.send([netlink.move(link.index, pod.fd, obj.name)])
            _raise_for(obj, reply, "host")
        elif not pod.run(_rename_in_pod, obj):
            raise WiringError(f"{describe(obj)}: neither the host nor the pod has such a link")

    # -- remove -------------------------------------------------------------------------------------------

    def remove(self, wiring: Wiring, pod: Namespace | None, owner: str) -> None:
        """Take away what :meth:`apply` made for one attachment; what is gone already is forgiven.

        Shared (``node``) objects, sysctls and links that existed before stay. A link of the right name that
        belongs to another owner is left alone.

        :param pod: the pod's namespace, None when it no longer exists.
        :raises WiringError: the kernel refused to take something away.
        """
        veths = [obj for obj in wiring.host if isinstance(obj, Veth)]
        gone_with_links = {veth.name for veth in veths}
        rest = [obj for obj in wiring.host if _outlives(obj, gone_with_links)]
        if pod:
            moves = [obj for obj in wiring.host if isinstance(obj, MoveLink)]
            going = {veth.peer for veth in veths} | {obj.name for obj in moves}
            inside = [obj for obj in wiring.pod if _outlives(obj, going)]
            if inside or moves:
                pod.run(_remove_in_pod, inside, moves, self._home.fd)
        with self._lock:
            _remove_objects(self._socket, rest, where="host", ours=True)
            found = self._socket.links([veth.name for veth in veths])
        self._reaper.delete([link.index for link in found.values() if _belongs_to(link, owner)])

    def remove_shared(self, objects: Iterable[WiringObject]) -> None:
        """Take away shared objects that nobody declares any more."""
        objects = tuple(objects)
        with self._lock:
            _remove_objects(self._socket, objects, where="host", ours=True)
            for obj in objects:
                if isinstance(obj, Masquerade):
                    self._on_host(nft.delete_masquerade, obj)

    def delete_link(self, index: int) -> None:
        """Delete one host link by its index; one that is gone is forgiven."""
        self._reaper.delete([index])

    def _on_host(self, function: Callable[..., T], *args: object) -> T:
        return self._host.run(function, *args) if self._host else function(*args)


class _LinkReaper:
    """Deletes links together.

    The kernel waits about 20 ms (an RCU grace period) for each deletion it is asked for, and as long for a
    whole group of links. Whoever comes while a deletion is under way is served by the next one.
    """

    def __init__(self, host: Namespace | None) -> None:
        self._socket = NetlinkSocket(host)
        self._waiting: list[_Doomed] = []
        self._list_lock = threading.Lock()
        self._kernel_lock = threading.Lock()

    def delete(self, indices: Sequence[int]) -> None:
        if not indices:
            return
        mine = _Doomed(indices)
        with self._list_lock:
            self._waiting.append(mine)
        with self._kernel_lock:
            if not mine.done:
                with self._list_lock:
                    batch, self._waiting = self._waiting, []
                self._delete_all(batch)
        if mine.problem:
            raise WiringError(f"the kernel did not delete links {list(indices)}: {mine.problem}")

    def _delete_all(self, batch: Sequence[_Doomed]) -> None:
        try:
            messages = [netlink.doom(index) for doomed in batch for index in doomed.indices]
            reply = self._socket.send([*messages, netlink.delete_doomed()])[-1]
            problem = "" if reply.errno in {0, *_ALREADY_GONE} else os.strerror(reply.errno)
        except WiringError as error:
            problem = str(error)
        for doomed in batch:
            doomed.problem = problem
            doomed.done = True

    def close(self) -> None:
        self._socket.close()


class _Doomed:
    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices
        self.done = False
        self.problem = ""


def _apply_in_pod(objects: Sequence[WiringObject]) -> None:
    _write_sysctls(objects)
    with NetlinkSocket() as sock:
        _apply_objects(sock, objects, where="pod", ours=False)


def _remove_in_pod(objects: Sequence[WiringObject], moves: Sequence[MoveLink], home: int) -> None:
    with NetlinkSocket() as sock:
        _remove_objects(sock, objects, where="pod", ours=False)
        for obj in moves:
            if link := sock.find_link(obj.mac):
                (reply,) = sock.send([netlink.move(link.index, home, obj.host_name)])
                _raise_for(obj, reply, "pod")


def _rename_in_pod(obj: MoveLink) -> bool:
    """A move that a kill interrupted may have left the link under its old name. False: it is not here."""
    with NetlinkSocket() as sock:
        link = sock.find_link(obj.mac)
        if link and link.name != obj.name:
            (reply,) = sock.send([netlink.rename(link.index, obj.name)])
            _raise_for(obj, reply, "pod")
        return link is not None


def _apply_objects(
    sock: NetlinkSocket,
    objects: Iterable[WiringObject],
    *,
    where: str,
    ours: bool,
    aliases: dict[str, str] | None = None,
) -> None:
    ordered = sorted(
        (obj for obj in objects if isinstance(obj, _ORDER)), key=lambda obj: _ORDER.index(type(obj))
    )
    names = dict.fromkeys(dev for obj in ordered if (dev := device(obj)))
    links = sock.links(list(names))
    messages = []
    for obj in ordered:
        dev = device(obj)
        if dev and dev not in links:
            raise WiringError(f"{describe(obj)} cannot be made on the {where}: there is no link {dev}")
        index = links[dev].index if dev else 0
        messages.append(_message(obj, index, ours=ours, alias=(aliases or {}).get(dev, "")))
    for obj, reply in zip(ordered, sock.send(messages), strict=True):
        if reply.errno == errno.EEXIST and isinstance(obj, Rule):
            continue
        _raise_for(obj, reply, where)


def _remove_objects(sock: NetlinkSocket, objects: Iterable[WiringObject], *, where: str, ours: bool) -> None:
    kinds = tuple(kind for kind in _ORDER if kind is not LinkUp)
    found = [obj for obj in objects if isinstance(obj, kinds)]
    links = sock.links(list(dict.fromkeys(dev for obj in found if (dev := device(obj)))))
    present = [obj for obj in reversed(found) if not device(obj) or device(obj) in links]
    messages = []
    for obj in present:
        dev = device(obj)
        messages.append(_message(obj, links[dev].index if dev else 0, ours=ours, delete=True))
    for obj, reply in zip(present, sock.send(messages), strict=True):
        if reply.errno not in _ALREADY_GONE | _NEVER_THERE:
            _raise_for(obj, reply, where)


def _message(obj: WiringObject, index: int, *, ours: bool, delete: bool = False, alias: str = "") -> Message:
    match obj:
        case LinkUp():
            return netlink.set_up(index, mtu=obj.mtu, alias=alias)
        case Address():
            return netlink.address(obj, index, delete=delete)
        case Route():
            return netlink.route(obj, index, ours=ours, delete=delete)
        case Rule():
            return netlink.rule(obj, ours=ours, delete=delete)
        case Neighbor():
            return netlink.neighbor(obj, index, ours=ours, delete=delete)
        case TokenBucket():
            return netlink.token_bucket(obj, index, delete=delete)
        case _:
            raise TypeError(f"{describe(obj)} is not made by a netlink message")


def _write_sysctls(objects: Iterable[WiringObject]) -> None:
    for obj in objects:
        if not isinstance(obj, Sysctl):
            continue
        path = SYSCTL_ROOT / obj.key
        if ".." in path.parts:
            raise WiringError(f"{describe(obj)}: the key leaves {SYSCTL_ROOT}")
        try:
            # Most are right already; a read is cheaper than a write, which may walk all links.
            if path.read_text().split() != obj.value.split():
                path.write_text(obj.value)
        except OSError as error:
            raise WiringError(f"{describe(obj)} cannot be written: {error.strerror}") from error


def device(obj: WiringObject) -> str:
    """The link an object hangs on; ``""`` for one that hangs on none."""
    match obj:
        case Address() | Route() | Neighbor() | TokenBucket() | LinkUp():
            return obj.dev
        case _:
            return ""


def _outlives(obj: WiringObject, links: set[str]) -> bool:
    return not isinstance(obj, Veth | MoveLink) and device(obj) not in links


def _belongs_to(link: LinkInfo, owner: str) -> bool:
    # A link without an alias is one that a kill left between its making and its naming.
    ours = link.group in {netlink.OURS, netlink.DOOMED}
    return link.alias == ALIAS_PREFIX + owner or (ours and not link.alias)


def _raise_for(obj: WiringObject, reply: Reply, where: str) -> None:
    if reply.errno:
        reason = reply.explanation or os.strerror(reply.errno)
        raise WiringError(
            f"the kernel refused {describe(obj)} on the {where}: {reason}",
            details=f"errno {errno.errorcode.get(reply.errno, reply.errno)}",
        )
