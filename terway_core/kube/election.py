"""One of several leads: the Lease that Kubernetes' own controllers use, by the same rules."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from terway_core.errors import KubeConflict, KubeError, KubeNotFound
from terway_core.kube.client import KubeClient
from terway_core.kube.resources import LEASES

log = logging.getLogger(__name__)

#: Seconds between two looks at whether leading must end.
_GLANCE = 0.2


class Election:
    """A candidate. Who holds the Lease leads; who does not renew it in time is replaced.

    Nobody trusts another machine's clock: a candidate takes over when *it* has seen the Lease unchanged for
    ``duration`` seconds. A leader gives up ``duration - deadline`` seconds before anyone can replace it.

    :param identity: unlike that of every other candidate, also of an earlier one with the same host name.
    :param duration: seconds after which a Lease that is not renewed may be taken.
    :param deadline: seconds without a renewal after which a leader stops leading; less than ``duration``.
    :param period: seconds between two attempts.
    """

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration: float = 15.0,
        deadline: float = 10.0,
        period: float = 2.0,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._duration = duration
        self._deadline = deadline
        self._period = period
        self._seen: tuple[object, ...] = ()
        self._seen_at = 0.0

    def run(self, lead: Callable[[threading.Event], None], stop: threading.Event) -> None:
        """Stand for election until ``stop`` is set; then give the Lease away.

        :param lead: called in a thread of its own while we lead. It returns soon after its event is set:
            somebody else may lead then. When it returns by itself, or fails, the Lease is given away.
        """
        while not stop.is_set():
            if self._attempt():
                self._lead(lead, stop)
            stop.wait(self._period * random.uniform(1.0, 1.2))

    def _lead(self, lead: Callable[[threading.Event], None], stop: threading.Event) -> None:
        log.info("leading", extra={"lease": self._name, "identity": self._identity})
        over = threading.Event()  # the work must end
        ended = threading.Event()  # or has ended
        renewed = time.monotonic()

        def work() -> None:
            try:
                lead(over)
            except Exception:
                log.exception("leading failed")
            finally:
                ended.set()

        def renew() -> None:
            nonlocal renewed
            while not over.wait(self._period):
                begun = time.monotonic()
                if self._attempt():
                    renewed = begun
                elif self._lost:
                    over.set()

        threads = [threading.Thread(target=target, daemon=True) for target in (work, renew)]
        for thread in threads:
            thread.start()
        # Looked at beside the renewals: one of them may hang past the deadline.
        while not over.is_set() and not stop.is_set() and time.monotonic() - renewed < self._deadline:
            if ended.wait(_GLANCE):
                break
        held = not over.is_set() and time.monotonic() - renewed < self._deadline
        over.set()
        if not held:
            log.error("leading no more", extra={"lease": self._name, "identity": self._identity})
        for thread in threads:
            thread.join()
        if held:
            self._release()

    @property
    def _lost(self) -> bool:
        """Somebody else was seen holding the Lease."""
        return bool(self._seen) and self._seen[0] != self._identity

    def _attempt(self) -> bool:
        """Take or renew the Lease; True when it is ours."""
        try:
            try:
                lease = self._client.get(LEASES, self._name, self._namespace, timeout=self._deadline / 2)
            except KubeNotFound:
                lease = self._client.create(LEASES, self._body({}), self._namespace)
                self._observe(lease)
                return True
            self._observe(lease)
            spec = lease.get("spec") or {}
            holder = spec.get("holderIdentity") or ""
            waited = time.monotonic() - self._seen_at
            if holder not in ("", self._identity) and waited < self._duration:
                return False
            lease["spec"] = self._body(spec)["spec"]
            self._observe(self._client.replace(LEASES, lease, self._namespace))
        except KubeConflict:
            return False  # another one was faster
        except KubeError as error:
            log.warning("lease not renewed", extra={"lease": self._name, "problem": str(error)})
            return False
        return True

    def _observe(self, lease: dict[str, Any]) -> None:
        spec = lease.get("spec") or {}
        seen = (spec.get("holderIdentity") or "", spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()

    def _body(self, old: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours = old.get("holderIdentity") == self._identity
        transitions = int(old.get("leaseTransitions") or 0)
        return {
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, round(self._duration)),
                "acquireTime": old.get("acquireTime") if ours else now,
                "renewTime": now,
                "leaseTransitions": transitions if ours or not old else transitions + 1,
            },
        }

    def _release(self) -> None:
        """So that the next one need not wait until the Lease is old."""
        try:
            lease = self._client.get(LEASES, self._name, self._namespace)
            if lease["spec"].get("holderIdentity") != self._identity:
                return
            lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
            self._client.replace(LEASES, lease, self._namespace)
        except KubeError as error:
            log.warning("lease not given away", extra={"lease": self._name, "problem": str(error)})
