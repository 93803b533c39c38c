"""The state of PodNetworkings: Ready, or why not."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from terway_core.errors import CloudError, KubeNotFound
from terway_core.kube import KubeClient
from terway_core.kube.events import Events
from terway_driver_trunking.admission import problems_of
from terway_driver_trunking.api import PODNETWORKINGS, Object
from terway_driver_trunking.vswitches import VSwitches

#: Seconds after which one that is Ready, or is not, is looked at again.
RECHECK, RETRY = 600.0, 30.0


class NetworkingKeeper:
    """Finds the zones of a PodNetworking's vSwitches.

    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        client: KubeClient,
        vswitches: VSwitches,
        events: Events,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._vswitches = vswitches
        self._events = events
        self._clock = clock

    def look(self, name: str) -> float | None:
        """Write the status of one; the seconds until the next look, None when it is gone.

        :raises CloudError: the cloud did not tell about one that is Ready, which it stays.
        """
        try:
            networking = self._client.get(PODNETWORKINGS, name)
        except KubeNotFound:
            return None
        old = networking.get("status", {})
        try:
            status = self._judge(networking["spec"])
        except CloudError as error:
            if old.get("status") == "Ready":
                raise
            status = _fail(str(error))
        ready = status["status"] == "Ready"
        # Only what changed is written: each write wakes up all who watch.
        if status != {key: old.get(key) for key in status}:
            status["updateAt"] = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            version = networking["metadata"]["resourceVersion"]  # of this spec, not of the next
            self._client.patch(
                PODNETWORKINGS,
                name,
                {"metadata": {"resourceVersion": version}, "status": status},
                subresource="status",
            )
            reason = "SyncPodNetworkingSucceed" if ready else "SyncPodNetworkingFailed"
            message = str(status["message"] or "the vSwitches are there")
            self._events.tell(_reference(networking), reason, message, warning=not ready)
        return RECHECK if ready else RETRY

    def _judge(self, spec: dict[str, Any]) -> dict[str, Any]:
        if problems := problems_of(spec):
            return _fail("; ".join(problems))
        found = self._vswitches.get(spec["vSwitchOptions"])
        if missing := set(spec["vSwitchOptions"]) - {one.vswitch_id for one in found}:
            return _fail(f"the cloud knows no vSwitch {', '.join(sorted(missing))} in this region")
        zones = [{"id": one.vswitch_id, "zone": one.zone_id} for one in found]
        return {"status": "Ready", "vSwitches": zones, "message": None}


def _fail(message: str) -> dict[str, Any]:
    return {"status": "Fail", "vSwitches": None, "message": message}


def _reference(networking: Object) -> dict[str, str]:
    metadata = networking["metadata"]
    return {
        "apiVersion": PODNETWORKINGS.api_version,
        "kind": PODNETWORKINGS.kind,
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
