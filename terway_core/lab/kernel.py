"""Which kernel a lab runs on: this machine's, or user-mode Linux where that lacks what a driver needs.

A lab in user-mode Linux has its files where any lab has them. Its processes, namespaces and sockets are in
there with it, so that is where commands about it run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Literal

from terway_core.lab import uml
from terway_core.lab.nodes import options
from terway_core.lab.state import Kernel, Lab, LabError, Spec
from terway_core.registry import Drivers
from terway_core.types import Node


def unmet(spec: Spec) -> str:
    """What the kernel, or what is installed, lacks for the drivers of a lab; ``""`` if nothing.

    :raises UnknownDriver: one is not installed or broken.
    """
    drivers = Drivers.installed()
    node = Node(name="node-1")
    return "; ".join(
        f"{mode} cannot work here: {problem.summary}; {problem.remedy}"
        for mode in spec.drivers
        for problem in drivers.preflight(mode, node, options(mode, 1, spec))
    )


def choose(kernel: Kernel, spec: Spec) -> Literal["host", "uml"]:
    """The kernel for a lab.

    :raises LabError: this machine's will not do, and user-mode Linux cannot run.
    """
    if kernel != "auto":
        return kernel
    require_root()
    if not (problem := unmet(spec)):
        return "host"
    if obstacles := uml.missing():
        raise LabError(f"{problem}. User-mode Linux cannot run either: {'; '.join(obstacles)}")
    return "uml"


def up_inside(lab: Lab, argv: Sequence[str]) -> int:
    """Boot a kernel for the lab, and have ``argv`` build it there; return its exit status.

    :raises LabError: the lab is up already, or user-mode Linux cannot run.
    """
    require_root()
    with lab.lock():
        if lab.complete and machine(lab):
            raise LabError(f"a lab is up in {lab.folder} already; take it down with: terway lab down")
        power_off(lab)
        lab.kernel_dir.mkdir()
        try:
            if status := uml.boot(lab.kernel_dir).run(argv):
                power_off(lab)
        except BaseException:
            power_off(lab)
            lab.raze()
            raise
    return status


def machine(lab: Lab) -> uml.Machine | None:
    """Where the lab runs, unless that is here."""
    return uml.Machine.find(lab.kernel_dir)


def power_off(lab: Lab) -> None:
    """End the lab's own kernel and all that runs there, if it has one. Inside, nothing is done."""
    if uml.inside():
        return
    if running := machine(lab):
        running.power_off()
    shutil.rmtree(lab.kernel_dir, ignore_errors=True)


def require_root() -> None:
    """:raises LabError: we are somebody else."""
    if os.geteuid():
        raise LabError("the lab makes network namespaces, which takes root; run it with sudo")
