"""The control plane of trunking in the cluster, with the service account and the roles that are printed."""

from __future__ import annotations

import base64
import http.client
import ssl
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml
from terway_driver_trunking import api
from terway_driver_trunking.webhooks import MUTATING, NAME, PORT

from terway_core.cloud import Cloud
from terway_core.config import CloudConfig
from terway_core.kube import PODS, SECRETS, Resource
from terway_core.lab.api import NetworkInterface, Region
from tests.e2e.containerd.node import TERWAY
from tests.kubernetes.cluster import Cluster, wait_for

ACCOUNTS = Resource(group="", version="v1", plural="serviceaccounts", kind="ServiceAccount")


class ControlPlane:
    """One process on ``node-1``, which the API server reaches there."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self._node = cluster.nodes["node-1"]
        self._folder = folder
        self._host = f"{self._node.addresses[0]}:{PORT}"
        cluster.install(cluster.print("trunking", "webhook", "--host", self._host))
        self._config = folder / "control-plane.yaml"
        self._config.write_text(yaml.safe_dump(self._settings()))

    def start(self) -> None:
        """Start it, and wait until it answers the webhook."""
        command = (TERWAY, "trunking", "controller", "--config", self._config, "--host", self._host)
        log = self._folder / "control-plane.log"
        self.cluster.machine.start(*command, netns=self._node.netns, log=log)
        wait_for(self._answers, "the webhook answers")

    def kill(self) -> None:
        """End it with no chance to clean up."""
        self.cluster.kill("trunking controller")

    def add_security_group(self, name: str) -> str:
        """Its id."""
        region = self.cluster.lab.env["region"]
        env = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": region["access_key_id"],
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": region["access_key_secret"],
        }
        endpoint = region["endpoint"].removeprefix("http://")
        config = CloudConfig(region_id=region["region_id"], ecs_endpoint=endpoint, protocol="http")
        params = {"VpcId": region["vpc_id"], "SecurityGroupName": name}
        call = Cloud(config, env=env).call
        answer = self.cluster.inside(self._node.netns, call, "ecs", "CreateSecurityGroup", params)
        return str(answer["SecurityGroupId"])

    def bound(self, app: str, count: int) -> dict[str, tuple[str, str]]:
        """Wait until the app has so many pods, each with an ENI on its node; node and address of each."""

        def look() -> dict[str, tuple[str, str]]:
            podenis = {one["metadata"]["name"]: one for one in self.cluster.list(api.PODENIS, "default")}
            found = {}
            for pod in self.cluster.pods(app):
                metadata, node = pod["metadata"], pod["spec"].get("nodeName", "")
                podeni = podenis.get(metadata["name"])
                if podeni is None or api.phase(podeni) != "Bind" or "deletionTimestamp" in metadata:
                    return {}
                serves = (
                    podeni["metadata"]["annotations"].get(api.POD_UID),
                    podeni["metadata"]["labels"][api.NODE],
                )
                if serves != (metadata["uid"], node):
                    return {}
                found[metadata["name"]] = (node, api.allocation(podeni)["ipv4"])
            return found if len(found) == count else {}

        found = wait_for(look, f"{count} pods of {app} have ENIs")
        assert isinstance(found, dict)
        return found

    def members(self) -> list[NetworkInterface]:
        """The member ENIs that the cloud has."""
        region = Region.load(Path(self.cluster.lab.env["folder"]) / "region/state.json")
        return [eni for eni in region.network_interfaces.values() if api.OWNER_TAG in eni.tags]

    def delete_pod(self, name: str, **options: Any) -> None:
        """Delete a pod; its StatefulSet makes another of that name."""
        self.cluster.ask(lambda client: client.delete(PODS, name, "default", **options))

    def _settings(self) -> dict[str, Any]:
        """The node's, with the token that Kubernetes has made for the service account."""

        def secrets() -> list[dict[str, str]]:
            account = self.cluster.ask(lambda client: client.get(ACCOUNTS, NAME, "kube-system"))
            return list(account.get("secrets") or ())

        name = wait_for(secrets, "a token for the service account")[0]["name"]
        secret = self.cluster.ask(lambda client: client.get(SECRETS, name, "kube-system"))
        config = yaml.safe_load(Path(self.cluster.lab.env["kubernetes"]["kubeconfig"]).read_text())
        config["users"][0]["user"] = {"token": base64.b64decode(secret["data"]["token"]).decode()}
        kubeconfig = self._folder / "control-plane.kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(config))
        return self._node.settings | {"kube": {"enabled": True, "kubeconfig": str(kubeconfig)}}

    def _answers(self) -> bool:
        """Whether it knows enough to answer, and the API server knows its certificate."""
        address, _, port = self._host.partition(":")
        insecure = ssl._create_unverified_context()

        def readyz() -> int:
            connection = http.client.HTTPSConnection(address, int(port), timeout=5, context=insecure)
            with closing(connection):
                connection.request("GET", "/readyz")
                return connection.getresponse().status

        try:
            status = self.cluster.inside(self._node.netns, readyz)
        except OSError:
            return False
        found = self.cluster.ask(lambda client: client.get(MUTATING, NAME))
        return status == 200 and "caBundle" in found["webhooks"][0]["clientConfig"]


def add_networking(
    cluster: Cluster, name: str, vswitch: int = 0, security_group: str = "", **allocation: str
) -> None:
    """Have a PodNetworking for the pods with the label ``networking``, and wait until it can be used.

    :param vswitch: its number, from 0. :param security_group: by default the nodes'.
    """
    region = cluster.lab.env["region"]
    networking = {
        "metadata": {"name": name},
        "spec": {
            "selector": {"podSelector": {"matchLabels": {"networking": name}}},
            "allocationType": allocation,
            "vSwitchOptions": [region["vswitches"][vswitch].split("=")[0]],
            "securityGroupIDs": [security_group or region["security_group_id"]],
        },
    }
    cluster.ask(lambda client: client.create(api.PODNETWORKINGS, networking))

    def ready() -> bool:
        found = cluster.ask(lambda client: client.get(api.PODNETWORKINGS, name))
        return bool(found.get("status", {}).get("status") == "Ready")

    wait_for(ready, f"PodNetworking {name} is Ready")
