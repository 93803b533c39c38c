"""Where the access key comes from: the environment, RRSA, a file, or the instance's RAM role, in this order.

* Environment: ``ALIBABA_CLOUD_ACCESS_KEY_ID``, ``ALIBABA_CLOUD_ACCESS_KEY_SECRET`` and, for temporary
  credentials, ``ALIBABA_CLOUD_SECURITY_TOKEN``.
* RRSA (``rrsa``): STS credentials of the role that a Kubernetes service account may take on, renewed before
  they expire.
* File (setting ``cloud.credentials_file``): the INI format of Alibaba Cloud's SDKs, section ``default`` with
  ``access_key_id``, ``access_key_secret`` and optionally ``security_token``. It is read again when it
  changes, so a rotated Kubernetes Secret is noticed.
* RAM role: STS credentials from the instance metadata, renewed before they expire.
"""

from __future__ import annotations

import configparser
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, TypeAlias

from terway_core.cloud.metadata import Metadata
from terway_core.errors import CloudError, InvalidConfig

log = logging.getLogger(__name__)

#: New STS credentials appear about 30 minutes before the old ones expire (seconds).
RENEW_BEFORE: Final = 20 * 60
#: After a failed renewal the old credentials serve this long before the next attempt (seconds).
RENEWAL_PAUSE: Final = 30

_ROLE_PATH: Final = "ram/security-credentials/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """An access key, and where it is from."""

    access_key_id: str
    access_key_secret: str = field(repr=False)
    security_token: str = field(default="", repr=False)
    origin: str


#: Asks for temporary credentials; they expire at a time in seconds since the epoch.
Ask: TypeAlias = Callable[[], tuple[Credentials, float]]


class CredentialSource:
    """Credentials that are good now; safe to use from several threads.

    :param rrsa: how to get some of the role of our service account; None: it has none.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        file: Path | None,
        env: Mapping[str, str],
        metadata: Metadata,
        clock: Callable[[], float],
        rrsa: Ask | None = None,
    ) -> None:
        self._file = file
        self._env = env
        self._metadata = metadata
        self._lock = threading.Lock()
        self._from_file: tuple[os.stat_result, Credentials] | None = None
        self._rrsa = _Renewed(rrsa, clock) if rrsa else None
        self._role = _Renewed(self._ask_role, clock)

    def get(self) -> Credentials:
        """:raises CloudError: there are none. :raises InvalidConfig: the file does not hold any."""
        key_id = self._env.get("ALIBABA_CLOUD_ACCESS_KEY_ID")
        secret = self._env.get("ALIBABA_CLOUD_ACCESS_KEY_SECRET")
        if key_id and secret:
            return Credentials(
                access_key_id=key_id,
                access_key_secret=secret,
                security_token=self._env.get("ALIBABA_CLOUD_SECURITY_TOKEN", ""),
                origin="the environment",
            )
        with self._lock:
            if self._rrsa:
                return self._rrsa.get()
            return self._file_credentials(self._file) if self._file else self._role.get()

    def _file_credentials(self, path: Path) -> Credentials:
        try:
            stat = path.stat()
            if self._from_file and _same(self._from_file[0], stat):
                return self._from_file[1]
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"the credentials file {path} cannot be read: {error}") from error
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(text)
            section = parser["default"]
            credentials = Credentials(
                access_key_id=section["access_key_id"],
                access_key_secret=section["access_key_secret"],
                security_token=section.get("security_token", ""),
                origin=str(path),
            )
        except (configparser.Error, KeyError):
            # The parser's own message quotes the line at fault, which may be the secret.
            raise InvalidConfig(
                f"the credentials file {path} needs a section [default] with access_key_id and "
                "access_key_secret, one a line, as in `access_key_id = …`"
            ) from None
        self._from_file = stat, credentials
        return credentials

    def _ask_role(self) -> tuple[Credentials, float]:
        role = (self._metadata.get(_ROLE_PATH) or "").strip().strip("/")
        if not role:
            raise CloudError(
                "no credentials: give the instance a RAM role or the service account one (RRSA), or name a "
                "file in cloud.credentials_file, or set ALIBABA_CLOUD_ACCESS_KEY_ID and "
                "ALIBABA_CLOUD_ACCESS_KEY_SECRET"
            )
        text = self._metadata.require(_ROLE_PATH + role)
        try:
            answer = json.loads(text)
            if answer["Code"] != "Success":
                raise CloudError(f"RAM role {role}: the instance metadata answered {answer['Code']}")
            credentials = Credentials(
                access_key_id=answer["AccessKeyId"],
                access_key_secret=answer["AccessKeySecret"],
                security_token=answer["SecurityToken"],
                origin=f"the RAM role {role}",
            )
            return credentials, datetime.fromisoformat(answer["Expiration"]).timestamp()
        except (ValueError, KeyError, TypeError):
            # Not "from error": a JSON error carries the document, secrets and all.
            raise CloudError(f"RAM role {role}: the instance metadata gave no readable credentials") from None


class _Renewed:
    """Temporary credentials, and new ones in time. One caller at a time."""

    def __init__(self, ask: Ask, clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._current: Credentials | None = None
        self._expires = 0.0
        self._renew_at = 0.0

    def get(self) -> Credentials:
        """:raises CloudError: there are none, and those there were have expired."""
        now = self._clock()
        if self._current and now < self._renew_at:
            return self._current
        try:
            self._current, self._expires = self._ask()
        except CloudError as error:
            if not self._current or now >= self._expires:
                raise
            log.warning("credentials are not renewed, the old ones go on to serve: %s", error)
            self._renew_at = min(now + RENEWAL_PAUSE, self._expires)
        else:
            self._renew_at = max(self._expires - RENEW_BEFORE, now + RENEWAL_PAUSE)
        return self._current


def _same(old: os.stat_result, new: os.stat_result) -> bool:
    return (old.st_mtime_ns, old.st_size, old.st_ino) == (new.st_mtime_ns, new.st_size, new.st_ino)
