"""The verifiers of the simulated gateway, against the vectors of the public documentation."""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terway_core.lab.api.faults import Fault
from terway_core.lab.api.model import AccessKey
from terway_core.lab.api.signature import (
    RawRequest,
    Verifier,
    acs3_signature,
    acs3_string_to_sign,
    read_call,
    rpc_signature,
    rpc_string_to_sign,
)

ACS3 = RawRequest(
    method="POST",
    path="/",
    query=(
        ("RegionId", "cn-shanghai"),
        ("ImageId", "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd"),
    ),
    form=(),
    headers={
        "host": "ecs.cn-shanghai.aliyuncs.com",
        "x-acs-action": "RunInstances",
        "x-acs-version": "2014-05-26",
        "x-acs-date": "2023-10-26T10:22:32Z",
        "x-acs-signature-nonce": "3156853299f313e23d1673dc12e1703d",
        "x-acs-content-sha256": hashlib.sha256(b"").hexdigest(),
    },
    body=b"",
)
ACS3_SIGNED = "host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version"
ACS3_MAC = "06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
ACS3_TIME = 1698315752.0

RPC = RawRequest(
    method="GET",
    path="/",
    query=(
        ("Timestamp", "2016-02-23T12:46:24Z"),
        ("Format", "XML"),
        ("AccessKeyId", "testid"),
        ("Action", "DescribeRegions"),
        ("SignatureMethod", "HMAC-SHA1"),
        ("SignatureNonce", "3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf"),
        ("Version", "2014-05-26"),
        ("SignatureVersion", "1.0"),
        ("Signature", "OLeaidS1JvxuMvnyHOwuJ+uX5qY="),
    ),
    form=(),
    headers={"host": "ecs.aliyuncs.com"},
    body=b"",
)
RPC_TIME = 1456231584.0

KEYS = {
    "YourAccessKeyId": AccessKey(access_key_id="YourAccessKeyId", access_key_secret="YourAccessKeySecret"),
    "testid": AccessKey(access_key_id="testid", access_key_secret="testsecret"),
}


def signed(request: RawRequest, **changes: object) -> RawRequest:
    authorization = (
        f"ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders={ACS3_SIGNED},Signature={ACS3_MAC}"
    )
    fields = {name: getattr(request, name) for name in request.__dataclass_fields__}
    fields["headers"] = {**request.headers, "authorization": authorization}
    return RawRequest(**(fields | changes))


def test_acs3_vector() -> None:
    string_to_sign = acs3_string_to_sign(ACS3, ACS3_SIGNED)
    digest = "7ea06492da5221eba5297e897ce16e55f964061054b7695beedaac1145b1e259"
    assert string_to_sign == f"ACS3-HMAC-SHA256\n{digest}"
    assert acs3_signature("YourAccessKeySecret", string_to_sign) == ACS3_MAC
    key = Verifier(KEYS).verify(signed(ACS3), ACS3_TIME)
    assert key.access_key_id == "YourAccessKeyId"
    assert read_call(signed(ACS3)).action == "RunInstances"


def test_rpc_vector() -> None:
    assert rpc_signature("testsecret", rpc_string_to_sign(RPC)) == "OLeaidS1JvxuMvnyHOwuJ+uX5qY="
    assert Verifier(KEYS).verify(RPC, RPC_TIME).access_key_id == "testid"
    call = read_call(RPC)
    assert (call.action, call.version, call.params) == ("DescribeRegions", "2014-05-26", ())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"method": "GET"}, "SignatureDoesNotMatch"),
        ({"path": "/other"}, "SignatureDoesNotMatch"),
        ({"query": (*ACS3.query, ("DryRun", "true"))}, "SignatureDoesNotMatch"),
        ({"query": ACS3.query[:1]}, "SignatureDoesNotMatch"),
        ({"body": b"RegionId=cn-beijing"}, "SignatureDoesNotMatch"),
    ],
)
def test_acs3_signature_covers_the_request(changes: dict[str, object], code: str) -> None:
    with pytest.raises(Fault) as caught:
        Verifier(KEYS).verify(signed(ACS3, **changes), ACS3_TIME)
    assert caught.value.code == code


