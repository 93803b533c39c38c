"""Faults on demand, seen through the real SDK; and the commands that inject them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError
from typer.testing import CliRunner

from terway_core.cli.lab_faults import app as cli
from terway_core.errors import CloudError
from terway_core.lab.api import CALLS, InjectedFault
from terway_core.lab.api.throttle import WINDOW
from terway_core.lab.state import Lab, LabError

from .served_region import ServedRegion, wait_for


@pytest.fixture
def lab() -> Iterator[ServedRegion]:
    with ServedRegion().served() as lab:
        yield lab


def inject(lab: ServedRegion, **fields: Any) -> InjectedFault:
    lab.behaviour.faults.append(InjectedFault(**fields))
    return lab.behaviour.faults[-1]


def test_an_action_is_refused_so_many_times(lab: ServedRegion) -> None:
    fault = inject(
        lab, kind="error", action="CreateNetworkInterface", code="InvalidVSwitchId.IpNotEnough", times=2
    )
    params = {"VSwitchId": lab.zone_h.vswitch_id, "SecurityGroupIds": [lab.group]}
    for _ in range(2):
        assert lab.refused("CreateNetworkInterface", **params) == "InvalidVSwitchId.IpNotEnough"
    assert lab.find(Type="Secondary") == []  # other actions work
    lab.create()
    assert fault.used == 2


def test_or_until_it_is_cleared(lab: ServedRegion) -> None:
    inject(lab, kind="error", code="Forbidden.RAM")
    for _ in range(3):
        with pytest.raises(CloudError, match="RAM policy"):
            lab.find()
    lab.behaviour.faults.clear()
    assert len(lab.find()) == 2


def test_or_for_some_time(lab: ServedRegion) -> None:
    inject(lab, kind="error", code="ServiceUnavailable", until=time.time() - 1)
    assert len(lab.find()) == 2


def test_the_status_is_that_of_the_code(lab: ServedRegion) -> None:
    for code, status in (("ServiceUnavailable", 503), ("InternalError", 500), ("InvalidEniId.NotFound", 404)):
        inject(lab, kind="error", code=code, times=1)
        assert lab.refused("DescribeNetworkInterfaces") == code
        assert lab.app[CALLS][-1].status == status


def test_throttled_until_the_minute_is_over() -> None:
    fault = InjectedFault.throttled("DescribeNetworkInterfaces", now=WINDOW * 100 + 20)
    assert fault.befalls("DescribeNetworkInterfaces", WINDOW * 101 - 0.1)
    assert not fault.befalls("DescribeNetworkInterfaces", WINDOW * 101)
    assert (fault.refusal.code, fault.refusal.status, fault.refusal.gateway) == ("Throttling", 400, True)


def test_a_lost_answer_was_carried_out(lab: ServedRegion) -> None:
    inject(lab, kind="lost", action="CreateNetworkInterface", times=1)
    params = {"VSwitchId": lab.zone_h.vswitch_id, "SecurityGroupIds": [lab.group]}
    with pytest.raises(CloudError, match="no answer") as caught:
        lab.call("CreateNetworkInterface", **params)
    assert caught.value.code == ""
    assert len(lab.region.network_interfaces) == 3
    assert [(call.status, call.code) for call in lab.app[CALLS]] == [(0, "")]


def test_a_dead_api_carries_nothing_out(lab: ServedRegion) -> None:
    inject(lab, kind="down")
    with pytest.raises(CloudError, match="no answer"):
        lab.create()
    assert len(lab.region.network_interfaces) == 2
    assert list(lab.app[CALLS]) == []


def test_a_slow_action_takes_longer(lab: ServedRegion) -> None:
    inject(lab, kind="slow", action="CreateNetworkInterface", seconds=0.2)
    thread = threading.Thread(target=lab.create)
    thread.start()
    wait_for(lambda: lab.behaviour.faults[0].used)
    assert len(lab.region.network_interfaces) == 2
    thread.join()
    assert len(lab.region.network_interfaces) == 3


def test_attaching_that_never_ends(lab: ServedRegion) -> None:
    eni = lab.create()
    inject(lab, kind="stuck", action="AttachNetworkInterface")
    lab.attach(eni)
    time.sleep(0.05)
    assert (lab.status(eni), lab.told) == ("Attaching", [])
    lab.behaviour.faults.clear()
    wait_for(lambda: lab.status(eni) == "InUse")


@pytest.mark.parametrize(
    ("action", "on_the_way", "at_last"),
    [
        ("DetachNetworkInterface", "Detaching", "Available"),
        ("DeleteNetworkInterface", "Deleting", "gone"),
    ],
)
def test_what_sticks_may_be_asked_for_again(
    lab: ServedRegion, action: str, on_the_way: str, at_last: str
) -> None:
    eni = lab.attached() if action.startswith("Detach") else lab.create()
    inject(lab, kind="stuck", action=action, times=2)
    params = lab.attachment(eni)
    for _ in range(2):
        lab.call(action, **params)
        time.sleep(0.05)
        assert lab.status(eni) == on_the_way
    lab.call(action, **params)
    assert lab.status(eni) == at_last
    told = len(lab.told)
    lab.behaviour.faults.clear()  # the first two are forgotten, and do not happen late
    time.sleep(0.05)
    assert len(lab.told) == told


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "error"},
        {"kind": "lost", "code": "Throttling"},
        {"kind": "slow"},
        {"kind": "metadata-lag"},
        {"kind": "stuck", "action": "CreateNetworkInterface"},
        {"kind": "stuck"},
        {"kind": "error", "code": "X", "times": 0},
        {"kind": "unheard-of"},
    ],
)
def test_faults_that_make_no_sense(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InjectedFault(**fields)


@contextmanager
def at_socket(app: web.Application, path: Path) -> Iterator[None]:
    """Serve ``app`` where the region of a lab does."""
    path.parent.mkdir(parents=True)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, access_log=None)

    async def start() -> None:
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Commands:
    """``terway lab fault`` on a region that is served in a folder."""

    def __init__(self, folder: Path, region: ServedRegion) -> None:
        self.folder = folder
        self.faults = region.behaviour.faults

    def __call__(self, *args: str) -> str:
        result = CliRunner().invoke(cli, [*args, "--dir", str(self.folder)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output


@pytest.fixture
def fault(tmp_path: Path) -> Iterator[Commands]:
    region = ServedRegion()
    with at_socket(region.app, Lab(tmp_path).region_socket):
        yield Commands(tmp_path, region)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            ("error", "AttachNetworkInterface", "Throttling", "--times", "3"),
            {"kind": "error", "action": "AttachNetworkInterface", "code": "Throttling", "times": 3},
        ),
        (("slow", "*", "1.5"), {"kind": "slow", "action": "*", "seconds": 1.5}),
        (
            ("lost", "CreateNetworkInterface", "--times", "1"),
            {"kind": "lost", "action": "CreateNetworkInterface", "times": 1},
        ),
        (("stuck", "detach"), {"kind": "stuck", "action": "DetachNetworkInterface"}),
        (("down",), {"kind": "down", "action": "*"}),
        (("metadata-lag", "10"), {"kind": "metadata-lag", "seconds": 10}),
        (("metadata-down",), {"kind": "metadata-down"}),
    ],
)
def test_each_kind_has_its_command(fault: Commands, args: tuple[str, ...], expected: dict[str, Any]) -> None:
    fault("set", *args)
    (set_,) = fault.faults
    assert set_.model_dump(include=set(expected)) == expected
    assert set_.until is None


def test_faults_that_pass_by_themselves(fault: Commands) -> None:
    fault("set", "down", "--for", "30")
    fault("set", "throttle", "DescribeVSwitches")
    down, throttled = fault.faults
    assert down.until is not None
    assert 0 < down.until - time.time() <= 30
    assert throttled.until is not None
    assert throttled.until % WINDOW == 0
    assert 0 <= throttled.until - time.time() <= WINDOW
    assert throttled.code == "Throttling"


def test_faults_are_listed_and_cleared(fault: Commands) -> None:
    fault("set", "error", "*", "ServiceUnavailable", "--times", "2")
    fault("set", "slow", "TagResources", "2")
    fault.faults[0].used = 1
    table = fault("list")
    for part in ("error", "ServiceUnavailable", "1 of 2", "slow", "TagResources", "2 s"):
        assert part in table
    first, second = json.loads(fault("list", "--json"))
    assert (first["code"], second["seconds"]) == ("ServiceUnavailable", 2.0)
    with pytest.raises(LabError, match="no fault has the id zzzz"):
        fault("clear", first["id"], "zzzz")
    assert [one.id for one in fault.faults] == [second["id"]]
    assert fault("clear") == "cleared 1\n"
    assert fault.faults == []


def test_an_action_that_is_none_is_refused(fault: Commands) -> None:
    with pytest.raises(LabError, match=r"no action 'CreateNetworkInterfaces', but CreateNetworkInterface"):
        fault("set", "lost", "CreateNetworkInterfaces")
    assert fault.faults == []


def test_without_a_lab_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no region answers"):
        CliRunner().invoke(cli, ["list", "--dir", str(tmp_path)], catch_exceptions=False)
