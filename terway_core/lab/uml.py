"""A second kernel: user-mode Linux, which is a process, has this machine's files, and what its kernel lacks.

Debian's ``linux.uml`` has ipvlan and tc's classifiers and actions as modules. It has one CPU, and a system
call takes some 35 times as long, but it boots in two seconds and leaves nothing behind: namespaces, links
and processes end with it. Its root is the host's file system, so commands find the same files, the same
Python environment and their own working directory. They share with the host neither processes nor network,
nor ``/run``, nor ``/dev``.

::

    FOLDER/control       a FIFO, its serial line: "run JOB", "kill JOB", "off"
    FOLDER/ready         it listens
    FOLDER/kernel.log    what the kernel says
    FOLDER/JOB/          command, pid, stdout, stderr, and in the end status

Output goes to files, which the host reads as they grow: a terminal would make programs talk to a person.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Final

from terway_core.lab.process import Process, spawn
from terway_core.lab.state import LabError, recall, remember
from terway_core.registry import DRIVERS_GROUP, PLUGINS_GROUP
from terway_core.wiring.netns import Namespace

MEMORY_MIB: Final = 1024
#: Seconds it may take to boot, and to end by itself.
_BOOT_LIMIT: Final = 60.0
_END_LIMIT: Final = 10.0
#: Seconds between two looks at what a command has printed.
_LOOK: Final = 0.05
_KERNEL: Final = "linux.uml"
_PACKAGES: Final = {_KERNEL: "user-mode-linux", "modprobe": "kmod", "ip": "iproute2"}
#: Also where commands for root are, whatever the caller's PATH.
_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
#: Where its memory is a file, if that is a tmpfs.
_MEMORY_FOLDER: Final = Path("/dev/shm")
_LOG_LINES_SHOWN: Final = 15

#: The first process. The kernel loads modules itself when they are needed, from where Debian keeps them; but
#: for IPv6 it waits until somebody opens a socket.
_INIT: Final = r"""#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd {folder} && mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run || exit
ln -s /proc/self/fd /dev/fd
echo {hostname} >/proc/sys/kernel/hostname
mkdir -p /run/kernel/lib/modules
ln -s /usr/lib/uml/modules/$(uname -r) /run/kernel/lib/modules
printf '#!/bin/sh\nexec modprobe -d /run/kernel "$@"\n' >/run/kernel/modprobe
chmod +x /run/kernel/modprobe
echo /run/kernel/modprobe >/proc/sys/kernel/modprobe
/run/kernel/modprobe ipv6
ip link set lo up
run() {{
    setsid --wait sh $1/command 3<&-
    echo $? >$1/status.new
    mv $1/status.new $1/status
}}
exec 3</dev/ttyS0
: >ready
while read -r verb job; do
    case $verb in
        run) run $job & ;;
        kill) kill -KILL -$(cat $job/pid) ;;
        off) break ;;
    esac
