"""The REST interface of the simulated cluster."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from terway_core.kube.resources import ACCESS_REVIEWS, Resource
from terway_core.lab.kubernetes import selectors
from terway_core.lab.kubernetes.objects import Object, Objects, Refusal

#: Seconds between two bookmarks of a watch in which nothing happens.
BOOKMARK_INTERVAL: Final = 10.0
#: Seconds that a watch lasts of which the client does not say how long.
WATCH_SECONDS: Final = 1800.0
#: Calls that are remembered.
CALLS: Final = 10_000

_PATCHES: Final = {
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
}
_VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One request as RBAC sees it.

    :param verb: get, list, watch, create, update, patch or delete.
    :param subresource: ``status``, or nothing.
    """

    verb: str
    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    agent: str = ""


@dataclass(slots=True)
class Served:
    """What may be looked at and changed while the server runs, in whatever thread.

    :ivar calls: what was asked for, oldest first.
    :ivar refuse: called before each call is carried out; a Refusal that it raises is the answer.
    :ivar watches: how to end each watch that goes on now.
    :ivar bookmarks: how many were sent.
    """

    calls: deque[Call] = field(default_factory=lambda: deque(maxlen=CALLS))
    refuse: Callable[[Call], None] = lambda call: None
    watches: set[Callable[[], None]] = field(default_factory=set)
    bookmarks: int = 0

    def break_watches(self) -> None:
        """End every watch without a word."""
        for end in tuple(self.watches):
            end()


def build_app(objects: Objects, served: Served | None = None) -> web.Application:
    """The API as an application."""
    served = served or Served()
    api = _Api(objects, served)
    app = web.Application(client_max_size=8 << 20)
    app.router.add_get("/version", api.version)
    app.router.add_get("/readyz", api.ready)
    app.router.add_get("/api", api.core_versions)
    app.router.add_get("/apis", api.groups)
    app.router.add_route("*", "/{path:apis?/.+}", api.dispatch)

    async def end_watches(app: web.Application) -> None:
        served.break_watches()

    app.on_shutdown.append(end_watches)
    return app


