"""The gc: finishes what was interrupted and takes away what nobody needs.

One round does, in this order, what each later step relies on: DELs left in the spool, attachments that are
dead or whose pod is gone, the drivers' own records, and what carries our mark in the kernel without being
declared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from terway_core.cni.protocol import Command, parse_request
from terway_core.daemon.lifecycle import Lifecycle
from terway_core.daemon.shared import SharedObjects
from terway_core.errors import KubeError, TerwayError, UndecodableInput
from terway_core.record import Record, State
from terway_core.registry import Drivers
from terway_core.store import Store
from terway_core.types import Attachment, AttachmentKey, Node, Pod
from terway_core.wiring.engine import Engine
from terway_core.wiring.inspect import HostState

if TYPE_CHECKING:
    from terway_core.kube.cluster import Cluster

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Report:
    """What a round did, or in a dry run would do; and what it could not do."""

    released: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, list[str]]:
        """For ``terway gc`` and the logs."""
        return {"released": self.released, "problems": self.problems}


class Collector:
    """Runs rounds; one at a time.

    :param gone_after: seconds a pod must be missing in the API server before its network is taken from a
        namespace that is still there.
    """

    def __init__(
        self,
        *,
        store: Store,
        drivers: Drivers,
        engine: Engine,
        shared: SharedObjects,
        lifecycle: Lifecycle,
        node: Callable[[], Node],
        started: Callable[[], list[str]],
        spool: Path,
        cluster: Cluster | None,
        gone_after: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._drivers = drivers
        self._engine = engine
        self._shared = shared
        self._lifecycle = lifecycle
        self._node = node
        self._started = started
        self._spool = spool
        self._cluster = cluster
        self._gone_after = gone_after
        self._clock = clock
        self._missing: dict[AttachmentKey, float] = {}  # in the API server, and since when

    def round(self, *, dry_run: bool = False) -> Report:
        """Do all of it. One thing that fails is reported and keeps nothing else from being done.

        A dry run changes nothing. It cannot ask the drivers, whose gc acts.
        """
        report = Report()
        steps: tuple[Callable[[Report, bool], None], ...] = (
            self._replay_spool,
            self._take_down_dead,
            self._take_down_gone,
            self._ask_drivers,
            self._sweep_kernel,
        )
        for step in steps:
            try:
                step(report, dry_run)
            except TerwayError as error:
                report.problems.append(str(error))
        return report

    def recover(self) -> Report:
        """What a start does before it serves: the spool, and every attachment that is not alive."""
        report = Report()
        self._replay_spool(report, False)
        self._take_down_dead(report, False)
        return report

    # -- steps --------------------------------------------------------------------------------------------

    def _replay_spool(self, report: Report, dry_run: bool) -> None:
        for path in sorted(self._spool.glob("*.del")):
            if dry_run:
                report.released.append(f"spooled DEL {path.name}")
                continue
            try:
                report.released.append(self._replay(path))
            except TerwayError as error:
                report.problems.append(f"spooled DEL {path.name}: {error}")
                if error.cni_code in _MALFORMED:  # it will never be better; keep it for people
                    path.replace(path.with_suffix(".rejected"))
            else:
                path.unlink(missing_ok=True)

    def _replay(self, path: Path) -> str:
        try:
            request = parse_request(path.read_bytes())
            spooled = int(path.name.partition("-")[0]) / 1e9
        except (OSError, ValueError) as error:
            raise UndecodableInput(f"{path} cannot be read as a DEL: {error}") from error
        attachment = request.attachment
        if request.command is not Command.DEL or attachment is None:
            raise UndecodableInput(f"{path} holds no DEL but {request.command}")
        # Not turn_to_delete: an ADD that works now is younger than this DEL. Some runtimes (podman) use a
        # container id again.
        with self._lifecycle.turn(attachment):
            record = self._store.get(attachment.key)
            if record and record.created > spooled:
                return f"spooled DEL of {attachment.key}, which has been added again since"
            self._lifecycle.delete(request)
        return f"spooled DEL of {attachment.key}"

    def _take_down_dead(self, report: Report, dry_run: bool) -> None:
        for record in self._store.records():
            try:
                if line := self._take_down_if_dead(record, dry_run):
                    report.released.append(line)
            except TerwayError as error:
                report.problems.append(f"attachment {record.key}: {error}")

    def _take_down_if_dead(self, record: Record, dry_run: bool) -> str:
        """What was taken down; ``""`` when it lives, or somebody else sees to it."""
        # Who works on it may take long: a round shall not wait for a slow ADD, nor a stop for the round.
        if self._lifecycle.is_busy(record.attachment) or not self._lifecycle.is_dead(record):
            return ""
        if dry_run:
            return f"attachment {record.key} ({record.state})"
        with self._lifecycle.turn(record.attachment):
            current = self._store.get(record.key)
            if current is None or not self._lifecycle.is_dead(current):
                return ""
            self._lifecycle.take_down(current)
            if left := self._store.get(record.key):
                raise TerwayError(left.problem)
        return f"attachment {record.key}"

    def _take_down_gone(self, report: Report, dry_run: bool) -> None:
        """Attachments whose namespace lives on but whose pod is not in the API server: the second time, and
        some time after the first, because a pod that was deleted by force may still be ending."""
        if self._cluster is None:
            return
        now = self._clock()
        try:
            missing = {
                record.key: self._missing.get(record.key, now)
                for record in self._store.records()
                if record.state is State.READY and self._is_gone(record.attachment.pod)
            }
            seen_before = [key for key in missing if key in self._missing]
            if not dry_run:
                self._missing = missing
            due = [key for key in seen_before if now - missing[key] >= self._gone_after]
            if due and not self._cluster.node.exists():
                raise TerwayError(
                    "the API server has no node of our name, so that pods are missing there proves nothing; "
                    "see node_name and kube.kubeconfig"
                )
        except KubeError as error:
            # No problem of ours: nothing is taken from anybody, and a restart would not help.
            log.info("pods not asked about", extra={"problem": str(error)})
            return
        for key in due:
            try:
                if line := self._take_down_missing(key, dry_run):
                    report.released.append(line)
            except TerwayError as error:
                report.problems.append(f"attachment {key}: {error}")

    def _is_gone(self, pod: Pod) -> bool:
        assert self._cluster
        return bool(pod.namespace and pod.name) and self._cluster.pods.is_gone(pod)

    def _take_down_missing(self, key: AttachmentKey, dry_run: bool) -> str:
        """What was taken down; ``""`` when it is needed after all, or somebody else sees to it."""
        record = self._store.get(key)
        if record is None or self._lifecycle.is_busy(record.attachment):
            return ""
        with self._lifecycle.turn(record.attachment):
            current = self._store.get(key)
            if current is None or self._lifecycle.may_be_needed(current):
                return ""
            if not dry_run:
                self._lifecycle.take_down(current)
                if left := self._store.get(key):
                    raise TerwayError(left.problem)
        return f"attachment {key} of {record.attachment.pod}, which the API server does not have"

    def _ask_drivers(self, report: Report, dry_run: bool) -> None:
        if dry_run:
            return
        live: dict[str, list[Attachment]] = {}
        for record in self._store.records():
            live.setdefault(record.driver, []).append(record.attachment)
        for mode in self._started():
            try:
                answer = self._drivers.gc(mode, tuple(live.get(mode, ())), self._node())
            except TerwayError as error:
                report.problems.append(f"driver {mode}: {error}")
                continue
            report.released += (f"{mode}: {line}" for line in answer.released)
            report.problems += (f"{mode}: {line}" for line in answer.problems)

    def _sweep_kernel(self, report: Report, dry_run: bool) -> None:
        state = HostState.read()  # before the journal: see HostState
        wirings = [record.wiring for record in self._store.records() if record.wiring]
        for stray in state.strays(wirings):
            if not dry_run:
                try:
                    stray.remove(self._engine)
                except TerwayError as error:
                    report.problems.append(f"{stray.description}: {error}")
                    continue
            report.released.append(stray.description)
        if not dry_run:
            self._shared.restore()


#: Codes of a request that cannot become right by waiting: version, environment, encoding, configuration.
_MALFORMED = frozenset({1, 4, 6, 7})
