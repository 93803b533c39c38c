"""A cluster with all that ``terway manifests`` prints: daemons and control plane are pods from an image."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml
from terway_driver_trunking.webhooks import NAME, PORT

from terway_core.kube import PODS
from terway_core.lab import fabric
from tests.e2e.containerd.machine import Machine
from tests.e2e.containerd.node import TERWAY, Node
from tests.kubernetes import image
from tests.kubernetes.cluster import Cluster, wait_for
from tests.kubernetes.service_proxy import serve
from tests.kubernetes.workload import SERVICES, is_ready

#: Settings that a ConfigMap for all nodes cannot have; the folders are where they are by default.
OF_ONE_NODE = ("node_name", "cni_bin_dir", "cni_conf_dir", "run_dir", "state_dir")
#: Of a node's own, in a mount namespace: where terway is installed by default, and the logs of its pods, of
#: which a kubelet takes away all that are not its own. The network namespaces that containerd makes are seen
#: from the machine as well.
MOUNTS = """
overlay() {{
  mkdir -p $2/upper $2/work
  mount -t overlay -o lowerdir=$1,upperdir=$2/upper,workdir=$2/work overlay $1
}}
overlay /etc /run/{name}/etc
overlay /opt /run/{name}/opt
bind() {{ mkdir -p $2; mount --bind $1 $2; }}
bind {cni_bin_dir} /opt/cni/bin
bind {cni_conf_dir} /etc/cni/net.d
bind {run_dir} /run/terway
bind {state_dir} /var/lib/terway
bind {place}/log /var/log
echo $$ > {place}/pid
exec sleep infinity
"""


class ImageCluster(Cluster):
    """Nodes that have nothing of terway but what its pods put there.

    :param archive: the image.
    """

    def __init__(
        self, machine: Machine, folder: Path, programs: Path, archive: Path, drivers: str, *options: object
    ) -> None:
        self._archive = archive
        machine.run("mount", "--bind", "/run/netns", "/run/netns")
        machine.run("mount", "--make-shared", "/run/netns")
        super().__init__(machine, folder, programs, drivers, *options)

    def _prepare(self, node: Node) -> None:
        place = self._folder / node.name
        (place / "log").mkdir()
        for file in node.cni_bin_dir.iterdir():
            file.unlink()
        folders = {name: node.settings[name] for name in OF_ONE_NODE[1:]}
        script = MOUNTS.format(name=node.name, place=place, **folders)
        unshare = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", script)
        self.machine.start(*unshare, log=place / "mounts.log")
        pid = place / "pid"
        wait_for(lambda: pid.exists() and pid.read_text().endswith("\n"), "a mount namespace")
        node.within = ("nsenter", f"--mount=/proc/{pid.read_text().strip()}/ns/mnt")

    def _start_terway(self, drivers: str) -> None:
        # The lab has none of what serves that plugin; here controllers do.
        self.kill_apiserver(without="--disable-admission-plugins=ServiceAccount")()
        for containerd in self.containerd.values():
            containerd.load(self._archive)
        wait_for(self.answers, "the API server answers again")
        node = self.lab.nodes[0]
        config = self._folder / "config.yaml"
        settings = {name: value for name, value in node.settings.items() if name not in OF_ONE_NODE}
        config.write_text(yaml.safe_dump(settings))
        command = (TERWAY, "manifests", "--drivers", drivers, "--image", image.NAME, "--config", config)
        self.install(yaml.safe_load_all(node.run(*command)))

        nodes = list(self.nodes.values())
        apiserver = self._service("kubernetes", "default")
        address, port = str(fabric.KUBERNETES), fabric.KUBERNETES_PORT
        serve([node.run for node in nodes], self._folder, apiserver, 443, [address], port)
        switch = partial(self.machine.run, netns=self._env["netns"])
        addresses = [node.addresses[0] for node in nodes]
        serve([switch], self._folder, self._service(NAME, "kube-system"), 443, addresses, PORT)

    def logs(self) -> dict[str, str]:
        """What terway's own containers have written, by the file."""
        found = self._folder.glob("*/log/pods/kube-system_*/*/*.log")
        return {str(path.relative_to(self._folder)): path.read_text() for path in found}

    def ready(self, app: str) -> list[dict[str, Any]]:
        """Those of terway's own pods that are."""
        return list(filter(is_ready, self.list(PODS, "kube-system", label_selector=f"app={app}")))

    def _service(self, name: str, namespace: str) -> str:
        """The ClusterIP of a Service."""
        return str(self.ask(lambda client: client.get(SERVICES, name, namespace))["spec"]["clusterIP"])
