"""Where access keys come from, and when they are renewed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from terway_core.cloud.credentials import CredentialSource
from terway_core.cloud.metadata import Metadata
from terway_core.errors import CloudError, InvalidConfig

ENV = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "env-id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "env-secret"}


class Imds(Metadata):
    """A metadata service without a network: a dict of items."""

    def __init__(self) -> None:
        super().__init__("http://100.100.100.200")
        self.items: dict[str, str] = {}
        self.asked = 0
        self.down = False

    def get(self, path: str) -> str | None:
        self.asked += 1
        if self.down:
            raise CloudError("instance metadata: no answer")
        return self.items.get(path)

    def give(self, name: str, expires: float, **changes: str) -> None:
        answer = {
            "Code": "Success",
            "AccessKeyId": f"STS.{name}",
            "AccessKeySecret": f"{name}-secret",
            "SecurityToken": f"{name}-token",
            "Expiration": datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        self.items["ram/security-credentials/"] = "node-role"
        self.items["ram/security-credentials/node-role"] = json.dumps(answer | changes)


class Source:
    """A source, its surroundings and its clock."""

    def __init__(self, file: Path | None = None, env: dict[str, str] | None = None) -> None:
        self.now = 1_700_000_000.0
        self.imds = Imds()
        self.source = CredentialSource(file=file, env=env or {}, metadata=self.imds, clock=lambda: self.now)

    def key(self) -> str:
        return self.source.get().access_key_id


def test_environment_first(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\naccess_key_id = file-id\naccess_key_secret = file-secret\n")
    source = Source(file, ENV)
    found = source.source.get()
    assert (found.access_key_id, found.access_key_secret, found.security_token) == (
        "env-id",
        "env-secret",
        "",
    )
    token = Source(env={**ENV, "ALIBABA_CLOUD_SECURITY_TOKEN": "env-token"}).source.get().security_token
    assert token == "env-token"
    assert source.imds.asked == 0


@pytest.mark.parametrize("missing", sorted(ENV))
def test_half_an_access_key_is_none(missing: str) -> None:
    source = Source(env={**ENV, missing: ""})
    source.imds.give("role", source.now + 6 * 3600)
    assert source.key() == "STS.role"


def test_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\ntype = access_key\naccess_key_id = one\naccess_key_secret = s%cret\n")
    source = Source(file)
    assert source.source.get().access_key_secret == "s%cret"
    # A mounted Kubernetes Secret changes by a link to another file.
    other = tmp_path / "other"
    other.write_text("[default]\naccess_key_id = two\naccess_key_secret = x\nsecurity_token = t\n")
    other.rename(file)
    found = source.source.get()
    assert (found.access_key_id, found.security_token, found.origin) == ("two", "t", str(file))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[other]\naccess_key_id = a\naccess_key_secret = topsecret\n",
        "[default]\naccess_key_id = a\n",
        "access_key_secret = topsecret\n",
        "[default]\naccess_key_secret topsecret\n",
        "[default]\naccess_key_secret = topsecret\naccess_key_secret = topsecret\n",
        '{"access_key_secret": "topsecret"}',
    ],
)
def test_files_that_hold_no_key(tmp_path: Path, text: str) -> None:
    file = tmp_path / "credentials"
    file.write_text(text)
    with pytest.raises(InvalidConfig, match="access_key_id and access_key_secret") as caught:
        Source(file).source.get()
    assert str(file) in caught.value.message
    assert "topsecret" not in caught.value.message
    assert caught.value.__suppress_context__  # the parser's error quotes the line at fault


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read"):
        Source(tmp_path / "absent").source.get()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfig, match="cannot be read"):
        Source(tmp_path / "binary").source.get()


def test_role_is_asked_again_before_its_credentials_expire() -> None:
    source = Source()
    start = source.now
    source.imds.give("one", start + 6 * 3600)
    assert source.key() == "STS.one"
    asked = source.imds.asked
    source.imds.give("two", start + 12 * 3600)
    source.now = start + 5 * 3600
    assert source.key() == "STS.one"
    assert source.imds.asked == asked
    source.now = start + 5.7 * 3600
    assert source.key() == "STS.two"


def test_old_credentials_serve_while_they_cannot_be_renewed(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    start = source.now
    source.imds.give("one", start + 3600)
    source.key()
    source.imds.down = True
    source.now = start + 3000
    assert source.key() == "STS.one"
    asked = source.imds.asked
    source.now += 1
    assert source.key() == "STS.one"
    assert source.imds.asked == asked  # not at every call
    assert "one-secret" not in caplog.text
    source.now = start + 3600
    with pytest.raises(CloudError, match="no answer"):
        source.key()
    source.imds.down = False
    source.imds.give("two", start + 7200)
    assert source.key() == "STS.two"


def test_no_credentials_at_all() -> None:
    with pytest.raises(CloudError, match="give the instance a RAM role"):
        Source().source.get()


@pytest.mark.parametrize("changes", [{"Code": "Failed"}, {"Expiration": "soon"}, {"Expiration": ""}], ids=str)
def test_credentials_that_are_none(changes: dict[str, str]) -> None:
    source = Source()
    source.imds.give("one", source.now + 3600, **changes)
    with pytest.raises(CloudError, match="RAM role node-role") as caught:
        source.source.get()
    assert "one-secret" not in str(caught.value)


def test_unreadable_credentials_are_not_repeated() -> None:
    source = Source()
    source.imds.give("one", source.now + 3600)
    source.imds.items["ram/security-credentials/node-role"] = '{"AccessKeySecret": "topsecret"'
    with pytest.raises(CloudError, match="no readable credentials") as caught:
        source.source.get()
    assert caught.value.__suppress_context__


def test_secrets_are_not_in_a_repr() -> None:
    found = Source(env={**ENV, "ALIBABA_CLOUD_SECURITY_TOKEN": "env-token"}).source.get()
    assert "env-id" in repr(found)
    assert "secret" not in repr(found).replace("access_key_secret", "")
    assert "env-token" not in repr(found)
