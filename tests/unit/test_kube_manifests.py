"""What ``terway manifests`` prints fits together, and is what the daemon reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from terway_core.cli.app import build
from terway_core.config import load_config
from terway_core.errors import InvalidConfig, UnknownDriver

IMAGE = "registry.example/terway:1"
CONFIG = """
drivers: [vpc]
node_name: node-1
mtu: 1400
kube:
  kubeconfig: /etc/kubernetes/terway.conf
  namespace: networking
pool:
  vswitch_ids: [vsw-1]
options:
  vpc: {cluster_cidrs: [172.20.0.0/16]}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def printed(*arguments: object) -> list[dict[str, Any]]:
    done = CliRunner().invoke(build(), ["manifests", "--image", IMAGE, *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return list(yaml.safe_load_all(done.stdout))


def only(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def templates(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["spec"]["template"] for one in manifests if one["kind"] in ("DaemonSet", "Deployment")]


def test_settings_reach_the_daemon_as_they_are_written(config, tmp_path):
    written = only(printed("--config", config), "ConfigMap")["data"]["config.yaml"]
    (tmp_path / "mounted.yaml").write_text(written)
    here = load_config(config, env={})
    there = load_config(tmp_path / "mounted.yaml", env={"TERWAY_NODE_NAME": "node-7"})
    assert there.node_name == "node-7"
    assert (there.kube.enabled, there.kube.kubeconfig) == (True, None)
    own = {"node_name", "kube"}
    assert there.model_dump(exclude=own) == here.model_dump(exclude=own)
    assert "node-1" not in written


@pytest.mark.parametrize("drivers", ["", "eniip_veth", "trunking, eniip_veth"])
def test_parts_refer_to_one_another(config, drivers):
    manifests = printed("--config", config, "--drivers", drivers)
    names = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    assert {one["metadata"].get("namespace", "networking") for one in manifests} == {"networking"}
    assert len(templates(manifests)) == (2 if "trunking" in drivers else 1)
    for binding in (one for one in manifests if one["kind"].endswith("Binding")):
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in names
        assert all(("ServiceAccount", subject["name"]) in names for subject in binding["subjects"])
    for template in templates(manifests):
        spec = template["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert ("ConfigMap", volumes["config"]["configMap"]["name"]) in names
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            assert container["image"] == IMAGE
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            help_of = CliRunner().invoke(build(), [*container["command"][1:-2], "--help"])
            assert help_of.exit_code == 0, help_of.output
            assert container["command"][-2] in help_of.output


def test_the_drivers_of_the_command_are_those_of_the_nodes(config):
    manifests = printed("--config", config, "--drivers", "trunking,eniip_veth")
    settings = yaml.safe_load(only(manifests, "ConfigMap")["data"]["config.yaml"])
    assert settings["drivers"] == ["trunking", "eniip_veth"]
    roles = {one["metadata"]["name"]: one["rules"] for one in manifests if one["kind"] == "ClusterRole"}
    assert any("podenis" in rule["resources"] for rule in roles["terway"])


def test_other_settings_replace_the_pods(config):
    before = templates(printed("--config", config))
    assert templates(printed("--config", config)) == before
    config.write_text(CONFIG.replace("1400", "1450"))
    assert templates(printed("--config", config)) != before


def test_without_drivers_nothing_is_printed(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("{}")
    with pytest.raises(InvalidConfig, match="--drivers"):
        printed("--config", path)


def test_a_driver_that_is_not_installed(config):
    with pytest.raises(UnknownDriver, match="vcp"):
        printed("--config", config, "--drivers", "vcp")
