"""The webhook as the API server meets it: TLS, certificates that are renewed, AdmissionReviews."""

import base64
import json
import socket
import ssl
import time
import urllib.request
from datetime import timedelta
from urllib.error import HTTPError, URLError

import pytest
from cryptography import x509
from terway_driver_trunking.api import PODENIS, PODNETWORKINGS
from terway_driver_trunking.certificates import LIFETIME, RENEWAL, SECRET, Certificates, hosts_of
from terway_driver_trunking.webhook import Reviewer, WebhookServer
from terway_driver_trunking.webhooks import MUTATING, NAME, VALIDATING, manifests

from terway_core.kube import NAMESPACES, SECRETS
from tests.unit.kube_server import wait_for

HOST = "127.0.0.1"
KINDS = {kind.kind: kind for kind in (MUTATING, VALIDATING)}


def configure(world):
    for manifest in manifests("kube-system", f"{HOST}:4443"):
        world.admin.create(KINDS[manifest["kind"]], manifest)


def trusted(world, kind=MUTATING):
    """The certificates that the API server trusts, PEM."""
    (webhook,) = world.admin.get(kind, NAME)["webhooks"]
    return base64.b64decode(webhook["clientConfig"].get("caBundle", "")).decode()


def certificates(world):
    hosts = hosts_of("kube-system", f"{HOST}:4443")
    return Certificates(world.client, "kube-system", hosts, world.clock)


class Webhook:
    def __init__(self, world, server):
        self.world = world
        self.server = server

    def connect(self):
        """As the API server does: TLS 1.2 or more, by the name in the configuration."""
        context = ssl.create_default_context(cadata=trusted(self.world))
        return context, f"https://{HOST}:{self.server.port}"

    def post(self, path, body):
        context, url = self.connect()
        request = urllib.request.Request(url + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, context=context, timeout=20) as answer:
            return json.load(answer)

    def get(self, path):
        context, url = self.connect()
        try:
            with urllib.request.urlopen(url + path, context=context, timeout=20) as answer:
                return answer.status
        except HTTPError as error:
            with error:
                return error.code

    def review(self, path, obj, namespace="default"):
        review = {"request": {"uid": "u1", "object": obj, "namespace": namespace}}
        answer = self.post(path, review)
        assert (answer["kind"], answer["response"].pop("uid")) == ("AdmissionReview", "u1")
        return answer["response"]

    def serial(self):
        context, _ = self.connect()
        with (
            socket.create_connection((HOST, self.server.port), 20) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as secure,
        ):
            return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True)).serial_number


@pytest.fixture
def webhook(world):
    world.clock.now = time.time()  # by which TLS goes
    configure(world)
    reviewer = Reviewer(world.client)
    server = WebhookServer(reviewer, certificates(world), HOST, 0)
    reviewer.start()
    server.start()
    found = Webhook(world, server)
    wait_for(lambda: trusted(world) and reviewer.ready)
    wait_for(lambda: is_served(found))
    yield found
    server.stop()
    reviewer.stop()


def is_served(webhook):
    try:
        return webhook.get("/healthz") == 200
    except URLError:
        return False


def pod(**metadata):
    containers = [{"name": "main", "image": "x"}]
    return {
        "metadata": {"name": "db-0", "labels": {"app": "db"}, **metadata},
        "spec": {"containers": containers},
    }


def operations(response):
    return json.loads(base64.b64decode(response["patch"]))


def test_pods(webhook):
    webhook.world.add_networking()
    response = wait_for(
        lambda: (found := webhook.review("/mutate", pod())) and found.get("patchType") and found
    )
    assert response["allowed"] is True
    values = {one["path"]: one["value"] for one in operations(response)}
    assert values["/metadata/annotations/k8s.aliyun.com~1pod-networking"] == "net"
    assert webhook.review("/mutate", pod(labels={"app": "web"})) == {"allowed": True}


def test_a_namespace_that_is_excluded(webhook):
    webhook.world.add_networking()
    labels = {"k8s.aliyun.com/pod-eni": "false"}
    webhook.world.admin.create(NAMESPACES, {"metadata": {"name": "apart", "labels": labels}})
    assert webhook.review("/mutate", pod(), "apart") == {"allowed": True}


