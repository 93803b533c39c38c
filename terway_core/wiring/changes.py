"""Objects made and taken away in one namespace, by one batch of messages."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from terway_core.errors import WiringError
from terway_core.wiring import bpf, netlink, tc, vlan
from terway_core.wiring.netlink import ALREADY_GONE, LinkInfo, Message, NetlinkSocket, Reply
from terway_core.wiring.objects import (
    Address,
    Clsact,
    Ipvlan,
    LinkUp,
    Neighbor,
    Redirect,
    Route,
    Rule,
    Sysctl,
    TokenBucket,
    VlanPop,
    VlanPush,
    WiringObject,
    describe,
)

ALIAS_PREFIX = "terway:"
SYSCTL_ROOT = Path("/proc/sys/net")

#: Kinds in the order in which the kernel wants them; a link that is up accepts routes.
_ORDER = (
    LinkUp,
    Ipvlan,
    Address,
    Neighbor,
    Route,
    Rule,
    TokenBucket,
    Clsact,
    Redirect,
    VlanPush,
    VlanPop,
)
_RANK = {kind: rank for rank, kind in enumerate(_ORDER)}
#: Of these, what is not taken away by a message: it stays, or is a link.
_NOT_UNMADE = (LinkUp, Ipvlan, Clsact)
#: An object that the kernel cannot have, so it refused to make it too: malformed, or of a family it lacks.
_NEVER_THERE = {errno.EINVAL, errno.ERANGE, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}


def apply_objects(
    sock: NetlinkSocket,
    objects: Iterable[WiringObject],
    *,
    where: str,
    ours: bool,
    aliases: Mapping[str, str] | None = None,
    known: Mapping[str, int] | None = None,
) -> None:
    """Make what a message makes, in the namespace of ``sock``; what is there already stays or is replaced.

    :param where: for errors. :param ours: mark it. :param aliases: for links that come up, by name.
    :param known: indices of links that need not be looked up, by name.
    :raises WiringError: a link is missing, or the kernel refused something; the rest was made all the same.
    """
    ordered = sorted((obj for obj in objects if type(obj) in _RANK), key=lambda obj: _RANK[type(obj)])
    needed = [_needed_links(obj) for obj in ordered]
    indices = dict(known or {})
    unknown = dict.fromkeys(name for names in needed for name in names if name not in indices)
    indices |= {name: link.index for name, link in sock.links(list(unknown)).items()}
    messages = []
    with ExitStack() as programs:
        for obj, names in zip(ordered, needed, strict=True):
            for name in names:
                if name not in indices:
                    raise WiringError(
                        f"{describe(obj)} cannot be made on the {where}: there is no link {name}"
                    )
            alias = (aliases or {}).get(device(obj), "")
            program = _loaded(obj, where, programs) if isinstance(obj, VlanPush | VlanPop) else -1
            messages.append(_message(obj, indices, ours=ours, alias=alias, program=program))
        replies = sock.send(messages)
    for obj, reply in zip(ordered, replies, strict=True):
        if reply.errno == errno.EEXIST and isinstance(obj, Rule):
            continue
        raise_for(obj, reply, where)


def remove_objects(sock: NetlinkSocket, objects: Iterable[WiringObject], *, where: str, ours: bool) -> None:
    """Take away what :func:`apply_objects` made, links excepted; what is gone already is forgiven.

    :raises WiringError: the kernel refused.
    """
    found = [obj for obj in objects if is_unmade(obj)]
    links = sock.links(list(dict.fromkeys(dev for obj in found if (dev := device(obj)))))
    indices = {name: link.index for name, link in links.items()}
    present = [obj for obj in reversed(found) if not device(obj) or device(obj) in links]
    messages = [_message(obj, indices, ours=ours, delete=True) for obj in present]
    for obj, reply in zip(present, sock.send(messages), strict=True):
        if reply.errno not in ALREADY_GONE | _NEVER_THERE:
            raise_for(obj, reply, where)


def is_unmade(obj: WiringObject) -> bool:
    """Whether a message takes it away."""
    return type(obj) in _RANK and not isinstance(obj, _NOT_UNMADE)


def _message(
    obj: WiringObject,
    indices: Mapping[str, int],
    *,
    ours: bool,
    delete: bool = False,
    alias: str = "",
    program: int = -1,
) -> Message:
    index = indices.get(device(obj), 0)
    match obj:
        case LinkUp():
            return netlink.set_up(index, mtu=obj.mtu, alias=alias)
        case Ipvlan():
            return netlink.set_up(index, mtu=obj.mtu, alias=alias, arp=obj.arp)
        case Address():
            return netlink.address(obj, index, delete=delete)
        case Route():
            return netlink.route(obj, index, ours=ours, delete=delete)
        case Rule():
            return netlink.rule(obj, ours=ours, delete=delete)
        case Neighbor():
            return netlink.neighbor(obj, index, ours=ours, delete=delete)
        case TokenBucket():
            return tc.token_bucket(obj, index, delete=delete)
        case Clsact():
            return tc.clsact(index)
        case Redirect():
            return tc.redirect(obj, index, indices.get(obj.to, 0), delete=delete)
        case VlanPush() | VlanPop():
            return vlan.message(obj, index, program, delete=delete)
        case _:
            raise TypeError(f"{describe(obj)} is not made by a netlink message")


def _loaded(obj: VlanPush | VlanPop, where: str, programs: ExitStack) -> int:
    """The descriptor of its program, until ``programs`` ends."""
    try:
        return programs.enter_context(bpf.loaded(vlan.program(obj)))
    except OSError as error:
        raise_for(obj, Reply(error.errno or errno.EIO), where)
        raise


def write_sysctls(objects: Iterable[WiringObject]) -> None:
    """Write those among ``objects``, in the calling thread's namespace.

    :raises WiringError: one does not exist or cannot have the value.
    """
    for obj in objects:
        if not isinstance(obj, Sysctl):
            continue
        path = SYSCTL_ROOT / obj.key
        if ".." in path.parts:
            raise WiringError(f"{describe(obj)}: the key leaves {SYSCTL_ROOT}")
        try:
            # Most are right already; a read is cheaper than a write, which may walk all links.
            if _text_of(path).split() != obj.value.encode().split():
                _write(path, obj.value.encode())
        except OSError as error:
            raise WiringError(f"{describe(obj)} cannot be written: {error.strerror}") from error


def _text_of(path: Path) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 4096)
    finally:
        os.close(file)


def _write(path: Path, text: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text)
    finally:
        os.close(file)


def device(obj: WiringObject) -> str:
    """The link an object hangs on; ``""`` for one that hangs on none."""
    dev: str = obj.name if isinstance(obj, Ipvlan) else getattr(obj, "dev", "")
    return dev


def brought_up(children: Sequence[Ipvlan]) -> list[LinkUp]:
    """Beforehand: coming up makes an ipvlan link resolve neighbours again (ipvlan_open() in Linux)."""
    return [LinkUp(dev=child.name) for child in children]


def _needed_links(obj: WiringObject) -> list[str]:
    name = device(obj)
    names = [name] if name else []
    return [*names, obj.to] if isinstance(obj, Redirect) and obj.to else names


def belongs_to(link: LinkInfo, owner: str) -> bool:
    """Whether the link bears our mark and nobody else's name."""
    # A link without an alias is one that a kill left between its making and its naming.
    ours = link.group in {netlink.OURS, netlink.DOOMED}
    return link.alias == ALIAS_PREFIX + owner or (ours and not link.alias)


def raise_for(obj: WiringObject, reply: Reply, where: str) -> None:
    """:raises WiringError: the reply is an error; the message has the object and the kernel's own words."""
    if reply.errno:
        reason = reply.explanation or os.strerror(reply.errno)
        raise WiringError(
            f"the kernel refused {describe(obj)} on the {where}: {reason}",
            details=f"errno {errno.errorcode.get(reply.errno, reply.errno)}",
        )
