"""HTTP/1.1 on a unix socket: the plugin's door, and an operator's.

A thread for each connection: hooks are synchronous, a request is one short command, and aiohttp would double
the daemon's memory. ``curl --unix-socket`` is a debugger.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

from terway_core.cni.protocol import Command, Request, asked_version, parse_request
from terway_core.daemon.http import HttpRequest, read_request, respond
from terway_core.errors import IOFailure, NotReady, RetryLater, TerwayError

if TYPE_CHECKING:
    from terway_core.daemon.main import Daemon

log = logging.getLogger(__name__)

#: Connections that wait to be accepted.
BACKLOG = 1024
#: Threads that are kept for connections to come.
SPARE_THREADS = 16
#: The plugin gives up after 110 s; whoever waits longer in line works for nobody.
LINE_TIMEOUT = 100.0
#: A client that stalls in the middle of a request.
CLIENT_TIMEOUT = 120.0


class Server:
    """Listens from its construction on; the socket is for root, or whoever runs the daemon.

    Each connection has a thread, and threads wait for connections themselves: none is handed over, and none
    is made for a request that finds one waiting. A new thread costs as much as all else of a short request.

    :raises IOFailure: the socket cannot be made.
    """

    def __init__(self, path: Path, daemon: Daemon) -> None:
        self.daemon = daemon
        self._path = path
        self._waiting = 0
        self._lock = threading.Lock()
        self._closed = False
        path.unlink(missing_ok=True)  # of a daemon that was killed: we hold the lock
        self._socket = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(path))
            self._socket.listen(BACKLOG)
        except OSError as error:
            self._socket.close()
            raise IOFailure(f"the socket {path} cannot be made: {error}") from error
        finally:
            os.umask(before)

    def start(self) -> None:
        """Serve until :meth:`close`."""
        self._waiting += 1
        self._start_thread()

    def close(self) -> None:
        """Accept nothing more; what is being served goes on."""
        self._closed = True
        self._socket.shutdown(socket.SHUT_RDWR)  # ends accept() in all threads
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _start_thread(self) -> None:
        # Those of clients that stall do not keep the process from ending.
        threading.Thread(target=self._serve, name="server", daemon=True).start()

    def _serve(self) -> None:
        while connection := self._accept():
            with self._lock:
                self._waiting -= 1
                alone = not self._waiting
                self._waiting += alone
            if alone:
                self._start_another()
            with connection:
                self._handle(connection)
            with self._lock:
                if self._waiting >= SPARE_THREADS:
                    return
                self._waiting += 1

    def _start_another(self) -> None:
        try:
            self._start_thread()
        except RuntimeError as error:  # there are too many; this one will wait for connections again
            log.error("no thread", extra={"problem": str(error)})
            with self._lock:
                self._waiting -= 1

    def _accept(self) -> socket.socket | None:
        while not self._closed:
            try:
                return self._socket.accept()[0]
            except OSError as error:
                if not self._closed:
                    log.error("connection not accepted", extra={"problem": str(error)})
                    time.sleep(0.1)  # no descriptor is free: it will not help to ask at once
        return None

    def _handle(self, connection: socket.socket) -> None:
        try:
            # Only root and our own user; the mode of the socket's file says so too, but files can be changed.
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            _, uid, _ = struct.unpack("3i", peer)
            if uid not in (0, os.geteuid()):
                return
            connection.settimeout(CLIENT_TIMEOUT)
            Exchange(connection, self.daemon).carry_out()
        except (ConnectionError, TimeoutError):
            # The client is gone, or stalls; what was done stays done, and its retry or its DEL finds it.
            log.debug("client gone")
        except Exception:
            log.exception("request failed")


class Exchange:
    """One connection's request and its answer."""

    def __init__(self, connection: socket.socket, daemon: Daemon) -> None:
        self._connection = connection
        self._daemon = daemon

    def carry_out(self) -> None:
        """Read, do, answer."""
        try:
            request = read_request(self._connection)
        except TerwayError as error:
            self._send_json(error.to_cni("1.1.0"), HTTPStatus.BAD_REQUEST)
            return
        if request is None:
            return
        try:
            match request.method:
                case "POST":
                    self._post(request)
                case "GET":
                    self._get(request.path)
                case _:
                    self._send_json({"error": "only GET and POST are served"}, HTTPStatus.METHOD_NOT_ALLOWED)
        except TerwayError as error:
            self._send_json({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)

    def _get(self, path: str) -> None:
        daemon = self._daemon
        match path:
            case "/healthz":
                problems = daemon.health_problems()
                self._send_json({"healthy": not problems, "problems": problems}, _status(not problems))
            case "/readyz":
                problems = daemon.readiness_problems()
                self._send_json({"ready": not problems, "problems": problems}, _status(not problems))
            case "/metrics":
                from terway_core.daemon.metrics import CONTENT_TYPE

                respond(self._connection, HTTPStatus.OK, daemon.metrics.render(), CONTENT_TYPE)
            case "/v1/pods":
                self._send_json(daemon.pods())
            case "/v1/drivers":
                self._send_json(daemon.driver_states())
            case "/v1/enis":
                self._send_json(daemon.enis())
            case "/v1/status":
                self._send_json(daemon.status())
            case _:
                self._send_json({"error": f"there is nothing at {path}"}, HTTPStatus.NOT_FOUND)

    def _post(self, request: HttpRequest) -> None:
        match request.path:
            case "/v1/cni":
                self._serve_cni(request.body)
            case "/v1/gc":
                dry_run = parse_qs(request.query).get("dry_run", ["false"])[-1] == "true"
                self._send_json(self._daemon.collect(dry_run=dry_run).to_json())
            case "/v1/pool/holds":
                self._hold(request.body)
            case _:
                self._send_json({"error": f"there is nothing at {request.path}"}, HTTPStatus.NOT_FOUND)

    def _hold(self, body: bytes) -> None:
        try:
            holds = json.loads(body)
            self._send_json(self._daemon.hold(**holds))
        except (ValueError, TypeError, RecursionError) as error:
            self._send_json({"error": f"not the pool's switches: {error}"}, HTTPStatus.BAD_REQUEST)

    def _serve_cni(self, body: bytes) -> None:
        # A stop waits until the runtime has its answer.
        with contextlib.ExitStack() as until_told:
            done = self._carry_out(body, until_told)
            content = json.dumps(done.answer).encode() if done.answer is not None else b""
            try:
                respond(self._connection, done.status, content, "application/json")
            finally:  # no pod has to wait for this
                metrics = self._daemon.metrics
                metrics.requests.labels(done.command, str(done.code)).inc()
                metrics.seconds.labels(done.command).observe(done.seconds)

    def _carry_out(self, body: bytes, until_told: contextlib.ExitStack) -> _Done:
        start = time.monotonic()
        daemon = self._daemon
        command, code = "invalid", 0
        answer: dict[str, Any] | None
        try:
            request = parse_request(body)
            command = str(request.command)
            if request.command is not Command.STATUS:
                until_told.enter_context(daemon.admitted())
            answer = serve(daemon, request)
            status = HTTPStatus.OK
        except TerwayError as error:
            code, status = error.cni_code, HTTPStatus.CONFLICT
            answer = error.to_cni(asked_version(body))
        except Exception as error:  # a client must get a CNI error whatever happens
            log.exception("command failed", extra={"command": command})
            code, status = TerwayError.cni_code, HTTPStatus.INTERNAL_SERVER_ERROR
            answer = TerwayError(f"a defect of terway: {error!r}; the daemon's log has more").to_cni(
                asked_version(body)
            )
        seconds = time.monotonic() - start
        if code or log.isEnabledFor(logging.DEBUG):
            extra = {"command": command, "code": code, "seconds": round(seconds, 4), "answer": answer}
            log.log(logging.WARNING if code else logging.DEBUG, "cni", extra=extra)
        return _Done(command, code, seconds, status, answer)

    def _send_json(self, data: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        content = json.dumps(data, indent=2).encode() + b"\n"
        respond(self._connection, status, content, "application/json")


class _Done(NamedTuple):
    """What came of a CNI command: its code, 0 for none, and the answer, None for nothing."""

    command: str
    code: int
    seconds: float
    status: HTTPStatus
    answer: dict[str, Any] | None


def _status(good: bool) -> HTTPStatus:
    return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE


def serve(daemon: Daemon, request: Request) -> dict[str, Any] | None:
    """Carry out one CNI command; the answer is what the plugin prints, None for nothing.

    :raises TerwayError: the answer is an error object.
    """
    lifecycle = daemon.lifecycle
    match request.command, request.attachment:
        case Command.STATUS, _:
            if problems := daemon.readiness_problems():
                raise NotReady("; ".join(problems))
            return None
        case Command.ADD, attachment if attachment:
            with daemon.teller.adding(attachment) as tell:
                with (
                    lifecycle.turn_to_add(attachment) as cancellation,
                    daemon.line.place(timeout=LINE_TIMEOUT, cancellation=cancellation),
                ):
                    if problems := daemon.readiness_problems():
                        raise RetryLater(f"terway cannot serve yet: {'; '.join(problems)}")
                    answer = lifecycle.add(request, cancellation)
                tell(answer)
            return answer
        case Command.DEL, attachment if attachment:
            with lifecycle.turn_to_delete(attachment), daemon.line.place(timeout=LINE_TIMEOUT):
                lifecycle.delete(request)
            return None
        case Command.CHECK, attachment if attachment:
            with lifecycle.turn(attachment), daemon.line.place(timeout=LINE_TIMEOUT):
                lifecycle.check(request)
            return None
        case Command.GC, _:
            # Without a place in the line: it waits for turns, whose holders may wait for a place.
            lifecycle.collect(request)
            return None
        case _:
            raise TerwayError(f"{request.command} is not a command that the daemon serves")
