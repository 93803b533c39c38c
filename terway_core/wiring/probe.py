"""What this kernel can make, found out by making it in a namespace that is thrown away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from terway_core.errors import TerwayError, WiringError
from terway_core.types import Problem
from terway_core.wiring.engine import Engine
from terway_core.wiring.netns import temporary_netns
from terway_core.wiring.objects import Veth, Wiring, WiringObject

#: The link on which samples hang: an Ethernet device, up.
LINK: Final = "probe0"


def preflight(samples: Iterable[WiringObject], remedy: str) -> Problem | None:
    """What keeps the kernel from having objects like ``samples``; changes nothing outside the namespace.

    :param samples: made one after the other on the host, on or below :data:`LINK`.
    :param remedy: for a kernel that lacks one of them.
    """
    lacking: dict[str, str] = {}
    try:
        with temporary_netns() as namespace:
            engine = Engine(namespace)
            try:
                pair = Veth(name=LINK, peer="probe1", mac="0a:00:00:00:00:01", peer_mac="0a:00:00:00:00:02")
                engine.apply(Wiring(host=(pair,)), namespace, "probe")
                for sample in samples:
                    try:
                        engine.ensure([sample])
                    except WiringError as error:
                        lacking[sample.kind] = error.message.rpartition(": ")[2]
            finally:
                engine.close()
    except TerwayError as error:
        return Problem(summary=f"the kernel cannot be asked: {error.message}", remedy="run it as root")
    if not lacking:
        return None
    what = ", ".join(f"{kind} ({reason})" for kind, reason in lacking.items())
    return Problem(summary=f"the kernel lacks {what}", remedy=remedy)
