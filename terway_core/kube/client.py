"""Calls of the Kubernetes API, in plain dicts.

The official client reads kubeconfig files and service accounts, refreshes tokens, and knows TLS and proxies.
Its 700 model classes are not used: they would parse every pod of a list into objects and back.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, TypeAlias

from terway_core import __version__
from terway_core.config import KubeConfig
from terway_core.errors import (
    InvalidConfig,
    KubeConflict,
    KubeError,
    KubeGone,
    KubeNotFound,
    KubeUnavailable,
)
from terway_core.kube.resources import Resource

#: Seconds to connect, and of silence until a call is given up.
CONNECT_TIMEOUT, READ_TIMEOUT = 3.0, 10.0
#: Seconds after which the API server ends a watch, so that they are spread over its instances anew.
WATCH_SECONDS: Final = 240
#: Objects of one page of a list.
PAGE: Final = 500

Patch: TypeAlias = Literal["merge", "strategic", "apply"]
_PATCH_TYPES: Final[dict[Patch, str]] = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",  # JSON is YAML
}


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects of a list, and the state of the API from which a watch goes on."""

    items: list[dict[str, Any]]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """:param type: ADDED, MODIFIED, DELETED, or BOOKMARK: an object with a new resourceVersion only."""

    type: str
    object: dict[str, Any]


