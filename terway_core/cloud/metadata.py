"""The instance metadata service: who and where this machine is.

Always in token mode (the hardened one), never through a proxy.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final
from urllib.parse import urlsplit

from terway_core.errors import CloudError, InvalidConfig
from terway_core.types import IPNetwork

TOKEN_HEADER: Final = "X-aliyun-ecs-metadata-token"
TTL_HEADER: Final = "X-aliyun-ecs-metadata-token-ttl-seconds"
#: The longest life of a token that the service grants, and when we ask for the next one (seconds).
TOKEN_TTL: Final = 21600
TOKEN_RENEWAL: Final = TOKEN_TTL - 600
#: Seconds; the service is on the same host, only a broken one takes longer.
TIMEOUT: Final = 2.0
#: Waits between tries when the service is throttling or broken (seconds).
BACKOFF: Final = (0.5, 0.6, 0.72)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What the metadata service says about this instance.

    :param vpc_cidrs: the VPC's IPv4 block, then its IPv6 blocks.
    :param private_ipv6: the first IPv6 address of the primary ENI.
    :param mac: that of the primary ENI.
    """

    region_id: str
    zone_id: str
    vpc_id: str
    vpc_cidrs: tuple[IPNetwork, ...]
    vswitch_id: str
    instance_id: str
    instance_type: str
    private_ipv4: IPv4Address
    private_ipv6: IPv6Address | None
    mac: str


class Metadata:
    """A client of the metadata service; safe to use from several threads.

    :param url: without a path, as in ``http://100.100.100.200``.
    :raises InvalidConfig: ``url`` is not of that form.
    """

    def __init__(
        self,
        url: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise InvalidConfig(f"cloud.metadata_url {url!r} must look like http://100.100.100.200")
        self.url = url.rstrip("/")
        self._host, self._port = parts.hostname, parts.port or 80
        self._monotonic = monotonic
        self._sleep = sleep
        self._token: tuple[str, float] | None = None

    def get(self, path: str) -> str | None:
        """The text of an item below ``/latest/meta-data/``; None when there is no such item.

        :raises CloudError: the service does not answer, or refuses.
        """
        status, text = self._get(path)
        if status == 401:  # the service forgot our token: it restarted, or the clock jumped
            self._token = None
            status, text = self._get(path)
        if status == 404:
            return None
        if status != 200:
            raise CloudError(f"instance metadata {path}: {self.url} answered HTTP {status}: {text[:200]}")
        return text

    def require(self, path: str) -> str:
        """:meth:`get` of an item that every instance has.

        :raises CloudError: also when it is missing or empty.
        """
        if text := self.get(path):
            return text
        raise CloudError(
            f"instance metadata {path}: {self.url} has no such item. terway runs on ECS instances in a VPC; "
            "elsewhere set what it would ask for in the configuration."
        )

    def identity(self) -> Identity:
        """Ask for everything in :class:`Identity`.

        :raises CloudError: as :meth:`require`; also when an item is not what it should be.
        """
        mac = self.require("mac")
        interface = f"network/interfaces/macs/{mac}"
        try:
            ipv6 = [IPv6Address(text) for text in _bracketed(self.get(f"{interface}/ipv6s"))]
            ipv6_cidrs = [
                ip_network(text) for text in _bracketed(self.get(f"{interface}/vpc-ipv6-cidr-blocks"))
            ]
            return Identity(
                region_id=self.require("region-id"),
                zone_id=self.require("zone-id"),
                vpc_id=self.require("vpc-id"),
                vpc_cidrs=(ip_network(self.require("vpc-cidr-block")), *ipv6_cidrs),
                vswitch_id=self.require("vswitch-id"),
                instance_id=self.require("instance-id"),
                instance_type=self.require("instance/instance-type"),
                private_ipv4=IPv4Address(self.require("private-ipv4")),
                private_ipv6=ipv6[0] if ipv6 else None,
                mac=mac,
            )
        except ValueError as error:
            raise CloudError(f"instance metadata: {self.url} answered nonsense: {error}") from error

    def _get(self, path: str) -> tuple[int, str]:
        return self._request("GET", f"/latest/meta-data/{path}", {TOKEN_HEADER: self._fresh_token()})

    def _fresh_token(self) -> str:
        if self._token is None or self._token[1] <= self._monotonic():
            status, text = self._request("PUT", "/latest/api/token", {TTL_HEADER: str(TOKEN_TTL)})
            if status != 200:
                raise CloudError(f"instance metadata: {self.url} gave no token: HTTP {status}: {text[:200]}")
            self._token = text, self._monotonic() + TOKEN_RENEWAL
            return text
        return self._token[0]

    def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        for delay in BACKOFF:
            status, text = self._request_once(method, path, headers)
            if status != 429 and status < 500:
                return status, text
            self._sleep(delay)
        return self._request_once(method, path, headers)

    def _request_once(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            raise CloudError(
                f"instance metadata: no answer from {self.url} ({error!r}). terway runs on ECS "
                "instances; elsewhere set cloud.region_id and credentials in the configuration."
            ) from error
        finally:
            connection.close()


def _bracketed(text: str | None) -> list[str]:
    """``[2408::1,2408::2]`` is how the service writes IPv6 lists; it is no JSON."""
    return [part.strip() for part in (text or "").strip("[]").split(",") if part.strip()]
