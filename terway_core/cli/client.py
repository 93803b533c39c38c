"""Asks the daemon of this node over its socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from terway_core.errors import IOFailure

#: A gc round may call the cloud; everything else answers at once.
TIMEOUT = 120.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(sock: Path, method: str, path: str, body: object = None) -> Any:
    """The JSON that the daemon answers, whatever its HTTP status.

    :param body: sent as JSON with a POST.

    :raises IOFailure: nobody answers at the socket, or not in JSON.
    """
    connection = _UnixConnection(sock)
    try:
        connection.request(method, path, json.dumps(body) if method == "POST" else None)
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise IOFailure(
            f"the terway daemon does not answer at {sock} ({error}); start it with: terway daemon"
        ) from error
    finally:
        connection.close()
