"""The control plane's process: everybody serves the webhook, one leads and works."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from terway_core.cloud import Cloud
from terway_core.config import Config
from terway_core.errors import RetryLater
from terway_core.kube import Election, Informer, KubeClient
from terway_core.kube.events import Events
from terway_driver_trunking.api import PODENIS, PODNETWORKINGS, Object
from terway_driver_trunking.certificates import Certificates, hosts_of
from terway_driver_trunking.keeper import PodEniKeeper, concerns
from terway_driver_trunking.members import Members
from terway_driver_trunking.networking import NetworkingKeeper
from terway_driver_trunking.pods import TrunkPod, TrunkPods, trunk_pod
from terway_driver_trunking.queue import KeyQueue
from terway_driver_trunking.strays import Strays
from terway_driver_trunking.vswitches import VSwitches
from terway_driver_trunking.webhook import Reviewer, WebhookServer
from terway_driver_trunking.webhooks import NAME, PORT

log = logging.getLogger(__name__)

COMPONENT: Final = "terway-trunking"
#: PodENIs that are worked on side by side; the cloud's limits are held by the limiter of each action.
WORKERS: Final = 10
#: Seconds between two looks for ENIs that nobody owns.
STRAYS_INTERVAL: Final = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How one control plane runs, beside what the configuration file says of cluster and cloud.

    :param host: ``address:port`` where the API server finds the webhook, when that is no Service.
    :param port: where the webhook listens; 0: any that is free.
    :param lease: of the election, in seconds: of the Lease, until a leader gives up, between attempts.
    """

    host: str = ""
    address: str = "0.0.0.0"
    port: int = PORT
    lease: tuple[float, float, float] = (15.0, 10.0, 2.0)


class Controller:
    """One of any number of control planes.

    :param clock: seconds since the epoch.
    :raises InvalidConfig: there are no credentials for the Kubernetes API.
    """

    def __init__(
        self, config: Config, cloud: Cloud, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._cloud = cloud
        self._settings = settings
        self._clock = clock
        self._client = KubeClient(config.kube, component=COMPONENT)
        # Another one on the same machine, and this one after a restart, are others.
        self.identity = f"{socket.gethostname()}_{uuid.uuid4()}"
        self.reviewer = Reviewer(self._client)
        hosts = hosts_of(config.kube.namespace, settings.host)
        certificates = Certificates(self._client, config.kube.namespace, hosts, clock)
        self.webhook = WebhookServer(self.reviewer, certificates, settings.address, settings.port)

    def run(self, stop: threading.Event) -> None:
        """Serve the webhook, and lead when it is our turn, until ``stop`` is set."""
        self.reviewer.start()
        self.webhook.start()
        duration, deadline, period = self._settings.lease
        election = Election(
            self._client,
            self._config.kube.namespace,
            NAME,
            self.identity,
            duration=duration,
            deadline=deadline,
            period=period,
        )
        try:
            election.run(self._lead, stop)
        finally:
            self.webhook.stop()
            self.reviewer.stop()
            self._client.close()

    def _lead(self, over: threading.Event) -> None:
        client, clock = self._client, self._clock
        pool = self._config.pool
        events = Events(client, COMPONENT, socket.gethostname(), clock)
        vswitches = VSwitches(self._cloud)
        members = Members(self._cloud, pool.cluster, pool.tags, ipv6=6 in pool.families)
        strays = Strays(client, members)
        networking_queue: KeyQueue[str] = KeyQueue(
            "podnetworking", NetworkingKeeper(client, vswitches, events, clock).look, workers=1
        )
        networkings = Informer(
            client, PODNETWORKINGS, on_change=lambda old, new: networking_queue.add(_name(old, new)[1])
        )

        def pod_changed(old: Object | None, new: Object | None) -> None:
            namespace, name = _name(old, new)
            found = [pod for obj in (old, new) if obj and (pod := trunk_pod(obj))]
            if any(pod.networking for pod in found) or podenis.get(name, namespace):
                queue.add((namespace, name))
            elif new and found and not old:
                self._tell_if_missed(new, found[0], events)

        def podeni_changed(old: Object | None, new: Object | None) -> None:
            if concerns(old, new):
                queue.add(_name(old, new))

        pods = TrunkPods(client, pod_changed)
        podenis = Informer(client, PODENIS, on_change=podeni_changed)
        keeper = PodEniKeeper(
            client=client, pods=pods, members=members, vswitches=vswitches, events=events, clock=clock
        )
        queue: KeyQueue[tuple[str, str]] = KeyQueue("podeni", keeper.look, WORKERS)
        events.start()
        for informer in (networkings, podenis, pods.informer):
            informer.start()
        networking_queue.start()
        queue.start()
        try:
            while not over.wait(STRAYS_INTERVAL):
                try:
                    strays.round()
                except RetryLater as error:
                    log.warning("no look for strays", extra={"problem": str(error)})
        finally:
            queue.stop()
            networking_queue.stop()
            for informer in (networkings, podenis, pods.informer):
                informer.stop()
            events.stop()

    def _tell_if_missed(self, obj: Object, pod: TrunkPod, events: Events) -> None:
        """A new pod that the webhook would have selected, had the API server reached it."""
        if pod.node or not self.reviewer.ready:
            return
        networking = self.reviewer.select(obj, pod.namespace)
        # One that was made before the PodNetworking was Ready was not missed.
        if networking and obj["metadata"]["creationTimestamp"] > networking["status"].get("updateAt", "~"):
            message = (
                f"PodNetworking {networking['metadata']['name']} selects this pod, but the webhook was not "
                "asked when it was made; delete it, so that another one is made"
            )
            events.tell(pod.reference, "PodNetworkingMissed", message, warning=True)


def serve(config: Config, settings: Settings) -> None:
    """Run a control plane in this process until SIGTERM or SIGINT."""
    # Waited for by a thread, not handled: a handler interrupts the main thread wherever it is.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    stop = threading.Event()

    def wait_for_signal() -> None:
        signal.sigwait(signals)
        stop.set()

    threading.Thread(target=wait_for_signal, name="signals", daemon=True).start()
    Controller(config, Cloud(config.cloud), settings).run(stop)


def _name(old: Object | None, new: Object | None) -> tuple[str, str]:
    metadata = (new or old or {})["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
