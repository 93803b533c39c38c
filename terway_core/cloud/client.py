"""Signed calls of the OpenAPI, retried where that is safe."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Literal, Protocol, TypeAlias

from terway_core.cloud.credentials import Credentials, CredentialSource
from terway_core.cloud.failures import Failure, is_passing, to_error
from terway_core.cloud.limiter import Limiter
from terway_core.cloud.metadata import Metadata
from terway_core.cloud.rrsa import Rrsa, assume_role
from terway_core.config import CloudConfig

log = logging.getLogger(__name__)

Product: TypeAlias = Literal["ecs", "vpc"]
#: What needs the cloud: keeping the VPC's route entries, ENIs for pods, addresses on shared ENIs, IPv6 there.
Feature: TypeAlias = Literal["routes", "enis", "addresses", "ipv6"]

#: The longest silence of the service within one try, and what every try is given at least (seconds).
READ_TIMEOUT: Final = 10.0
LEAST_READ_TIMEOUT: Final = 1.0
#: The first and the longest wait between two tries (seconds).
FIRST_BACKOFF: Final = 0.5
LAST_BACKOFF: Final = 8.0


class Observer(Protocol):
    """Who is told of every call."""

    def cloud_called(self, action: str, code: str, seconds: float) -> None:
        """One try was made; ``code`` is the service's, ``OK``, or ``no answer``."""

    def cloud_waited(self, action: str, seconds: float) -> None:
        """A try waited so long for its turn."""


class _Nobody:
    def cloud_called(self, action: str, code: str, seconds: float) -> None:
        pass

    def cloud_waited(self, action: str, seconds: float) -> None:
        pass


class Cloud:
    """The ECS and VPC APIs and the instance metadata; safe to use from several threads.

    Nothing is contacted, and the SDK is not imported, before the first use.

    :param env: where credentials are looked for first.
    :param clock: seconds since the epoch.
    :param monotonic: seconds by which waiting is measured; ``sleep`` is how to wait.
    """

    def __init__(
        self,
        config: CloudConfig,
        *,
        observer: Observer | None = None,
        env: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.metadata = Metadata(config.metadata_url, monotonic=monotonic, sleep=sleep)
        self._config = config
        rrsa = Rrsa.from_env(env)
        self._credentials = CredentialSource(
            file=config.credentials_file,
            env=env,
            metadata=self.metadata,
            clock=clock,
            rrsa=partial(self._assume_role, rrsa) if rrsa else None,
        )
        self._observer = observer or _Nobody()
        self._limiter = Limiter(clock=clock, monotonic=monotonic, sleep=sleep)
        self.monotonic = monotonic
        self.sleep = sleep
        self._region_id = config.region_id
        self._clients: dict[Product, tuple[Credentials, Any]] = {}

    @property
    def region_id(self) -> str:
        """The configured region, else that of this instance.

        :raises CloudError: it is not configured and the metadata service does not answer.
        """
        if not self._region_id:
            self._region_id = self.metadata.require("region-id")
        return self._region_id

    def call(
        self,
        product: Product,
        action: str,
        params: Mapping[str, Any],
        *,
        idempotent: bool = False,
        timeout: float = 30.0,
    ) -> dict[str, Any]:
        """Call one action and return its answer.

        A call is tried again after a passing refusal or no answer at all if that cannot do harm: it only
        reads (``Describe…``), carries a ``ClientToken``, or the caller says so. A try whose turn would
        come too late, because the service throttles this action, is not made at all.

        :param params: nested as the API reference has them: lists and dicts become ``Name.1.Key``, None is
            left out, ``RegionId`` is added.
        :param idempotent: carrying it out twice is the same as once.
        :param timeout: seconds for all tries together.
        :raises CloudError: the last refusal, with its ``code``.
        """
        query = flatten({"RegionId": self.region_id, **params})
        deadline = self.monotonic() + timeout
        safe = idempotent or action.startswith("Describe") or bool(params.get("ClientToken"))
        attempt = 0
        while True:
            credentials = self._credentials.get()
            self._observer.cloud_waited(action, self._limiter.wait(action, deadline))
            left = deadline - self.monotonic()
            read_timeout = max(LEAST_READ_TIMEOUT, min(READ_TIMEOUT, left))
            try:
                return self._try(product, action, query, credentials, read_timeout)
            except Failure as failure:
                error = to_error(
                    failure,
                    product=product,
                    action=action,
                    endpoint=self._endpoint(product),
                    origin=credentials.origin,
                )
                throttled = "Throttling" in failure.code
                if throttled:
                    pause = self._limiter.throttled(action, failure.retry_after)
                else:
                    pause = max(backoff(attempt), failure.retry_after)
                # Waiting until there is no time left for another try would help nobody.
                if not safe or not is_passing(failure) or self.monotonic() + pause >= deadline:
                    raise error from failure
                log.info("%s is tried again in %.1f s: %s", action, pause, error)
            if not throttled:  # that is for the limiter to wait
                self.sleep(pause)
            attempt += 1

    def _try(
        self,
        product: Product,
        action: str,
        query: Mapping[str, str],
        credentials: Credentials,
        read_timeout: float,
    ) -> dict[str, Any]:
        began = self.monotonic()
        try:
            answer = self._send(product, action, query, credentials, read_timeout)
        except Failure as failure:
            self._observer.cloud_called(action, failure.code or "no answer", self.monotonic() - began)
            if failure.code and "Throttling" not in failure.code:
                self._limiter.answered(action)
            raise
        self._observer.cloud_called(action, "OK", self.monotonic() - began)
        self._limiter.answered(action)
        return answer

    def _send(
        self,
        product: Product,
        action: str,
        query: Mapping[str, str],
        credentials: Credentials,
        read_timeout: float,
    ) -> dict[str, Any]:
        from terway_core.cloud import sdk

        known, client = self._clients.get(product, (None, None))
        if known != credentials:
            client = sdk.make_client(self._endpoint(product), self._config.protocol, credentials)
            self._clients[product] = credentials, client
        return sdk.send(client, product, action, query, read_timeout=read_timeout)

    def _assume_role(self, rrsa: Rrsa) -> tuple[Credentials, float]:
        return assume_role(rrsa, endpoint=self._endpoint("sts"), protocol=self._config.protocol)

    def _endpoint(self, product: Product | Literal["sts"]) -> str:
        configured = {
            "ecs": self._config.ecs_endpoint,
            "vpc": self._config.vpc_endpoint,
            "sts": self._config.sts_endpoint,
        }[product]
        # The endpoint inside the VPC: a node needs no way to the internet to reach it.
        return configured or f"{product}-vpc.{self.region_id}.aliyuncs.com"


def backoff(attempt: int) -> float:
    """Seconds to wait after try number ``attempt``, from 0: doubling, the upper half of it by chance."""
    longest = min(LAST_BACKOFF, FIRST_BACKOFF * 2.0**attempt)
    return longest * random.uniform(0.5, 1.0)


def flatten(params: Mapping[str, Any]) -> dict[str, str]:
    """``{"Tag": [{"Key": "a"}]}`` becomes ``{"Tag.1.Key": "a"}``; None is left out, True is ``true``."""
    return dict(_flatten("", params))


def _flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}" if name else key, inner)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value, 1):
            yield from _flatten(f"{name}.{index}", inner)
    elif isinstance(value, bool):
        yield name, str(value).lower()
    elif value is not None:
        yield name, str(value)
