"""A Kubernetes API server for a lab: a real one if its programs are at hand, else a simulated one.

The simulated one is a REST interface over objects in memory, with what controllers rely on: resourceVersions,
watches that go on from one of them or answer 410, conflicts, status sub-resources, finalizers, selectors, and
custom resources. It validates nothing, allows everything, and runs no controller of Kubernetes' own.
"""

from terway_core.lab.kubernetes.objects import Objects, Refusal
from terway_core.lab.kubernetes.server import Call, Served, build_app

__all__ = ["Call", "Objects", "Refusal", "Served", "build_app"]
