"""Threads of the daemon's server, and what they read of HTTP; its answers are in tests/kernel."""

import socket
import threading
from types import SimpleNamespace

import pytest

from terway_core.cli.client import ask
from terway_core.daemon.server import SPARE_THREADS, Server


@pytest.fixture
def asked():
    """A barrier for requests that shall be served side by side; none waits while it is None."""
    return SimpleNamespace(together=None)


@pytest.fixture
def server(tmp_path, asked):
    def readiness_problems():
        if asked.together:
            asked.together.wait(30)
        return []

    server = Server(tmp_path / "terway.sock", SimpleNamespace(readiness_problems=readiness_problems))
    server.start()
    yield server
    server.close()
    wait_until(lambda: not threads())


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "server"]


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not come about")


def send(path, request):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_threads_are_as_many_as_requests_and_then_few(server, asked, tmp_path):
    many = SPARE_THREADS + 8
    asked.together = threading.Barrier(many)
    clients = [
        threading.Thread(target=ask, args=(tmp_path / "terway.sock", "GET", "/readyz")) for _ in range(many)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()  # nobody came through before all were there
    wait_until(lambda: len(threads()) <= SPARE_THREADS)
    asked.together = None
    for _ in range(3):
        assert ask(tmp_path / "terway.sock", "GET", "/readyz")["ready"]


def test_without_another_thread_requests_wait_for_this_one(server, tmp_path, monkeypatch):
    def refuse():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(server, "_start_thread", refuse)
    for _ in range(3):
        assert ask(tmp_path / "terway.sock", "GET", "/readyz")["ready"]
    monkeypatch.undo()
    assert ask(tmp_path / "terway.sock", "GET", "/readyz")["ready"]
    wait_until(lambda: len(threads()) == 2)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /readyz HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"GET /readyz?a=b HTTP/1.0\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"GET /nothing HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n"),
        (b"PUT /readyz HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed\r\n"),
        (b"POST /nothing HTTP/1.1\r\ncontent-LENGTH:  0 \r\n\r\n", b"HTTP/1.1 404 Not Found\r\n"),
        (b"POST /v1/cni HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"POST /v1/cni HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"POST /v1/cni HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"GET /readyz\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"GET /readyz HTTP/2\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"GET /" + b"a" * 20_000, b"HTTP/1.1 400 Bad Request\r\n"),
        (b"GET /readyz", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"", b""),
    ],
)
def test_what_is_read_of_http(server, tmp_path, request_, answer):
    told = send(tmp_path / "terway.sock", request_)
    assert told.startswith(answer)
    if answer:
        head, _, body = told.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
        assert b"Connection: close" in head.split(b"\r\n")
