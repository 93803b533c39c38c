"""RRSA: a service account's token becomes credentials, through the real SDK and the simulated STS."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from terway_core.cloud import Cloud
from terway_core.cloud.credentials import RENEW_BEFORE, CredentialSource
from terway_core.cloud.metadata import Metadata
from terway_core.cloud.rrsa import LIFETIME, Rrsa, assume_role
from terway_core.config import CloudConfig
from terway_core.errors import CloudError
from terway_core.lab.api import CALLS, Behaviour, InjectedFault, Region, build_app, serving

ACCOUNT = "kube-system:terway"


class Lab:
    """A region that trusts a service account, and a pod of it."""

    def __init__(self, folder: Path) -> None:
        self.offset = 0.0
        self.region = Region.create(clock=self.now)
        self.role = self.region.add_oidc_role("TerwayRole", ACCOUNT)
        self.token_file = folder / "token"
        self.behaviour = Behaviour()
        self.app = build_app(self.region, behaviour=self.behaviour)
        self.endpoint = ""
        self.write_token()

    def now(self) -> float:
        return time.time() + self.offset

    def write_token(self, account: str = ACCOUNT, lifetime: float = 3600) -> str:
        token = self.region.issue_oidc_token(account, lifetime)
        self.token_file.write_text(token + "\n")
        return token

    def cloud(self, **env: str) -> Cloud:
        config = CloudConfig(
            region_id="cn-hangzhou",
            vpc_endpoint=self.endpoint,
            ecs_endpoint=self.endpoint,
            sts_endpoint=self.endpoint,
            metadata_url="http://127.0.0.1:1",
            protocol="http",
        )
        rrsa = {
            "ALIBABA_CLOUD_ROLE_ARN": self.role.role_arn,
            "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": self.role.provider_arn,
            "ALIBABA_CLOUD_OIDC_TOKEN_FILE": str(self.token_file),
        }
        return Cloud(config, env=rrsa | env, clock=self.now)

    def source(self) -> CredentialSource:
        """Without calls between: the SDK dates those by the machine's clock, whatever time the region has."""
        rrsa = Rrsa(
            role_arn=self.role.role_arn, provider_arn=self.role.provider_arn, token_file=self.token_file
        )
        ask = partial(assume_role, rrsa, endpoint=self.endpoint, protocol="http")
        metadata = Metadata("http://127.0.0.1:1")
        return CredentialSource(file=None, env={}, metadata=metadata, clock=self.now, rrsa=ask)

    def actions(self) -> list[str]:
        return [call.action for call in self.app[CALLS]]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    with serving(lab.app) as lab.endpoint:
        yield lab


def test_calls_are_signed_with_what_sts_gave(lab: Lab) -> None:
    cloud = lab.cloud()
    cloud.call("vpc", "DescribeVpcs", {})
    cloud.call("ecs", "DescribeInstances", {})
    assert lab.actions() == ["AssumeRoleWithOIDC", "DescribeVpcs", "DescribeInstances"]
    assumed, first, second = lab.app[CALLS]
    assert assumed.product == "Sts"
    assert assumed.params["RoleArn"] == lab.role.role_arn
    (key,) = lab.region.access_keys
    assert (assumed.access_key_id, first.access_key_id, second.access_key_id) == ("", key, key)


def test_they_are_renewed_before_they_expire_with_the_token_of_the_day(lab: Lab) -> None:
    source = lab.source()
    first = source.get()
    lab.offset += LIFETIME - RENEW_BEFORE - 5
    assert source.get() == first
    lab.write_token(lifetime=3600)
    lab.offset += 10
    second = source.get()
    assert second.access_key_id != first.access_key_id
    assert {first.access_key_id, second.access_key_id} == set(lab.region.access_keys)
    assert lab.actions() == ["AssumeRoleWithOIDC"] * 2


def test_the_old_ones_serve_while_sts_is_away(lab: Lab) -> None:
    source = lab.source()
    credentials = source.get()
    lab.behaviour.faults.append(InjectedFault(kind="down", action="AssumeRoleWithOIDC"))
    lab.offset += LIFETIME - RENEW_BEFORE + 1
    assert source.get() == credentials
    lab.offset += RENEW_BEFORE
    with pytest.raises(CloudError, match=r"no answer from .*cloud\.sts_endpoint"):
        source.get()


