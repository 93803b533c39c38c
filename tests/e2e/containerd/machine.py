"""A machine within the machine: what runs in it leaves nothing behind, and what it leaves inside is seen.

A mount namespace in which /run and /var/lib are empty, so that /run/netns, the shims of containerd and
libcni's results are this machine's alone, and a process namespace, so that its end is the end of all its
processes. Its other files and its sockets are the outer machine's.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

# The first process: takes in orphans, and ends when its standard input does, thus also when we are killed.
# The outer machine's network namespaces are let go, or ours would keep them alive.
INIT = """
umount --recursive /run/netns 2>/dev/null || true
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir /run/netns
exec 3<&0
cat <&3 >/dev/null &
echo up
wait $!
"""

#: How often each thing is there, by kind of thing.
Traces: TypeAlias = dict[str, Counter[str]]


class Machine:
    """Starts on entering the ``with`` block, ends with it.

    :param name: its control groups are those below ``/NAME``; the kernel cannot make them private.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        namespaces = ("--mount", "--pid", "--fork", "--mount-proc")
        self._init = subprocess.Popen(
            ["unshare", *namespaces, "--kill-child", "sh", "-ec", INIT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._init.stdout
        assert self._init.stdout.readline() == b"up\n", "the machine did not start"
        self._proc = Path("/proc") / str(self._init.pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._init.communicate()  # closes its input; it is gone when all processes of its namespace are
        for started in self._started:
            started.wait()
        for group in self._control_groups():
            for folder, _, _ in os.walk(group, topdown=False):
                with suppress(FileNotFoundError):
                    os.rmdir(folder)

    @property
    def root(self) -> Path:
        """The root of its files, seen from outside."""
        return self._proc / "root"

    def argv(self, *command: object, netns: str = "") -> list[str]:
        """``command`` as it is started from outside, in one of the machine's network namespaces."""
        enter = ["nsenter", f"--mount={self._proc}/ns/mnt", f"--pid={self._proc}/ns/pid_for_children"]
        within = ["nsenter", f"--net={netns}"] if netns else []
        return [*enter, *within, *map(str, command)]

    def run(self, *command: object, netns: str = "") -> str:
        """Run a command that must succeed, and return what it prints."""
        done = subprocess.run(self.argv(*command, netns=netns), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *command: object, log: Path, netns: str = "", env: dict[str, str] | None = None) -> None:
        """Start a command that stays; its output is appended to ``log``."""
        with log.open("ab") as output:
            started = subprocess.Popen(
                self.argv(*command, netns=netns),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | (env or {}),
            )
        self._started.append(started)

    def kill(self, pid: int) -> None:
        """Kill a process, given by its number in the machine, and wait until it is gone."""
        self.run("kill", "-KILL", pid)
        while _command_line(self.root / "proc" / str(pid)):
            time.sleep(0.01)

    def traces(self) -> Traces:
        """Everything that a sandbox could leave behind on the machine."""
        return {
            "processes": Counter(filter(None, map(_command_line, (self.root / "proc").glob("[0-9]*")))),
            "mounts": Counter(
                line.split()[4] for line in (self._proc / "mountinfo").read_text().splitlines()
            ),
            "network namespaces": Counter(_names(self.root / "run/netns")),
            "CNI results": Counter(_names(self.root / "var/lib/cni/results")),
            "control groups": Counter(
                str(path) for group in self._control_groups() for path in group.rglob("*") if path.is_dir()
            ),
        }

    def _control_groups(self) -> list[Path]:
        hierarchies = Path("/sys/fs/cgroup")
        found = [hierarchies / self.name, *(path / self.name for path in hierarchies.iterdir())]
        return [path for path in found if path.is_dir()]


def changes(before: Traces, after: Traces) -> list[str]:
    """What there is more (+) and less (-) than before."""
    found = []
    for kind in before:
        found += [f"+ {kind}: {one}" for one in after[kind] - before[kind]]
        found += [f"- {kind}: {one}" for one in before[kind] - after[kind]]
    return found


def _command_line(process: Path) -> str:
    """Empty when the process is gone, or a zombie."""
    try:
        return (process / "cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
