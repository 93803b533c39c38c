"""Traffic shaping for every mode: a wrapper of ``terway_setup`` that adds token buckets to the wiring.

Rates come from the annotations ``kubernetes.io/ingress-bandwidth`` and ``kubernetes.io/egress-bandwidth``, or
from ``runtimeConfig.bandwidth`` (CNI conventions, "Dynamic Plugin specific fields"), which wins. Ingress and
egress are the pod's: what the host end of its link sends is the pod's ingress.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Any, Final

from terway_core.errors import InvalidConfig
from terway_core.hookspecs import hookimpl
from terway_core.types import Attachment, Node
from terway_core.wiring.objects import TokenBucket, Veth, Wiring

__all__ = ["parse_quantity", "plugin"]

# Kubernetes resource.Quantity: a decimal number, then a power of 1024, a power of 1000 or an exponent.
_QUANTITY: Final = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?\d{1,2}))?", re.ASCII
)
_BINARY: Final[Mapping[str, int]] = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", 1)}
_DECIMAL: Final[Mapping[str, Fraction]] = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    **{letter: Fraction(1000**power) for power, letter in enumerate("kMGTPE", 1)},
}

# Kubernetes takes no other rates (pkg/util/bandwidth/utils.go).
_MIN_RATE: Final = 10**3
_MAX_RATE: Final = 10**15

# kubelet and containerd know no burst and send MaxInt32 or MaxUint32 for it; bits, as the rates.
_UNKNOWN_BURST: Final = 2**31 - 1

# struct tc_tbf_qopt holds burst and limit in 32 bits.
_U32: Final = 2**32 - 1


class Bandwidth:
    """The plugin ``bandwidth`` of the group ``terway.plugins``."""

    @hookimpl(wrapper=True)
    def terway_setup(self, attachment: Attachment, node: Node) -> Generator[None, Wiring, Wiring]:
        """Add the token buckets that the pod asks for.

        :raises InvalidConfig: an annotation or a value of ``runtimeConfig.bandwidth`` is malformed.
        """
        ingress, ingress_burst = _asked(attachment, "ingress")
        egress, egress_burst = _asked(attachment, "egress")
        wiring = yield
        # The pod's link may be no veth but an ENI of its own: then nothing on the host sends to it.
        ends = [
            obj
            for obj in wiring.host
            if isinstance(obj, Veth) and (obj.name, obj.peer) == (attachment.host_ifname, attachment.ifname)
        ]
        mtu = ends[0].mtu if ends else node.mtu
        if ingress and ends:
            bucket = _bucket(attachment.host_ifname, ingress, ingress_burst, mtu)
            wiring = replace(wiring, host=(*wiring.host, bucket))
        if egress:
            bucket = _bucket(attachment.ifname, egress, egress_burst, mtu)
            wiring = replace(wiring, pod=(*wiring.pod, bucket))
        return wiring


plugin: Final = Bandwidth()


def parse_quantity(text: str) -> Fraction:
    """The value of a Kubernetes quantity: ``10M``, ``1.5Gi``, ``1e6``, ``500k``.

    :raises ValueError: it is none.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a Kubernetes quantity such as 10M or 1.5Gi")
    number, binary, decimal, exponent = match.groups()
    if binary:
        return Fraction(number) * _BINARY[binary]
    if decimal:
        return Fraction(number) * _DECIMAL[decimal]
    return Fraction(number) * Fraction(10) ** int(exponent or 0)


def _asked(attachment: Attachment, direction: str) -> tuple[int, int]:
    """Rate (bits per second) and burst (bits) of one direction; 0 where nothing is asked for."""
    config = attachment.runtime_config.get("bandwidth") or {}
    if not isinstance(config, Mapping):
        raise InvalidConfig(f"runtimeConfig.bandwidth is {config!r}; it must be an object")
    # containerd writes IngressRate, not ingressRate as the conventions do; Go, which most plugins are written
    # in, reads both.
    given = {str(key).lower(): value for key, value in config.items()}
    rate = _whole_number(given, f"{direction}Rate")
    burst = _whole_number(given, f"{direction}Burst")
    if rate:
        return _sensible(rate, f"runtimeConfig.bandwidth.{direction}Rate"), burst
    annotation = f"kubernetes.io/{direction}-bandwidth"
    text = attachment.pod.annotations.get(annotation)
    if text is None:
        return 0, 0
    try:
        return _sensible(ceil(parse_quantity(text)), f"annotation {annotation}"), 0
    except ValueError as error:
        raise InvalidConfig(f"annotation {annotation}: {error}") from error


def _whole_number(given: Mapping[str, Any], key: str) -> int:
    value = given.get(key.lower(), 0)
    if type(value) is not int or value < 0:
        raise InvalidConfig(f"runtimeConfig.bandwidth.{key} is {value!r}; it must be a whole number of bits")
    return value


def _sensible(rate: int, where: str) -> int:
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise InvalidConfig(f"{where} is {rate} bit/s; it must be between 1k and 1P, as Kubernetes wants it")
    return rate


def _bucket(dev: str, rate_bits: int, burst_bits: int, mtu: int) -> TokenBucket:
    """The numbers of Terway's ``SetupTC``: at once may leave what the rate lets through in 1 ms, at least one
    full packet with room to spare; what may wait is 25 ms of the rate more."""
    rate = rate_bits // 8
    burst = max(-(-rate // 1000), mtu + 1500)
    if burst_bits < _UNKNOWN_BURST:
        burst = max(burst, burst_bits // 8)
    return TokenBucket(dev=dev, rate=rate, burst=min(burst, _U32), limit=min(rate // 40 + burst, _U32))
