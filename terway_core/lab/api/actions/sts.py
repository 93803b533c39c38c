"""Temporary credentials for whoever shows the right token."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from terway_core.lab.api.faults import Fault
from terway_core.lab.api.model import timestamp
from terway_core.lab.api.oidc import AUDIENCE, ISSUER, subject_of
from terway_core.lab.api.params import Request
from terway_core.lab.api.service import Service, action


class AssumeRoleWithOIDCRequest(Request):
    role_arn: str
    oidc_provider_arn: str = Field(alias="OIDCProviderArn")
    oidc_token: str = Field(alias="OIDCToken")
    role_session_name: str = Field(min_length=2, max_length=64)
    duration_seconds: int = Field(3600, ge=900, le=43200)


@action("Sts", "AssumeRoleWithOIDC", anonymous=True)
async def assume_role_with_oidc(service: Service, request: AssumeRoleWithOIDCRequest) -> dict[str, Any]:
    """The caller needs no access key; the token says who it is."""
    region = service.region
    role = region.oidc_roles.get(request.role_arn)
    if role is None:
        raise Fault(404, "EntityNotExist.Role", "The role does not exist.")
    if role.provider_arn != request.oidc_provider_arn:
        raise Fault(404, "EntityNotExist.OIDCProvider", "The OIDC provider does not exist.")
    subject = subject_of(region.oidc_secret, request.oidc_token, region.now())
    if subject != role.subject:
        raise Fault(
            403,
            "AuthenticationFail.NoPermission",
            "This operation is forbidden by the trust policy of the role.",
        )
    key = region.add_sts_credentials(request.duration_seconds)
    return {
        "Credentials": {
            "AccessKeyId": key.access_key_id,
            "AccessKeySecret": key.access_key_secret,
            "SecurityToken": key.security_token,
            "Expiration": timestamp(region.now() + request.duration_seconds),
        },
        "OIDCTokenInfo": {"Issuer": ISSUER, "Subject": subject, "ClientIds": AUDIENCE},
        "AssumedRoleUser": {"Arn": f"{role.role_arn}/{request.role_session_name}"},
    }
