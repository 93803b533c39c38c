"""The admission webhook: HTTPS, for the API server alone. Every control plane serves it, leading or not."""

from __future__ import annotations

import base64
import json
import logging
import os
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from terway_core.errors import KubeError, KubeNotFound, RetryLater
from terway_core.kube import NAMESPACES, Informer, KubeClient
from terway_driver_trunking import admission
from terway_driver_trunking.api import POD_NETWORKING, PODENIS, PODNETWORKINGS, Object
from terway_driver_trunking.certificates import Certificates, Pair

log = logging.getLogger(__name__)

#: Bytes of the largest review: the API server takes objects of 3 MiB, and sends old and new.
LARGEST: Final = 8 << 20
#: Seconds of silence until a connection is closed; the API server waits 5 for an answer.
SILENCE: Final = 30.0
#: Seconds between two looks at the certificate, and until a failed one is repeated.
CERTIFICATE_LOOK, CERTIFICATE_RETRY = 3600.0, 5.0
#: Seconds that a review waits for the first list of each kind, and for a PodENI.
PATIENCE: Final = 1.5


class Reviewer:
    """Answers AdmissionReviews from watched copies of PodNetworkings and namespaces."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._networkings = Informer(client, PODNETWORKINGS)
        self._namespaces = Informer(client, NAMESPACES)

    def start(self) -> None:
        """Begin to watch."""
        self._networkings.start()
        self._namespaces.start()

    def stop(self) -> None:
        """End that."""
        self._networkings.stop()
        self._namespaces.stop()

    @property
    def ready(self) -> bool:
        """Everything is known that an answer needs."""
        return self._networkings.synced and self._namespaces.synced

    def answer(self, path: str, review: Object) -> Object:
        """The AdmissionReview that answers one.

        :raises RetryLater: not everything is known yet, or the API server does not tell.
        """
        request = review["request"]
        if path == "/validate":
            response = self._validate(request["object"])
        else:
            response = self._mutate(request["object"], request["namespace"])
        return {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "response": {"uid": request["uid"], **response},
        }

    def select(self, pod: Object, namespace: str) -> Object | None:
        """The PodNetworking of a pod that is about to be made.

        :raises KubeError: the API server does not tell about the namespace.
        """
        found = self._namespaces.get(namespace) or self._client.get(NAMESPACES, namespace)
        labels = found["metadata"].get("labels") or {}
        return admission.select(pod, labels, self._networkings.items())

    def _validate(self, networking: Object) -> Object:
        problems = admission.problems_of(networking["spec"])
        return _refuse("; ".join(problems)) if problems else {"allowed": True}

    def _mutate(self, pod: Object, namespace: str) -> Object:
        if not (self._networkings.wait_synced(PATIENCE) and self._namespaces.wait_synced(PATIENCE)):
            raise RetryLater("the PodNetworkings are not known yet")
        networking = self.select(pod, namespace)
        if networking is None:
            named = (pod["metadata"].get("annotations") or {}).get(POD_NETWORKING)
            if named:  # else whoever makes pods could choose security groups
                return _refuse(
                    f"annotation {POD_NETWORKING}: {named} is not Ready or does not select this pod"
                )
            return {"allowed": True}

        def previous() -> Object | None:
            name = pod["metadata"].get("name", "")
            try:
                return self._client.get(PODENIS, name, namespace, timeout=PATIENCE) if name else None
            except KubeNotFound:
                return None

        patch = json.dumps(admission.patch_of(pod, networking, previous)).encode()
        return {"allowed": True, "patchType": "JSONPatch", "patch": base64.b64encode(patch).decode()}


class WebhookServer:
    """Serves a reviewer.

    :param port: 0: any that is free.
    """

    def __init__(self, reviewer: Reviewer, certificates: Certificates, address: str, port: int) -> None:
        self._certificates = certificates
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._served: Pair | None = None
        self._stopping = threading.Event()

        class Handler(_Handler):
            about = reviewer
            context = self._context

        self._server = _Server((address, port), Handler)
        self._threads = [
            threading.Thread(target=self._keep_certificate, name="certificate", daemon=True),
            threading.Thread(target=self._server.serve_forever, args=(0.1,), name="webhook", daemon=True),
        ]

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin; until there is a certificate, connections end before they began."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self._server.shutdown()
        for thread in self._threads:
            thread.join()
        self._server.server_close()

    def _keep_certificate(self) -> None:
        wait = 0.0
        while not self._stopping.wait(wait):
            try:
                pair = self._certificates.current()
            except KubeError as error:
                log.warning("certificate not looked at", extra={"problem": str(error)})
                wait = CERTIFICATE_RETRY
            except Exception:  # whatever somebody wrote into the Secret
                log.exception("certificate not looked at")
                wait = CERTIFICATE_RETRY
            else:
                wait = CERTIFICATE_LOOK
                if pair != self._served:
                    self._load(pair)

    def _load(self, pair: Pair) -> None:
        # The ssl module reads files only; this one is in memory, and no other process has it.
        with open(os.memfd_create("certificate"), "wb") as file:
            file.write(pair.key + pair.certificate)
            file.flush()
            self._context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        self._served = pair
        log.info("certificate is served")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A handshake that failed, a peer that went: the API server says more about it than we can.
        log.info("connection failed", exc_info=True, extra={"client": str(client_address)})


class _Handler(BaseHTTPRequestHandler):
    about: Reviewer
    context: ssl.SSLContext
    protocol_version = "HTTP/1.1"
    timeout = SILENCE

    def setup(self) -> None:
        # Here, in the connection's own thread: a client that is silent in the handshake keeps nobody else.
        self.request.settimeout(SILENCE)
        self.request = self.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.request.close()  # the server has the socket that was wrapped, which is closed already

    def do_GET(self) -> None:
        if self.path == "/healthz" or (self.path == "/readyz" and self.about.ready):
            self._send(200, {"ok": True})
        else:
            self._send(503 if self.path == "/readyz" else 404, {"ok": False})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        path = self.path.partition("?")[0]  # the API server says there how long it will wait
        if path not in ("/mutate", "/validate") or not 0 < length <= LARGEST:
            self.close_connection = True
            self._send(400, {"problem": "an AdmissionReview is expected at /mutate or /validate"})
            return
        try:
            answer = self.about.answer(path, json.loads(self.rfile.read(length)))
        except RetryLater as error:  # the failurePolicy says what this means
            log.warning("review not answered", extra={"problem": str(error)})
            self._send(503, {"problem": str(error)})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("review not understood", extra={"problem": repr(error)})
            self._send(400, {"problem": repr(error)})
        else:
            self._send(200, answer)

    def _send(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("webhook", extra={"said": format % args})


def _refuse(message: str) -> Object:
    return {"allowed": False, "status": {"code": 422, "reason": "Invalid", "message": message}}
