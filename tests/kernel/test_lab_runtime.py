"""The lab's runtime calls plugins as containerd was seen to."""

import json
import uuid
from pathlib import Path

import pytest

from terway_core.lab.runtime import PluginFailed, Runtime
from terway_core.lab.state import LabError, NodeFiles
from terway_core.wiring.netns import create_netns, delete_netns

pytestmark = pytest.mark.kernel

#: Writes down what it gets; fails if it finds a file that says so.
RECORDER = """#!/bin/sh
n=$(ls "{calls}" | wc -l)
mkdir "{calls}/$(printf %02d $n)"
cd "{calls}/$(printf %02d $n)"
cat > stdin
env > env
readlink /proc/self/ns/net > netns
test ! -e "{fail}/$CNI_COMMAND-$(basename "$0")" || {{
    echo '{{"cniVersion": "1.0.0", "code": 7, "msg": "told to fail"}}'
    exit 1
}}
test $CNI_COMMAND = ADD || exit 0
echo '{{"cniVersion": "1.0.0", "ips": [{{"address": "192.0.2.9/32"}}], "by": "'$(basename "$0")'"}}'
"""


class Recorded:
    """A node whose two chained plugins are recorders."""

    def __init__(self, folder: Path, netns: Path) -> None:
        self.node = NodeFiles("node-1", folder, netns)
        self.calls_dir, self.fail = folder / "calls", folder / "fail"
        conf, bin_dir = self.node.cni_conf_dir, self.node.cni_bin_dir
        for path in (self.calls_dir, self.fail, conf, bin_dir, self.node.pods):
            path.mkdir(parents=True)
        for name in ("first", "second"):
            (bin_dir / name).write_text(RECORDER.format(calls=self.calls_dir, fail=self.fail))
            (bin_dir / name).chmod(0o755)
        plugins = [{"type": "first", "zeta": 1, "alpha": {"y": 1, "x": 2}}, {"type": "second"}]
        conflist = {"cniVersion": "1.0.0", "name": "recorded", "plugins": plugins}
        (conf / "10-recorded.conflist").write_text(json.dumps(conflist))
        (conf / "20-other.conflist").write_text("{}")

    def calls(self) -> list[tuple[str, dict, dict]]:
        """(plugin, environment, configuration) of each call, in order."""
        found = []
        for call in sorted(self.calls_dir.iterdir()):
            env = dict(line.split("=", 1) for line in (call / "env").read_text().splitlines() if "=" in line)
            config = json.loads((call / "stdin").read_text())
            found.append((config["type"], env, config))
        return found

    def told(self) -> list[tuple[str, str, bool, bool]]:
        """(command, plugin, with a namespace, with a previous result) of each call."""
        return [
            (env["CNI_COMMAND"], plugin, bool(env["CNI_NETNS"]), "prevResult" in config)
            for plugin, env, config in self.calls()
        ]


@pytest.fixture
def recorded(tmp_path):
    name = f"lab-test-{uuid.uuid4().hex[:8]}"
    recorded = Recorded(tmp_path, create_netns(name))
    yield recorded
    for pod in Runtime(recorded.node).pods():
        delete_netns(Path(pod.netns).name)
    delete_netns(name)


def test_a_pods_life_is_an_add_and_two_dels(recorded):
    runtime = Runtime(recorded.node)
    pod = runtime.run_pod("web")
    assert [str(address) for address in pod.addresses] == ["192.0.2.9"]
    assert runtime.pods() == [pod]
    runtime.remove_pod(pod)
    assert recorded.told() == [
        ("ADD", "first", True, False),
        ("ADD", "second", True, True),
        ("DEL", "second", True, True),
        ("DEL", "first", True, True),
        ("DEL", "second", False, False),
        ("DEL", "first", False, False),
    ]
    assert runtime.pods() == []
    assert not Path(pod.netns).exists()


def test_previous_results_are_those_of_the_chain(recorded):
    runtime = Runtime(recorded.node)
    runtime.remove_pod(runtime.run_pod("web"))
    previous = [config["prevResult"]["by"] for _, _, config in recorded.calls() if "prevResult" in config]
    assert previous == ["first", "second", "second"]


