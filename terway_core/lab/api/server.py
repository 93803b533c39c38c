"""The gateway: what every call goes through before and after its action."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, Final

from aiohttp import web
from pydantic import ValidationError

from terway_core.lab.api.actions import eni, routes
from terway_core.lab.api.faults import Fault, gateway_fault
from terway_core.lab.api.idempotency import ClientTokens
from terway_core.lab.api.injection import InjectedFault
from terway_core.lab.api.params import Request, decode
from terway_core.lab.api.region import Region
from terway_core.lab.api.service import (
    ACTIONS,
    VERSIONS,
    Action,
    Behaviour,
    InterfaceListener,
    RouteListener,
    Service,
)
from terway_core.lab.api.signature import Call, RawRequest, Verifier, decode_pairs, read_call
from terway_core.lab.api.throttle import Throttle

log = logging.getLogger(__name__)

#: Of this many calls the record is kept.
CALLS_KEPT: Final = 100_000
#: Parameters whose values are not for the record.
_SECRET: Final = frozenset({"OIDCToken"})


@dataclass(frozen=True, kw_only=True)
class ServedCall:
    """One call, as it was answered.

    :param time: seconds since the epoch.
    :param params: the action's own parameters as sent, but for secrets; nothing of the signature.
    :param status: 0 when the answer was lost.
    :param code: ``""`` when it succeeded.
    :param access_key_id: ``""`` when the caller did not prove who it is.
    """

    time: float
    product: str
    action: str
    params: dict[str, str]
    status: int
    code: str
    request_id: str
    access_key_id: str
    source_ip: str


CALLS: Final = web.AppKey("calls", deque[ServedCall])
SERVICE: Final = web.AppKey("service", Service)


def build_app(
    region: Region,
    *,
    behaviour: Behaviour | None = None,
    on_route_added: RouteListener | None = None,
    on_route_removed: RouteListener | None = None,
    on_interface_changed: InterfaceListener | None = None,
) -> web.Application:
    """The OpenAPI of ``region``; see the package's docstring. ``app[CALLS]`` is what it served."""
    service = Service(
        region=region,
        behaviour=behaviour or Behaviour(),
        on_route_added=on_route_added,
        on_route_removed=on_route_removed,
        on_interface_changed=on_interface_changed,
    )
    gateway = _Gateway(service)
    app = web.Application()
    app[CALLS] = gateway.calls
    app[SERVICE] = service
    app.cleanup_ctx.append(_run_service)
    app.router.add_route("GET", "/", gateway.serve)
    app.router.add_route("POST", "/", gateway.serve)
    app.router.add_get("/lab/calls", _show_calls)
    app.router.add_get("/lab/behaviour", _show_behaviour)
    app.router.add_patch("/lab/behaviour", _change_behaviour)
    app.router.add_post("/lab/faults", _add_fault)
    app.router.add_delete("/lab/faults", _clear_faults)
    return app


async def _run_service(app: web.Application) -> AsyncIterator[None]:
    routes.resume(app[SERVICE])
    await eni.resume(app[SERVICE])
    yield
    await app[SERVICE].stop()


async def _show_calls(request: web.Request) -> web.Response:
    return web.json_response({"calls": [asdict(call) for call in request.app[CALLS]]})


async def _show_behaviour(request: web.Request) -> web.Response:
    return web.json_response(request.app[SERVICE].behaviour.model_dump())


