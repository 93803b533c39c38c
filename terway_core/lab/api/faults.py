"""The error replies of the gateway and the products: HTTP status, code, message."""

from __future__ import annotations


class Fault(Exception):
    """A refusal, as the caller will read it.

    :param gateway: refused before any product saw the call; such replies carry a ``Recommend`` link.
    """

    def __init__(self, status: int, code: str, message: str, *, gateway: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.gateway = gateway


def gateway_fault(status: int, code: str, message: str) -> Fault:
    """A refusal by the gateway."""
    return Fault(status, code, message, gateway=True)


def missing_parameter(name: str) -> Fault:
    """A required parameter is absent."""
    return Fault(
        400,
        "MissingParameter",
        f'The input parameter "{name}" that is mandatory for processing this request is not supplied.',
    )


def invalid_parameter(name: str, why: str) -> Fault:
    """A parameter has a value that the service does not take."""
    return Fault(400, "InvalidParameter", f'The specified parameter "{name}" is not valid: {why}.')
