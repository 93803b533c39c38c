"""The webhook's certificate: made here, kept in a Secret, renewed in time, and known to the API server.

It is self-signed, and the API server trusts it and the one before it. A new one is first written to the
Secret, then made known to the API server, and only then served: at no time is one served that is not trusted,
whichever of several control planes is asked.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from terway_core.errors import KubeNotFound, RetryLater
from terway_core.kube import SECRETS, KubeClient
from terway_core.kube.resources import Resource
from terway_driver_trunking.webhooks import MUTATING, NAME, VALIDATING

log = logging.getLogger(__name__)

SECRET: Final = f"{NAME}-cert"
LIFETIME: Final = timedelta(days=90)
#: One is renewed when less than this is left of it.
RENEWAL: Final = timedelta(days=30)
#: For clocks that differ.
BACKDATED: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Pair(…)"


class Certificates:
    """:param hosts: names and addresses at which the API server finds the webhook.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        hosts: Sequence[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._hosts = tuple(hosts)
        self._clock = clock

    def current(self) -> Pair:
        """The certificate to serve from now on; it is known to the API server.

        :raises KubeError: the API server refuses or does not answer.
        """
        try:
            secret = self._client.get(SECRETS, SECRET, self._namespace)
        except KubeNotFound:
            secret = self._client.create(SECRETS, self._secret(self._make(), b""), self._namespace)
        pair = _decode(secret)
        if pair is None or not self._will_do(pair):
            log.info("certificate is renewed", extra={"secret": SECRET})
            renewed = self._secret(self._make(), pair.certificate if pair else b"")
            renewed["metadata"]["resourceVersion"] = secret["metadata"]["resourceVersion"]
            secret = self._client.replace(SECRETS, renewed, self._namespace)
            pair = _decode(secret)
        if pair is None:
            raise RetryLater(f"the Secret {self._namespace}/{SECRET} has no certificate; delete it")
        for kind in (MUTATING, VALIDATING):
            self._make_known(kind, secret["data"]["ca.crt"])
        return pair

    def _make_known(self, kind: Resource, bundle: str) -> None:
        try:
            configuration = self._client.get(kind, NAME)
        except KubeNotFound:
            log.warning("nobody asks the webhook", extra={"missing": f"{kind.kind} {NAME}"})
            return
        clients = [webhook["clientConfig"] for webhook in configuration.get("webhooks") or ()]
        if all(client.get("caBundle") == bundle for client in clients):
            return
        for client in clients:
            client["caBundle"] = bundle
        self._client.replace(kind, configuration)

    def _will_do(self, pair: Pair) -> bool:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        left = certificate.not_valid_after_utc.timestamp() - self._clock()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return left > RENEWAL.total_seconds() and set(names) == set(map(_name, self._hosts))

    def _make(self) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.fromtimestamp(self._clock(), UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.SubjectAlternativeName(list(map(_name, self._hosts))), critical=False)
            # It is its own authority, and can be none for others.
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_USAGE, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(identifier, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        return Pair(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    def _secret(self, pair: Pair, before: bytes) -> dict[str, Any]:
        data = {
            "tls.crt": pair.certificate,
            "tls.key": pair.key,
            "ca.crt": pair.certificate + before,
        }
        return {
            "metadata": {"name": SECRET, "namespace": self._namespace},
            "type": "kubernetes.io/tls",
            "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
        }


_USAGE: Final = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def hosts_of(namespace: str, host: str = "") -> tuple[str, ...]:
    """Where the API server looks for the webhook: at the Service, and at ``host`` (``address:port``)."""
    service = (f"{NAME}.{namespace}.svc", f"{NAME}.{namespace}.svc.cluster.local")
    return (*service, host.rpartition(":")[0].strip("[]")) if host else service


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _decode(secret: dict[str, Any]) -> Pair | None:
    """What a Secret holds; None when that is no certificate and key."""
    data = secret.get("data") or {}
    try:
        pair = Pair(base64.b64decode(data["tls.crt"]), base64.b64decode(data["tls.key"]))
        x509.load_pem_x509_certificate(pair.certificate)
        serialization.load_pem_private_key(pair.key, None)
    except (KeyError, ValueError):
        return None
    return pair
