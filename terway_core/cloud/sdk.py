"""The only module that imports the SDK: 43 MiB and 0.3 s, so it is imported by the first call and not before.

The SDK reads two things from the environment at every request that we cannot have: ``DEBUG=sdk`` prints all
headers, the STS token among them, and ``HTTP_PROXY`` / ``HTTPS_PROXY`` capture every host, for it ignores
``NO_PROXY``. The OpenAPI is reached inside the VPC, where no proxy is needed. There is no option for
either, so its HTTP engine is given an empty environment; the process's own is not touched.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

import darabonba.core
from alibabacloud_tea_openapi.client import Client
from alibabacloud_tea_openapi.exceptions import AlibabaCloudException
from alibabacloud_tea_openapi.utils_models import Config, OpenApiRequest, Params
from darabonba.runtime import RuntimeOptions
from Tea.exceptions import TeaException

from terway_core import __version__
from terway_core.cloud.credentials import Credentials
from terway_core.cloud.failures import Failure

VERSIONS: Final = {"ecs": "2014-05-26", "vpc": "2016-04-28", "sts": "2015-04-01"}
CONNECT_TIMEOUT_MS: Final = 3000
USER_AGENT: Final = f"terway/{__version__}"

darabonba.core.os = SimpleNamespace(environ={}, getenv=lambda name, default=None: default)
for _name in ("darabonba-core", "alibabacloud-tea", "credentials"):
    # Each comes with a handler of its own that writes to stderr, beside ours.
    _logger = logging.getLogger(_name)
    _logger.handlers.clear()
    _logger.setLevel(logging.WARNING)


def make_client(endpoint: str, protocol: str, credentials: Credentials | None) -> Client:
    """A client of one product. Connections are pooled by the process, so a client costs nothing."""
    config = Config(endpoint=endpoint, protocol=protocol, user_agent=USER_AGENT)
    if credentials:
        config.access_key_id = credentials.access_key_id
        config.access_key_secret = credentials.access_key_secret
        config.security_token = credentials.security_token or None
    return Client(config)


def send(
    client: Client,
    product: str,
    action: str,
    query: Mapping[str, str],
    *,
    form: Mapping[str, str] | None = None,
    read_timeout: float,
) -> dict[str, Any]:
    """One request, signed.

    :param form: parameters in the body of a request that needs no signature.
    :param read_timeout: seconds without a byte from the service.
    :raises Failure: refused, or no answer.
    """
    params = Params(
        action=action,
        version=VERSIONS[product],
        pathname="/",
        method="POST",
        auth_type="Anonymous" if form else "AK",
        style="RPC",
        req_body_type="formData",
        body_type="json",
    )
    runtime = RuntimeOptions(connect_timeout=CONNECT_TIMEOUT_MS, read_timeout=round(read_timeout * 1000))
    try:
        request = OpenApiRequest(query=dict(query), body=dict(form) if form else None)
        answer = client.call_api(params, request, runtime)
    except AlibabaCloudException as error:
        data = error.data or {}
        raise Failure(
            code=error.code,
            message=str(data.get("Message") or data.get("message") or ""),
            status=error.status_code or 0,
            request_id=error.request_id or "",
            retry_after=(error.retry_after or 0) / 1000,
        ) from error
    except TeaException as error:
        # Refused connections, timeouts and bodies that are no JSON: the SDK keeps nothing but a text, in
        # which urllib3 repeats all parameters of the call.
        cause = getattr(error, "inner_exception", error)
        text = str(getattr(cause, "message", cause))
        raise Failure(message=re.sub(r"Max retries exceeded with url: \S+ ", "", text)) from error
    body = answer["body"]
    if not isinstance(body, dict):
        raise Failure(message="the answer is no JSON object")
    return body