@pytest.mark.parametrize(
    ("token", "code", "advice"),
    [
        ({"lifetime": -1}, "AuthenticationFail.OIDCToken.Expired", "ALIBABA_CLOUD_OIDC_TOKEN_FILE"),
        ({"account": "default:other"}, "AuthenticationFail.NoPermission", "trust policy"),
    ],
)
def test_a_token_that_will_not_do(lab: Lab, token: dict[str, Any], code: str, advice: str) -> None:
    lab.write_token(**token)
    with pytest.raises(CloudError, match=advice) as caught:
        lab.cloud().call("vpc", "DescribeVpcs", {})
    assert caught.value.code == code
    assert caught.value.request_id == lab.app[CALLS][0].request_id
    assert lab.actions() == ["AssumeRoleWithOIDC"]


def test_a_token_of_another_issuer(lab: Lab) -> None:
    lab.token_file.write_text(Region.create().issue_oidc_token(ACCOUNT, 3600))
    with pytest.raises(CloudError) as caught:
        lab.cloud().call("vpc", "DescribeVpcs", {})
    assert caught.value.code == "AuthenticationFail.OIDCToken.Invalid"


@pytest.mark.parametrize(
    ("variable", "code"),
    [
        ("ALIBABA_CLOUD_ROLE_ARN", "EntityNotExist.Role"),
        ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "EntityNotExist.OIDCProvider"),
    ],
)
def test_a_role_or_provider_that_is_not_there(lab: Lab, variable: str, code: str) -> None:
    with pytest.raises(CloudError, match=variable) as caught:
        lab.cloud(**{variable: "acs:ram::1:other"}).call("vpc", "DescribeVpcs", {})
    assert caught.value.code == code


def test_a_token_file_that_is_not_there(lab: Lab) -> None:
    lab.token_file.unlink()
    with pytest.raises(CloudError, match=rf"{lab.token_file} cannot be read"):
        lab.cloud().call("vpc", "DescribeVpcs", {})
    assert lab.actions() == []


def test_an_access_key_in_the_environment_comes_first(lab: Lab) -> None:
    key = lab.region.add_access_key()
    cloud = lab.cloud(
        ALIBABA_CLOUD_ACCESS_KEY_ID=key.access_key_id, ALIBABA_CLOUD_ACCESS_KEY_SECRET=key.access_key_secret
    )
    cloud.call("vpc", "DescribeVpcs", {})
    assert lab.actions() == ["DescribeVpcs"]


@pytest.mark.parametrize(
    "variable",
    ["ALIBABA_CLOUD_ROLE_ARN", "ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "ALIBABA_CLOUD_OIDC_TOKEN_FILE"],
)
def test_without_all_three_there_is_no_rrsa(lab: Lab, variable: str) -> None:
    with pytest.raises(CloudError, match="instance metadata"):
        lab.cloud(**{variable: ""}).call("vpc", "DescribeVpcs", {})
    assert lab.actions() == []


def test_the_token_is_nowhere_to_be_read(
    lab: Lab, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    token = lab.write_token()
    cloud = lab.cloud()
    cloud.call("vpc", "DescribeVpcs", {})
    lab.write_token(lifetime=-1)
    with pytest.raises(CloudError) as refused:
        lab.cloud().call("vpc", "DescribeVpcs", {})
    lab.behaviour.faults.append(InjectedFault(kind="down"))
    with pytest.raises(CloudError) as unanswered:
        lab.cloud().call("vpc", "DescribeVpcs", {})
    secrets = [key.access_key_secret for key in lab.region.access_keys.values()]
    printed = capfd.readouterr()
    for text in (
        *(caplog.text, printed.out, printed.err),
        *(str(caught.value) for caught in (refused, unanswered)),
        *(str(call) for call in lab.app[CALLS]),
    ):
        for secret in (token, token.split(".")[2], *secrets):
            assert secret not in text
