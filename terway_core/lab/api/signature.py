"""Who calls, proved: the two signature schemes of the OpenAPI gateway.

ACS3-HMAC-SHA256 signs the headers it lists and travels in ``Authorization``; the older RPC signature
(HMAC-SHA1) signs all parameters and travels among them. Both are checked against known-answer vectors of the
public documentation in the tests.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import parse_qsl, quote

from terway_core.lab.api.faults import Fault, gateway_fault
from terway_core.lab.api.model import AccessKey

#: How far the caller's clock may be off, in seconds.
MAX_SKEW: Final = 15 * 60

_ACS3: Final = "ACS3-HMAC-SHA256"
_AUTHORIZATION: Final = re.compile(
    rf"{_ACS3} Credential=(?P<key>[^,]+),\s*SignedHeaders=(?P<headers>[^,]+),\s*Signature=(?P<mac>[0-9a-f]+)"
)
_REQUIRED_HEADERS: Final = (
    "host",
    "x-acs-action",
    "x-acs-version",
    "x-acs-date",
    "x-acs-signature-nonce",
    "x-acs-content-sha256",
)
_RPC_REQUIRED: Final = (
    "AccessKeyId",
    "Signature",
    "SignatureMethod",
    "SignatureNonce",
    "SignatureVersion",
    "Timestamp",
)
#: What an RPC-signed call has beside the action's own parameters.
_RPC_COMMON: Final = frozenset(
    {
        "Action",
        "Version",
        "Format",
        "Timestamp",
        "SignatureNonce",
        "SignatureMethod",
        "SignatureVersion",
        "SignatureType",
        "AccessKeyId",
        "SecurityToken",
        "Signature",
    }
)


@dataclass(frozen=True, kw_only=True)
class RawRequest:
    """A request as it arrived.

    :param query: the query's decoded pairs, in order.
    :param form: the decoded pairs of a form body, else empty.
    :param headers: lower-case names; of a repeated header, its values sorted and joined by a comma.
    """

    method: str
    path: str
    query: Sequence[tuple[str, str]]
    form: Sequence[tuple[str, str]]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a request asks for, without anything secret in it."""

    action: str
    version: str
    params: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a request says about its sender, not yet believed."""

    access_key_id: str
    security_token: str
    nonce: str
    date: str
    signature: str
    string_to_sign: str
    sign: Callable[[str, str], str]


def decode_pairs(text: str) -> list[tuple[str, str]]:
    """The pairs of a query or form: ``+`` is a space, blank values count."""
    return parse_qsl(text, keep_blank_values=True)


def read_call(request: RawRequest) -> Call:
    """Action, version and parameters, wherever the scheme puts them.

    :raises Fault: there is no action.
    """
    pairs = (*request.query, *request.form)
    common = dict(pairs)
    # Without a signature of either kind, the action may be in either place.
    if _is_rpc(request) and ("Signature" in common or "x-acs-action" not in request.headers):
        action, version = common.get("Action", ""), common.get("Version", "")
        params = tuple(pair for pair in pairs if pair[0] not in _RPC_COMMON)
    else:
        action = request.headers.get("x-acs-action", "")
        version = request.headers.get("x-acs-version", "")
        params = pairs
    if not action:
        raise gateway_fault(400, "MissingParameter", "The request names no action.")
    return Call(action=action, version=version, params=params)


class Verifier:
    """Checks signature, clock and single use of nonces; keeps the nonces seen."""

    def __init__(self, keys: Mapping[str, AccessKey]) -> None:
        self._keys = keys
        self._nonces: dict[tuple[str, str], float] = {}

    def verify(self, request: RawRequest, now: float) -> AccessKey:
        """The key that signed the request.

        :param now: seconds since the epoch.
        :raises Fault: the gateway's refusal.
        """
        claim = _rpc_claim(request) if _is_rpc(request) else _acs3_claim(request)
        _check_date(claim.date, now)
        key = self._keys.get(claim.access_key_id)
        if key is None:
            raise gateway_fault(404, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
        if not key.enabled:
            raise gateway_fault(403, "Forbidden.AccessKeyDisabled", "The access key is disabled.")
        expected = claim.sign(key.access_key_secret, claim.string_to_sign)
        if not hmac.compare_digest(expected.encode(), claim.signature.encode()):
            raise _mismatch(claim.string_to_sign)
        _check_token(claim, key, now)
        # Only now: nobody without the secret may use up another's nonces.
        self._use_nonce(claim, now)
        return key

    def _use_nonce(self, claim: Claim, now: float) -> None:
        while self._nonces and self._nonces[oldest := next(iter(self._nonces))] < now:
            del self._nonces[oldest]
        seen = (claim.access_key_id, claim.nonce)
        if seen in self._nonces:
            raise gateway_fault(400, "SignatureNonceUsed", "The signature nonce was used.")
        # A replay is refused by its date once the nonce is forgotten.
        self._nonces[seen] = now + 2 * MAX_SKEW


def acs3_string_to_sign(request: RawRequest, signed_headers: str) -> str:
    """``signed_headers``: lower-case names joined by ``;``, as in ``Authorization``."""
    query = "&".join(f"{_encode(key)}={_encode(value)}" for key, value in sorted(request.query))
    headers = "".join(
        f"{name}:{request.headers.get(name, '').strip()}\n" for name in signed_headers.split(";")
    )
    canonical = "\n".join(
        (
            request.method,
            request.path,
            query,
            headers,
            signed_headers,
            request.headers.get("x-acs-content-sha256", ""),
        )
    )
    return f"{_ACS3}\n{hashlib.sha256(canonical.encode()).hexdigest()}"


def acs3_signature(secret: str, string_to_sign: str) -> str:
    """Hexadecimal HMAC-SHA256."""
    return hmac.digest(secret.encode(), string_to_sign.encode(), "sha256").hex()


def rpc_string_to_sign(request: RawRequest) -> str:
    """Method, path and all parameters but the signature itself, of query and form."""
    pairs = sorted(pair for pair in (*request.query, *request.form) if pair[0] != "Signature")
    query = "&".join(f"{_encode(key)}={_encode(value)}" for key, value in pairs)
    return f"{request.method}&{_encode(request.path)}&{_encode(query)}"


def rpc_signature(secret: str, string_to_sign: str) -> str:
    """Base-64 HMAC-SHA1; the key is the secret and an ampersand."""
    return base64.b64encode(hmac.digest(f"{secret}&".encode(), string_to_sign.encode(), "sha1")).decode()


def _is_rpc(request: RawRequest) -> bool:
    return "authorization" not in request.headers


def _acs3_claim(request: RawRequest) -> Claim:
    match = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if not match:
        raise _incomplete("the Authorization header is missing or malformed")
    signed = match["headers"].split(";")
    if absent := [name for name in _REQUIRED_HEADERS if name not in signed or name not in request.headers]:
        raise _incomplete(f"headers not signed: {', '.join(absent)}")
    string_to_sign = acs3_string_to_sign(request, match["headers"])
    # The signature covers what this header says of the body, so the header must tell the truth.
    if request.headers["x-acs-content-sha256"] != hashlib.sha256(request.body).hexdigest():
        raise _mismatch(string_to_sign)
    return Claim(
        access_key_id=match["key"],
        security_token=request.headers.get("x-acs-security-token", ""),
        nonce=request.headers["x-acs-signature-nonce"],
        date=request.headers["x-acs-date"],
        signature=match["mac"],
        string_to_sign=string_to_sign,
        sign=acs3_signature,
    )


def _rpc_claim(request: RawRequest) -> Claim:
    params = dict((*request.query, *request.form))
    for name in _RPC_REQUIRED:
        if not params.get(name):
            raise gateway_fault(400, "MissingParameter", f"The parameter {name} is missing.")
    if (params["SignatureMethod"], params["SignatureVersion"]) != ("HMAC-SHA1", "1.0"):
        raise _incomplete("only HMAC-SHA1, version 1.0, is known")
    return Claim(
        access_key_id=params["AccessKeyId"],
        security_token=params.get("SecurityToken", ""),
        nonce=params["SignatureNonce"],
        date=params["Timestamp"],
        signature=params["Signature"],
        string_to_sign=rpc_string_to_sign(request),
        sign=rpc_signature,
    )


def _check_date(date: str, now: float) -> None:
    try:
        then = datetime.strptime(date, "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        raise gateway_fault(
            400, "InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted."
        ) from None
    if abs(then.timestamp() - now) > MAX_SKEW:
        raise gateway_fault(400, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")


def _check_token(claim: Claim, key: AccessKey, now: float) -> None:
    if not hmac.compare_digest(claim.security_token.encode(), key.security_token.encode()):
        raise gateway_fault(
            400,
            "InvalidSecurityToken.MismatchWithAccessKey",
            "Specified SecurityToken mismatch with the AccessKey.",
        )
    if key.expires is not None and key.expires <= now:
        raise gateway_fault(400, "InvalidSecurityToken.Expired", "Specified SecurityToken is expired.")


def _mismatch(string_to_sign: str) -> Fault:
    # The real service repeats the STS token of an RPC call here; our caller's log must not hold it.
    string_to_sign = re.sub(r"SecurityToken%3D.*?(?=%26|$)", "SecurityToken%3D***", string_to_sign)
    return gateway_fault(
        400,
        "SignatureDoesNotMatch",
        f"Specified signature is not matched with our calculation. server string to sign is:{string_to_sign}",
    )


def _incomplete(why: str) -> Fault:
    return gateway_fault(
        400, "IncompleteSignature", f"The request signature does not conform to Aliyun standards: {why}."
    )


def _encode(text: str) -> str:
    return quote(text, safe="-_.~")
