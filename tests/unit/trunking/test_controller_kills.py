"""kill -9 of a real control plane at each side effect in the life of a PodENI: no leak, and nothing twice.

Each time before the side effect is carried out, and, when the next process asks for it, when it was carried
out and not answered. What a control plane knows beside PodENI and cloud goes with it, so one life with all
these kills passes all the states that a single kill leaves, and ends as any other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from terway_driver_trunking.api import OWNER_TAG, PODENIS, phase
from terway_driver_trunking.webhooks import NAME

from terway_core.kube.resources import LEASES
from tests.unit.trunking import controller_under_test
from tests.unit.trunking.world import World, running_world

pytestmark = pytest.mark.timeout(400)

#: Seconds that each part of a life may take, on a machine with much else to do.
PATIENCE = 90

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BIND = [
    "POST PodENI",
    "CreateNetworkInterface",
    "PATCH PodENI spec",
    "PATCH PodENI Binding",
    "AttachNetworkInterface",
    "PATCH PodENI Bind",
]
UNBIND = ["PATCH PodENI Detaching", "DetachNetworkInterface", "PATCH PodENI Unbind"]
FOLLOW = ["PATCH PodENI annotations,labels", *BIND[3:]]
MARK = ["DELETE PodENI", "PATCH PodENI Deleting"]
DELETE = ["DeleteNetworkInterface", "PATCH PodENI finalizers"]


class Controllers:
    """One control plane after the other, each killed at the first side effect that was not survived yet."""

    def __init__(self) -> None:
        self._world: World | None = None
        self._pid = 0
        #: How often each side effect was asked for, in the order in which they first were.
        self.seen: Counter[str] = Counter()

    @contextmanager
    def running(self, world: World, folder: Path) -> Iterator[None]:
        """Have one at any time."""
        cloud, env = world.region.access()
        settings = {
            "kube": {"enabled": True, "kubeconfig": str(world.api.kubeconfig())},
            "cloud": cloud.model_dump(mode="json"),
            "pool": {"cluster": "c1"},
        }
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        with (folder / "controllers.log").open("w") as log:
            self._forker = subprocess.Popen(
                [sys.executable, controller_under_test.__file__, "--config", str(config), "--port", "0"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | env,
                text=True,
            )
        self._world = world
        self._start()
        try:
            yield
        finally:
            self._world = None
            self._kill()
            self._forker.communicate()

    @web.middleware
    async def trap(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Stands before API server and cloud."""
        side_effect = await _side_effect(request) if self._world else ""
        if not side_effect:
            return await handler(request)
        self.seen[side_effect] += 1
        times = self.seen[side_effect]
        if times == 1:
            self._replace()
            raise web.HTTPServiceUnavailable
        answer = await handler(request)
        if times == 2:
            self._replace()
        return answer

    def _replace(self) -> None:
        self._kill()
        assert self._world
        # As if the next one had waited until its Lease is over.
        self._world.api.objects.delete(LEASES, NAME, "kube-system")
        self._start()

    def _start(self) -> None:
        assert self._forker.stdin
        assert self._forker.stdout
        self._forker.stdin.write("\n")
        self._forker.stdin.flush()
        self._pid = int(self._forker.stdout.readline())

    def _kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            while True:
                os.kill(self._pid, 0)
                time.sleep(0.001)


async def _side_effect(request: web.Request) -> str:
    """What a control plane asks to be changed in cloud or PodENI; empty for all else."""
    if action := request.headers.get("x-acs-action", ""):
        return "" if action.startswith("Describe") else action
    is_ours = request.headers["User-Agent"].startswith(NAME)
    if not is_ours or request.method == "GET" or f"/{PODENIS.plural}" not in request.path:
        return ""
    if request.method != "PATCH":
        return f"{request.method} {PODENIS.kind}"
    body = await request.json()
    parts = {*body.pop("metadata", ()), *body} - {"resourceVersion"}
    change = body.get("status", {}).get("phase") or ",".join(sorted(parts))
    return f"PATCH {PODENIS.kind} {change}"


@pytest.fixture(scope="module")
def controllers() -> Controllers:
    return Controllers()


@pytest.fixture(scope="module")
def world(controllers: Controllers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with running_world(folder, controllers.trap) as world:
        world.add_near_node()
        world.add_networking("elastic")
        world.add_fixed("fixed", releaseAfter="1s")
        with controllers.running(world, folder):
            yield world


class Life:
    """What is to become of one pod's ENI."""

    def __init__(self, controllers: Controllers, world: World) -> None:
        self._controllers, self._world = controllers, world

    def becomes(self, wanted: str, *side_effects: str) -> None:
        """Wait for the PodENI's phase, or until it is ``gone``: these were the side effects, and each was
        survived twice."""
        deadline = time.monotonic() + PATIENCE
        while self._phase() != wanted:
            assert time.monotonic() < deadline, f"it is {self._phase()} after {self._controllers.seen}"
            time.sleep(0.01)
        assert list(self._controllers.seen) == list(side_effects)
        assert min(self._controllers.seen.values()) >= 2
        self._controllers.seen.clear()

    def _phase(self) -> str:
        podeni = self._world.podeni()
        return phase(podeni) if podeni else "gone"


@pytest.fixture
def life(controllers: Controllers, world: World) -> Life:
    return Life(controllers, world)


def most_attached(world: World) -> int:
    """How many member ENIs were attached at once, at most."""
    attached: set[str] = set()
    most = 0
    for _, after in world.region.told:
        if after.tags.get(OWNER_TAG):
            change = attached.add if after.instance_id else attached.discard
            change(after.network_interface_id)
        most = max(most, len(attached))
    return most


def test_an_eni_that_goes_with_its_pod(world: World, life: Life) -> None:
    world.add_pod(networking="elastic")
    life.becomes("Bind", *BIND)
    assert len(world.members_of()) == 1
    world.remove_pod()
    life.becomes("gone", *MARK, "DetachNetworkInterface", *DELETE)
    assert world.members_of() == []
    assert most_attached(world) == 1


def test_an_address_that_follows_its_pod(world: World, life: Life) -> None:
    near = "node-3"
    world.add_pod(networking="fixed")
    life.becomes("Bind", *BIND)
    (eni,) = world.members_of()
    world.remove_pod()
    life.becomes("Unbind", *UNBIND)
    world.add_pod(node=near, networking="fixed")
    life.becomes("Bind", *FOLLOW)
    (moved,) = world.members_of()
    assert (moved.network_interface_id, moved.trunk_id) == (eni.network_interface_id, world.trunks[near])
    world.remove_pod()
    life.becomes("gone", *UNBIND, *MARK, *DELETE)
    assert world.members_of() == []
    assert most_attached(world) == 1
