"""PodENIs as the control plane leaves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from terway_driver_trunking import api

from terway_core.types import Pod


@pytest.fixture
def bound() -> Callable[..., dict[str, Any]]:
    """Makes the PodENI of a pod whose ENIs are on a trunk: their VLANs are 100, 101…"""

    def bound(pod: Pod, trunk: str, *ips: tuple[str, str], interfaces: tuple[str, ...] = ("eth0",)) -> Any:
        ids = [f"eni-{pod.name}-{interface}" for interface in interfaces]
        return {
            "metadata": {
                "name": pod.name,
                "namespace": pod.namespace,
                "labels": {api.NODE: "node-1"},
                "annotations": {api.POD_UID: pod.uid},
            },
            "spec": {
                "allocations": [
                    {"eni": {"id": eni_id}, "interface": interface, "ipv4": ipv4, "ipv6": ipv6}
                    for eni_id, interface, (ipv4, ipv6) in zip(ids, interfaces, ips, strict=True)
                ]
            },
            "status": {
                "phase": "Bind",
                "trunkENIID": trunk,
                "eniInfos": {eni_id: {"id": eni_id, "vid": 100 + place} for place, eni_id in enumerate(ids)},
            },
        }

    return bound
