"""The way of one attachment, from nothing to ready and back.

The journal says where each attachment is; a state is written before its work begins. Whatever interrupts the
work, the row tells the next start what may exist, and :meth:`Lifecycle.take_down` removes it: every step of
it forgives what is not there.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from terway_core.batcher import Batcher
from terway_core.cni.protocol import Request, result
from terway_core.daemon.queue import Cancellation, SandboxLocks
from terway_core.daemon.shared import SharedObjects
from terway_core.errors import (
    Drifted,
    InvalidEnvironment,
    KubeError,
    KubeUnavailable,
    RetryLater,
    TerwayError,
    UnknownAttachment,
)
from terway_core.record import Record, State
from terway_core.registry import Drivers
from terway_core.store import Store
from terway_core.types import Attachment, AttachmentKey, Node, Wiring
from terway_core.wiring.engine import Engine, needs_pod
from terway_core.wiring.inspect import diff
from terway_core.wiring.netns import Namespace, NamespaceGone

if TYPE_CHECKING:
    from terway_core.kube.cluster import Cluster

log = logging.getLogger(__name__)


class Lifecycle:
    """Serves ADD, DEL, CHECK and GC for the attachments of one node.

    :param order: the configured modes, in the order in which they are asked for a pod.
    :param node: who we are; asked at each ADD, because it may be learned late.
    :param unavailable: mode → why its driver is not started; a driver that is has no entry.
    :param cluster: knows the pods, if there is Kubernetes.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        store: Store,
        drivers: Drivers,
        engine: Engine,
        shared: SharedObjects,
        order: Sequence[str],
        node: Callable[[], Node],
        unavailable: Mapping[str, str],
        cluster: Cluster | None,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._drivers = drivers
        self._engine = engine
        self._shared = shared
        self._order = order
        self._node = node
        self._unavailable = unavailable
        self._cluster = cluster
        self._clock = clock
        with Namespace.current() as host:
            self._host = host.identity
        self._locks = SandboxLocks()
        self._unwirings = Batcher(self._unwire_all)
        self._adding_guard = threading.Lock()
        self._adding: defaultdict[AttachmentKey, list[Cancellation]] = defaultdict(list)

    # -- commands -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def turn(self, attachment: Attachment) -> Iterator[None]:
        """Wait until nobody else works on the attachment's sandbox or pod."""
        with self._locks.hold(*self._lock_names(attachment)):
            yield

    @contextlib.contextmanager
    def turn_to_add(self, attachment: Attachment) -> Iterator[Cancellation]:
        """A turn that a DEL can cancel, from the moment it is asked for."""
        cancellation = Cancellation()
        with self._adding_guard:
            self._adding[attachment.key].append(cancellation)
        try:
            with self.turn(attachment):
                yield cancellation
        finally:
            with self._adding_guard:
                self._adding[attachment.key].remove(cancellation)
                if not self._adding[attachment.key]:
                    del self._adding[attachment.key]

    @contextlib.contextmanager
    def turn_to_delete(self, attachment: Attachment) -> Iterator[None]:
        """A turn that does not wait for the ADDs which came before it but cancels them, also those that still
        wait and would otherwise come after it."""
        with self._adding_guard:
            overtaken = tuple(self._adding.get(attachment.key, ()))
        for cancellation in overtaken:
            cancellation.cancel()
        with self.turn(attachment):
            yield

    def add(self, request: Request, cancellation: Cancellation) -> dict[str, Any]:
        """Give the pod its network; return the CNI result. Call it in its :meth:`turn_to_add`.

        :raises TerwayError: nothing of the attachment is left, or what is left is in the journal.
        """
        cancellation.check()
        attachment = _attachment(request)
        with Namespace.open(attachment.netns) as pod:
            if pod.identity == self._host:
                raise InvalidEnvironment(
                    f"CNI_NETNS {attachment.netns} is the host's own network namespace, which no pod may have"
                )
            record, others = self._store.find(attachment)
            if record and record.state is State.READY and record.netns_id == pod.identity:
                log.info("add repeated", extra={"attachment": str(attachment.key)})
                return _result(request, record)
            attachment = self._with_pod(attachment)
            if record:
                self.take_down(record)
            for other in others:
                log.info("sandbox replaced", extra={"attachment": str(other.key)})
                self.take_down(other)
            return self._add_new(request, attachment, pod, cancellation)

    def _with_pod(self, attachment: Attachment) -> Attachment:
        """The attachment with all that Kubernetes knows of its pod.

        :raises RetryLater: it knows of no such pod, or cannot be asked about one that is new here.
        """
        pod = attachment.pod
        if self._cluster is None or not (pod.namespace and pod.name):
            return attachment
        try:
            return replace(attachment, pod=self._cluster.pods.describe(pod))
        except KubeUnavailable:
            for record in self._store.find(attachment)[1]:  # the same pod's earlier sandbox
                if pod.uid and record.attachment.pod.uid == pod.uid:
                    return replace(attachment, pod=record.attachment.pod)
            raise

    def _add_new(
        self, request: Request, attachment: Attachment, pod: Namespace, cancellation: Cancellation
    ) -> dict[str, Any]:
        node = self._node()
        mode = self._drivers.select(attachment.pod, node, self._order)
        if reason := self._unavailable.get(mode):
            raise RetryLater(f"driver {mode!r} is not started yet: {reason}")
        record = Record(
            attachment=attachment,
            driver=mode,
            state=State.ALLOCATING,
            created=self._clock(),
            netns_id=pod.identity,
        )
        self._store.put(record, durable=False)
        try:
            cancellation.check()
            lease = self._drivers.allocate(mode, attachment, node)
            record = replace(record, lease=lease)
            # Changes nothing, so the lease and the wiring are written down together.
            wiring = self._drivers.setup(mode, attachment, lease, node)
            record = replace(record, wiring=wiring, state=State.WIRING)
            self._store.put(record, durable=False)
            on_disk = self._store.begin_sync()
            cancellation.check()
            self._shared.need(record.key, wiring.node)
            self._engine.apply(wiring, pod, record.owner)
            cancellation.check()
            record = self._store.advance(record, State.READY)
            answer = _result(request, record)
            # What the runtime is told of is on disk. What the kernel does need not wait for that: a power cut
            # ends it, and a row without a namespace is taken down afterwards, ready or not.
            on_disk()
            return answer
        except BaseException as error:
            try:
                self.take_down(record)
            except TerwayError as undo:
                # The row keeps what is left; gc tries again.
                log.error("undo failed", extra={"attachment": str(record.key), "problem": str(undo)})
                if isinstance(error, TerwayError):
                    error.details = f"{error.details}\nundoing it failed and will be retried: {undo}".strip()
            raise

    def delete(self, request: Request) -> None:
        """Take the pod's network away; an attachment that nobody knows is no error.

        :raises TerwayError: the kernel did not let go; the runtime asks again, and gc tries by itself.
        """
        record = self._store.get(_attachment(request).key)
        if record:
            self.take_down(record)

    def check(self, request: Request) -> None:
        """Compare the pod's network with what it was given.

        :raises UnknownAttachment: it was never added, or is not ready.
        :raises Drifted: each difference is in the error's details.
        """
        attachment = _attachment(request)
        record = self._store.get(attachment.key)
        if record is None or record.state is not State.READY or record.wiring is None:
            raise UnknownAttachment(
                f"{attachment.key} is not attached to the network; delete the pod to have it made again"
            )
        with Namespace.open(attachment.netns) as pod:
            if record.netns_id not in (0, pod.identity):
                raise Drifted(
                    f"{attachment.key} was attached in another network namespace than {attachment.netns}"
                )
            differences = diff(record.wiring, pod, owner=record.owner)
        if differences:
            lines = [str(difference) for difference in differences]
            raise Drifted(
                f"{attachment.key} differs from what it was given: {lines[0]}", details="\n".join(lines)
            )

    def collect(self, request: Request) -> None:
        """CNI GC: take down all attachments of the network but the valid ones.

        With Kubernetes one whose pod and namespace are there stays, whatever the runtime has forgotten: a
        new sandbox of the pod replaces it, and gc takes it down when the pod is gone.

        :raises TerwayError: some could not be; the others were, and the message counts both.
        """
        problems = []
        for record in self._store.records():
            key = record.key
            if key.network != request.network or (key.container_id, key.ifname) in request.valid:
                continue
            with self.turn(record.attachment):
                if (current := self._store.get(key)) and not self.may_be_needed(current):
                    try:
                        self.take_down(current)
                    except TerwayError as error:
                        problems.append(f"{key}: {error}")
        if problems:
            raise TerwayError(
                f"{len(problems)} attachments could not be taken down and will be retried: {problems[0]}",
                details="\n".join(problems),
            )

    # -- taking down --------------------------------------------------------------------------------------

    def take_down(self, record: Record) -> None:
        """Undo whatever a row says may exist, in any state. Call it in the attachment's :meth:`turn`.

        When only giving the lease back fails, the row stays in ``releasing`` and gc tries again: the pod is
        unwired, its address is still owned, and the runtime has nothing to wait for.

        :raises TerwayError: the wiring could not be removed, or the journal not be written.
        """
        if record.state is not State.RELEASING:
            if record.wiring and needs_pod(record.wiring):
                record = self._unwire_in_pod(record, record.wiring)
            unwiring = _Unwiring(record)
            self._unwirings.do(unwiring)
            if unwiring.problem:
                raise unwiring.problem
            record = unwiring.record
        try:
            self._drivers.teardown(record.driver, record.attachment, record.lease)
        except TerwayError as error:
            log.warning(
                "lease kept",
                extra={"attachment": str(record.key), "driver": record.driver, "problem": str(error)},
            )
            self._store.advance(record, State.RELEASING, problem=error.message)
            return
        self._store.remove(record.key)

    def _unwire_in_pod(self, record: Record, wiring: Wiring) -> Record:
        if record.state is State.READY:
            record = self._store.advance(record, State.UNWIRING)
        try:
            with contextlib.ExitStack() as stack:
                if pod := _pod_of(record, stack):
                    self._engine.remove_in_pod(wiring, pod, record.owner)
        except TerwayError as error:
            self._store.advance(record, State.UNWIRING, problem=error.message)
            raise
        return record

    def _unwire_all(self, batch: Sequence[_Unwiring]) -> None:
        """What is left to do on the host, for all who meet: to delete many links takes hardly longer."""
        # Other states say already that it is not whole; and without a write a failed ADD is undone in the
        # kernel also when the disk is full.
        self._advance_all([one for one in batch if one.record.state is State.READY], State.UNWIRING)
        wired = [(one, one.record.wiring) for one in batch if one.record.wiring and not one.problem]
        problems = self._engine.remove_on_host([(wiring, one.record.owner) for one, wiring in wired])
        for (one, wiring), problem in zip(wired, problems, strict=True):
            try:
                if problem:
                    raise problem
                self._shared.release(one.record.key, wiring.node)
            except TerwayError as error:
                one.problem = error
                with contextlib.suppress(TerwayError):  # what went wrong first counts
                    self._store.advance(one.record, State.UNWIRING, problem=error.message)
        self._advance_all([one for one in batch if not one.problem], State.RELEASING)

    def _advance_all(self, batch: Sequence[_Unwiring], state: State) -> None:
        try:
            records = self._store.advance_all([one.record for one in batch], state)
        except TerwayError as error:
            for one in batch:
                one.problem = error
        else:
            for one, record in zip(batch, records, strict=True):
                one.record = record

    def is_busy(self, attachment: Attachment) -> bool:
        """Somebody works on the attachment's sandbox, or waits for a turn."""
        return self._locks.is_wanted(_lock_name(attachment))

    def is_dead(self, record: Record) -> bool:
        """Nobody will use this attachment again: it is half made, half gone, or its namespace is gone.

        A path where nothing is proves little: to a daemon that was started without the runtime's mounts all
        pods of the node look so. The host's end of a pod's link goes with its namespace.

        :raises TerwayError: it cannot be told now.
        """
        if record.state is not State.READY or record.wiring is None:
            return True
        with contextlib.ExitStack() as stack:
            return not _pod_of(record, stack) and not self._engine.has_link(record.wiring, record.owner)

    def may_be_needed(self, record: Record) -> bool:
        """Its namespace is there, and Kubernetes does not say that its pod is gone.

        Without Kubernetes nobody can tell, and the answer is no.
        """
        pod = record.attachment.pod
        if self._cluster is None or not (pod.namespace and pod.name) or self.is_dead(record):
            return False
        try:
            return not self._cluster.pods.is_gone(pod)
        except KubeError as error:
            log.info("pod not asked about", extra={"pod": str(pod), "problem": str(error)})
            return True

    def _lock_names(self, attachment: Attachment) -> list[str]:
        names = [_lock_name(attachment)]
        pod = attachment.pod
        if not pod.name and (record := self._store.get(attachment.key)):
            pod = record.attachment.pod
        if pod.name:
            names.append(f"pod {pod}")
        return names


def _result(request: Request, record: Record) -> dict[str, Any]:
    assert record.lease
    assert record.wiring
    return result(
        record.attachment, record.lease, record.wiring, request.cni_version, request.prev_result, request.dns
    )


@dataclass
class _Unwiring:
    """An attachment whose wiring is being taken away, and why that failed."""

    record: Record
    problem: TerwayError | None = None


def _attachment(request: Request) -> Attachment:
    assert request.attachment, f"{request.command} has an attachment"  # parse_request sees to it
    return request.attachment


def _lock_name(attachment: Attachment) -> str:
    return f"container {attachment.container_id}"


def _pod_of(record: Record, stack: contextlib.ExitStack) -> Namespace | None:
    """The pod's namespace, None when it is gone or another has taken its path."""
    if not record.attachment.netns:
        return None
    try:
        pod = stack.enter_context(Namespace.open(record.attachment.netns))
    except NamespaceGone:
        return None
    return pod if record.netns_id in (0, pod.identity) else None
