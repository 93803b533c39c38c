"""A copy of some of the API's objects that is kept up to date: list once, then watch."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from terway_core.errors import KubeError, KubeGone
from terway_core.kube.client import KubeClient, Watch
from terway_core.kube.resources import Resource

log = logging.getLogger(__name__)

#: Seconds between two attempts: doubled from the first to the last while the API does not answer.
RETRY_FIRST, RETRY_LAST = 0.5, 30.0
#: Seconds that a stop waits for a call that is under way.
LAST_CALL: Final = 3.0
#: A watch that ended sooner than this many seconds did not do well; an instance that is going away ends them.
SHORT: Final = 1.0

Object: TypeAlias = dict[str, Any]


class Informer:
    """The objects of one kind, as one thread learns of them.

    While the API server is away the copy stays as it was. A watch goes on where the last one ended; only when
    the API has forgotten that version is everything listed again.

    :param slim: makes of an object what is worth keeping, at least its ``metadata`` with ``name``,
        ``namespace`` and ``resourceVersion``.
    :param on_change: called in the informer's thread with what an object was and what it is; None: it was
        not, or is no more. It sees each object's states in order, but may miss states in between. It must
        not block: put the name into a queue.
    """

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        slim: Callable[[Object], Object] = lambda obj: obj,
        on_change: Callable[[Object | None, Object | None], None] = lambda old, new: None,
    ) -> None:
        self._client = client
        self._resource = resource
        self._namespace = namespace
        self._selectors = {"label_selector": label_selector, "field_selector": field_selector}
        self._slim = slim
        self._on_change = on_change
        self._objects: dict[tuple[str, str], Object] = {}
        self._lock = threading.Lock()
        self._synced = threading.Event()
        self._stopping = threading.Event()
        self._watch: Watch | None = None
        self._version = ""
        self._thread = threading.Thread(target=self._loop, name=f"watch {resource.plural}", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. What is known stays readable."""
        self._stopping.set()
        with self._lock:
            watch = self._watch
        if watch:
            watch.close()
        self._thread.join(LAST_CALL)

    def wait_synced(self, timeout: float) -> bool:
        """Wait until everything has been listed once; False when that did not happen in time (seconds)."""
        return self._synced.wait(timeout)

    @property
    def synced(self) -> bool:
        """Everything has been listed once."""
        return self._synced.is_set()

    def get(self, name: str, namespace: str = "") -> Object | None:
        """An object as it was last heard of. Do not change it."""
        with self._lock:
            return self._objects.get((namespace, name))

    def items(self) -> list[Object]:
        """All of them. Do not change them."""
        with self._lock:
            return list(self._objects.values())

    # -- the thread ---------------------------------------------------------------------------------------

    def _loop(self) -> None:
        pause = RETRY_FIRST
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                if not self._version:
                    self._list()
                self._follow()
                if time.monotonic() - begun > SHORT:
                    pause = RETRY_FIRST
                    continue
            except KubeGone:
                log.info("watch is listed anew", extra={"kind": self._resource.plural})
                self._version = ""
            except KubeError as error:
                log.warning("watch waits", extra={"kind": self._resource.plural, "problem": str(error)})
            except Exception:  # of slim, whatever odd thing an object is: the copy must not end with it
                log.exception("watch failed")
                self._version = ""
            self._stopping.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, RETRY_LAST)

    def _list(self) -> None:
        # The first time what the API server has in memory will do; a version it has forgotten was from there.
        cached = "" if self._synced.is_set() else "0"
        listing = self._client.list(
            self._resource, self._namespace, resource_version=cached, **self._selectors
        )
        found = {_key(obj): obj for obj in map(self._slim, listing.items)}
        with self._lock:
            known = set(self._objects)
        for key in known - found.keys():
            self._put(key, None)
        for key, obj in found.items():
            self._put(key, obj)
        self._version = listing.resource_version
        self._synced.set()

    def _follow(self) -> None:
        watch = self._client.watch(
            self._resource, self._namespace, resource_version=self._version, **self._selectors
        )
        with self._lock:
            self._watch = watch
        if self._stopping.is_set():  # stop() came before there was something to close
            watch.close()
        for event in watch:
            if event.type != "BOOKMARK":
                obj = self._slim(event.object)
                self._put(_key(obj), None if event.type == "DELETED" else obj)
            self._version = str(event.object["metadata"]["resourceVersion"])

    def _put(self, key: tuple[str, str], obj: Object | None) -> None:
        with self._lock:
            old = self._objects.pop(key, None)
            if obj is not None:
                self._objects[key] = obj
        if old is None and obj is None:
            return
        if old and obj and _version(old) == _version(obj):
            return
        try:
            self._on_change(old, obj)
        except Exception:
            log.exception("a change was not dealt with", extra={"kind": self._resource.plural})


def _key(obj: Object) -> tuple[str, str]:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _version(obj: Object) -> str:
    return str(obj["metadata"].get("resourceVersion", ""))