@pytest.mark.parametrize("name", sorted(ACS3.headers))
def test_acs3_signature_covers_each_header(name: str) -> None:
    good = signed(ACS3)
    changed = signed(ACS3, headers={**good.headers, name: "2023-10-26T10:22:33Z"})
    with pytest.raises(Fault, match="SignatureDoesNotMatch"):
        Verifier(KEYS).verify(changed, ACS3_TIME)
    removed = signed(ACS3, headers={key: value for key, value in good.headers.items() if key != name})
    with pytest.raises(Fault, match=name):
        Verifier(KEYS).verify(removed, ACS3_TIME)


def test_acs3_must_sign_what_identifies_the_call() -> None:
    headers = {
        **ACS3.headers,
        "authorization": "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host,Signature=00",
    }
    with pytest.raises(Fault, match=r"IncompleteSignature: .*x-acs-action"):
        Verifier(KEYS).verify(signed(ACS3, headers=headers), ACS3_TIME)


def test_order_of_the_query_does_not_matter() -> None:
    Verifier(KEYS).verify(signed(ACS3, query=tuple(reversed(ACS3.query))), ACS3_TIME)


@pytest.mark.parametrize("request_", [signed(ACS3), RPC], ids=["acs3", "rpc"])
@pytest.mark.parametrize("skew", [-901, 901])
def test_clocks_may_differ_by_15_minutes(request_: RawRequest, skew: int) -> None:
    now = ACS3_TIME if request_ is not RPC else RPC_TIME
    with pytest.raises(Fault, match=r"InvalidTimeStamp\.Expired"):
        Verifier(KEYS).verify(request_, now + skew)
    Verifier(KEYS).verify(request_, now + skew // 901 * 900)


@pytest.mark.parametrize("request_", [signed(ACS3), RPC], ids=["acs3", "rpc"])
def test_a_nonce_serves_once_while_its_date_is_good(request_: RawRequest) -> None:
    now = ACS3_TIME if request_ is not RPC else RPC_TIME
    verifier = Verifier(KEYS)
    verifier.verify(request_, now - 900)
    for later in (-900, 0, 900):
        with pytest.raises(Fault, match="SignatureNonceUsed"):
            verifier.verify(request_, now + later)


def test_a_wrong_signature_does_not_use_up_the_nonce() -> None:
    verifier = Verifier(KEYS)
    with pytest.raises(Fault, match="SignatureDoesNotMatch"):
        verifier.verify(signed(ACS3, method="GET"), ACS3_TIME)
    verifier.verify(signed(ACS3), ACS3_TIME)


@pytest.mark.parametrize(
    "missing",
    ["AccessKeyId", "Signature", "SignatureMethod", "SignatureNonce", "SignatureVersion", "Timestamp"],
)
def test_rpc_parameters_of_the_signature_are_required(missing: str) -> None:
    query = tuple(pair for pair in RPC.query if pair[0] != missing)
    with pytest.raises(Fault, match=f"MissingParameter.*{missing}"):
        Verifier(KEYS).verify(signed(RPC, query=query, headers=RPC.headers), RPC_TIME)


def test_rpc_mismatch_does_not_repeat_the_security_token() -> None:
    query = (*RPC.query, ("SecurityToken", "CAIStoken+/="), ("ZoneId", "z"))
    with pytest.raises(Fault, match="SignatureDoesNotMatch") as caught:
        Verifier(KEYS).verify(signed(RPC, query=query, headers=RPC.headers), RPC_TIME)
    assert "CAIS" not in caught.value.message
    assert "ZoneId%3Dz" in caught.value.message


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda key: key != "Signature"),
        st.text(st.characters(codec="utf-8")),
    )
)
def test_rpc_signature_of_any_text(params: dict[str, str]) -> None:
    """The same, written down a second time straight from the documentation."""

    def encode(text: str) -> str:
        return quote(text, safe="").replace("+", "%20").replace("*", "%2A").replace("%7E", "~")

    canonical = "&".join(f"{encode(key)}={encode(params[key])}" for key in sorted(params))
    string_to_sign = f"POST&%2F&{encode(canonical)}"
    mac = hmac.new(b"secret&", string_to_sign.encode(), hashlib.sha1).digest()
    request = RawRequest(method="POST", path="/", query=tuple(params.items()), form=(), headers={}, body=b"")
    assert rpc_signature("secret", rpc_string_to_sign(request)) == base64.b64encode(mac).decode()
