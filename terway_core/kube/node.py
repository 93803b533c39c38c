"""This node's object: what it says about us, and what we say in it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any, Final

from terway_core.errors import KubeConflict, KubeError, KubeNotFound, TerwayError
from terway_core.kube.client import KubeClient
from terway_core.kube.resources import NODES
from terway_core.types import IPNetwork

log = logging.getLogger(__name__)

#: Seconds between two looks at the object; kubelet takes extended resources away when it registers anew.
LOOK: Final = 30.0
#: Seconds between two attempts while the API server does not answer, from the first to the last.
RETRY_FIRST, RETRY_LAST = 1.0, 60.0
#: Seconds after which a condition that stays as it is says so again.
HEARTBEAT: Final = 300.0
#: Seconds that a stop waits for a call that is under way.
LAST_CALL: Final = 3.0
#: A change of the object by somebody else, in between, is met this many times.
CONFLICTS: Final = 5


@dataclass(frozen=True, slots=True)
class Condition:
    """:param reason: one word in CamelCase."""

    type: str
    status: bool
    reason: str
    message: str


class NodeKeeper:
    """Keeps the node's object as it should be, from a thread of its own; nobody waits for it.

    * ``NetworkUnavailable`` becomes False and the taint goes once :meth:`serve` was called.
    * Offered resources are in capacity and allocatable, annotations in the metadata.
    * Conditions are as their sources say.

    Each is a patch of that one thing; whatever others write stays.

    :param taint: key of a taint to remove; ``""`` for none.
    :ivar problem: why the last look did not succeed; ``""`` when it did.
    """

    def __init__(
        self, client: KubeClient, name: str, taint: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._name = name
        self._taint = taint
        self._clock = clock
        self._serving = False
        self._resources: dict[str, Callable[[], int]] = {}
        self._annotations: dict[str, Callable[[], str]] = {}
        self._conditions: list[Callable[[], Condition | None]] = []
        self._kicked = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="node", daemon=True)
        self.problem = ""

    # -- what is asked of it ------------------------------------------------------------------------------

    def pod_cidrs(self) -> tuple[IPNetwork, ...]:
        """This node's share of the pod range; empty when it has not got one yet.

        :raises KubeError: the API server does not tell; KubeNotFound when there is no such node.
        """
        spec = self._client.get(NODES, self._name).get("spec", {})
        found = spec.get("podCIDRs") or filter(None, [spec.get("podCIDR")])
        return tuple(ip_network(cidr) for cidr in found)

    def exists(self) -> bool:
        """Whether the API server, now, has this node: otherwise it is no cluster of ours.

        :raises KubeError: it does not tell.
        """
        try:
            self._client.get(NODES, self._name)
        except KubeNotFound:
            return False
        return True

    def offer(self, resource: str, amount: Callable[[], int]) -> None:
        """Have an extended resource (``aliyun/eni``) in the node's status, as many as ``amount`` says.

        ``amount`` is asked again and again, in another thread. What it raises of the TerwayError tree leaves
        the resource as it is.
        """
        self._resources[resource] = amount
        self._kicked.set()

    def annotate(self, name: str, text: Callable[[], str]) -> None:
        """Have an annotation on the node, as ``text`` says; asked and refused as in :meth:`offer`."""
        self._annotations[name] = text
        self._kicked.set()

    def report(self, condition: Callable[[], Condition | None]) -> None:
        """Have a condition in the node's status, as its source says; None: no such condition now."""
        self._conditions.append(condition)
        self._kicked.set()

    def serve(self) -> None:
        """Pods on this node get a network from now on."""
        self._serving = True
        self._kicked.set()

    @property
    def reference(self) -> dict[str, str]:
        """The node as the object of an event; ``kubectl describe node`` looks for its name as the UID."""
        return {"apiVersion": "v1", "kind": "Node", "name": self._name, "uid": self._name}

    # -- the thread ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. The object stays as it is: running pods keep their network."""
        self._stopping = True
        self._kicked.set()
        self._thread.join(LAST_CALL)

    def _loop(self) -> None:
        pause = RETRY_FIRST
        while not self._stopping:
            self._kicked.clear()
            try:
                unknown = self._keep()
            except KubeError as error:
                self.problem = str(error)
                log.warning("node not written", extra={"problem": self.problem})
                wait, pause = pause, min(2 * pause, RETRY_LAST)
            except Exception as error:  # of a source; the next look may do
                self.problem = repr(error)
                log.exception("node not written")
                wait = LOOK
            else:
                self.problem = ""
                if unknown:  # which may change soon, as a trunk ENI that is just being made
                    wait, pause = min(pause, LOOK), min(2 * pause, RETRY_LAST)
                else:
                    wait, pause = LOOK, RETRY_FIRST
            self._kicked.wait(wait)

    def _keep(self) -> bool:
        """One look; whether a source did not know yet what to say."""
        node = self._client.get(NODES, self._name)
        unknown: dict[str, str] = {}
        patch: dict[str, Any] = {}
        if status := self._status(node.get("status", {}), unknown):
            patch["status"] = status
        if annotations := self._changed_annotations(node["metadata"].get("annotations") or {}, unknown):
            # Whoever may write a node's status may write its annotations with it: no further right is needed.
            patch["metadata"] = {"annotations": annotations}
        if patch:
            node = self._client.patch(NODES, self._name, patch, subresource="status", kind="strategic")
            log.info("node status", extra={"patch": patch})
        if self._serving and self._taint:
            self._remove_taint(node)
        for name, problem in unknown.items():
            log.info("not told by the node", extra={"what": name, "problem": problem})
        return bool(unknown)

    def _changed_annotations(self, present: Mapping[str, str], unknown: dict[str, str]) -> dict[str, str]:
        changed = {}
        for name, text in list(self._annotations.items()):
            try:
                wanted = text()
            except TerwayError as error:
                unknown[name] = str(error)
                continue
            if present.get(name) != wanted:
                changed[name] = wanted
        return changed

    def _status(self, status: Mapping[str, Any], unknown: dict[str, str]) -> dict[str, Any]:
        patch: dict[str, Any] = {}
        for resource, amount in list(self._resources.items()):
            try:
                text = str(amount())
            except TerwayError as error:
                unknown[resource] = str(error)
                continue
            for field in ("capacity", "allocatable"):
                if (status.get(field) or {}).get(resource) != text:
                    patch.setdefault(field, {})[resource] = text
        present = {condition["type"]: condition for condition in status.get("conditions") or ()}
        if conditions := self._changed_conditions(present):
            patch["conditions"] = conditions
        return patch

    def _changed_conditions(self, present: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
        now = self._clock()
        changed = []
        # Who found it False already, as a route controller does, may go on to say why.
        if self._serving and present.get("NetworkUnavailable", {}).get("status") != "False":
            condition = Condition("NetworkUnavailable", False, "TerwayReady", "terway serves this node")
            changed.append(_written(condition, {}, now))
        for source in self._conditions:
            wanted = source()
            if wanted is None:
                continue
            old = present.get(wanted.type, {})
            same = (old.get("status"), old.get("reason"), old.get("message")) == (
                str(wanted.status),
                wanted.reason,
                wanted.message,
            )
            if not same or now - _seconds(old.get("lastHeartbeatTime")) > HEARTBEAT:
                changed.append(_written(wanted, old, now))
        return changed

    def _remove_taint(self, node: Mapping[str, Any]) -> None:
        for _ in range(CONFLICTS):
            taints = node.get("spec", {}).get("taints") or []
            kept = [taint for taint in taints if taint["key"] != self._taint]
            if kept == taints:
                return
            # The list is replaced as a whole, so only if nobody has changed the node since it was read.
            version = node["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version}, "spec": {"taints": kept or None}}
            try:
                self._client.patch(NODES, self._name, patch)
            except KubeConflict:
                node = self._client.get(NODES, self._name)
            else:
                log.info("taint removed", extra={"taint": self._taint})
                return
        raise KubeConflict(f"node {self._name} changes all the time; taint {self._taint} is still on it")


def _written(condition: Condition, old: Mapping[str, Any], now: float) -> dict[str, str]:
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    since = old.get("lastTransitionTime") if old.get("status") == str(condition.status) else None
    return {
        "type": condition.type,
        "status": str(condition.status),
        "reason": condition.reason,
        "message": condition.message,
        "lastHeartbeatTime": stamp,
        "lastTransitionTime": since or stamp,
    }


def _seconds(text: Any) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return 0.0