class KubeClient:
    """One cluster's API; safe to use from several threads.

    Every call raises, of the KubeError tree: KubeUnavailable when no answer came or the API is overloaded,
    KubeNotFound, KubeConflict, KubeGone, and KubeError for any other refusal, whose message has the API's.
    Nothing is tried again here.

    :param component: told to the API server as part of the user agent.
    :raises InvalidConfig: there are no credentials, or they cannot be read.
    """

    def __init__(self, config: KubeConfig, *, component: str = "terway-daemon") -> None:
        from kubernetes import client  # 35 MiB that a daemon without Kubernetes spares
        from kubernetes import config as loaders

        configuration = client.Configuration()
        try:
            if config.kubeconfig is not None:
                loaders.load_kube_config(
                    str(config.kubeconfig), client_configuration=configuration, persist_config=False
                )
            else:
                loaders.load_incluster_config(client_configuration=configuration)
        except Exception as error:  # whatever a malformed file makes of the loader
            where = (
                f"kube.kubeconfig {config.kubeconfig}" if config.kubeconfig else "the pod's service account"
            )
            raise InvalidConfig(f"no way to the Kubernetes API: {where}: {error}") from error
        configuration.retries = False  # each caller knows best what may be repeated
        configuration.keep_alive = True  # a watch must notice that its peer is gone
        configuration.connection_pool_maxsize = 16
        self._configuration = configuration
        self._pool = client.ApiClient(configuration).rest_client.pool_manager
        self._user_agent = f"{component}/{__version__}"

    @property
    def host(self) -> str:
        """Where the API is, for messages."""
        return str(self._configuration.host)

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    # -- reading ------------------------------------------------------------------------------------------

    def get(
        self, resource: Resource, name: str, namespace: str = "", *, timeout: float = READ_TIMEOUT
    ) -> dict[str, Any]:
        """One object as it is now."""
        return self._call("GET", resource, name, namespace, timeout=timeout)

    def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
    ) -> Listing:
        """All objects, of all namespaces unless one is given.

        :param resource_version: ``"0"``: whatever the API server has in memory, which is cheap and may be a
            little old. Empty: what is true now.
        """
        query = {"labelSelector": label_selector, "fieldSelector": field_selector, "limit": str(PAGE)}
        if resource_version:
            query["resourceVersion"] = resource_version
        items: list[dict[str, Any]] = []
        while True:
            page = self._call("GET", resource, "", namespace, query=query)
            items += page.get("items") or []
            metadata = page.get("metadata", {})
            if not metadata.get("continue"):
                return Listing(items, str(metadata.get("resourceVersion", "")))
            query["continue"] = metadata["continue"]
            query.pop("resourceVersion", None)

    def watch(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> Watch:
        """What happens from ``resource_version`` on. The API server ends it after a few minutes.

        :raises KubeGone: it does not remember that version; while iterating, too.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(random.randint(WATCH_SECONDS, 2 * WATCH_SECONDS)),
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        what = f"watch {resource.plural}"
        # Without a limit on silence: nothing may happen for long, and TCP's keep-alive finds a dead peer.
        return Watch(self._send("GET", resource.path("", namespace), what, query=query, timeout=None), what)

    # -- writing ------------------------------------------------------------------------------------------

    def create(self, resource: Resource, body: Mapping[str, Any], namespace: str = "") -> dict[str, Any]:
        """Make an object; ``apiVersion`` and ``kind`` are filled in.

        :raises KubeConflict: there is one of that name.
        """
        return self._call("POST", resource, "", namespace, body=_typed(resource, body))

    def replace(
        self, resource: Resource, body: Mapping[str, Any], namespace: str = "", *, subresource: str = ""
    ) -> dict[str, Any]:
        """Write a whole object that was read before.

        :raises KubeConflict: it has changed since then.
        """
        name = str(body["metadata"]["name"])
        return self._call("PUT", resource, name, namespace, subresource, body=_typed(resource, body))

    def patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        namespace: str = "",
        *,
        subresource: str = "",
        kind: Patch = "merge",
        field_manager: str = "",
    ) -> dict[str, Any]:
        """Change parts of an object; with ``metadata.resourceVersion`` in the patch, only that version.

        :param subresource: ``status`` for a kind that has one; the patch has ``status`` at its top then too.
        :param kind: ``strategic`` merges lists of built-in kinds by their keys; custom resources know
            ``merge`` only. ``apply`` is server-side apply, forced, and needs a ``field_manager``.
        :raises KubeConflict: it has changed.
        """
        query: dict[str, str] = {"fieldManager": field_manager}
        body: Mapping[str, Any] = patch
        if kind == "apply":
            query["force"] = "true"
            body = _typed(resource, {**patch, "metadata": {**patch.get("metadata", {}), "name": name}})
        return self._call(
            "PATCH",
            resource,
            name,
            namespace,
            subresource,
            query=query,
            body=body,
            content_type=_PATCH_TYPES[kind],
        )

    def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        grace_seconds: int | None = None,
    ) -> None:
        """Delete an object, or ask its finalizers to.

        :param uid: delete only this one and not another that has taken its name.
        :param grace_seconds: how long a pod may take to end; 0: its object goes at once.
        :raises KubeNotFound: there is none. :raises KubeConflict: it is another one.
        """
        body: dict[str, Any] = {"preconditions": {"uid": uid}} if uid else {}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        self._call("DELETE", resource, name, namespace, body=body)

    # -- transport ----------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        resource: Resource,
        name: str,
        namespace: str,
        subresource: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        timeout: float = READ_TIMEOUT,
    ) -> dict[str, Any]:
        from urllib3.exceptions import HTTPError

        what = f"{method} {resource.describe(name, namespace)}" + (f"/{subresource}" if subresource else "")
        response = self._send(
            method,
            resource.path(name, namespace, subresource),
            what,
            query=query,
            body=body,
            content_type=content_type,
            timeout=timeout,
        )
        try:
            answer = json.loads(response.data)
        except HTTPError as error:
            raise self._no_answer(what, error) from error
        except (ValueError, RecursionError) as error:
            raise KubeUnavailable(
                f"{what}: {self.host} answered what is no JSON; is it the Kubernetes API?"
            ) from error
        if not isinstance(answer, dict):
            raise KubeUnavailable(f"{what}: {self.host} answered what is no object")
        return answer

    def _send(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        timeout: float | None,
    ) -> Any:
        """The urllib3 response of a call that was not refused; its body is not read yet."""
        from urllib.parse import urlencode

        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json", "User-Agent": self._user_agent, "Content-Type": content_type}
        url = self.host + path
        if query := {name: value for name, value in (query or {}).items() if value}:
            url += f"?{urlencode(query)}"
        try:
            for setting in self._configuration.auth_settings().values():
                headers[setting["key"]] = setting["value"]
        except Exception as error:  # a token's file, or the program that a kubeconfig names for it
            raise KubeUnavailable(f"{what}: the credentials cannot be read: {error}") from error
        try:
            response = self._pool.request(
                method,
                url,
                headers=headers,
                body=None if body is None else json.dumps(body).encode(),
                timeout=Timeout(connect=min(CONNECT_TIMEOUT, timeout or CONNECT_TIMEOUT), read=timeout),
                preload_content=False,
            )
            if not 200 <= response.status < 300:
                _refuse(what, response.status, response.data)
        except HTTPError as error:
            raise self._no_answer(what, error) from error
        return response

    def _no_answer(self, what: str, error: Exception) -> KubeUnavailable:
        return KubeUnavailable(f"{what}: the Kubernetes API at {self.host} does not answer: {error}")


class Watch:
    """The events of one watch. Iterate in one thread; :meth:`close` it from any.

    :raises KubeGone: the API has forgotten the version; list again.
    :raises KubeError: it said something else. A connection that breaks only ends the iteration: the last
        object's resourceVersion says where to go on.
    """

    def __init__(self, response: Any, what: str) -> None:
        self._response = response
        self._what = what
        self._lock = threading.Lock()
        self._closed = False

    def __iter__(self) -> Iterator[WatchEvent]:
        from urllib3.exceptions import HTTPError

        rest = b""
        try:
            for chunk in self._response.stream(1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from map(self._decode, filter(None, lines))
        except (HTTPError, OSError, ValueError):  # ValueError: read of a response that was closed
            return
        finally:
            self.close()

    def close(self) -> None:
        """End the iteration, also one that waits for the next event."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # it may have ended by itself
            self._response.shutdown()  # close() alone would not wake up who reads
        self._response.close()

    def _decode(self, line: bytes) -> WatchEvent:
        try:
            event = json.loads(line)
            kind, obj = str(event["type"]), event["object"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise KubeUnavailable(f"{self._what}: an event cannot be decoded: {error}") from error
        if kind == "ERROR":
            _refuse(self._what, int(obj.get("code", 0)), line, status=obj)
        return WatchEvent(kind, obj)


def _typed(resource: Resource, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": resource.api_version, "kind": resource.kind, **body}


def _refuse(what: str, code: int, body: bytes, status: Mapping[str, Any] | None = None) -> NoReturn:
    """Raise what a refusal means.

    :param status: the API's ``Status`` object; None: it is the body, or there is none.
    """
    if status is None:
        try:
            status = json.loads(body)
        except ValueError:
            status = None
        if not isinstance(status, Mapping) or status.get("kind") != "Status":
            status = None
    reason = str((status or {}).get("reason", ""))
    said = str(status.get("message", reason)) if status else body[:200].decode(errors="replace").strip()
    message = f"{what}: the Kubernetes API answers {code}: {said}"
    match code:
        case 404 if reason == "NotFound":
            error: type[KubeError] = KubeNotFound
        case 404:
            # Of the whole kind, when its CRD is missing; or of something that is not the API server at all.
            message += "; is the kind installed, and is this the Kubernetes API?"
            error = KubeError
        case 409:
            error = KubeConflict
        case 410:
            error = KubeGone
        case _ if code == 429 or code >= 500:
            error = KubeUnavailable
        case _:
            error = KubeError
    raise error(message, status=code, reason=reason)
