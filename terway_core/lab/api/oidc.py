"""Tokens of service accounts, as a cluster's OIDC issuer signs them, but with a key that only the lab has."""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass
from typing import Any, Final

from terway_core.lab.api.faults import Fault

AUDIENCE: Final = "sts.aliyuncs.com"
ISSUER: Final = "https://oidc.lab.example"


@dataclass(frozen=True, kw_only=True)
class OidcRole:
    """A RAM role that one service account may take on.

    :param subject: ``system:serviceaccount:NAMESPACE:NAME``.
    """

    role_arn: str
    provider_arn: str
    subject: str


def issue(secret: str, subject: str, expires: float) -> str:
    """A JSON Web Token (RFC 7519), good until ``expires`` in seconds since the epoch."""
    claims = {"iss": ISSUER, "aud": [AUDIENCE], "sub": subject, "exp": int(expires)}
    signed = f"{_encode({'alg': 'HS256', 'typ': 'JWT'})}.{_encode(claims)}"
    return f"{signed}.{_signature(secret, signed)}"


def subject_of(secret: str, token: str, now: float) -> str:
    """Whose token this is.

    :raises Fault: it is not ours, or no longer good.
    """
    signed, _, signature = token.rpartition(".")
    if not hmac.compare_digest(signature.encode(), _signature(secret, signed).encode()):
        raise Fault(400, "AuthenticationFail.OIDCToken.Invalid", "This JsonWebToken is invalid.")
    claims = json.loads(base64.urlsafe_b64decode(signed.partition(".")[2] + "=="))
    if claims["exp"] <= now:
        raise Fault(400, "AuthenticationFail.OIDCToken.Expired", "This JsonWebToken is expired.")
    return str(claims["sub"])


def _encode(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def _signature(secret: str, signed: str) -> str:
    digest = hmac.digest(secret.encode(), signed.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