async def _change_behaviour(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    try:
        changes = Behaviour.model_validate_json(await request.read())
    except ValidationError as error:
        return web.json_response({"error": str(error)}, status=400)
    for name in changes.model_fields_set:
        setattr(service.behaviour, name, getattr(changes, name))
    return await _show_behaviour(request)


async def _add_fault(request: web.Request) -> web.Response:
    try:
        fault = InjectedFault.model_validate_json(await request.read())
    except ValidationError as error:
        return web.json_response({"error": str(error)}, status=400)
    names = {name for _, name in ACTIONS}
    if fault.action not in ("*", *names):
        close = ", ".join(get_close_matches(fault.action, names)) or "nothing like it"
        return web.json_response(
            {"error": f"this region has no action {fault.action!r}, but {close}"}, status=400
        )
    request.app[SERVICE].behaviour.faults.append(fault)
    return web.json_response(fault.model_dump())


async def _clear_faults(request: web.Request) -> web.Response:
    """``?id=`` any number of times; without one, all."""
    faults = request.app[SERVICE].behaviour.faults
    wanted = request.query.getall("id", [fault.id for fault in faults])
    cleared = [fault for fault in faults if fault.id in wanted]
    faults[:] = [fault for fault in faults if fault.id not in wanted]
    return web.json_response({"cleared": [fault.model_dump() for fault in cleared]})


def _hang_up(request: web.Request) -> web.Response:
    if request.transport:
        request.transport.abort()
    return web.Response()  # nobody is there to read it


class _Gateway:
    def __init__(self, service: Service) -> None:
        self.calls: deque[ServedCall] = deque(maxlen=CALLS_KEPT)
        self._service = service
        self._verifier = Verifier(service.region.access_keys)
        self._throttle = Throttle()
        self._tokens = ClientTokens()

    async def serve(self, request: web.Request) -> web.Response:
        raw = await _read(request)
        request_id = str(uuid.uuid4()).upper()
        call = Call(action="", version="", params=())
        access_key_id, fault = "", None
        reply: dict[str, Any] = {}
        now = self._service.region.now()
        behaviour = self._service.behaviour
        lost = None
        try:
            call = read_call(raw)
            if behaviour.fault("down", call.action, now):
                return _hang_up(request)
            action = ACTIONS.get((VERSIONS.get(call.version, ""), call.action))
            if not action or not action.anonymous:
                access_key_id = self._verifier.verify(raw, now).access_key_id
            lost = behaviour.fault("lost", call.action, now)
            reply = await self._dispatch(action, call, now)
        except Fault as refused:
            fault = refused
        except Exception:
            log.exception("%s failed", call.action)
            fault = Fault(
                500, "InternalError", "The request processing has failed due to some unknown error."
            )
        product = VERSIONS.get(call.version, "")
        if fault:
            reply = self._error_body(fault, product, request_id)
        status, code = (fault.status, fault.code) if fault else (200, "")
        self.calls.append(
            ServedCall(
                time=now,
                product=product,
                action=call.action,
                params={name: "***" if name in _SECRET else value for name, value in call.params},
                status=0 if lost else status,
                code=code,
                request_id=request_id,
                access_key_id=access_key_id,
                source_ip=request.remote or "",
            )
        )
        log.info("%s %s: %s, request %s", product, call.action, code or "OK", request_id)
        if lost:
            return _hang_up(request)
        return web.json_response(
            {"RequestId": request_id, **reply}, status=status, headers={"x-acs-request-id": request_id}
        )

    async def _dispatch(self, action: Action | None, call: Call, now: float) -> dict[str, Any]:
        if action is None:
            raise gateway_fault(404, "InvalidAction.NotFound", "Specified api is not found.")
        self._throttle.admit(call.action, self._service.behaviour.limits, now)
        if error := self._service.behaviour.fault("error", call.action, now):
            raise error.refusal
        request = decode(action.request, call.params)

        async def run() -> dict[str, Any]:
            return await self._run(action, request, now)

        token = getattr(request, "client_token", "")
        if not token:
            return await run()
        return await self._tokens.once(action.name, token, call.params, now, run)

    async def _run(self, action: Action, request: Request, now: float) -> dict[str, Any]:
        subject = getattr(request, "network_interface_id", "") if action.exclusive else ""
        with self._service.changing(subject) if subject else nullcontext():
            if slow := self._service.behaviour.fault("slow", action.name, now):
                await asyncio.sleep(slow.seconds)
            return await action.handler(self._service, request)

    def _error_body(self, fault: Fault, product: str, request_id: str) -> dict[str, Any]:
        host = f"{product.lower() or 'gateway'}.{self._service.region.region_id}.aliyuncs.com"
        body = {"HostId": host, "Code": fault.code, "Message": fault.message}
        if fault.gateway:
            body["Recommend"] = (
                f"https://api.aliyun.com/troubleshoot?q={fault.code}&product={product}&requestId={request_id}"
            )
        return body


async def _read(request: web.Request) -> RawRequest:
    body = await request.read()
    # aiohttp's own idea of the path and query is normalised; what was signed is what was sent.
    path, _, query = request.raw_path.partition("?")
    form = request.content_type == "application/x-www-form-urlencoded"
    return RawRequest(
        method=request.method,
        path=path,
        query=decode_pairs(query),
        form=decode_pairs(body.decode(errors="replace")) if form else (),
        headers={name.lower(): ",".join(sorted(request.headers.getall(name))) for name in request.headers},
        body=body,
    )
