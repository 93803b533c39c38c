"""Calls of the product's client: against the simulated region, and against one that misbehaves."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from terway_core.cloud import Cloud
from terway_core.cloud.client import LEAST_READ_TIMEOUT, READ_TIMEOUT, Observer, flatten
from terway_core.cloud.limiter import SPREAD
from terway_core.config import CloudConfig
from terway_core.errors import CloudError, RetryLater
from terway_core.lab.api import CALLS, Behaviour, Region, build_app, serving
from terway_core.lab.metadata import build_app as build_metadata


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def make_cloud(
    endpoint: str,
    clock: Clock | None = None,
    env: dict[str, str] | None = None,
    wall: Callable[[], float] | None = None,
    observer: Observer | None = None,
) -> Cloud:
    clock = clock or Clock()
    config = CloudConfig(
        region_id="cn-hangzhou", vpc_endpoint=endpoint, ecs_endpoint=endpoint, protocol="http"
    )
    return Cloud(
        config,
        env=env or {"ALIBABA_CLOUD_ACCESS_KEY_ID": "id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "secret"},
        observer=observer,
        clock=wall or time.time,
        monotonic=clock,
        sleep=clock.sleep,
    )


def env_of(region: Region) -> dict[str, str]:
    key = region.add_access_key()
    return {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
    }


@contextmanager
def scripted(*answers: tuple[int, Any] | web.Response) -> Iterator[tuple[str, list[web.Request]]]:
    """An API that gives the next of ``answers`` (a status and an error code, or a whole response)."""
    seen: list[web.Request] = []
    script = iter(answers)

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        match next(script):
            case web.Response() as response:
                return response
            case (status, code):
                error = {"Code": code, "Message": "It is so.", "RequestId": "REQ-1", "HostId": "h"}
                return web.json_response({"RequestId": "REQ-1"} if status == 200 else error, status=status)
            case other:
                raise AssertionError(other)

    app = web.Application()
    app.router.add_post("/", answer)
    with serving(app) as endpoint:
        yield endpoint, seen


OK = (200, "")


def test_a_call_of_each_product() -> None:
    region = Region.create()
    vpc = region.add_vpc("10.0.0.0/8")
    app = build_app(region)
    with serving(app) as endpoint:
        cloud = make_cloud(endpoint, env=env_of(region))
        answer = cloud.call("vpc", "DescribeVpcs", {"VpcId": vpc.vpc_id, "IsDefault": False, "Tag": None})
        assert [one["VpcId"] for one in answer["Vpcs"]["Vpc"]] == [vpc.vpc_id]
        assert cloud.call("ecs", "DescribeInstances", {})["TotalCount"] == 0
    first, second = app[CALLS]
    assert first.params == {"RegionId": "cn-hangzhou", "VpcId": vpc.vpc_id, "IsDefault": "false"}
    assert (first.product, second.product) == ("Vpc", "Ecs")


def test_parameters_are_flattened() -> None:
    params = {
        "Name": "a",
        "Count": 3,
        "Yes": True,
        "None": None,
        "Empty": [],
        "Ids": ["x", "y"],
        "Tag": [{"Key": "k", "Value": ""}],
        "Config": {"Queue": 2},
    }
    assert flatten(params) == {
        "Name": "a",
        "Count": "3",
        "Yes": "true",
        "Ids.1": "x",
        "Ids.2": "y",
        "Tag.1.Key": "k",
        "Tag.1.Value": "",
        "Config.Queue": "2",
    }


def test_a_refusal_says_what_whom_and_which_request() -> None:
    region = Region.create()
    app = build_app(region)
    with serving(app) as endpoint, pytest.raises(CloudError) as caught:
        make_cloud(endpoint, env=env_of(region)).call(
            "vpc", "DescribeRouteEntryList", {"RouteTableId": "vtb-x"}
        )
    error = caught.value
    assert isinstance(error, RetryLater)
    assert error.code == "InvalidRouteTableId.NotFound"
    assert error.request_id == app[CALLS][0].request_id
    for part in ("DescribeRouteEntryList", error.code, "does not exist", error.request_id):
        assert part in error.message


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "Forbidden.RAM", "vpc:DeleteRouteEntry in the RAM policy of the key from the environment"),
        (403, "NoPermission", "RAM policy"),
        (404, "InvalidAccessKeyId.NotFound", "access key from the environment"),
        (400, "SignatureDoesNotMatch", "secret from the environment"),
        (400, "InvalidSecurityToken.Expired", "renew"),
        (400, "InvalidTimeStamp.Expired", "clock"),
        (400, "QuotaExceeded", "quota"),
        (400, "Throttling.User", "limit"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, code: str, advice: str) -> None:
    with scripted((status, code)) as (endpoint, _), pytest.raises(CloudError, match=advice) as caught:
        make_cloud(endpoint).call("vpc", "DeleteRouteEntry", {})
    assert caught.value.code == code


PASSING = [
    (503, "ServiceUnavailable"),
    (500, "InternalError"),
    (500, "Whatever"),
    (400, "TaskConflict"),
    (400, "IncorrectRouteEntryStatus"),
    (403, "LastTokenProcessing"),
    (409, "OperationConflict"),
]


@pytest.mark.parametrize(("status", "code"), PASSING)
@pytest.mark.parametrize(
    ("action", "params", "idempotent"),
    [
        ("DescribeVpcs", {}, False),
        ("CreateRouteEntry", {"ClientToken": "t"}, False),
        ("DeleteRouteEntry", {}, True),
    ],
)
def test_safe_calls_are_tried_again(
    status: int, code: str, action: str, params: dict[str, str], idempotent: bool
) -> None:
    clock = Clock()
    with scripted((status, code), (status, code), OK) as (endpoint, seen):
        answer = make_cloud(endpoint, clock).call("vpc", action, params, idempotent=idempotent)
    assert answer == {"RequestId": "REQ-1"}
    assert len({request.headers["x-acs-signature-nonce"] for request in seen}) == 3
    first, second = clock.sleeps
    assert 0 < first <= 0.5 < second <= 1.0


@pytest.mark.parametrize("code", ["Throttling", "Throttling.User", "Throttling.Api"])
def test_a_throttled_call_waits_for_the_next_minute(code: str) -> None:
    clock = Clock()
    with scripted((400, code), OK) as (endpoint, seen):
        make_cloud(endpoint, clock, wall=clock).call("vpc", "DescribeVpcs", {})
    assert len(seen) == 2
    assert 1020 <= clock.now <= 1020 + SPREAD  # 1000 is 20 s before the end of a minute


@pytest.mark.parametrize("timeout", [19, 0])
def test_a_throttled_call_fails_at_once_if_the_next_minute_is_too_late(timeout: float) -> None:
    clock = Clock()
    with scripted((400, "Throttling"), OK) as (endpoint, seen):
        cloud = make_cloud(endpoint, clock, wall=clock)
        for message in (r"It is so \(request REQ-1\)", r"the service throttled it.* in 2[012]\.\d s"):
            with pytest.raises(CloudError, match=message) as caught:
                cloud.call("vpc", "DescribeVpcs", {}, timeout=timeout)
            assert caught.value.code == "Throttling"
        assert (len(seen), clock.sleeps) == (1, [])
        cloud.call("vpc", "DescribeRouteTableList", {})  # another action is another matter
    assert clock.sleeps == []


class Observed:
    """Who is told of every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.waits: list[float] = []

    def cloud_called(self, action: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.calls.append((action, code))

    def cloud_waited(self, action: str, seconds: float) -> None:
        self.waits.append(seconds)


def test_every_try_is_observed() -> None:
    clock, observed = Clock(), Observed()
    no_answer = web.Response(text="")
    with scripted((400, "Throttling"), no_answer, OK, (404, "InvalidVpcId.NotFound")) as (endpoint, _):
        cloud = make_cloud(endpoint, clock, wall=clock, observer=observed)
        cloud.call("vpc", "DescribeVpcs", {})
        with pytest.raises(CloudError):
            cloud.call("vpc", "DescribeVpcs", {})
    codes = ["Throttling", "no answer", "OK", "InvalidVpcId.NotFound"]
    assert observed.calls == [("DescribeVpcs", code) for code in codes]
    assert observed.waits[0] == 0
    assert observed.waits[1] >= 20


@pytest.mark.parametrize(("status", "code"), [*PASSING, (400, "Throttling")])
def test_unsafe_calls_are_not(status: int, code: str) -> None:
    clock = Clock()
    with scripted((status, code), OK) as (endpoint, seen), pytest.raises(CloudError):
        make_cloud(endpoint, clock).call("ecs", "AttachNetworkInterface", {"ClientToken": ""})
    assert len(seen) == 1
    assert clock.sleeps == []


@pytest.mark.parametrize(
    ("status", "code"), [(403, "Forbidden.RAM"), (404, "InvalidVpcId.NotFound"), (400, "QuotaExceeded")]
)
def test_what_will_not_pass_is_not_tried_again(status: int, code: str) -> None:
    with scripted((status, code), OK) as (endpoint, seen), pytest.raises(CloudError):
        make_cloud(endpoint).call("vpc", "DescribeVpcs", {})
    assert len(seen) == 1


def test_tries_end_before_the_time_is_up() -> None:
    clock = Clock()
    with scripted(*[(500, "InternalError")] * 50) as (endpoint, seen), pytest.raises(CloudError) as caught:
        make_cloud(endpoint, clock).call("vpc", "DescribeVpcs", {}, timeout=30)
    assert caught.value.code == "InternalError"
    assert 4 < len(seen) < 12
    assert clock.now < 1030


def test_the_service_may_say_how_long_to_wait() -> None:
    clock = Clock()
    body = {"Code": "Throttling.Api", "Message": "m", "RequestId": "r"}
    throttled = web.json_response(body, status=429, headers={"x-acs-retry-after": "7000"})
    with scripted(throttled, OK) as (endpoint, _):
        make_cloud(endpoint, clock).call("vpc", "DescribeVpcs", {})
    assert clock.sleeps == [7.0]


@pytest.mark.parametrize(
    "garbage",
    [
        web.Response(status=502, text="<html>Bad Gateway</html>", content_type="text/html"),
        web.Response(text=""),
        web.json_response(["a", "list"]),
        web.json_response(["a", "list"], status=500),
    ],
    ids=["html", "empty", "list", "error-list"],
)
def test_an_answer_that_is_none(garbage: web.Response) -> None:
    with scripted(garbage) as (endpoint, _), pytest.raises(CloudError, match="no answer") as caught:
        make_cloud(endpoint).call("vpc", "DeleteRouteEntry", {})
    assert caught.value.code == ""


def test_nobody_there() -> None:
    with serving(web.Application()) as endpoint:
        pass
    clock = Clock()
    with pytest.raises(CloudError, match=rf"no answer from {endpoint}.*cloud\.vpc_endpoint") as caught:
        make_cloud(endpoint, clock).call("vpc", "DescribeVpcs", {"VpcId": "vpc-1"})
    assert "vpc-1" not in caught.value.message  # the parameters are no part of the problem
    assert clock.sleeps


def test_a_silent_service_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time left for the call bounds each try, and no try waits for ever."""
    from terway_core.cloud import sdk

    seen: list[float] = []

    def silent(*_: object, read_timeout: float) -> dict[str, Any]:
        seen.append(read_timeout)
        return {}

    monkeypatch.setattr(sdk, "send", silent)
    make_cloud("127.0.0.1:1").call("vpc", "DescribeVpcs", {}, timeout=4)
    make_cloud("127.0.0.1:1").call("vpc", "DescribeVpcs", {}, timeout=40)
    make_cloud("127.0.0.1:1").call("vpc", "DescribeVpcs", {}, timeout=0)
    assert seen == [4, READ_TIMEOUT, LEAST_READ_TIMEOUT]


def test_throttled_by_the_region_until_the_next_minute() -> None:
    clock = Clock()
    # The SDK dates its requests by the machine's clock: the region's must not be far from it.
    offset = time.time() // 60 * 60 - clock.now
    region = Region.create(clock=lambda: offset + clock.now)
    app = build_app(region, behaviour=Behaviour(limits={"DescribeVpcs": 1}))
    with serving(app) as endpoint:
        cloud = make_cloud(endpoint, clock, env_of(region), wall=region.now)
        cloud.call("vpc", "DescribeVpcs", {}, timeout=90)
        cloud.call("vpc", "DescribeVpcs", {}, timeout=90)
    assert [call.code for call in app[CALLS]] == ["", "Throttling", ""]


def test_endpoints_are_those_inside_the_vpc(monkeypatch: pytest.MonkeyPatch) -> None:
    from terway_core.cloud import sdk

    asked: list[tuple[str, str]] = []

    def make_client(endpoint: str, protocol: str, _credentials: object) -> None:
        asked.append((endpoint, protocol))

    monkeypatch.setattr(sdk, "make_client", make_client)
    monkeypatch.setattr(sdk, "send", lambda *_, **__: {})
    env = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "secret"}
    cloud = Cloud(CloudConfig(region_id="cn-beijing"), env=env)
    cloud.call("ecs", "DescribeInstances", {})
    cloud.call("vpc", "DescribeVpcs", {})
    cloud.call("vpc", "DescribeVpcs", {})
    assert asked == [
        ("ecs-vpc.cn-beijing.aliyuncs.com", "https"),
        ("vpc-vpc.cn-beijing.aliyuncs.com", "https"),
    ]


def test_region_comes_from_the_instance() -> None:
    region = Region.create(region_id="cn-shenzhen")
    vswitch = region.add_vswitch(region.add_vpc("127.0.0.0/8"), "127.0.0.0/24", "cn-shenzhen-a")
    region.add_instance("node", instance_type="t", vswitch=vswitch, private_ip="127.0.0.1")
    with serving(build_app(region)) as api, serving(build_metadata(region)) as metadata:
        config = CloudConfig(
            metadata_url=f"http://{metadata}", vpc_endpoint=api, ecs_endpoint=api, protocol="http"
        )
        cloud = Cloud(config, env={})
        assert cloud.region_id == "cn-shenzhen"
        assert cloud.call("vpc", "DescribeVpcs", {})["TotalCount"] == 1  # by the instance's RAM role


def test_a_rotated_key_is_used_from_the_next_call_on(tmp_path: Path) -> None:
    region = Region.create()
    file = tmp_path / "credentials"
    app = build_app(region)
    with serving(app) as endpoint:
        config = CloudConfig(
            region_id="cn-hangzhou", vpc_endpoint=endpoint, protocol="http", credentials_file=file
        )
        cloud = Cloud(config, env={})
        keys = [region.add_access_key(), region.add_sts_credentials(600)]
        for key in keys:
            file.write_text(
                f"[default]\naccess_key_id = {key.access_key_id}\n"
                f"access_key_secret = {key.access_key_secret}\nsecurity_token = {key.security_token}\n"
            )
            cloud.call("vpc", "DescribeVpcs", {})
    assert [call.access_key_id for call in app[CALLS]] == [key.access_key_id for key in keys]


def test_no_secret_in_logs_and_no_proxy_even_if_the_environment_asks(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own, for the SDK reads the environment and sets up logging at import."""
    region = Region.create()
    vswitch = region.add_vswitch(region.add_vpc("127.0.0.0/8"), "127.0.0.0/24", "cn-hangzhou-h")
    region.add_instance("node", instance_type="t", vswitch=vswitch, private_ip="127.0.0.1")
    script = textwrap.dedent("""
        import json, logging, sys
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
        from terway_core.cloud import Cloud
        from terway_core.config import CloudConfig
        from terway_core.errors import CloudError
        cloud = Cloud(CloudConfig.model_validate_json(sys.argv[1]))
        cloud.call("vpc", "DescribeVpcs", {})
        try:
            cloud.call("vpc", "DescribeRouteEntryList", {"RouteTableId": "vtb-x"})
        except CloudError:
            logging.exception("as expected")
    """)
    caplog.set_level(logging.DEBUG)
    app = build_app(region)
    with serving(app) as api, serving(build_metadata(region)) as metadata:
        config = {
            "metadata_url": f"http://{metadata}",
            "vpc_endpoint": api,
            "ecs_endpoint": api,
            "protocol": "http",
        }
        proxy = dict.fromkeys(
            ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(config)],
            env={**without_credentials(), **proxy, "DEBUG": "sdk"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0, done.stdout
    assert "as expected" in done.stdout
    assert [call.code for call in app[CALLS]] == ["", "InvalidRouteTableId.NotFound"]
    (key,) = region.access_keys.values()
    ours = capfd.readouterr()
    for text in (done.stdout, caplog.text, ours.out, ours.err):
        assert key.access_key_secret not in text
        assert key.security_token not in text
        assert "Authorization" not in text


def test_importing_and_making_a_cloud_does_not_import_the_sdk() -> None:
    script = textwrap.dedent("""
        import sys
        from terway_core.cloud import Cloud, vpc
        from terway_core.config import CloudConfig
        Cloud(CloudConfig())
        heavy = ("alibabacloud", "darabonba", "Tea", "requests", "aiohttp", "terway_core.lab")
        print([name for name in sys.modules if name.startswith(heavy)])
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_the_sdk_is_kept_from_logging_and_the_environment_is_left_alone() -> None:
    script = textwrap.dedent("""
        import logging, os
        before = dict(os.environ)
        from terway_core.cloud import sdk
        assert dict(os.environ) == before and os.getenv("DEBUG") == "sdk"
        for name in ("darabonba-core", "alibabacloud-tea", "credentials"):
            assert not logging.getLogger(name).handlers, name
    """)
    env = {**os.environ, "DEBUG": "sdk", "HTTP_PROXY": "http://127.0.0.1:9"}
    subprocess.run([sys.executable, "-c", script], env=env, check=True, timeout=60)


def without_credentials() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ALIBABA_CLOUD_")}