class _Api:
    def __init__(self, objects: Objects, served: Served) -> None:
        self._objects = objects
        self._served = served

    # -- discovery ----------------------------------------------------------------------------------------

    async def ready(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "30", "gitVersion": "v1.30.0-terway-lab"})

    async def core_versions(self, request: web.Request) -> web.Response:
        return web.json_response({"kind": "APIVersions", "versions": ["v1"]})

    async def groups(self, request: web.Request) -> web.Response:
        versions: dict[str, list[dict[str, str]]] = {}
        for group, version in dict.fromkeys((kind.group, kind.version) for kind, _ in self._objects.kinds()):
            if group:
                entry = {"groupVersion": f"{group}/{version}", "version": version}
                versions.setdefault(group, []).append(entry)
        groups = [
            {"name": group, "versions": entries, "preferredVersion": entries[0]}
            for group, entries in versions.items()
        ]
        return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})

    def _kinds(self, group: str, version: str) -> web.Response:
        resources = []
        for kind, has_status in self._objects.kinds():
            if (kind.group, kind.version) != (group, version):
                continue
            verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
            entry = {
                "name": kind.plural,
                "kind": kind.kind,
                "namespaced": kind.namespaced,
                "singularName": "",
            }
            resources.append({**entry, "verbs": verbs})
            if has_status:
                verbs = ["get", "patch", "update"]
                resources.append({**entry, "name": f"{kind.plural}/status", "verbs": verbs})
        if not resources:
            return _no_such_path()
        name = f"{group}/{version}" if group else version
        return web.json_response({"kind": "APIResourceList", "groupVersion": name, "resources": resources})

    # -- objects ------------------------------------------------------------------------------------------

    async def dispatch(self, request: web.Request) -> web.StreamResponse:
        parts = request.match_info["path"].strip("/").split("/")
        group = "" if parts[0] == "api" else parts.pop(1)
        version, rest = (parts[1] if parts[1:] else ""), parts[2:]
        if not rest:
            return self._kinds(group, version)
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] != "status":
            namespace, rest = rest[1], rest[2:]
        plural, name, subresource, *more = [*rest, "", ""]
        resource = self._objects.kind(group, version, plural)
        if resource is None or any(more) or subresource not in ("", "status"):
            return _no_such_path()
        watching = request.query.get("watch") in ("true", "1")
        call = Call(
            verb=_VERBS.get(request.method, "get" if name else "watch" if watching else "list"),
            resource=resource,
            namespace=namespace,
            name=name,
            subresource=subresource,
            agent=request.headers.get("User-Agent", ""),
        )
        self._served.calls.append(call)
        try:
            self._served.refuse(call)
            if call.verb == "watch":
                return await self._watch(request, call)
            return await self._answer(request, call)
        except Refusal as refusal:
            return web.json_response(refusal.status, status=refusal.code)

    async def _answer(self, request: web.Request, call: Call) -> web.Response:
        objects, status = self._objects, call.subresource == "status"
        where = (call.resource, call.name)
        match call.verb:
            case "get":
                return web.json_response(objects.get(*where, call.namespace))
            case "list":
                found, version = objects.select(call.resource, call.namespace, _selects(request))
                return web.json_response(_list(call.resource, found, version))
            case "create":
                body = await _body(request)
                if call.resource == ACCESS_REVIEWS:
                    return web.json_response(self._review(body), status=201)
                return web.json_response(objects.create(call.resource, body, call.namespace), status=201)
            case "update":
                body = await _body(request)
                return web.json_response(objects.replace(*where, body, call.namespace, status=status))
            case "patch":
                kind = _PATCHES.get(request.content_type)
                if kind is None or (kind == "strategic" and "." in call.resource.group):
                    said = f"the body of the request was in an unknown format: {request.content_type}"
                    raise Refusal(415, "UnsupportedMediaType", said)
                body = await _body(request)
                changed = objects.patch(*where, body, call.namespace, kind=kind, status=status)
                return web.json_response(changed)
            case _:
                body = await _body(request)
                uid = str(body.get("preconditions", {}).get("uid") or "")
                return web.json_response(objects.delete(*where, call.namespace, uid=uid))

    def _review(self, review: Object) -> Object:
        wanted = review["spec"]["resourceAttributes"]
        resource = self._objects.kind(wanted.get("group", ""), "v1", wanted["resource"])
        allowed = resource is not None
        if resource:
            call = Call(verb=wanted["verb"], resource=resource, subresource=wanted.get("subresource", ""))
            try:
                self._served.refuse(call)
            except Refusal:
                allowed = False
        return {**review, "status": {"allowed": allowed}}

    async def _watch(self, request: web.Request, call: Call) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        woken, ended = asyncio.Event(), False

        def wake() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(woken.set)

        def end() -> None:
            nonlocal ended
            ended = True
            wake()

        selects = _selects(request)
        since = int(request.query.get("resourceVersion") or 0)
        unlisten = self._objects.listen(wake)
        self._served.watches.add(end)
        try:
            events: list[tuple[str, Object]] = []
            if since:
                self._objects.changes(call.resource, call.namespace, since)  # refused while there are headers
            else:
                found, since = self._objects.select(call.resource, call.namespace, selects)
                events = [("ADDED", obj) for obj in found]
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            response.enable_chunked_encoding()
            await response.prepare(request)
            until = loop.time() + float(request.query.get("timeoutSeconds") or WATCH_SECONDS)
            bookmark_at = loop.time() + BOOKMARK_INTERVAL
            while not ended:
                woken.clear()
                try:
                    changes, since = self._objects.changes(call.resource, call.namespace, since)
                except Refusal as refusal:
                    await _send(response, "ERROR", refusal.status)
                    break
                events += filter(None, (change.seen_by(selects) for change in changes))
                for kind, obj in events:
                    await _send(response, kind, obj)
                events = []
                if loop.time() >= bookmark_at:
                    bookmark_at = loop.time() + BOOKMARK_INTERVAL
                    metadata = {"resourceVersion": str(since)}
                    kinds = {"kind": call.resource.kind, "apiVersion": call.resource.api_version}
                    await _send(response, "BOOKMARK", {**kinds, "metadata": metadata})
                    self._served.bookmarks += 1
                if loop.time() >= until:
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), min(until, bookmark_at) - loop.time())
        except ConnectionResetError:
            pass  # the client is gone
        finally:
            unlisten()
            self._served.watches.discard(end)
        return response


async def _send(response: web.StreamResponse, kind: str, obj: Object) -> None:
    await response.write(json.dumps({"type": kind, "object": obj}).encode() + b"\n")


async def _body(request: web.Request) -> dict[str, Any]:
    text = await request.text()
    try:
        body = json.loads(text) if text else {}
    except ValueError as error:
        raise Refusal(400, "BadRequest", f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refusal(400, "BadRequest", "the body is no object")
    return body


def _selects(request: web.Request) -> selectors.Predicate:
    try:
        return selectors.parse(request.query.get("labelSelector", ""), request.query.get("fieldSelector", ""))
    except ValueError as error:
        raise Refusal(400, "BadRequest", str(error)) from None


def _list(resource: Resource, items: list[Object], version: int) -> Object:
    return {
        "kind": f"{resource.kind}List",
        "apiVersion": resource.api_version,
        "metadata": {"resourceVersion": str(version)},
        "items": items,
    }


def _no_such_path() -> web.Response:
    return web.Response(status=404, text="404 page not found\n")  # as the real one says it, without a Status
