"""RRSA: a Kubernetes service account's token becomes the credentials of a RAM role.

The cluster projects the token into the pod and renews it there; the webhook of ACK says in three environment
variables which role and which token. STS needs no access key for this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from terway_core.cloud.credentials import Credentials
from terway_core.cloud.failures import Failure, to_error
from terway_core.errors import CloudError

ACTION: Final = "AssumeRoleWithOIDC"
#: Who we are in the service's own records.
SESSION_NAME: Final = "terway"
#: What roles allow unless somebody changed it, and how long STS may take (seconds).
LIFETIME: Final = 3600
READ_TIMEOUT: Final = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rrsa:
    """Which role, and whose word for it."""

    role_arn: str
    provider_arn: str
    token_file: Path

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self | None:
        """None unless all three variables are there."""
        role = env.get("ALIBABA_CLOUD_ROLE_ARN")
        provider = env.get("ALIBABA_CLOUD_OIDC_PROVIDER_ARN")
        token_file = env.get("ALIBABA_CLOUD_OIDC_TOKEN_FILE")
        if not (role and provider and token_file):
            return None
        return cls(role_arn=role, provider_arn=provider, token_file=Path(token_file))


def assume_role(rrsa: Rrsa, *, endpoint: str, protocol: str) -> tuple[Credentials, float]:
    """Credentials of the role, and when they expire (seconds since the epoch).

    :raises CloudError: the token cannot be read, or STS refused or did not answer.
    """
    from terway_core.cloud import sdk

    origin = f"RRSA as {rrsa.role_arn}"
    try:
        token = rrsa.token_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CloudError(
            f"{origin}: the token file {rrsa.token_file} cannot be read ({error}). Mount the service "
            "account's token there, or unset ALIBABA_CLOUD_OIDC_TOKEN_FILE."
        ) from error
    # In the body: an address gets into logs and error messages, and the token is as good as a password.
    form = {
        "RoleArn": rrsa.role_arn,
        "OIDCProviderArn": rrsa.provider_arn,
        "OIDCToken": token,
        "RoleSessionName": SESSION_NAME,
        "DurationSeconds": str(LIFETIME),
    }
    client = sdk.make_client(endpoint, protocol, None)
    try:
        answer = sdk.send(client, "sts", ACTION, {}, form=form, read_timeout=READ_TIMEOUT)
        given = answer["Credentials"]
        credentials = Credentials(
            access_key_id=given["AccessKeyId"],
            access_key_secret=given["AccessKeySecret"],
            security_token=given["SecurityToken"],
            origin=origin,
        )
        return credentials, datetime.fromisoformat(given["Expiration"]).timestamp()
    except Failure as failure:
        raise to_error(failure, product="sts", action=ACTION, endpoint=endpoint, origin=origin) from failure
    except (KeyError, TypeError, ValueError):
        # Not "from error": it may hold a part of the answer, secrets and all.
        raise CloudError(f"{ACTION}: {endpoint} gave no readable credentials") from None
