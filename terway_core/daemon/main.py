"""The daemon's process: what it is made of, in which order it comes up, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terway_core import __version__
from terway_core.cloud import Cloud
from terway_core.cni import install
from terway_core.config import Config
from terway_core.daemon import log as logs
from terway_core.daemon.adopt import adopt
from terway_core.daemon.collector import Collector, Report
from terway_core.daemon.lifecycle import Lifecycle
from terway_core.daemon.metrics import Metrics
from terway_core.daemon.queue import WorkQueue
from terway_core.daemon.server import Server
from terway_core.daemon.shared import SharedObjects
from terway_core.daemon.starter import Starter
from terway_core.daemon.telling import Teller
from terway_core.eni.model import Holds
from terway_core.errors import IOFailure, RetryLater, TerwayError
from terway_core.registry import Drivers
from terway_core.store import Store
from terway_core.wiring.engine import Engine
from terway_core.wiring.inspect import HostState
from terway_core.wiring.objects import Ipvlan, describe

if TYPE_CHECKING:
    from terway_core.kube.cluster import Cluster

log = logging.getLogger(__name__)

#: Rounds that may fail or be late before the daemon calls itself unhealthy.
MISSED_ROUNDS = 3
#: A command that has waited this long in line means that the workers are stuck.
LONGEST_WAIT = 120.0
#: How long a stop waits for commands that run. systemd kills after 90 s.
GRACE = 30.0
#: How often a driver that was told to wait is started again, in seconds: doubled from the first to the last.
RETRY_FIRST, RETRY_LAST = 1.0, 60.0


class Daemon:
    """All parts of one daemon, wired together. :meth:`run` serves until it is stopped.

    :raises IOFailure: another daemon runs with the same ``run_dir``, or a folder cannot be used.
    :raises StoreError: the journal cannot be opened.
    """

    def __init__(
        self, config: Config, *, drivers: Drivers | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.config = config
        self.drivers = drivers or Drivers.installed()
        self._clock = clock
        self._stopping = threading.Event()
        self._ready = False
        self._conflist_problem = ""
        self._active = 0
        self._idle = threading.Condition()
        self._round_lock = threading.Lock()
        self._last_good_round = time.monotonic()
        self._last_report = Report()
        self._started_at = clock()
        self._lock_file = _lock(config.run_dir)
        self.cluster = _cluster(config, clock)
        self.teller = Teller(self.cluster)
        self.teller.report(lambda: self.starter.pool)
        self.store = Store(config.database)
        self.engine = Engine()
        self.metrics = Metrics(self._count_attachments)
        self.metrics.watch("terway_enis", "ENIs of this node.", ["use", "state"], self._count_enis)
        self.metrics.watch(
            "terway_eni_addresses", "Addresses on shared ENIs.", ["eni", "state"], self._count_addresses
        )
        self.metrics.watch(
            "terway_pool_deficit", "Pods that wait for an address or an ENI.", ["use"], self._count_waiting
        )
        self.line = WorkQueue(config.workers, waited=self.metrics.queue_seconds.observe)
        self.metrics.queue_length.set_function(lambda: len(self.line))
        self.starter = Starter(
            config,
            self.drivers,
            self.store,
            Cloud(config.cloud, observer=self.metrics),
            self.engine.find_link,
            self.cluster,
            clock,
            self.line.aside,
        )
        self._shared = SharedObjects(self.engine)
        self.lifecycle = Lifecycle(
            store=self.store,
            drivers=self.drivers,
            engine=self.engine,
            shared=self._shared,
            order=config.drivers,
            node=self.starter.node,
            unavailable=self.starter.unavailable,
            cluster=self.cluster,
            clock=clock,
        )
        self.collector = Collector(
            store=self.store,
            drivers=self.drivers,
            engine=self.engine,
            shared=self._shared,
            lifecycle=self.lifecycle,
            node=self.starter.node,
            started=self.starter.started,
            spool=config.spool,
            cluster=self.cluster,
            gone_after=config.kube.gone_after,
            clock=clock,
        )

    # -- running ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until :meth:`stop`; then finish what runs, refuse what comes, and return.

        The socket answers from the beginning: DEL at once, STATUS with 50 and ADD with 11 until every
        configured driver runs. Only then is the conflist put in place.
        """
        self._take_stock()
        server = Server(self.config.socket, self)
        server.start()
        log.info("listening", extra={"socket": str(self.config.socket), "version": __version__})
        try:
            if self.cluster:
                self.cluster.start()
            self._come_up()
            self._loop()
        finally:
            self._ready = False
            _notify("STOPPING=1")
            self._drain()
            server.close()
            self.starter.stop()
            if self.cluster:
                self.cluster.stop()
            self.engine.close()
            self.store.close()
            self._lock_file.close()
            log.info("stopped")

    def stop(self) -> None:
        """End :meth:`run`; called from another thread."""
        self._stopping.set()

    def _take_stock(self) -> None:
        """Know of everything that is in use, before anything is served, given out or swept."""
        records = self.store.records()
        known = {record.owner for record in records}
        if any(isinstance(obj, Ipvlan) for record in records if record.wiring for obj in record.wiring.node):
            known.add("")  # an ENI's child on the host is marked as ours and is nobody's: pods share it
        if self.engine.owners() - known:
            adopt(self.store, HostState.read(), self._clock())
        for record in self.store.records():
            if record.wiring:
                self._shared.remember(record.key, record.wiring.node)

    def _come_up(self) -> None:
        self._start_drivers()
        report = self.collector.recover()
        log.info("recovered", extra=report.to_json())
        self._become_ready()

    def _start_drivers(self) -> None:
        self.starter.start()
        self.teller.not_started(self.starter.unavailable)

    def _become_ready(self) -> bool:
        """Put the conflist in place if every configured driver runs; False says that it is too early."""
        if self.starter.unavailable or not self.config.drivers:
            return False
        try:
            install.install_conflist(
                self.config,
                [
                    partial(self.drivers.conflist, mode, options=self.config.options.get(mode, {}))
                    for mode in self.config.drivers
                ],
            )
        except TerwayError as error:
            self._conflist_problem = str(error)
            log.error("conflist not in place", extra={"problem": str(error)})
            return False
        self._conflist_problem = ""
        # All that is loaded by now lives as long as the process: no collection need look through it again,
        # for which a pod would wait.
        gc.collect()
        gc.freeze()
        self._ready = True
        if self.cluster:
            self.cluster.node.serve()
        _notify("READY=1")
        log.info("ready", extra={"drivers": list(self.config.drivers)})
        return True

    def _loop(self) -> None:
        """gc rounds, and new attempts to start what is not started."""
        retry_in = RETRY_FIRST
        next_round = time.monotonic()
        while True:
            pause = next_round - time.monotonic()
            if not self._ready:
                pause = min(pause, retry_in)
            if self._stopping.wait(max(0.0, pause)):
                return
            if not self._ready:
                self._start_drivers()
                retry_in = RETRY_FIRST if self._become_ready() else min(2 * retry_in, RETRY_LAST)
            for mode in self.config.drivers:
                self.metrics.driver_started.labels(mode).set(mode not in self.starter.unavailable)
            if time.monotonic() >= next_round:
                self.collect()
                next_round = time.monotonic() + self.config.gc_interval

    def collect(self, *, dry_run: bool = False) -> Report:
        """One gc round, now."""
        with self._round_lock:
            try:
                if not dry_run:
                    self.starter.start_former()
                report = self.collector.round(dry_run=dry_run)
            except Exception as error:  # the loop must live on; health tells if this stays
                log.exception("gc failed")
                report = Report(problems=[f"a defect of terway: {error!r}"])
            if dry_run:
                return report
            self._last_report = report
            self.metrics.gc_released.inc(len(report.released))
            self.metrics.gc_problems.inc(len(report.problems))
            if not report.problems:
                self._last_good_round = time.monotonic()
                self.metrics.gc_success.set(self._clock())
            if report.released or report.problems:
                log.info("gc", extra=report.to_json())
            return report

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a command among those that a stop waits for.

        :raises RetryLater: the daemon is stopping.
        """
        with self._idle:
            if self._stopping.is_set():
                raise RetryLater("the daemon is stopping; the runtime will ask the next one")
            self._active += 1
        try:
            yield
        finally:
            with self._idle:
                self._active -= 1
                self._idle.notify_all()

    def _drain(self) -> None:
        with self._idle:
            if not self._idle.wait_for(lambda: self._active == 0, GRACE):
                # Their rows are in the journal; the next start finishes or undoes them.
                log.warning("stopping with commands under way", extra={"commands": self._active})

    # -- answers ------------------------------------------------------------------------------------------

    def readiness_problems(self) -> list[str]:
        """Why an ADD cannot be served now; empty when it can."""
        if self._stopping.is_set():
            return ["the daemon is stopping"]
        if not self.config.drivers:
            return ["no driver is configured; name at least one in `drivers`"]
        problems = [f"driver {mode!r}: {why}" for mode, why in sorted(self.starter.unavailable.items())]
        if self._conflist_problem:
            problems.append(self._conflist_problem)
        if not problems and not self._ready:
            problems.append("the daemon is recovering what an earlier one left")
        return problems

    def health_problems(self) -> list[str]:
        """What shows that the daemon does not do its work, from the work itself."""
        problems = []
        age = time.monotonic() - self._last_good_round
        limit = MISSED_ROUNDS * self.config.gc_interval + GRACE
        if age > limit:
            problems.append(
                f"no gc round ended well for {age:.0f} s (limit {limit:.0f} s): "
                + "; ".join(self._last_report.problems[:3])
            )
        if (waited := self.line.longest_wait()) > LONGEST_WAIT:
            problems.append(f"a CNI command has waited {waited:.0f} s for a worker")
        return problems

    def status(self) -> dict[str, Any]:
        """For ``terway status``."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "node": self.config.node_name,
            "started": self._started_at,
            "ready": not (problems := self.readiness_problems()),
            "healthy": not (sick := self.health_problems()),
            "problems": problems + sick,
            "drivers": {mode: self.starter.unavailable.get(mode, "") for mode in self.config.drivers},
            "attachments": {
                f"{driver} {state}": count
                for (driver, state), count in sorted(self._count_attachments().items())
            },
            "queue": len(self.line),
            "kube": self.cluster and self.cluster.status(),
            "gc": {
                **self._last_report.to_json(),
                "seconds_since_good": round(time.monotonic() - self._last_good_round, 1),
            },
        }

    def pods(self) -> list[dict[str, Any]]:
        """For ``terway pods``: every row of the journal, its wiring in words."""
        pods = []
        for record in self.store.records():
            attachment, wiring = record.attachment, record.wiring
            pods.append(
                {
                    "namespace": attachment.pod.namespace,
                    "name": attachment.pod.name,
                    "uid": attachment.pod.uid,
                    "network": attachment.network,
                    "container_id": attachment.container_id,
                    "ifname": attachment.ifname,
                    "netns": attachment.netns,
                    "driver": record.driver,
                    "state": record.state.value,
                    "problem": record.problem,
                    "created": record.created,
                    "addresses": [str(ip.ip) for ip in record.lease.addresses] if record.lease else [],
                    "wiring": {
                        where: [describe(obj) for obj in getattr(wiring, where)]
                        for where in ("node", "host", "pod")
                        if wiring
                    },
                }
            )
        return pods

    def enis(self) -> dict[str, Any]:
        """For ``terway enis`` and ``terway pool``."""
        pool = self.starter.pool
        if pool is None:
            return {"enis": [], "holds": None, "problems": []}
        return {"enis": pool.describe(), "holds": asdict(pool.holds), "problems": list(pool.problems)}

    def hold(self, *, releasing: bool | None = None, calling: bool | None = None) -> dict[str, Any]:
        """Set the pool's switches; None leaves one as it is."""
        pool = self.starter.pool
        if pool is not None:
            old = pool.holds
            pool.hold(
                Holds(
                    releasing=old.releasing if releasing is None else bool(releasing),
                    calling=old.calling if calling is None else bool(calling),
                )
            )
        return self.enis()

    def driver_states(self) -> list[dict[str, Any]]:
        """For operators: the installed drivers and whether they run here."""
        return [
            {
                "mode": info.mode,
                "distribution": info.distribution,
                "version": info.version,
                "summary": info.summary,
                "configured": info.mode in self.config.drivers,
                "started": info.mode in self.starter.started(),
                "problem": info.problem or self.starter.unavailable.get(info.mode, ""),
            }
            for info in self.drivers.infos
        ]

    def _count_enis(self) -> Counter[tuple[str, ...]]:
        return Counter((eni["use"], eni["state"]) for eni in self.enis()["enis"])

    def _count_addresses(self) -> Counter[tuple[str, ...]]:
        shared = [eni for eni in self.enis()["enis"] if eni["use"] == "shared"]
        return Counter((eni["eni"], address["state"]) for eni in shared for address in eni["addresses"])

    def _count_waiting(self) -> Counter[tuple[str, ...]]:
        return Counter((use,) for use in (self.starter.pool.waiting() if self.starter.pool else ()))

    def _count_attachments(self) -> dict[tuple[str, ...], int]:
        return dict(Counter((record.driver, record.state.value) for record in self.store.records()))


