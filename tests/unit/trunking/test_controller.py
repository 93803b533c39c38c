"""The whole control plane: watches, workers, election; and that its role suffices and has nothing in vain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import yaml
from terway_driver_trunking.api import PODENIS, PODNETWORKINGS
from terway_driver_trunking.controller import COMPONENT, Controller, Settings
from terway_driver_trunking.rbac import cluster_rules, namespace_rules
from terway_driver_trunking.webhooks import NAME, manifests
from typer.testing import CliRunner

from terway_core.cli.app import build
from terway_core.config import Config, PoolConfig
from terway_core.kube import EVENTS, LEASES, PODS
from tests.unit.kube_server import wait_for
from tests.unit.trunking.test_webhook import KINDS


@pytest.fixture
def run(world) -> Callable[[], object]:
    world.clock.now = time.time()

    @contextmanager
    def running():
        config = Config(kube=world.api.config, pool=PoolConfig(cluster="c1"))
        settings = Settings(host="127.0.0.1:4443", address="127.0.0.1", port=0, lease=(2.0, 1.0, 0.1))
        controller = Controller(config, world.region.client(), settings)
        stop = threading.Event()
        thread = threading.Thread(target=controller.run, args=(stop,))
        thread.start()
        try:
            yield controller
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()

    return running


def phase(world, name="db-0"):
    podeni = world.podeni(name)
    return podeni and podeni.get("status", {}).get("phase")


def leader(world):
    lease = world.admin.list(LEASES, "kube-system").items
    return lease and lease[0]["spec"]["holderIdentity"]


def test_pods_come_and_go(world, run):
    for manifest in manifests("kube-system", "127.0.0.1:4443"):
        world.admin.create(KINDS[manifest["kind"]], manifest)
    with run():
        world.admin.create(
            PODNETWORKINGS,
            {
                "metadata": {"name": "net"},
                "spec": {
                    "vSwitchOptions": [world.region.zone_h.vswitch_id],
                    "securityGroupIDs": [world.region.group],
                    "selector": {"podSelector": {"matchLabels": {"app": "db"}}},
                },
            },
        )
        wait_for(lambda: world.admin.get(PODNETWORKINGS, "net").get("status", {}).get("status") == "Ready")
        names = [f"db-{number}" for number in range(5)]
        for name in names:
            world.add_pod(name)
        wait_for(lambda: [phase(world, name) for name in names] == ["Bind"] * 5)
        assert len({eni.device_index for eni in world.members_of()}) == 5
        assert world.attachments() == 5
        wait_for(lambda: len(world.admin.list(EVENTS).items) >= 3)
        world.admin.delete(PODENIS, names[0], "default")
        for name in names:
            world.remove_pod(name)
        wait_for(lambda: not world.admin.list(PODENIS).items)
        assert world.members_of() == []

    # Everything that was asked is in the role, and nothing is in it in vain.
    rules = [*cluster_rules(), *namespace_rules()]
    allowed = {
        (verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    asked = {
        (call.verb, call.resource.group, "/".join(filter(None, [call.resource.plural, call.subresource])))
        for call in world.api.served.calls
        if call.agent.startswith(COMPONENT)
    }
    not_met = {
        ("update", "", "secrets"),  # test_webhook renews
        ("get", "", "namespaces"),  # of one that is newer than the watch
        ("patch", "", "events"),  # of what happens again
    }
    assert asked | not_met == allowed


def test_one_leads_and_the_other_takes_over(world, run):
    world.add_networking()
    with run() as second:
        with run() as first:
            wait_for(lambda: leader(world))
            leading = leader(world)
            assert leading in (first.identity, second.identity)
            world.add_pod()
            wait_for(lambda: phase(world) == "Bind")
        wait_for(lambda: leader(world) == second.identity)
        world.remove_pod()
        world.add_pod("db-1")
        wait_for(lambda: phase(world, "db-1") == "Bind" and world.podeni() is None)
    assert world.attachments() == 2


def test_an_api_server_that_is_away(world, run):
    world.add_networking()
    with run():
        world.add_pod()
        wait_for(lambda: phase(world) == "Bind")
        with world.api.away():
            # What happens meanwhile is in etcd.
            world.api.objects.delete(PODS, "db-0", "default")
            world.add_pod("db-1")
        wait_for(lambda: phase(world, "db-1") == "Bind" and world.podeni() is None)
    assert len(world.members_of()) == 1


def test_a_pod_that_the_webhook_missed(world, run):
    world.clock.now = time.time() - 60
    world.add_networking()
    with run() as controller:
        wait_for(lambda: controller.reviewer.ready and leader(world))
        world.api.add_pod("missed", node="", labels={"app": "db"})
        world.api.add_pod("other", node="", labels={"app": "web"})
        event = wait_for(
            lambda: [one for one in world.admin.list(EVENTS).items if one["reason"] == "PodNetworkingMissed"]
        )
        assert event[0]["involvedObject"]["name"] == "missed"
    assert world.members_of() == []


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        (["crds"], ["CustomResourceDefinition"] * 2),
        (["rbac"], ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
        (["webhook"], ["Service", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"]),
    ],
)
def test_what_a_cluster_needs(command, kinds, tmp_path):
    config = tmp_path / "terway.yaml"
    config.write_text("kube: {namespace: net-system}\n")
    options = [] if command == ["crds"] else ["--config", str(config)]
    arguments = ["trunking", *command, *options]
    done = CliRunner().invoke(build(arguments), arguments)
    assert done.exit_code == 0, done.output
    found = list(yaml.safe_load_all(done.stdout))
    assert [one["kind"] for one in found] == kinds
    namespaces = {one["metadata"].get("namespace") for one in found}
    assert namespaces <= {None, "net-system"}
    assert {one["metadata"]["name"] for one in found} <= {
        NAME,
        "podnetworkings.network.alibabacloud.com",
        "podenis.network.alibabacloud.com",
    }
