"""The PodENIs of this node, and what of them a pod's attachment needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from terway_core.errors import NoAddress
from terway_core.kube import Informer, KubeClient
from terway_core.types import IPAddress, Pod
from terway_driver_trunking import api


@dataclass(frozen=True, slots=True)
class Member:
    """An ENI that is attached to the node's trunk ENI, for one interface of a pod.

    :param vid: its VLAN on the trunk.
    """

    eni_id: str
    vid: int
    addresses: tuple[IPAddress, ...]


class PodEnis:
    """Knows them from a watch. :meth:`start` it before anything else.

    :param waiting: see :class:`~terway_core.types.Services`.
    """

    def __init__(
        self,
        client: KubeClient,
        node: str,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._waiting = waiting
        self._changed = threading.Condition()
        self._informer = Informer(
            client, api.PODENIS, label_selector=f"{api.NODE}={node}", on_change=self._notify
        )

    def start(self) -> None:
        """Begin to watch; returns at once."""
        self._informer.start()

    def stop(self) -> None:
        """End the watch."""
        self._informer.stop()

    def member(self, pod: Pod, ifname: str, trunk_eni_id: str, *, timeout: float) -> Member:
        """The ENI of a pod, once the control plane has attached it to this trunk.

        :param timeout: seconds to wait for that.
        :raises NoAddress: it was not attached in time; the message names the cause.
        """

        def look() -> Member | str:
            return find_member(self._informer.get(pod.name, pod.namespace), pod, ifname, trunk_eni_id)

        if not isinstance(found := look(), Member):
            with self._waiting(), self._changed:
                self._changed.wait_for(lambda: isinstance(look(), Member), timeout)
                found = look()
        if isinstance(found, Member):
            return found
        synced = "" if self._informer.synced else "; the API server has not told of any PodENI yet"
        raise NoAddress(f"waited {timeout:g} s for the ENI of pod {pod}: {found}{synced}")

    def _notify(self, old: object, new: object) -> None:
        with self._changed:
            self._changed.notify_all()


def find_member(podeni: Mapping[str, Any] | None, pod: Pod, ifname: str, trunk_eni_id: str) -> Member | str:
    """The ENI that a PodENI has for an interface of a pod, or why the pod cannot have it now."""
    if podeni is None:
        return "there is no PodENI of its name for this node yet; see whether the controller of trunking runs"
    if podeni["metadata"].get("deletionTimestamp"):
        return "its PodENI is being deleted"
    served = (podeni["metadata"].get("annotations") or {}).get(api.POD_UID, "")
    if pod.uid and served != pod.uid:
        return f"its PodENI still serves an earlier pod of that name, with UID {served or 'unknown'}"
    status = podeni.get("status") or {}
    if api.phase(podeni) != "Bind":
        return (
            f"its PodENI is in phase {api.phase(podeni) or 'new'}: {status.get('msg') or 'no reason is told'}"
        )
    if status.get("trunkENIID") != trunk_eni_id:
        return f"its PodENI is at the trunk ENI {status.get('trunkENIID')}, this node's is {trunk_eni_id}"
    for allocation in podeni["spec"].get("allocations") or [api.allocation(podeni)]:
        if (allocation.get("interface") or "eth0") == ifname:
            return _member(allocation, status)
    return f"its PodENI has no ENI for the interface {ifname}"


def _member(allocation: Mapping[str, Any], status: Mapping[str, Any]) -> Member | str:
    eni_id = (allocation.get("eni") or {}).get("id", "")
    vid = ((status.get("eniInfos") or {}).get(eni_id) or {}).get("vid")
    if not vid:
        return f"its PodENI does not tell the VLAN of {eni_id or 'its ENI'}"
    try:
        addresses = tuple(ip_address(text) for name in ("ipv4", "ipv6") if (text := allocation.get(name)))
        return Member(eni_id, int(vid), addresses)
    except ValueError as error:
        return f"its PodENI is wrong: {error}"