def serve(config: Config) -> None:
    """Run a daemon in this process until SIGTERM or SIGINT.

    :raises TerwayError: it could not start.
    """
    logs.configure(config.log_level)
    # Waited for by a thread, not handled: a handler interrupts the main thread wherever it is, also while it
    # holds the lock that stop() needs. Blocked before there are threads, which inherit it.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    daemon = Daemon(config)

    def wait_for_signal() -> None:
        signal.sigwait(signals)
        daemon.stop()

    threading.Thread(target=wait_for_signal, name="signals", daemon=True).start()
    daemon.run()


def _cluster(config: Config, clock: Callable[[], float]) -> Cluster | None:
    if not config.kube.enabled:
        return None
    from terway_core.kube.cluster import Cluster  # loads the client: 35 MiB

    return Cluster(config, clock)


def _lock(run_dir: Path) -> Any:
    """Hold ``terway.lock`` for as long as the file is open; the kernel lets go when the process ends."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (run_dir / "terway.lock").open("a+")
    except OSError as error:
        raise IOFailure(f"the folder {run_dir} cannot be used: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        other = file.read().strip() or "unknown"
        file.close()
        raise IOFailure(f"another terway daemon (pid {other}) runs with {run_dir}; stop it first") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _notify(state: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError as error:
            log.warning("systemd not told", extra={"problem": str(error)})