def test_what_a_plugin_is_told(recorded, monkeypatch):
    monkeypatch.setenv("SOMETHING_OF_THE_RUNTIME", "1")
    pod = Runtime(recorded.node).run_pod("web", "shop")
    Runtime(recorded.node).remove_pod(pod)
    _, env, config = recorded.calls()[0]
    assert config == {
        "type": "first",
        "name": "recorded",
        "cniVersion": "1.0.0",
        "zeta": 1,
        "alpha": {"y": 1, "x": 2},
    }
    assert env["CNI_CONTAINERID"] == pod.container_id
    assert env["CNI_NETNS"] == pod.netns
    assert pod.netns.startswith("/run/netns/cni-")
    assert env["CNI_IFNAME"] == "eth0"
    assert env["CNI_PATH"] == str(recorded.node.cni_bin_dir)
    assert env["SOMETHING_OF_THE_RUNTIME"] == "1"
    assert dict(pair.split("=") for pair in env["CNI_ARGS"].split(";")) == {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": "shop",
        "K8S_POD_NAME": "web",
        "K8S_POD_INFRA_CONTAINER_ID": pod.container_id,
        "K8S_POD_UID": pod.uid,
    }


def test_arguments_and_keys_are_ordered_as_containerd_orders_them(recorded):
    runtime = Runtime(recorded.node)
    for number in range(6):
        runtime.remove_pod(runtime.run_pod(f"web-{number}"))
    orders = {
        tuple(pair.split("=")[0] for pair in env["CNI_ARGS"].split(";")) for _, env, _ in recorded.calls()
    }
    assert len(orders) > 1  # of 36 calls; all alike once in 120 ** 35 runs
    text = next(iter(sorted(recorded.calls_dir.iterdir()))).joinpath("stdin").read_text()
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_plugins_run_on_the_node(recorded):
    runtime = Runtime(recorded.node)
    runtime.remove_pod(runtime.run_pod("web"))
    seen = {path.read_text().strip() for path in recorded.calls_dir.glob("*/netns")}
    assert seen == {f"net:[{recorded.node.netns.stat().st_ino}]"}


def test_a_failed_add_is_followed_by_a_del_and_leaves_nothing(recorded):
    (recorded.fail / "ADD-second").touch()
    runtime = Runtime(recorded.node)
    with pytest.raises(
        PluginFailed, match=r"ADD of pod default/web on node-1 failed in second: told to fail .* 7"
    ):
        runtime.run_pod("web")
    assert recorded.told() == [
        ("ADD", "first", True, False),
        ("ADD", "second", True, True),
        ("DEL", "second", True, False),
        ("DEL", "first", True, False),
    ]
    assert runtime.pods() == []
    assert not Path(recorded.calls()[0][1]["CNI_NETNS"]).exists()
    (recorded.fail / "ADD-second").unlink()
    runtime.remove_pod(runtime.run_pod("web"))


def test_a_failed_del_keeps_the_pod_for_another_try(recorded):
    runtime = Runtime(recorded.node)
    pod = runtime.run_pod("web")
    (recorded.fail / "DEL-first").touch()
    with pytest.raises(PluginFailed, match="DEL of pod default/web"):
        runtime.remove_pod(pod)
    assert runtime.pods() == [pod]
    (recorded.fail / "DEL-first").unlink()
    runtime.remove_pod(pod)
    assert runtime.pods() == []


def test_a_name_is_given_once(recorded):
    runtime = Runtime(recorded.node)
    pod = runtime.run_pod("web")
    with pytest.raises(LabError, match="has a pod default/web already"):
        runtime.run_pod("web")
    assert runtime.pods() == [pod]
    other = runtime.run_pod("web", "other")
    for one in (pod, other):
        runtime.remove_pod(one)


def test_a_node_without_network_or_plugin_says_so(recorded):
    (recorded.node.cni_bin_dir / "first").unlink()
    runtime = Runtime(recorded.node)
    with pytest.raises(LabError, match="first cannot be executed: No such file"):
        runtime.run_pod("web")
    for path in recorded.node.cni_conf_dir.iterdir():
        path.unlink()
    with pytest.raises(LabError, match="node-1 has no CNI network"):
        runtime.run_pod("web")
    assert runtime.pods() == []
