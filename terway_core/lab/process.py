"""Processes of the lab: started detached inside a network namespace, found again and ended by that namespace.

What makes a process the lab's is the namespace it runs in, so nothing needs to have been written down for it
to be found: a lab that was killed between starting a process and recording it is cleaned up all the same.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from terway_core.wiring.netns import Namespace

#: Identity of a network namespace: device and inode of its nsfs file.
NetnsId = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Process:
    """One process, told apart from a later one with the same pid by its start time.

    :param started: clock ticks since boot (proc(5), field 22 of ``/proc/PID/stat``).
    """

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return _start_time(self.pid) == self.started


def spawn(namespace: Namespace, argv: Sequence[str], *, log: Path, stdin: int | None = None) -> Process:
    """Start ``argv`` in ``namespace``, in a session of its own, with its output appended to ``log``.

    It gets as little of the environment as an init system would give it: proxies, ``TERWAY_*`` settings and
    cloud credentials of the caller are not for the lab.
    """
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    actions = (
        nothing if stdin is None else (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    )

    def start() -> Process:
        # A child is born in the namespace of the thread that starts it.
        pid = os.posix_spawn(argv[0], list(argv), env, file_actions=actions, setsid=True)
        return Process(pid, _start_time(pid) or 0)

    return namespace.run(start)


def netns_id(path: Path) -> NetnsId | None:
    """Identity of the namespace at ``path``; None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def end_all(namespaces: Iterable[NetnsId]) -> None:
    """Kill every process in the given namespaces but the calling one, and wait until all are gone."""
    wanted = set(namespaces)
    while pids := [pid for pid in _pids() if _netns_of(pid) in wanted and pid != os.getpid()]:
        for pid in pids:
            _kill(pid, wanted)


def _kill(pid: int, namespaces: set[NetnsId]) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Ask again now that the handle is fixed to one process: the pid may have gone to another in between.
        if _netns_of(pid) in namespaces:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [])
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # one that this very process started would stay a zombie
    finally:
        os.close(handle)


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _netns_of(pid: int) -> NetnsId | None:
    return netns_id(Path(f"/proc/{pid}/ns/net"))


def _start_time(pid: int) -> int | None:
    try:
        # The command name, in parentheses, may hold anything; the fields after it do not.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])
