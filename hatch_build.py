"""Builds the CNI plugin in C into the wheel; where there is no compiler, the one in Python serves."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "terway_core/cni"
BINARY = "terway-cni"


class PluginBuilder(BuildHookInterface[Any]):
    """Compiles into the source tree, where an editable installation finds it too; git ignores the file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = Path(self.root, PACKAGE)
        if not self._compile(folder / "plugin.c", folder / BINARY):
            return
        build_data["artifacts"].append(f"/{PACKAGE}/{BINARY}")
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def _compile(self, source: Path, target: Path) -> bool:
        """Statically where that works: the host on which it is installed may have another C library."""
        target.unlink(missing_ok=True)
        scratch = target.with_name(f".{BINARY}.{os.getpid()}")
        problem = ""
        for compiler in self._compilers():
            try:
                done = subprocess.run(
                    [*compiler, "-std=gnu11", "-O2", "-s", "-o", scratch, source],
                    capture_output=True,
                    text=True,
                )
            except OSError as error:
                problem = problem or str(error)
                continue
            if done.returncode == 0:
                scratch.replace(target)
                return True
            problem = done.stderr
        self.app.display_warning(
            f"{source.name} is not compiled, the slower Python plugin is used: {problem}"
        )
        return False

    def _compilers(self) -> list[list[str]]:
        """Best first. A process with musl starts in 0.2 ms; one with glibc touches 30 pages, in 0.6 ms."""
        chosen = os.environ.get("CC")
        compilers = [shlex.split(chosen)] if chosen else [["musl-gcc"], ["cc"]]
        return [[*compiler, "-static"] for compiler in compilers] + compilers[-1:]
