"""The error tree.

    TerwayError                     999   something in terway itself
    ├── IncompatibleVersion           1   cniVersion outside what we speak
    ├── UnknownAttachment             3   CHECK of a pod nobody added
    ├── InvalidEnvironment            4   CNI_* variables missing or malformed
    ├── IOFailure                     5   a file, a namespace or a socket could not be used
    ├── UndecodableInput              6   stdin is not the JSON object it must be
    ├── InvalidConfig                 7   network configuration or settings
    │   └── UnknownDriver             7
    ├── RetryLater                   11   a passing state; the runtime asks again
    │   ├── NoAddress                11
    │   ├── Superseded               11   a DEL overtook this ADD
    │   ├── CloudError               11   the OpenAPI or the metadata service refused or did not answer
    │   └── KubeError                11   the Kubernetes API refused; ``status`` and ``reason`` say more
    │       ├── KubeUnavailable      11   it did not answer, or is overloaded
    │       ├── KubeNotFound         11   it has no such object
    │       ├── KubeConflict         11   the object exists already, or has changed since it was read
    │       └── KubeGone             11   a watch cannot go on from this resourceVersion; list again
    ├── NotReady                     50   STATUS while the daemon cannot serve
    ├── WiringError                 100   the kernel refused an object
    ├── DriverContractError         101   a driver answered what its hook does not allow
    ├── StoreError                  102   the journal cannot be read or written
    └── Drifted                     103   CHECK found the pod's network changed

Each class carries the code that a CNI client sees. Codes below 100 are the specification's (SPEC.md,
"Error"), codes from 100 are ours. A message says what happened, to which object, and what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class TerwayError(Exception):
    """Base of all errors that terway raises on purpose.

    :param message: one sentence or two for a person: what happened, to which object, what to do.
    :param details: longer text for the CNI error's ``details`` field.
    """

    cni_code: ClassVar[int] = 999

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def to_cni(self, cni_version: str) -> dict[str, Any]:
        """The error object of the CNI specification, in the version the client asked for."""
        error: dict[str, Any] = {"cniVersion": cni_version, "code": self.cni_code, "msg": self.message}
        if self.details:
            error["details"] = self.details
        return error


class IncompatibleVersion(TerwayError):
    """The network configuration asks for a CNI version that we do not speak."""

    cni_code = 1


class UnknownAttachment(TerwayError):
    """A CHECK names a container and interface that was never added, or is already deleted."""

    cni_code = 3


class InvalidEnvironment(TerwayError):
    """CNI_* variables are missing or malformed; the message names all of them at once."""

    cni_code = 4


class IOFailure(TerwayError):
    """A file, a socket or a network namespace could not be opened, read or written."""

    cni_code = 5


class UndecodableInput(TerwayError):
    """Standard input is not a JSON object, or is larger than we read."""

    cni_code = 6


class InvalidConfig(TerwayError):
    """A network configuration or a setting has a wrong value."""

    cni_code = 7


class UnknownDriver(InvalidConfig):
    """A mode is configured for which no working driver is installed."""

    def __init__(self, mode: str, *, reason: str = "") -> None:
        dist = f"terway-driver-{mode.replace('_', '-')}"
        super().__init__(
            f"driver {mode!r} cannot be used: {reason}"
            if reason
            else f"no driver {mode!r} is installed; install it with: pip install {dist}"
        )
        self.mode = mode


class RetryLater(TerwayError):
    """The request cannot be served now and may be later (CNI code 11, "try again later")."""

    cni_code = 11


class NoAddress(RetryLater):
    """No address is free for the pod; the message says which pool is empty and why."""


class Superseded(RetryLater):
    """A DEL for the same attachment arrived while its ADD was under way."""


class CloudError(RetryLater):
    """An OpenAPI or metadata call failed.

    :param code: the service's error code (``Throttling``, ``Forbidden.RAM``…), ``""`` when none came back.
    :param request_id: what the service calls this request; support asks for it.
    """

    def __init__(self, message: str, *, code: str = "", request_id: str = "", details: str = "") -> None:
        super().__init__(message, details=details)
        self.code = code
        self.request_id = request_id


class KubeError(RetryLater):
    """A call of the Kubernetes API was refused.

    :param status: the HTTP status, 0 when no answer came.
    :param reason: the API's own word for it (``Forbidden``, ``AlreadyExists``…), ``""`` when it gave none.
    """

    def __init__(self, message: str, *, status: int = 0, reason: str = "", details: str = "") -> None:
        super().__init__(message, details=details)
        self.status = status
        self.reason = reason


class KubeUnavailable(KubeError):
    """The Kubernetes API did not answer, or cannot serve now; the same call may work later."""


class KubeNotFound(KubeError):
    """The Kubernetes API says, itself and not a proxy before it, that there is no such object."""


class KubeConflict(KubeError):
    """The object exists already, or has changed since it was read: read it again and decide anew."""


class KubeGone(KubeError):
    """The API has forgotten this resourceVersion; list again."""


class NotReady(TerwayError):
    """The daemon cannot serve ADD requests yet (CNI code 50, answer to STATUS)."""

    cni_code = 50


class WiringError(TerwayError):
    """The kernel refused an object of a wiring; ``details`` holds the object and the errno."""

    cni_code = 100


class DriverContractError(TerwayError):
    """A driver raised or returned something that its hook does not allow."""

    cni_code = 101

    def __init__(self, mode: str, hook: str, problem: str) -> None:
        super().__init__(f"driver {mode!r}, hook {hook}: {problem}; this is a bug of the driver")
        self.mode = mode
        self.hook = hook


class StoreError(TerwayError):
    """The journal could not be read or written (disk full, permissions, damage)."""

    cni_code = 102


class Drifted(TerwayError):
    """CHECK: the kernel differs from what the pod was given; each difference is in ``details``."""

    cni_code = 103


@contextmanager
def told() -> Iterator[None]:
    """For programs: an error that terway raises on purpose becomes one line and exit status 1."""
    try:
        yield
    except TerwayError as error:
        sys.stderr.write(f"terway: {error}\n")
        if error.details:
            sys.stderr.write("".join(f"  {line}\n" for line in error.details.splitlines()))
        sys.exit(1)
