"""Notices a function that looks at the world: the interpreter announces each such step to audit hooks."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["watch_io"]

# PEP 578; https://docs.python.org/3/library/audit_events.html
_EVENTS = ("open", "socket.", "subprocess.", "os.", "sqlite3.")
# What an import does: it happens at a first call, and never again.
_MODULES = (".py", ".pyc", ".so")
_IMPORT_EVENTS = ("os.listdir",)

_seen = threading.local()
_installed = False


@contextmanager
def watch_io() -> Iterator[list[str]]:
    """Collect what the calling thread does with files, sockets and processes, one line each."""
    global _installed
    if not _installed:
        sys.addaudithook(_listen)  # for the life of the process: there is no way to take one away
        _installed = True
    _seen.events = []
    try:
        yield _seen.events
    finally:
        _seen.events = None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    events: list[str] | None = getattr(_seen, "events", None)
    if events is None or not event.startswith(_EVENTS) or event in _IMPORT_EVENTS:
        return
    if event == "open" and str(arguments[0]).endswith(_MODULES):
        return
    events.append(f"{event} {arguments[0] if arguments else ''}".strip())
