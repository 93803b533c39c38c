"""Runs a daemon as ``terway daemon`` does, and another when it is killed, like systemd.

The files of a folder say which faults befall it; the product knows nothing of this.

``kill-COMMAND``
    A number N: in the next ``add``, ``delete`` or ``recover`` the process is killed by SIGKILL before the Nth
    side effect, or, if N is one more than there are, when the last one is done. The file goes before.
``away``
    A daemon that was killed is not started again while the file is there.
``hold-STEP``
    Calls of this step (a driver hook, or ``apply``, which wires) wait while the file is there; ``held-STEP``
    says that one does.
``events``
    Gets a line for each request that is about to wait for its ``turn``, for each ``cancel`` of an ADD, each
    ``durable`` or ``fleeting`` write of the journal, when a ``sync`` of it begins and is done (``synced``),
    and before each ``apply``.
``refuse``
    Drivers refuse to start with RetryLater while the file is there; its text is the reason.
``clock``
    Seconds by which the daemon's clock is ahead.

Usage: daemon_under_test.py CONFIG FOLDER
"""

import functools
import inspect
import os
import signal
import sys
import threading
import time
from pathlib import Path

from terway_core import hookspecs
from terway_core.config import load_config
from terway_core.daemon import main
from terway_core.daemon.collector import Collector
from terway_core.daemon.lifecycle import Lifecycle
from terway_core.daemon.queue import Cancellation, SandboxLocks
from terway_core.errors import RetryLater
from terway_core.registry import Drivers
from terway_core.store import Store
from terway_core.wiring import nft
from terway_core.wiring.engine import Engine
from terway_core.wiring.netlink import NetlinkSocket

#: Nobody has to wait longer than a test may take.
PATIENCE = 60.0


def wrap(owner, name, first):
    """Have ``first`` called before each call of the function ``name`` of a class or module."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        first()
        return function(*args, **kwargs)

    setattr(owner, name, wrapper)


class Trap:
    """Counts the side effects of one command and kills the process at the one it was told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left = 0
        self._in_main = False

    def step(self) -> None:
        # gc goes on in the main thread; only a recovery, which is done there too, counts what that one does.
        if self._left and (threading.current_thread() is not threading.main_thread() or self._in_main):
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, command, function):
        """``function``, which is the ``command``: its side effects count, and its end."""

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            try:
                self._left = int((file := self._folder / f"kill-{command}").read_text())
            except FileNotFoundError:
                return function(*args, **kwargs)
            file.unlink()
            self._in_main = command == "recover"
            try:
                answer = function(*args, **kwargs)
                self.step()
            finally:
                self._left = 0
            return answer

        return wrapper

    def set(self) -> None:
        """Every method that changes the kernel, every hook and every write of the journal is a step; found by
        looking, so that none is forgotten that somebody adds."""
        for command, owner in (("add", Lifecycle), ("delete", Lifecycle), ("recover", Collector)):
            setattr(owner, command, self.around(command, getattr(owner, command)))
        wrap(Store, "write", self.step)
        wrap(NetlinkSocket, "send", self.step)
        for name, _ in inspect.getmembers(Engine, inspect.isfunction):
            if not name.startswith("_"):
                wrap(Engine, name, self.step)
        for name, function in inspect.getmembers(nft, inspect.isfunction):
            if not name.startswith("_") and function.__module__ == nft.__name__:
                wrap(nft, name, self.step)
        for name, _ in inspect.getmembers(hookspecs, inspect.isfunction):
            if hasattr(Drivers, hook := name.removeprefix("terway_")):
                wrap(Drivers, hook, self.step)


def hold(folder: Path) -> None:
    """Let steps wait for ``hold-STEP`` to go."""
    for owner, step in ((Drivers, "allocate"), (Drivers, "setup"), (Drivers, "teardown"), (Engine, "apply")):
        wrap(owner, step, functools.partial(wait_while, folder, step))


def tell(events: Path) -> None:
    """Write down what cannot be seen from outside."""
    for owner, method, event in ((SandboxLocks, "hold", "turn"), (Cancellation, "cancel", "cancel")):
        wrap(owner, method, functools.partial(append, events, event))
    wrap(Engine, "apply", functools.partial(append, events, "apply"))
    write, begin_sync = Store.write, Store.begin_sync

    def tell_and_write(store, change, *, durable=True):
        answer = write(store, change, durable=durable)
        append(events, "durable" if durable else "fleeting")
        return answer

    def tell_and_sync(store):
        wait = begin_sync(store)
        append(events, "sync")

        def tell_when_done():
            wait()
            append(events, "synced")

        return tell_when_done

    Store.write, Store.begin_sync = tell_and_write, tell_and_sync


def append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")


def wait_while(folder: Path, step: str) -> None:
    gate, held = folder / f"hold-{step}", folder / f"held-{step}"
    until = time.monotonic() + PATIENCE
    while gate.exists() and time.monotonic() < until:
        held.touch()
        time.sleep(0.005)
    held.unlink(missing_ok=True)


def refuse(reason: Path) -> None:
    """Let drivers not start while ``reason`` is there."""

    def first():
        if reason.exists():
            raise RetryLater(reason.read_text())

    wrap(Drivers, "start", first)


def clock_of(ahead: Path):
    return lambda: time.time() + (float(ahead.read_text()) if ahead.exists() else 0.0)


def supervise(config, folder: Path) -> int:
    """Daemons, one after the other; SIGTERM ends the present one and with it this process."""
    drivers = Drivers.installed()
    main.Daemon = functools.partial(main.Daemon, drivers=drivers, clock=clock_of(folder / "clock"))
    Trap(folder).set()
    hold(folder)
    tell(folder / "events")
    refuse(folder / "refuse")
    child = 0
    stopping = False

    def stop(number, frame):
        nonlocal stopping
        stopping = True
        if child:
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    while True:
        while (folder / "away").exists() and not stopping:
            time.sleep(0.005)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            main.serve(config)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if stopping or not os.WIFSIGNALED(status):
            return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    sys.exit(supervise(load_config(Path(sys.argv[1])), Path(sys.argv[2])))
