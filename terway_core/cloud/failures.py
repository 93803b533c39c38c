"""What a refused call means: worth trying again or not, and what a person can do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from terway_core.errors import CloudError


@dataclass(kw_only=True)
class Failure(Exception):
    """One try of a call, failed.

    :param code: the service's code; ``""`` when no answer came back, so that nobody knows what happened.
    :param status: the HTTP status; 0 without an answer.
    :param retry_after: seconds that the service asks to wait; 0 when it does not.
    """

    code: str = ""
    message: str
    status: int = 0
    request_id: str = ""
    retry_after: float = 0.0


#: The vSwitch has no address left.
EXHAUSTED_VSWITCH: Final = frozenset({"InvalidVSwitchId.IpNotEnough", "QuotaExceeded.PrivateIpAddress"})
#: No more ENIs on the instance, or for the account in this region.
ENI_QUOTA: Final = frozenset({"EniPerInstanceLimitExceeded", "MaxEniCountExceeded"})
#: No more addresses on the ENI, or more on it than the instance type allows.
ADDRESS_QUOTA: Final = frozenset(
    {
        "InvalidOperation.Ipv4CountExceeded",
        "InvalidOperation.Ipv6CountExceeded",
        "MaxEniPrivateIpsCountExceeded",
        "MaxEniIpv6IpsCountExceeded",
    }
)
#: No such ENI, or no such instance.
NOT_FOUND: Final = frozenset({"InvalidEniId.NotFound", "InvalidEcsId.NotFound", "InvalidInstanceId.NotFound"})
#: The call does not fit the status of the ENI.
INVALID_ENI_STATE: Final = "InvalidOperation.InvalidEniState"
#: The ENI is not attached to the instance named.
ELSEWHERE: Final = "InvalidParameter.EniNotBelongEcs"
#: The ENI does not have the address.
IP_UNASSIGNED: Final = "InvalidIp.IpUnassigned"

#: Codes (or parts of them) of states that pass, as the VPC and ECS references and their clients list them.
_PASSING: Final = (
    "Throttling",
    "ServiceUnavailable",
    "InternalError",
    "Operation.Conflict",
    "OperationConflict",
    "LastTokenProcessing",
    "IdempotentTokenProcessing",
    "TaskConflict",
    "IncorrectRouteEntryStatus",
    "IncorrcetRouteEntryStatus",  # the service's own spelling, beside the right one
    "IncorrectVpcStatus",
    "IncorrectVSwitchStatus",
    "IncorrectInstanceStatus",
    "OperationFailed.DistibuteLock",  # sic
    "SystemBusy",
    "UnknownError",
)

#: What to do, by parts of the code; the first that fits.
_ADVICE: Final = (
    ("Throttling", "Too many calls of this account; wait, or ask for a higher limit."),
    ("InvalidTimeStamp", "Set this machine's clock right."),
    ("InvalidAccessKeyId", "Check the access key from {origin}."),
    ("AccessKeyDisabled", "Enable the access key from {origin}, or use another."),
    ("Signature", "Check the access key secret from {origin}."),
    ("SecurityToken", "The temporary credentials from {origin} are not valid; renew them."),
    ("OIDCToken", "Check the token in ALIBABA_CLOUD_OIDC_TOKEN_FILE, and that RAM knows who issued it."),
    ("AuthenticationFail.NoPermission", "Let the role's trust policy trust this service account."),
    ("EntityNotExist", "Check ALIBABA_CLOUD_ROLE_ARN and ALIBABA_CLOUD_OIDC_PROVIDER_ARN."),
    ("Forbidden", "Allow {product}:{action} in the RAM policy of the key from {origin}."),
    ("Forbbiden", "Allow {product}:{action} in the RAM policy of the key from {origin}."),  # sic
    ("Forbedden", "Allow {product}:{action} in the RAM policy of the key from {origin}."),  # sic
    ("NoPermission", "Allow {product}:{action} in the RAM policy of the key from {origin}."),
    ("IpNotEnough", "Give back addresses of that vSwitch, or let ENIs be in another vSwitch of the zone."),
    ("PrivateIpAddress", "Give back addresses of that vSwitch, or let ENIs be in another one of the zone."),
    ("EniPerInstanceLimitExceeded", "The instance type allows no more ENIs; choose a larger one."),
    ("MaxEniCountExceeded", "Delete ENIs that nobody needs, or ask for a higher quota."),
    ("CountExceeded", "The instance type allows no more addresses on one ENI; choose a larger one."),
    (
        "SecurityGroupInstanceLimitExceed",
        "Use another security group, or an enterprise one, which holds more.",
    ),
    ("Quota", "Delete what nobody needs, or ask for a higher quota."),
    ("InvalidRegionId", "Check the setting cloud.region_id."),
)


def is_passing(failure: Failure) -> bool:
    """Whether the same call may succeed later. Says nothing of whether it is safe to send it again."""
    if not failure.code:
        return True
    return failure.status >= 500 or any(part in failure.code for part in _PASSING)


def to_error(failure: Failure, *, product: str, action: str, endpoint: str, origin: str) -> CloudError:
    """The error that callers of the cloud see.

    :param origin: where the credentials come from.
    """
    if not failure.code:
        return CloudError(
            f"{action}: no answer from {endpoint} ({failure.message}). Check the network and the setting "
            f"cloud.{product}_endpoint."
        )
    what = f"{action}: {failure.code}: {failure.message.rstrip('.')} (request {failure.request_id})."
    advice = next((text for part, text in _ADVICE if part in failure.code), "")
    return CloudError(
        f"{what} {advice.format(product=product, action=action, origin=origin)}".rstrip(),
        code=failure.code,
        request_id=failure.request_id,
    )
