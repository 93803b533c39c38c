"""HTTP over a unix socket, for the lab's questions to the region and to the daemons."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def get(path: Path, resource: str, *, timeout: float = 5.0) -> tuple[int, Any]:
    """GET ``resource`` from the server that listens on ``path``.

    :returns: the status and the body, decoded if it is JSON.
    :raises OSError: nobody answers.
    """
    connection = _Connection(path, timeout)
    try:
        connection.request("GET", resource)
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"{path} does not answer: {error}") from error
    finally:
        connection.close()
    try:
        return response.status, json.loads(body)
    except ValueError:
        return response.status, body.decode(errors="replace")
