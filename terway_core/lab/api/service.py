"""What action handlers are written against: the registry of actions, and what a handler may use."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field

from terway_core.lab.api.faults import Fault
from terway_core.lab.api.model import IPNetwork, RouteEntry
from terway_core.lab.api.params import Request
from terway_core.lab.api.region import Region

log = logging.getLogger(__name__)

#: Products by the API version that a call names.
VERSIONS: Final = {"2014-05-26": "Ecs", "2016-04-28": "Vpc"}

#: Calls per minute that real accounts are given, by action; ``*`` is any other.
REAL_LIMITS: Final = {"*": 500, "DescribeVSwitches": 300}

RouteListener: TypeAlias = Callable[[IPNetwork, str], Awaitable[None] | None]
Handler: TypeAlias = Callable[["Service", Any], Awaitable[dict[str, Any]]]
HandlerT = TypeVar("HandlerT", bound=Handler)


class Behaviour(BaseModel):
    """How the cloud behaves; may change while it is served."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    route_delay: float = Field(0.0, ge=0, description="Seconds a route entry stays Pending or Deleting.")
    limits: dict[str, int] = Field({}, description="Calls per minute by action, * for others; empty: none.")
    route_quota: int = Field(200, ge=0, description="Custom entries that a route table may have.")


@dataclass(frozen=True, kw_only=True)
class Action:
    """One action of one product."""

    product: str
    name: str
    request: type[Request]
    handler: Handler


ACTIONS: Final[dict[tuple[str, str], Action]] = {}


def action(product: str, name: str) -> Callable[[HandlerT], HandlerT]:
    """Register ``async def handler(service, request: SomeRequest) -> dict``, decoded as annotated."""

    def register(handler: HandlerT) -> HandlerT:
        request = get_type_hints(handler)["request"]
        ACTIONS[product, name] = Action(product=product, name=name, request=request, handler=handler)
        return handler

    return register


@dataclass(kw_only=True)
class Service:
    """The region, how it behaves, and who is told of routes."""

    region: Region
    behaviour: Behaviour
    on_route_added: RouteListener | None = None
    on_route_removed: RouteListener | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what goes on after the reply."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def stop(self) -> None:
        """Cancel what goes on; :meth:`Region.load` and a new start take it up again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def route_added(self, entry: RouteEntry) -> None:
        """Tell the fabric that ``entry`` must carry traffic from now on."""
        await _tell(self.on_route_added, entry)

    async def route_removed(self, entry: RouteEntry) -> None:
        """Tell the fabric that ``entry`` must carry no traffic from now on."""
        await _tell(self.on_route_removed, entry)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("work after a reply failed", exc_info=error)


async def _tell(listener: RouteListener | None, entry: RouteEntry) -> None:
    if listener:
        done = listener(entry.cidr, entry.next_hop_id)
        if inspect.isawaitable(done):
            await done


def check_region(region: Region, region_id: str) -> None:
    """:raises Fault: the call is meant for another region."""
    if region_id != region.region_id:
        raise Fault(404, "InvalidRegionId.NotFound", "The specified RegionId does not exist.")
