"""Faults on demand: what the cloud does on its bad days."""

from __future__ import annotations

import secrets
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from terway_core.lab.api.faults import Fault, gateway_fault
from terway_core.lab.api.throttle import WINDOW

#: What goes on after the reply, and may get stuck.
STICKY: Final = ("AttachNetworkInterface", "DetachNetworkInterface", "DeleteNetworkInterface")

_MESSAGES: Final = {"Throttling": "Request was denied due to request throttling."}
_STATUS: Final = {
    "InternalError": 500,
    "ServiceUnavailable": 503,
    "OperationConflict": 409,
    "Throttling": 400,
    "Throttling.User": 400,
    "Throttling.Api": 400,
    "InvalidParameter": 400,
    "InvalidOperation.InvalidEniState": 400,
    "InvalidOperation.InvalidEcsState": 400,
}


class InjectedFault(BaseModel):
    """One kind of trouble with one action.

    * ``error``: refused with ``code``; nothing is carried out.
    * ``slow``: is carried out, and answered, ``seconds`` later.
    * ``lost``: carried out, but the connection is closed without an answer.
    * ``down``: the connection is closed without an answer and nothing is carried out.
    * ``stuck``: accepted, and then the ENI stays ``Attaching``, ``Detaching`` or ``Deleting`` until the fault
      is cleared, or the same call once more gets past it.
    * ``metadata-lag``: the metadata service shows the ENIs as they were ``seconds`` ago.
    * ``metadata-down``: the metadata service closes the connection without an answer.

    :param action: ``*`` is every action.
    :param times: how many calls it befalls; None: all.
    :param until: seconds since the epoch when it passes by itself; None: never.
    :param used: how many calls it has befallen.
    """

    model_config = ConfigDict(extra="forbid")

    id: str = Field(default_factory=lambda: secrets.token_hex(2))
    kind: Literal["error", "slow", "lost", "down", "stuck", "metadata-lag", "metadata-down"]
    action: str = "*"
    code: str = ""
    seconds: float = Field(0.0, ge=0, le=600)
    times: int | None = Field(None, ge=1)
    until: float | None = None
    used: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.kind == "error") != bool(self.code):
            raise ValueError("an error, and nothing else, has a code")
        if (self.kind in ("slow", "metadata-lag")) != bool(self.seconds):
            raise ValueError("slow and metadata-lag, and nothing else, have seconds")
        if self.kind == "stuck" and self.action not in STICKY:
            raise ValueError(f"what can be stuck is {', '.join(STICKY)}")
        return self

    @classmethod
    def throttled(cls, action: str, now: float) -> Self:
        """Refused until the service's current minute is over."""
        return cls(kind="error", action=action, code="Throttling", until=(now // WINDOW + 1) * WINDOW)

    def befalls(self, action: str, now: float) -> bool:
        """Whether a call made now is one of those it is meant for."""
        return self.action in ("*", action) and not self.is_over(now) and self.used != self.times

    def is_over(self, now: float) -> bool:
        """Whether its time is up."""
        return self.until is not None and self.until <= now

    @property
    def refusal(self) -> Fault:
        """What the caller of an ``error`` reads."""
        message = _MESSAGES.get(self.code, "This refusal was asked for with terway lab fault.")
        status = _STATUS.get(self.code, 404 if self.code.endswith("NotFound") else 403)
        if self.code.startswith("Throttling"):
            return gateway_fault(status, self.code, message)
        return Fault(status, self.code, message)
