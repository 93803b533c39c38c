"""The product's metadata client against the simulated service, and against one that misbehaves."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address, ip_network

import pytest
from aiohttp import web

from terway_core.cloud import Identity, Metadata
from terway_core.errors import CloudError, InvalidConfig
from terway_core.lab.api import Region, serving
from terway_core.lab.metadata import build_app


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


@contextmanager
def metadata_of(region: Region, clock: Clock | None = None) -> Iterator[Metadata]:
    clock = clock or Clock()
    with serving(build_app(region, http_tokens="required")) as endpoint:
        yield Metadata(f"http://{endpoint}", monotonic=clock, sleep=clock.sleep)


@contextmanager
def scripted(*answers: int | str, clock: Clock | None = None) -> Iterator[tuple[Metadata, list[str]]]:
    """A service that gives the next of ``answers`` (a status, or a text with 200) to each GET."""
    seen: list[str] = []
    script = iter(answers)
    tokens = iter(range(1000))

    async def token(_request: web.Request) -> web.Response:
        seen.append("token")
        return web.Response(text=f"token-{next(tokens)}")

    async def get(request: web.Request) -> web.Response:
        seen.append(request.headers["X-aliyun-ecs-metadata-token"])
        answer = next(script)
        if isinstance(answer, int):
            return web.Response(status=answer, text="no")
        return web.Response(text=answer)

    app = web.Application()
    app.router.add_put("/latest/api/token", token)
    app.router.add_get("/latest/meta-data/{path:.*}", get)
    clock = clock or Clock()
    with serving(app) as endpoint:
        yield Metadata(f"http://{endpoint}/", monotonic=clock, sleep=clock.sleep), seen


def make_region(ipv6: bool = False) -> Region:
    region = Region.create()
    vpc = region.add_vpc("127.0.0.0/8", "2408:4000::/56" if ipv6 else None)
    vswitch = region.add_vswitch(vpc, "127.0.0.0/24", "cn-hangzhou-h", "2408:4000:0:1::/64" if ipv6 else None)
    region.add_instance("node", instance_type="ecs.g7.large", vswitch=vswitch, private_ip="127.0.0.1")
    return region


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "dual"])
def test_identity(ipv6: bool) -> None:
    region = make_region(ipv6)
    (node,) = region.instances.values()
    with metadata_of(region) as metadata:
        assert metadata.identity() == Identity(
            region_id="cn-hangzhou",
            zone_id="cn-hangzhou-h",
            vpc_id=node.vpc_id,
            vpc_cidrs=(
                ip_network("127.0.0.0/8"),
                *([ip_network("2408:4000::/56")] if ipv6 else []),
            ),
            vswitch_id=node.vswitch_id,
            instance_id=node.instance_id,
            instance_type="ecs.g7.large",
            private_ipv4=ip_address("127.0.0.1"),
            private_ipv6=ip_address("2408:4000:0:1::1") if ipv6 else None,
            mac=node.mac,
        )


def test_what_is_not_there_is_none() -> None:
    with metadata_of(make_region()) as metadata:
        assert metadata.get("eipv4") is None
        assert metadata.get("instance/") == "instance-name\ninstance-type"
        with pytest.raises(CloudError, match="eipv4"):
            metadata.require("eipv4")


def test_one_token_for_many_questions_and_a_new_one_before_it_expires() -> None:
    clock = Clock()
    with scripted("a", "b", "c", clock=clock) as (metadata, seen):
        assert [metadata.get("x"), metadata.get("x")] == ["a", "b"]
        clock.now += 21600
        assert metadata.get("x") == "c"
    assert seen == ["token", "token-0", "token-0", "token", "token-1"]


def test_a_token_that_the_service_forgot_is_renewed_once() -> None:
    with scripted("a", 401, "b", 401, 401) as (metadata, seen):
        assert metadata.get("x") == "a"
        assert metadata.get("x") == "b"
        with pytest.raises(CloudError, match="HTTP 401"):
            metadata.get("x")
    assert seen == ["token", "token-0", "token-0", "token", "token-1", "token-1", "token", "token-2"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_throttling_and_outages_are_waited_for(status: int) -> None:
    clock = Clock()
    with scripted(status, status, status, "a", clock=clock) as (metadata, _):
        assert metadata.get("x") == "a"
    assert len(clock.sleeps) == 3


def test_but_not_for_ever() -> None:
    with scripted(*[503] * 4) as (metadata, _), pytest.raises(CloudError, match="HTTP 503"):
        metadata.get("x")


@pytest.mark.parametrize("status", [400, 403])
def test_refusals_are_not_tried_again(status: int) -> None:
    with scripted(status) as (metadata, seen), pytest.raises(CloudError, match=f"HTTP {status}"):
        metadata.get("x")
    assert seen == ["token", "token-0"]


def test_no_token_is_given() -> None:
    with serving(web.Application()) as endpoint, pytest.raises(CloudError, match="gave no token: HTTP 404"):
        Metadata(f"http://{endpoint}").get("x")


def test_nobody_there() -> None:
    with serving(web.Application()) as endpoint:
        pass
    with pytest.raises(CloudError, match="runs on ECS instances") as caught:
        Metadata(f"http://{endpoint}").get("x")
    assert caught.value.code == ""


def test_nonsense_is_an_error() -> None:
    with (
        scripted("00:16:3e:00:00:01", "[not-an-address]") as (metadata, _),
        pytest.raises(CloudError, match="nonsense"),
    ):
        metadata.identity()


def test_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with scripted("a") as (metadata, _):
        assert metadata.get("x") == "a"


@pytest.mark.parametrize("url", ["https://100.100.100.200", "100.100.100.200", "http://", "http://h/latest"])
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(InvalidConfig, match="metadata_url"):
        Metadata(url)


def test_concurrent_questions() -> None:
    with metadata_of(make_region()) as metadata, ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(metadata.get, ["mac"] * 40))) == 1
