"""As much of HTTP/1.1 (RFC 9112) as a unix socket's clients need: one request a connection, of known length.

The standard library's handler, which reads a head as it would read an e-mail, took longer than the journal.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from http import HTTPStatus

from terway_core.errors import UndecodableInput

#: Bytes of a head; ours have 150.
MAX_HEAD = 16 << 10
#: The plugin reads at most 1 MiB of configuration and adds the CNI_* variables.
MAX_BODY = 2 << 20


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What a client asked."""

    method: str
    path: str
    query: str
    body: bytes


def read_request(connection: socket.socket) -> HttpRequest | None:
    """The one request of a connection; None if the client hung up without a word.

    :raises UndecodableInput: it is none, is too large, or ends early.
    :raises OSError: the client is gone, or took longer than the socket's timeout.
    """
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > MAX_HEAD:
            raise UndecodableInput(f"the request's head has more than {MAX_HEAD} bytes")
        if not (more := connection.recv(1 << 16)):
            if not data:
                return None
            raise UndecodableInput("the request ends in its head")
        data += more
    line, *fields = data[:end].decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise UndecodableInput(f"the request begins with {line[:100]!r} and not as HTTP/1.1 does")
    method, target, _ = words
    path, _, query = target.partition("?")
    length = _content_length(fields) if method == "POST" else 0
    body = data[end + 4 :]
    while len(body) < length:
        if not (more := connection.recv(length - len(body))):
            raise UndecodableInput(f"the request ends after {len(body)} of {length} bytes")
        body += more
    return HttpRequest(method, path, query, bytes(body[:length]))


def _content_length(fields: list[str]) -> int:
    for field in fields:
        name, _, value = field.partition(":")
        if name.lower() == "content-length" and (digits := value.strip()).isdecimal() and digits.isascii():
            if len(digits) > 12 or int(digits) > MAX_BODY:
                raise UndecodableInput(f"a request of {digits} bytes is refused; at most {MAX_BODY} are read")
            return int(digits)
    raise UndecodableInput("the request says no Content-Length")


def respond(connection: socket.socket, status: HTTPStatus, body: bytes, kind: str) -> None:
    """Answer the request.

    :raises OSError: the client is gone, or took longer than the socket's timeout.
    """
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
