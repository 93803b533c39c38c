"""The life of a PodENI: one object for each trunk pod, which is also the journal of its ENI.

Each step is written into the object before its call is made, and a look at an object does the step that its
phase says::

    "" -> Binding -> Bind -> (pod gone) -> Deleting -> gone
                      |  ^
                      v  |  a fixed address only: it waits for the pod to come back
              Detaching -> Unbind

The object's finalizer holds it until the ENI is gone from the cloud, and while its pod runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from terway_core.cloud.ecs import NetworkInterface
from terway_core.cloud.failures import EXHAUSTED_VSWITCH
from terway_core.errors import CloudError, KubeConflict, KubeError, KubeNotFound, RetryLater
from terway_core.kube import NODES, KubeClient
from terway_core.kube.events import Events
from terway_driver_trunking.api import (
    FINALIZER,
    NODE,
    POD_UID,
    PODENIS,
    PODNETWORKINGS,
    Object,
    allocation,
    is_fixed,
    phase,
)
from terway_driver_trunking.durations import parse_duration
from terway_driver_trunking.members import Members, Trunk, Wanted
from terway_driver_trunking.pods import TrunkPod, TrunkPods
from terway_driver_trunking.vswitches import VSwitches

log = logging.getLogger(__name__)

#: Seconds between two looks at an ENI that is on its way, from the first to the last; members take one to
#: three.
POLL_FIRST, POLL_LAST = 0.5, 10.0
#: Seconds after which it counts as stuck, and after which people are told.
STUCK_AFTER, TOLD_AFTER = 30.0, 60.0
#: The longest time in which an address that is kept is not looked at (seconds): clocks may leap.
LOOK: Final = 600.0


class PodEniKeeper:
    """Brings the PodENI of a pod nearer to what it shall be.

    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        client: KubeClient,
        pods: TrunkPods,
        members: Members,
        vswitches: VSwitches,
        events: Events,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._pods = pods
        self._members = members
        self._vswitches = vswitches
        self._events = events
        self._clock = clock
        #: Since when an object has been in its phase, as far as this process knows.
        self._since: dict[tuple[str, str], tuple[str, str, float]] = {}

    def look(self, key: tuple[str, str]) -> float | None:
        """One step, or several, for the pod of this namespace and name; the seconds until the next, None
        when something must happen first.

        :raises RetryLater: not now; the object's ``msg`` and an event of the pod say why.
        """
        namespace, name = key
        pod = self._pods.get(namespace, name)
        try:
            podeni = self._client.get(PODENIS, name, namespace)
        except KubeNotFound:
            podeni = None
        try:
            if podeni is None:
                if pod is None or not pod.node or not pod.networking:
                    return None
                podeni = self._create(pod)
            delay = self._step(podeni, pod)
            if delay is None:
                self._since.pop(key, None)
            return delay
        except KubeError:
            raise
        except RetryLater as error:
            self._complain(podeni, pod, error)
            raise

    # -- which step it is ---------------------------------------------------------------------------------

    def _step(self, podeni: Object, pod: TrunkPod | None) -> float | None:
        metadata, now = podeni["metadata"], phase(podeni)
        # The first releases did not write which one.
        served = (metadata.get("annotations") or {}).get(POD_UID)
        serves = pod is not None and served in (None, pod.uid)
        if "deletionTimestamp" in metadata:
            # As Kubernetes protects a claim in use: the pod would lose its network and not know why.
            return None if serves and now == "Bind" else self._remove(podeni)
        if now == "Deleting":
            return self._delete(podeni)
        if pod and serves:
            if now in ("", "Binding", "Unbind"):
                return self._bind(podeni, pod)
            return self._unbind(podeni) if now == "Detaching" else None
        if not is_fixed(podeni):
            return self._delete(podeni)
        if now != "Unbind":
            return self._unbind(podeni)
        if pod is None:
            return self._expire(podeni)
        return self._serve(podeni, pod) if pod.node and pod.networking else None

    # -- steps --------------------------------------------------------------------------------------------

    def _create(self, pod: TrunkPod) -> Object:
        """Write down which ENI shall be made."""
        trunk = self._trunk(pod)
        try:
            networking = self._client.get(PODNETWORKINGS, pod.networking)
        except KubeNotFound:
            raise RetryLater(f"there is no PodNetworking {pod.networking}") from None
        spec, status = networking["spec"], networking.get("status", {})
        if status.get("status") != "Ready":
            raise RetryLater(f"PodNetworking {pod.networking} is not Ready: {status.get('message', '')}")
        wanted = dict(spec.get("allocationType") or {"type": "Elastic"})
        if not pod.stateful:
            wanted = {"type": "Elastic"}  # no pod of its name will come back
        body = {
            "metadata": {
                "name": pod.name,
                "finalizers": [FINALIZER],
                "labels": {NODE: pod.node},
                "annotations": {POD_UID: pod.uid},
            },
            "spec": {
                "zone": trunk.zone_id,
                "allocations": [
                    {
                        "allocationType": wanted,
                        "eni": self._place(spec, trunk) | {"securityGroupIDs": spec["securityGroupIDs"]},
                        "interface": "eth0",
                        "defaultRoute": True,
                    }
                ],
            },
        }
        return self._client.create(PODENIS, body, pod.namespace)

    def _place(self, spec: Mapping[str, Any], trunk: Trunk) -> dict[str, str]:
        policy = (spec.get("vSwitchSelectOptions") or {}).get("vSwitchSelectionPolicy", "most")
        vswitch = self._vswitches.choose(spec["vSwitchOptions"], trunk.zone_id, policy)
        return {"vSwitchID": vswitch.vswitch_id, "zone": vswitch.zone_id, "vpcID": vswitch.vpc_id}

    def _bind(self, podeni: Object, pod: TrunkPod) -> float | None:
        trunk = self._trunk(pod)
        eni_id = allocation(podeni).get("eni", {}).get("id", "")
        if eni_id:
            eni = self._members.get(eni_id)
            if eni is None:
                return self._lost(podeni, pod)
        else:
            eni = self._make(podeni, pod, trunk)
            podeni = self._record(podeni, eni)
        if eni.zone_id != trunk.zone_id:
            raise RetryLater(
                f"{eni.eni_id} with {eni.primary_ip} is in zone {eni.zone_id}, and node {pod.node} in zone "
                f"{trunk.zone_id}; let the pod run in the zone of its fixed address, or delete the PodENI"
            )
        status = podeni.get("status", {})
        if (phase(podeni), status.get("trunkENIID")) != ("Binding", trunk.eni_id):
            podeni = self._write_status(
                podeni, phase="Binding", instanceID=trunk.instance_id, trunkENIID=trunk.eni_id
            )
        age = self._age(podeni)
        if not self._members.attach(eni, trunk):
            return _poll(age, eni)
        member = {"id": eni.eni_id, "type": "Member", "vid": eni.device_index, "status": "Bind"}
        self._write_status(
            podeni,
            phase="Bind",
            msg=None,
            eniInfos={eni.eni_id: member},
            podLastSeen=self._now() if is_fixed(podeni) else None,
        )
        told = f"{eni.eni_id} with {eni.primary_ip} is VLAN {eni.device_index} of {trunk.eni_id}"
        self._events.tell(pod.reference, "AllocENISucceed", told)
        return None

    def _make(self, podeni: Object, pod: TrunkPod, trunk: Trunk) -> NetworkInterface:
        """The ENI that the object describes; in another vSwitch when that one is exhausted."""
        wanted = allocation(podeni)["eni"]
        try:
            return self._members.create(
                Wanted(
                    owner=podeni["metadata"]["uid"],
                    name=f"{pod.namespace}/{pod.name}",
                    vswitch_id=wanted["vSwitchID"],
                    security_group_ids=wanted["securityGroupIDs"],
                    outlives=is_fixed(podeni),
                )
            )
        except CloudError as error:
            if error.code not in EXHAUSTED_VSWITCH:
                raise
            self._vswitches.exhausted(wanted["vSwitchID"])
            spec = self._client.get(PODNETWORKINGS, pod.networking)["spec"]
            self._write_allocation(podeni, eni={**wanted, **self._place(spec, trunk)})
            raise

    def _record(self, podeni: Object, eni: NetworkInterface) -> Object:
        (vswitch,) = self._vswitches.get([eni.vswitch_id])
        details = {
            "id": eni.eni_id,
            "mac": eni.mac,
            "vpcID": eni.vpc_id,
            "zone": eni.zone_id,
            "vSwitchID": eni.vswitch_id,
            "securityGroupIDs": list(eni.security_group_ids),
        }
        addresses = {"ipv4": str(eni.primary_ip), "ipv4CIDR": str(vswitch.cidr)}
        if eni.ipv6 and vswitch.ipv6_cidr:
            addresses |= {"ipv6": str(eni.ipv6[0]), "ipv6CIDR": str(vswitch.ipv6_cidr)}
        return self._write_allocation(podeni, eni=details, **addresses)

    def _unbind(self, podeni: Object) -> float | None:
        """Detach; what is next is decided at the next look, which is at once."""
        if phase(podeni) != "Detaching":
            podeni = self._write_status(podeni, phase="Detaching", podLastSeen=self._now())
        eni_id = allocation(podeni).get("eni", {}).get("id", "")
        if eni_id:  # else it was never recorded; the same wish will give the same ENI
            eni = self._members.get(eni_id)
            if eni is None:
                return self._lost(podeni, None)
            age = self._age(podeni)
            if not self._members.detach(eni, stuck=age > STUCK_AFTER):
                return _poll(age, eni)
        self._write_status(podeni, phase="Unbind", msg=None, instanceID=None, trunkENIID=None, eniInfos=None)
        return 0

    def _serve(self, podeni: Object, pod: TrunkPod) -> float | None:
        """Give an address that was kept to the pod that has come back."""
        changes = {"labels": {NODE: pod.node}, "annotations": {POD_UID: pod.uid}}
        return self._bind(self._write(podeni, {"metadata": changes}), pod)

    def _expire(self, podeni: Object) -> float | None:
        """Delete an address that was kept long enough, but rather keep it than misunderstand for how long."""
        kept = allocation(podeni).get("allocationType", {})
        if kept.get("releaseStrategy") != "TTL":
            return None
        try:
            seen = datetime.fromisoformat(podeni["status"]["podLastSeen"]).timestamp()
            left = seen + parse_duration(kept["releaseAfter"]) - self._clock()
        except (KeyError, ValueError) as error:
            log.warning("address is kept", extra={"pod": _name(podeni), "problem": repr(error)})
            return None
        if left > 0:
            return min(left, LOOK)
        log.info("address has expired", extra={"pod": _name(podeni), "ip": allocation(podeni).get("ipv4")})
        return self._delete(podeni)

    def _lost(self, podeni: Object, pod: TrunkPod | None) -> float | None:
        """Somebody has deleted the ENI, or it was never ours; the pod gets another one."""
        eni_id = allocation(podeni)["eni"]["id"]
        log.warning("ENI lost", extra={"pod": _name(podeni), "eni": eni_id})
        if pod:
            message = f"{eni_id} is gone, or not terway's; the pod gets another ENI"
            self._events.tell(pod.reference, "ENILost", message, warning=True)
        return self._delete(podeni)

    def _delete(self, podeni: Object) -> float | None:
        metadata = podeni["metadata"]
        try:
            self._client.delete(PODENIS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except KubeNotFound:
            return None
        return 0  # the next look takes the ENI away, or finds that there is nothing more to do

    def _remove(self, podeni: Object) -> float | None:
        """Take the ENI out of the cloud, and let the object go."""
        if phase(podeni) != "Deleting":
            podeni = self._write_status(podeni, phase="Deleting")
        metadata = podeni["metadata"]
        eni_id = allocation(podeni).get("eni", {}).get("id", "")
        enis = self._members.find(metadata["uid"], eni_id)
        age = self._age(podeni)
        for eni in enis:
            self._members.delete(eni, stuck=age > STUCK_AFTER)
        if enis:
            return _poll(age, enis[0])
        kept = [one for one in metadata.get("finalizers") or () if one != FINALIZER]
        self._write(podeni, {"metadata": {"finalizers": kept}})
        return 0  # a pod of that name may wait

    # -- what all need ------------------------------------------------------------------------------------

    def _trunk(self, pod: TrunkPod) -> Trunk:
        return self._members.trunk_of(self._client.get(NODES, pod.node))

    def _write(self, podeni: Object, change: Mapping[str, Any], *, subresource: str = "") -> Object:
        """:raises KubeConflict: it has changed; another one may lead by now."""
        metadata = podeni["metadata"]
        versioned = {**change.get("metadata", {}), "resourceVersion": metadata["resourceVersion"]}
        return self._client.patch(
            PODENIS,
            metadata["name"],
            {**change, "metadata": versioned},
            metadata["namespace"],
            subresource=subresource,
        )

    def _write_status(self, podeni: Object, **fields: Any) -> Object:
        return self._write(podeni, {"status": fields}, subresource="status")

    def _write_allocation(self, podeni: Object, **fields: Any) -> Object:
        return self._write(podeni, {"spec": {"allocations": [{**allocation(podeni), **fields}]}})

    def _age(self, podeni: Object) -> float:
        """Seconds for which it has been in its phase."""
        metadata = podeni["metadata"]
        key, state = (metadata["namespace"], metadata["name"]), (metadata["uid"], phase(podeni))
        known = self._since.get(key)
        if known is None or known[:2] != state:
            known = self._since[key] = (*state, self._clock())
        return self._clock() - known[2]

    def _complain(self, podeni: Object | None, pod: TrunkPod | None, error: RetryLater) -> None:
        if pod:
            self._events.tell(pod.reference, "AllocENIFailed", str(error), warning=True)
        if podeni is None:
            return
        try:
            self._client.patch(
                PODENIS,
                podeni["metadata"]["name"],
                {"status": {"msg": str(error)}},
                podeni["metadata"]["namespace"],
                subresource="status",
            )
        except (KubeNotFound, KubeConflict) as gone:
            log.info("not told", extra={"pod": _name(podeni), "problem": str(gone)})

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _poll(age: float, eni: NetworkInterface) -> float:
    """How long to wait for an ENI on its way: longer for what takes longer.

    :raises RetryLater: so long that somebody should know.
    """
    if age > TOLD_AFTER:
        raise RetryLater(
            f"{eni.eni_id} has been {eni.status} for {age:.0f} s; the cloud may be slow, or it sticks"
        )
    return min(POLL_LAST, max(POLL_FIRST, age / 2))


def _name(podeni: Object) -> str:
    return f"{podeni['metadata']['namespace']}/{podeni['metadata']['name']}"


def concerns(old: Object | None, new: Object | None) -> bool:
    """Whether a change of a PodENI is a reason to look at it: not that only its ``msg`` is another."""

    def gist(obj: Object | None) -> Any:
        return obj and (obj.get("spec"), phase(obj), obj["metadata"].get("deletionTimestamp"))

    return bool(gist(old) != gist(new))
