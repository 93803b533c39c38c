"""The vSwitches that PodNetworkings name, and which of them the next ENI is made in."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from terway_core.cloud import Cloud
from terway_core.cloud.vpc import VSwitch, describe_vswitches
from terway_core.errors import NoAddress

#: Seconds for which an answer is believed, also that a vSwitch is exhausted.
BELIEVED: Final = 60.0


class VSwitches:
    """Asks the cloud, at most once a minute for each; safe to use from several threads."""

    def __init__(self, cloud: Cloud, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._cloud = cloud
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, VSwitch]] = {}

    def get(self, vswitch_ids: Sequence[str]) -> list[VSwitch]:
        """Those that there are, in this order.

        :raises CloudError: the cloud does not tell.
        """
        with self._lock:
            old = self._monotonic() - BELIEVED
            fresh = {one: vswitch for one, (asked, vswitch) in self._known.items() if asked > old}
        asked_for = [one for one in dict.fromkeys(vswitch_ids) if one not in fresh]
        found = {one.vswitch_id: one for one in describe_vswitches(self._cloud, asked_for)}
        with self._lock:
            self._known |= {one: (self._monotonic(), vswitch) for one, vswitch in found.items()}
        known = fresh | found
        return [known[one] for one in dict.fromkeys(vswitch_ids) if one in known]

    def choose(self, vswitch_ids: Sequence[str], zone_id: str, policy: str = "most") -> VSwitch:
        """One of a zone that has free addresses, and is not known to have none.

        :param policy: ``ordered``: the first; ``random``; ``most``: that with the most free addresses.
        :raises NoAddress: there is none. :raises CloudError: the cloud does not tell.
        """
        here = [one for one in self.get(vswitch_ids) if one.zone_id == zone_id]
        if not here:
            raise NoAddress(f"none of the vSwitches {', '.join(vswitch_ids)} is in zone {zone_id}")
        free = [one for one in here if one.available_ips > 0]
        if not free:
            names = ", ".join(one.vswitch_id for one in here)
            raise NoAddress(f"no address is free in {names}; add a vSwitch of zone {zone_id}")
        match policy:
            case "ordered":
                return free[0]
            case "random":
                return random.choice(free)
            case _:
                return max(free, key=lambda one: one.available_ips)

    def exhausted(self, vswitch_id: str) -> None:
        """The cloud refused to make an ENI there for want of addresses."""
        with self._lock:
            if vswitch_id in self._known:
                _, vswitch = self._known[vswitch_id]
                self._known[vswitch_id] = self._monotonic(), replace(vswitch, available_ips=0)
