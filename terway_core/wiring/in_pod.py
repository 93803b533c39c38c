"""What is done in a pod's namespace: through its socket, or by a short-lived thread that has entered it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from terway_core.errors import WiringError
from terway_core.wiring import netlink
from terway_core.wiring.changes import (
    ALIAS_PREFIX,
    apply_objects,
    belongs_to,
    raise_for,
    remove_objects,
    write_sysctls,
)
from terway_core.wiring.netlink import ALREADY_GONE, Message, NetlinkSocket, Reply
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import Ipvlan, MoveLink, Sysctl, WiringObject, describe


def apply_in_pod(
    pod: Namespace,
    objects: Sequence[WiringObject],
    parents: Mapping[Ipvlan, int],
    owner: str,
    on_host: Callable[[Sequence[Message]], list[Reply]],
    known: Mapping[str, int],
) -> None:
    """Make the links of ``parents`` and all ``objects``.

    :param parents: links to be born here, each with the index of the host's link whose child it is.
    :param known: indices of links that need not be looked up, by name.
    :param on_host: sends messages in the host's namespace.
    """
    sock = NetlinkSocket.of(pod)
    for child, parent in parents.items():
        _bear(sock, child, parent, pod.fd, owner, on_host)
    if any(isinstance(obj, Sysctl) for obj in objects):
        pod.run(write_sysctls, objects)  # /proc shows everybody his own namespace
    aliases = {child.name: ALIAS_PREFIX + owner for child in parents}
    apply_objects(sock, objects, where="pod", ours=False, aliases=aliases, known=known)


def _bear(
    sock: NetlinkSocket,
    child: Ipvlan,
    parent: int,
    netns: int,
    owner: str,
    on_host: Callable[[Sequence[Message]], list[Reply]],
) -> None:
    """Make a child of a link of the host in the pod, under a name that the host has not, and rename it."""
    unborn = replace(child, name=name_at_birth(child.name, owner))
    found = sock.links([child.name, unborn.name])
    if child.name in found:
        if belongs_to(found[child.name], owner):
            return  # applied before
        raise WiringError(
            f"{describe(child)} cannot be made: a link {child.name} in the pod exists and is not ours"
        )
    if unborn.name not in found:
        (reply,) = on_host([netlink.new_ipvlan(unborn, parent, netns)])
        raise_for(child, reply, "pod")
        found = sock.links([unborn.name])
    (reply,) = sock.send([netlink.rename(found[unborn.name].index, child.name)])
    raise_for(child, reply, "pod")


def name_at_birth(name: str, owner: str) -> str:
    """What a link is called until it is renamed: nothing on the host has such a name."""
    return "new" + hashlib.sha1(f"{owner}/{name}".encode()).hexdigest()[:12]


def remove_in_pod(
    objects: Sequence[WiringObject],
    moves: Sequence[MoveLink],
    home: int,
    children: Sequence[str],
    owner: str,
) -> None:
    """Take away ``objects``, and those links called ``children`` that are the owner's.

    :param moves: they go to the namespace of the descriptor ``home``.
    """
    with NetlinkSocket() as sock:
        remove_objects(sock, objects, where="pod", ours=False)
        doomed = [link.index for link in sock.links(children).values() if belongs_to(link, owner)]
        for reply in sock.send([netlink.delete_link(index) for index in doomed]):
            if reply.errno not in {0, *ALREADY_GONE}:
                raise WiringError(f"the kernel did not delete a link in the pod: {os.strerror(reply.errno)}")
        for obj in moves:
            if link := sock.find_link(obj.mac):
                (reply,) = sock.send([netlink.move(link.index, home, obj.host_name)])
                raise_for(obj, reply, "pod")


def rename_in_pod(obj: MoveLink) -> bool:
    """A move that a kill interrupted may have left the link under its old name. False: it is not here."""
    with NetlinkSocket() as sock:
        link = sock.find_link(obj.mac)
        if link and link.name != obj.name:
            (reply,) = sock.send([netlink.rename(link.index, obj.name)])
            raise_for(obj, reply, "pod")
        return link is not None