def test_a_pod_cannot_select_itself(webhook):
    webhook.world.add_networking()
    annotations = {"k8s.aliyun.com/pod-networking": "net", "k8s.aliyun.com/pod-eni": "true"}
    response = webhook.review("/mutate", pod(labels={}, annotations=annotations))
    assert response["allowed"] is False
    assert "does not select this pod" in response["status"]["message"]


def test_a_fixed_address_decides_the_zone(webhook):
    world = webhook.world
    world.add_fixed()
    world.add_pod()
    world.settle()
    stateful = pod(ownerReferences=[{"kind": "StatefulSet"}])
    response = wait_for(
        lambda: (found := webhook.review("/mutate", stateful)) and found.get("patchType") and found
    )
    assert '"values": ["cn-hangzhou-h"]' in json.dumps(operations(response))
    world.admin.delete(PODENIS, "db-0", "default")


def test_podnetworkings(webhook):
    networking = webhook.world.add_networking()
    assert webhook.review("/validate", networking) == {"allowed": True}
    networking["spec"]["allocationType"] = {"type": "Fixed"}
    response = webhook.review("/validate?timeout=5s", networking)
    assert response["allowed"] is False
    assert "TTL or Never" in response["status"]["message"]


def test_an_answer_that_is_not_known_is_none(webhook):
    """The failurePolicy decides then."""
    webhook.world.api.refuse(503, "ServiceUnavailable", "get", "namespaces")
    with pytest.raises(HTTPError) as caught:
        webhook.review("/mutate", pod(), "never-seen")
    with caught.value as error:
        assert error.code == 503
    webhook.world.api.refuse(0, "")


@pytest.mark.parametrize("body", [{}, [], {"request": 1}, {"request": {"uid": "u"}}])
def test_what_is_no_review(webhook, body):
    with pytest.raises(HTTPError) as caught:
        webhook.post("/mutate", body)
    with caught.value as error:
        assert error.code == 400
    assert webhook.get("/healthz") == 200


def test_a_silent_client_keeps_nobody(webhook):
    with socket.create_connection((HOST, webhook.server.port), 20):
        assert webhook.get("/readyz") == 200
    assert webhook.get("/nothing") == 404


def test_two_share_one_certificate(webhook):
    other = WebhookServer(Reviewer(webhook.world.client), certificates(webhook.world), HOST, 0)
    other.start()
    try:
        second = Webhook(webhook.world, other)
        wait_for(lambda: is_served(second))
        assert second.serial() == webhook.serial()
    finally:
        other.stop()


def serials(pem):
    return [one.serial_number for one in x509.load_pem_x509_certificates(pem.encode())]


def test_renewal(world):
    """The old one is trusted as long as another control plane may still serve it."""
    configure(world)
    first = certificates(world).current()
    assert certificates(world).current() == first
    assert serials(trusted(world)) == serials(first.certificate.decode())

    world.clock.advance((LIFETIME - RENEWAL + timedelta(seconds=1)).total_seconds())
    second = certificates(world).current()
    assert second != first
    both = [*serials(second.certificate.decode()), *serials(first.certificate.decode())]
    assert serials(trusted(world)) == serials(trusted(world, VALIDATING)) == both
    assert certificates(world).current() == second


def test_other_hosts_need_another_certificate(world):
    configure(world)
    first = certificates(world).current()
    moved = Certificates(world.client, "kube-system", hosts_of("kube-system", "10.0.0.9:4443"), world.clock)
    assert moved.current() != first


def test_a_secret_that_somebody_broke(world):
    configure(world)
    certificates(world).current()
    world.admin.patch(SECRETS, SECRET, {"data": {"tls.key": "AAAA"}}, "kube-system")
    pair = certificates(world).current()
    assert serials(trusted(world)) == serials(pair.certificate.decode())


def test_webhooks_that_are_not_configured_yet(world):
    pair = certificates(world).current()
    configure(world)
    assert certificates(world).current() == pair
    assert serials(trusted(world)) == serials(pair.certificate.decode())


def test_the_service_leads_to_it():
    service, mutating, validating = manifests("kube-system")
    assert service["spec"]["selector"] == {"app": NAME}
    assert mutating["webhooks"][0]["failurePolicy"] == "Ignore"
    assert validating["webhooks"][0]["failurePolicy"] == "Fail"
    where = mutating["webhooks"][0]["clientConfig"]["service"]
    assert f"{where['name']}.{where['namespace']}.svc" in hosts_of("kube-system")
    assert validating["webhooks"][0]["rules"][0]["resources"] == [PODNETWORKINGS.plural]
