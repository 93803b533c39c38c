"""What action handlers are written against: the registry of actions, and what a handler may use."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field

from terway_core.lab.api.faults import Fault
from terway_core.lab.api.injection import InjectedFault
from terway_core.lab.api.model import IPNetwork, NetworkInterface, RouteEntry
from terway_core.lab.api.params import Request
from terway_core.lab.api.region import Region

log = logging.getLogger(__name__)

#: Products by the API version that a call names.
VERSIONS: Final = {"2014-05-26": "Ecs", "2016-04-28": "Vpc", "2015-04-01": "Sts"}

#: Calls per minute that real accounts are given, by action; ``*`` is any other.
REAL_LIMITS: Final = {
    "*": 500,
    "DescribeNetworkInterfaces": 800,
    "DescribeNetworkInterfaceAttribute": 2000,
    "DetachNetworkInterface": 400,
    "AssignPrivateIpAddresses": 400,
    "UnassignPrivateIpAddresses": 400,
    "AssignIpv6Addresses": 400,
    "UnassignIpv6Addresses": 400,
    "DescribeInstanceTypes": 400,
    "DescribeVSwitches": 300,
}
#: Seconds between two looks at a fault that keeps something stuck.
_POLL: Final = 0.02

RouteListener: TypeAlias = Callable[[IPNetwork, str], Awaitable[None] | None]
InterfaceListener: TypeAlias = Callable[[NetworkInterface, NetworkInterface], Awaitable[None] | None]
Handler: TypeAlias = Callable[["Service", Any], Awaitable[dict[str, Any]]]
HandlerT = TypeVar("HandlerT", bound=Handler)


class Behaviour(BaseModel):
    """How the cloud behaves; may change while it is served."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    route_delay: float = Field(0.0, ge=0, description="Seconds a route entry stays Pending or Deleting.")
    create_delay: float = Field(0.0, ge=0, description="Seconds until creating an ENI is answered.")
    attach_delay: float = Field(0.0, ge=0, description="Seconds an ENI stays Attaching.")
    detach_delay: float = Field(0.0, ge=0, description="Seconds an ENI stays Detaching.")
    delete_delay: float = Field(0.0, ge=0, description="Seconds an ENI stays Deleting.")
    limits: dict[str, int] = Field({}, description="Calls per minute by action, * for others; empty: none.")
    route_quota: int = Field(200, ge=0, description="Custom entries that a route table may have.")
    eni_quota: int = Field(10_000, ge=0, description="ENIs that the account may have, primary ones aside.")
    faults: list[InjectedFault] = Field([], description="Trouble on demand.")

    def fault(self, kind: str, action: str, now: float) -> InjectedFault | None:
        """The first fault of a kind that befalls this call; the call counts for it."""
        for one in self.faults:
            if one.kind == kind and one.befalls(action, now):
                one.used += 1
                return one
        return None


@dataclass(frozen=True, kw_only=True)
class Action:
    """One action of one product.

    :param exclusive: it changes the ENI in its ``NetworkInterfaceId``, which takes one change at a time.
    :param anonymous: it needs no signature.
    """

    product: str
    name: str
    request: type[Request]
    handler: Handler
    exclusive: bool
    anonymous: bool


ACTIONS: Final[dict[tuple[str, str], Action]] = {}


def action(
    product: str, name: str, *, exclusive: bool = False, anonymous: bool = False
) -> Callable[[HandlerT], HandlerT]:
    """Register ``async def handler(service, request: SomeRequest) -> dict``, decoded as annotated."""

    def register(handler: HandlerT) -> HandlerT:
        request = get_type_hints(handler)["request"]
        ACTIONS[product, name] = Action(
            product=product,
            name=name,
            request=request,
            handler=handler,
            exclusive=exclusive,
            anonymous=anonymous,
        )
        return handler

    return register


@dataclass(kw_only=True)
class Service:
    """The region, how it behaves, and who is told of routes and ENIs."""

    region: Region
    behaviour: Behaviour
    on_route_added: RouteListener | None = None
    on_route_removed: RouteListener | None = None
    on_interface_changed: InterfaceListener | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _changing: set[str] = field(default_factory=set)
    _waiting: dict[str, object] = field(default_factory=dict)

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
        await _tell(self.on_route_added, entry.cidr, entry.next_hop_id)

    async def route_removed(self, entry: RouteEntry) -> None:
        """Tell the fabric that ``entry`` must carry no traffic from now on."""
        await _tell(self.on_route_removed, entry.cidr, entry.next_hop_id)

    async def interface_changed(self, before: NetworkInterface, after: NetworkInterface) -> None:
        """Tell the fabric that an ENI must be as ``after`` from now on."""
        await _tell(self.on_interface_changed, before, after)

    @contextmanager
    def changing(self, network_interface_id: str) -> Iterator[None]:
        """:raises Fault: another change of this ENI is under way."""
        if network_interface_id in self._changing:
            raise Fault(403, "Operation.Conflict", "A previous operation on the ENI is under way.")
        self._changing.add(network_interface_id)
        try:
            yield
        finally:
            self._changing.remove(network_interface_id)

    async def finish(
        self, action: str, network_interface_id: str, delay: float, finish: Callable[[], Awaitable[None]]
    ) -> None:
        """Bring an ENI to where an action leads: within the call if there is no delay, else after it.

        The same action again takes the place of one that waits.
        """
        mine = self._waiting[network_interface_id] = object()
        stuck = self.behaviour.fault("stuck", action, self.region.now())

        async def later() -> None:
            await asyncio.sleep(delay)
            while stuck in self.behaviour.faults and not stuck.is_over(self.region.now()):
                await asyncio.sleep(_POLL)
            if self._waiting.get(network_interface_id) is mine:
                del self._waiting[network_interface_id]
                await finish()

        if delay or stuck:
            self.spawn(later())
        else:
            del self._waiting[network_interface_id]
            await finish()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("work after a reply failed", exc_info=error)


async def _tell(listener: Callable[..., Awaitable[None] | None] | None, *what: object) -> None:
    if listener:
        done = listener(*what)
        if inspect.isawaitable(done):
            await done


def check_region(region: Region, region_id: str) -> None:
    """:raises Fault: the call is meant for another region."""
    if region_id != region.region_id:
        raise Fault(404, "InvalidRegionId.NotFound", "The specified RegionId does not exist.")