done <&3
echo o >/proc/sysrq-trigger
sleep 60
"""


def missing() -> list[str]:
    """What keeps this machine from running the kernel, with the remedy; empty when nothing does."""
    found = []
    if platform.machine() != "x86_64":
        found.append(f"user-mode Linux exists for x86_64, and this is a {platform.machine()}")
    if absent := [package for command, package in _PACKAGES.items() if not shutil.which(command, path=_PATH)]:
        found.append(f"not installed; run: apt-get install {' '.join(absent)}")
    if os.geteuid():
        found.append("it has our rights to this machine's files, which must be root's; run it with sudo")
    if (free := _free_mib()) < MEMORY_MIB:
        found.append(f"it takes up to {MEMORY_MIB} MiB of memory, and {free} MiB are free")
    return found


def inside() -> bool:
    """Whether this process runs in such a machine (``arch/um/kernel/um_arch.c``)."""
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text()


@contextmanager
def booted() -> Iterator[Machine]:
    """A machine for as long as the block, or as this process, lives.

    :raises LabError: it cannot run here.
    """
    folder = Path(tempfile.mkdtemp(prefix="terway-uml-"))
    try:
        machine = _start(folder, outlive=False)
        try:
            machine.wait_until_ready()
            yield machine
        finally:
            machine.power_off()
    finally:
        shutil.rmtree(folder)


def boot(folder: Path) -> Machine:
    """A machine that outlives this process; :meth:`Machine.power_off` ends it.

    :param folder: an empty one. :raises LabError: it cannot run here.
    """
    machine = _start(folder, outlive=True)
    try:
        machine.wait_until_ready()
    except BaseException:
        machine.power_off()
        raise
    return machine


class Machine:
    """A kernel that was booted in ``folder``.

    :param held: a descriptor with whose end the machine's ends.
    """

    def __init__(self, folder: Path, process: Process, held: int | None = None) -> None:
        self.folder = folder
        self._process = process
        self._held = held

    @classmethod
    def find(cls, folder: Path) -> Machine | None:
        """The machine that :func:`boot` made; None when it does not run any more."""
        process = recall(folder)
        return cls(folder, process) if process and process.alive else None

    def wait_until_ready(self) -> None:
        """:raises LabError: it ended, or takes too long."""
        deadline = time.monotonic() + _BOOT_LIMIT
        while not (self.folder / "ready").exists():
            if not self._process.alive or time.monotonic() > deadline:
                raise self._failed("did not boot")
            time.sleep(_LOOK)

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
        timeout: float | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> int:
        """Run a command as if it were local; return its exit status, 128 + N after signal N.

        :param cwd: by default the caller's.
        :param env: by default the caller's, all of it.
        :param stdout: where its output goes as it comes; by default the caller's. Its input is empty.
        :param timeout: seconds after which it is killed.
        :param waiting: called again and again while the command runs, which is killed if this raises.
        :raises LabError: it was killed, or the machine ended.
        """
        job = Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))
        variables = (os.environ if env is None else env).items()
        words = ["env", "-i", *(f"{name}={value}" for name, value in variables), *argv]
        (job / "command").write_text(
            f"cd {shlex.quote(str(job))} && echo $$ >pid && exec </dev/null >stdout 2>stderr || exit 125\n"
            f"cd {shlex.quote(str(cwd or Path.cwd()))} || exit 125\n"
            f"exec {shlex.join(words)}\n"
        )
        limit = float("inf") if timeout is None else timeout
        deadline = time.monotonic() + limit
        outputs = [
            _Output(job / "stdout", stdout or sys.stdout.buffer),
            _Output(job / "stderr", stderr or sys.stderr.buffer),
        ]
        self._send(f"run {job.name}")
        try:
            while not _copy_all(outputs, job):
                if not self._process.alive:
                    raise self._failed("ended")
                if time.monotonic() > deadline:
                    raise LabError(f"{argv[0]} took longer than {limit:g} s in user-mode Linux")
                waiting()
                time.sleep(_LOOK)
        except BaseException:
            with suppress(LabError):
                self._send(f"kill {job.name}")
            raise
        status = int((job / "status").read_text())
        shutil.rmtree(job)
        return status

    def power_off(self) -> None:
        """End the machine and everything in it; the folder stays."""
        with suppress(LabError):
            self._send("off")
        deadline = time.monotonic() + _END_LIMIT
        while self._process.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        with suppress(ProcessLookupError):  # what it forked lives on when it was killed
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self._process.pid, os.WNOHANG)
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _send(self, line: str) -> None:
        if not self._process.alive:
            raise self._failed("does not run")
        try:
            control = os.open(self.folder / "control", os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:  # ENXIO: nobody reads any more
            raise self._failed("does not run") from error
        with open(control, "wb") as stream:
            stream.write(f"{line}\n".encode())

    def _failed(self, problem: str) -> LabError:
        log = self.folder / "kernel.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return LabError(
            f"user-mode Linux {problem}; the end of its log is below",
            details="\n".join(lines[-_LOG_LINES_SHOWN:]),
        )


class _Output:
    """A file that grows, copied to ``target``."""

    def __init__(self, path: Path, target: IO[bytes]) -> None:
        path.touch()
        self._path = path
        self._target = target
        self._copied = 0

    def copy(self) -> None:
        if self._path.stat().st_size > self._copied:
            with self._path.open("rb") as file:
                file.seek(self._copied)
                new = file.read()
            self._copied += len(new)
            self._target.write(new)
            self._target.flush()


def _copy_all(outputs: Sequence[_Output], job: Path) -> bool:
    """Copy what was printed since the last time; True when no more will come."""
    ended = (job / "status").exists()  # asked before the last look
    for output in outputs:
        output.copy()
    return ended


def _start(folder: Path, *, outlive: bool) -> Machine:
    """Start the kernel. Unless it is to ``outlive`` this process it ends when that does, however that is."""
    if problems := missing():
        raise LabError(f"user-mode Linux cannot run: {'; '.join(problems)}")
    _compile_bytecode()
    init = folder / "init"
    init.write_text(_INIT.format(folder=shlex.quote(str(folder)), hostname=shlex.quote(platform.node())))
    init.chmod(0o700)
    os.mkfifo(folder / "control")
    # A FIFO ends for its reader when nobody has it open for writing any more.
    line = os.open(folder / "control", os.O_RDWR if outlive else os.O_RDONLY | os.O_NONBLOCK)
    held = None if outlive else os.open(folder / "control", os.O_WRONLY)
    argv = [
        shutil.which(_KERNEL, path=_PATH) or _KERNEL,
        f"mem={MEMORY_MIB}M",
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "rw",
        f"init={init}",
        "con=null",
        "con0=null,fd:1",
        "ssl=null",
        "ssl0=fd:0,null",
        f"uml_dir={folder}",
    ]
    with Namespace.current() as here:
        process = spawn(here, argv, log=folder / "kernel.log", stdin=line)
    os.close(line)
    remember(folder, process)
    return Machine(folder, process, held)


def _free_mib() -> int:
    """What the kernel's memory can grow to."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (available,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    free = [available * 1024]
    if _MEMORY_FOLDER.is_mount():
        place = os.statvfs(_MEMORY_FOLDER)
        free.append(place.f_bavail * place.f_frsize)
    return min(free) >> 20


def _compile_bytecode() -> None:
    """Of what is installed editable, and so not compiled yet: there that would take minutes."""
    points = [*metadata.entry_points(group=DRIVERS_GROUP), *metadata.entry_points(group=PLUGINS_GROUP)]
    for package in {"terway_core", *(point.module.partition(".")[0] for point in points)}:
        spec = importlib.util.find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            compileall.compile_dir(place, quiet=2)
