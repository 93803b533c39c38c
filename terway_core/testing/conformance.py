"""The conformance suite: what every driver promises, as tests that a driver inherits.

    class TestExample(DriverConformance):
        mode = "example"

        @pytest.fixture
        def options(self, families):
            return {"cidr": "10.9.0.0/28"}

The cases drive the driver as the daemon does, through :class:`~terway_core.registry.Drivers`, without cloud
and kernel; those marked ``kernel`` wire real network namespaces and need root. Fixtures, and the methods
``leftovers`` and ``spoil_a_record``, are there to be overridden: see :mod:`terway_core.testing.base`. A case
is not: one that a driver fails for a reason of its own is marked ``xfail(reason=...)``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from terway_core.config import Config
from terway_core.kube.manifests import daemon
from terway_core.registry import REQUIRED_HOOKS, Drivers
from terway_core.testing.base import Rig
from terway_core.testing.lease_cases import LeaseCases
from terway_core.testing.wiring_cases import WiringCases
from terway_core.types import Pod

__all__ = ["DriverConformance", "Rig"]


class DriverConformance(LeaseCases, WiringCases):
    """Subclass it as ``Test…``, set ``mode`` and the capabilities, and give the fixture ``options``."""

    def __init_subclass__(cls) -> None:
        if not hasattr(cls, "mode"):
            raise TypeError(f"{cls.__name__}: set `mode` to the name of the driver's entry point")
        for name in dir(DriverConformance):
            case = getattr(cls, name)
            if name.startswith("test_") and case is not getattr(DriverConformance, name):
                marks = getattr(case, "pytestmark", ())
                if not any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks):
                    raise TypeError(
                        f"{cls.__name__}.{name} replaces a case of the suite: call it and mark it "
                        "@pytest.mark.xfail(reason=...), so that the exception can be seen"
                    )

    def test_entry_point_names_a_working_driver(self) -> None:
        """The installed package offers the driver under its mode, ready to be called.

        If this fails, the message says what is wrong with the entry point or the hooks. It names an instance:
        ``example = "terway_driver_example:driver"``.
        """
        assert set(REQUIRED_HOOKS) <= set(Drivers.installed().info(self.mode).hooks)

    @pytest.mark.parametrize("pod", [Pod(), Pod(namespace="shop", name="cart")], ids=["nameless", "plain"])
    def test_claim_answers_for_any_pod(self, rig: Rig, pod: Pod) -> None:
        """Every driver before the right one is asked for every pod, with annotations or without.

        If this fails, take annotations with ``pod.annotations.get(...)``.
        """
        assert isinstance(rig.drivers.claim(rig.mode, pod, rig.services.node), bool)

    def test_preflight_names_remedies(self, rig: Rig) -> None:
        """Whoever reads a problem wants to know what to do.

        If this fails, give each Problem both texts.
        """
        for problem in rig.drivers.preflight(rig.mode, rig.services.node, rig.services.options):
            assert problem.summary
            assert problem.remedy

    def test_rbac_are_rules_of_a_cluster_role(self, rig: Rig) -> None:
        """An operator applies them as they are printed.

        If this fails, give each rule ``apiGroups``, ``resources`` and ``verbs``, each with something in it.
        """
        for rule in rig.drivers.rbac(rig.mode):
            assert sorted(rule) == ["apiGroups", "resources", "verbs"]
            assert all(rule.values())

    def test_manifests_are_objects_of_kubernetes(self, rig: Rig) -> None:
        """An operator applies them with the daemon's own, which they must not replace.

        If this fails, give each object ``apiVersion``, ``kind`` and a name of its own.
        """
        config = Config(drivers=(rig.mode,))
        names = [
            (manifest["kind"], manifest["metadata"]["name"])
            for manifest in (*daemon(config, "image"), *rig.drivers.manifests(rig.mode, config, "image"))
            if manifest["apiVersion"]
        ]
        assert len(set(names)) == len(names)

    def test_conflist_keeps_what_is_there(self, rig: Rig) -> None:
        """A driver adds plugins to the chain after ours, and takes none away.

        If this fails, return a new dict with more ``plugins``.
        """
        conflist: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "terway"}]}
        answer = rig.drivers.conflist(rig.mode, json.loads(json.dumps(conflist)), rig.services.options)
        assert json.loads(json.dumps(answer)) == answer
        assert answer["plugins"][0] == conflist["plugins"][0]
        assert (answer["cniVersion"], answer["name"]) == (conflist["cniVersion"], conflist["name"])
