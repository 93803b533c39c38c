"""Control plane in the VPC's switch; on each node containerd, the kubelet, and our daemon."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from terway_core.config import KubeConfig
from terway_core.errors import KubeError
from terway_core.kube import NODES, PODS, KubeClient, Resource
from terway_core.lab.cluster import TAINT
from terway_core.wiring.netns import Namespace
from tests.e2e.containerd.machine import Machine
from tests.e2e.containerd.node import TERWAY, Lab, Node
from tests.e2e.containerd.runtime import Containerd

T = TypeVar("T")

#: Kinds whose objects run pods from an image with terway, or lead to such pods. Its processes are started as
#: those of a node are.
FROM_AN_IMAGE = (
    *("DaemonSet", "Deployment", "Service"),
    *("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"),
)
CLUSTER_WIDE = (
    *("ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"),
    *("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"),
)

#: Seconds that anything may take, on a machine with much else to do.
PATIENCE = 180
#: What the kubelet sets, as it runs on real nodes. Here it finds, and writes, files of the machine's own.
TUNABLES = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}


class Cluster:
    """Two nodes on the machine; it ends with the machine.

    The API server, etcd and the nodes' daemons are the lab's. Nodes join as new ones do: the kubelet
    registers its node with the not-ready taint, then the daemon starts. (A kubelet 1.20 that finds an object
    of its node without a status, such as the lab makes, ends.)

    :param programs: the folder with Kubernetes' programs.
    :param drivers: modes to serve, separated by commas.
    :param options: of ``terway lab up``.
    """

    def __init__(
        self, machine: Machine, folder: Path, programs: Path, drivers: str, *options: object
    ) -> None:
        self.machine = machine
        self._folder = folder
        self._programs = programs
        for path in ("/var/log", "/usr/libexec/kubernetes"):  # where a kubelet writes without being asked
            if Path(path).exists():
                machine.run("mount", "-t", "tmpfs", "tmpfs", path)
        self._hide_tunables()
        # With a driver that works on every kernel; the lab would refuse one that does not.
        self.lab = Lab(machine, folder / "lab", "--kubernetes", "--drivers", "eniip_veth", *options)
        self._env: dict[str, str] = self.lab.env["kubernetes"]
        assert self._env["kind"] == "real"
        self._certificate = Path(self._env["kubeconfig"]).with_name("apiserver.crt")
        self._start_control_plane()
        self.nodes = {node.name: node for node in self.lab.nodes}
        self.containerd: dict[str, Containerd] = {}
        self._identities: dict[str, tuple[str, str]] = {}
        for node in self.nodes.values():
            place = folder / node.name
            place.mkdir()
            self._prepare(node)
            self.containerd[node.name] = Containerd(node, place)
            self._identities[node.name] = _identity(self.node(node.name))
            self._forget(node)
            self.start_kubelet(node)
        self._start_terway(drivers)
        for name in self.nodes:
            wait_for(lambda name=name: self.is_ready(name), f"{name} takes pods")

    def close(self) -> None:
        """Hang up; all processes end with the machine."""
        for containerd in self.containerd.values():
            containerd.close()

    # -- the API ------------------------------------------------------------------------------------------

    def ask(self, function: Callable[[KubeClient], T]) -> T:
        """Ask the API as an administrator does, from the switch, where it is."""

        def ask() -> T:
            config = KubeConfig(kubeconfig=Path(self._env["kubeconfig"]))
            with closing(KubeClient(config, component="test")) as client:
                return function(client)

        return self.inside(self._env["netns"], ask)

    def inside(self, netns: str, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call ``function`` in one of the machine's network namespaces."""
        with Namespace.open(self.machine.root / netns.removeprefix("/var").lstrip("/")) as namespace:
            return namespace.run(function, *arguments, **options)

    def answers(self) -> bool:
        """Whether the API server does."""
        try:
            return bool(self.list(NODES))
        except KubeError:
            return False

    def print(self, *command: object) -> list[dict[str, Any]]:
        """Objects of Kubernetes that a ``terway`` command prints, on a node."""
        node = self.lab.nodes[0]
        return list(yaml.safe_load_all(node.run(TERWAY, *command, "--config", node.config)))

    def install(self, manifests: Iterable[dict[str, Any]]) -> None:
        """Apply objects, as ``kubectl apply --server-side`` does."""

        def apply(client: KubeClient) -> None:
            for manifest in manifests:
                metadata = manifest["metadata"]
                name, namespace = metadata["name"], metadata.get("namespace", "")
                options = {"kind": "apply", "field_manager": "test"}
                client.patch(resource_of(manifest), name, manifest, namespace, **options)

        self.ask(apply)

    def node(self, name: str) -> dict[str, Any]:
        """The node's object."""
        return self.ask(lambda client: client.get(NODES, name))

    def is_registered(self, name: str) -> bool:
        """Whether there is such a node."""
        return name in [node["metadata"]["name"] for node in self.list(NODES)]

    def is_ready(self, name: str) -> bool:
        """Whether pods are scheduled to the node."""
        if not self.is_registered(name):
            return False
        node = self.node(name)
        conditions = {one["type"]: one["status"] for one in node.get("status", {}).get("conditions", ())}
        return conditions.get("Ready") == "True" and not node["spec"].get("taints")

    def list(self, resource: Resource, namespace: str = "", **selectors: str) -> list[dict[str, Any]]:
        """Objects, by ``label_selector`` and ``field_selector``."""
        return self.ask(lambda client: client.list(resource, namespace, **selectors).items)

    def pods(self, app: str) -> list[dict[str, Any]]:
        """The pods with the label ``app``."""
        return self.list(PODS, "default", label_selector=f"app={app}")

    def rows(self) -> list[dict[str, Any]]:
        """The journals of all nodes."""
        return [row for node in self.nodes.values() for row in node.rows()]

    def netns(self, pod: dict[str, Any]) -> str:
        """The path of a running pod's network namespace, in the machine."""
        return next(row["netns"] for row in self.rows() if row["uid"] == pod["metadata"]["uid"])

    # -- what happens to it -------------------------------------------------------------------------------

    def forget(self, node: Node) -> str:
        """Make a node one that was never in the cluster, without kubelet and daemon; its taint-to-be."""
        self.kill_kubelet(node)
        self._forget(node)
        return str(TAINT["key"])

    def _forget(self, node: Node) -> None:
        node.kill_daemon()
        for conflist in node.cni_conf_dir.iterdir():
            conflist.unlink()
        self.ask(lambda client: client.delete(NODES, node.name))

    def cordon(self, name: str, unschedulable: bool) -> None:
        """Have no new pods on a node, or have them again."""
        patch = {"spec": {"unschedulable": unschedulable}}
        self.ask(lambda client: client.patch(NODES, name, patch))

    def kill_sandbox(self, pod: dict[str, Any]) -> None:
        """End a pod's sandbox as a crash does; the kubelet makes another."""
        node = pod["spec"]["nodeName"]
        (row,) = (row for row in self.nodes[node].rows() if row["uid"] == pod["metadata"]["uid"])
        socket = self.containerd[node].socket
        listed = self.machine.run("ctr", "--address", socket, "--namespace", "k8s.io", "tasks", "list")
        (pid,) = (line.split()[1] for line in listed.splitlines() if line.startswith(row["container_id"]))
        self.machine.kill(int(pid))

    # -- processes ----------------------------------------------------------------------------------------

    def start_kubelet(self, node: Node) -> None:
        """Start the kubelet of a node; it is not ready yet when this returns."""
        place = self._folder / node.name
        settings = place / "kubelet.yaml"
        resolv = place / "resolv.conf"
        resolv.write_text("nameserver 192.0.2.53\n")
        settings.write_text(yaml.safe_dump(self._kubelet_settings(place)))
        taint = f"{TAINT['key']}=:{TAINT['effect']}"
        provider_id, labels = self._identities[node.name]
        node.start(
            self._programs / "kubelet",
            f"--config={settings}",
            f"--kubeconfig={self._env['kubeconfig']}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.addresses[0]}",
            f"--root-dir={place / 'kubelet'}",
            f"--cert-dir={place / 'certificates'}",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{self.containerd[node.name].socket}",
            f"--register-with-taints={taint}",
            f"--provider-id={provider_id}",
            f"--node-labels={labels}",
            log=place / "kubelet.log",
            # Else its cloud providers look for the metadata service of another cloud, for two minutes.
            env={"AWS_EC2_METADATA_DISABLED": "true"},
        )

    def kill_kubelet(self, node: Node) -> None:
        """End a node's kubelet with no chance to clean up; its containers go on."""
        self.kill(f"--hostname-override={node.name}")

    def kill(self, text: str) -> None:
        """End the process whose command line has the text."""
        self.machine.kill(self._pid(text))

    def kill_apiserver(self, without: str = "") -> Callable[[], None]:
        """End the API server; what is returned starts it again, without one of its options."""
        pid = self._pid("/kube-apiserver")
        command = (self.machine.root / f"proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        self.machine.kill(pid)
        options = [one for one in command if one != without]
        return lambda: self.machine.start(
            *options, netns=self._env["netns"], log=self._certificate.with_name("apiserver.log")
        )

    def _prepare(self, node: Node) -> None:
        """What a node needs before its containerd."""

    def _start_terway(self, drivers: str) -> None:
        printed = self.print("manifests", "--drivers", drivers, "--image", "none")
        self.install(one for one in printed if one["kind"] not in FROM_AN_IMAGE)
        for node in self.nodes.values():
            node.start_daemon(drivers=drivers.split(","))

    def _start_control_plane(self) -> None:
        kubeconfig = self._env["kubeconfig"]
        certificates = self._folder / "certificates"
        common = (f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--port=0")
        managers = {
            "kube-controller-manager": (
                "--allocate-node-cidrs=false",
                f"--service-account-private-key-file={self._certificate.with_name('service-account.key')}",
                f"--root-ca-file={self._certificate}",
                f"--flex-volume-plugin-dir={self._folder / 'volumes'}",
                "--node-monitor-grace-period=20s",
                "--kube-api-qps=100",
                "--kube-api-burst=200",
            ),
            "kube-scheduler": (),
        }
        for name, options in managers.items():
            self.machine.start(
                self._programs / name,
                *common,
                f"--cert-dir={certificates}",
                *options,
                netns=self._env["netns"],
                log=self._folder / f"{name}.log",
            )

    def _kubelet_settings(self, place: Path) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "resolvConf": str(place / "resolv.conf"),
            "volumePluginDir": str(place / "volumes"),
            "nodeStatusUpdateFrequency": "4s",
            "syncFrequency": "5s",
            "kubeAPIQPS": 50,
            "kubeAPIBurst": 100,
            # A machine within a machine: all nodes share its memory, disk and control groups.
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.machine.name}",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "evictionHard": {"memory.available": "1Mi"},
            "imageGCHighThresholdPercent": 100,
            # Who is root here need not have CAP_SYS_RESOURCE.
            "oomScoreAdj": 0,
            "maxOpenFiles": 20000,
            "makeIPTablesUtilChains": False,
        }

    def _hide_tunables(self) -> None:
        for name, value in TUNABLES.items():
            file = self._folder / name.replace("/", ".")
            file.write_text(f"{value}\n")
            self.machine.run("mount", "--bind", file, f"/proc/sys/{name}")

    def _pid(self, text: str) -> int:
        return int(self.machine.run("pgrep", "--full", "--", text))


def _identity(node: dict[str, Any]) -> tuple[str, str]:
    """What the cloud's own controller tells of a node: its instance, and the labels for zone and type."""
    labels = node["metadata"]["labels"]
    told = (f"{name}={text}" for name, text in labels.items() if name != "kubernetes.io/hostname")
    return node["spec"]["providerID"], ",".join(told)


def resource_of(manifest: dict[str, Any]) -> Resource:
    """Where the API has objects like this one."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    kind = manifest["kind"]
    namespaced = kind not in CLUSTER_WIDE
    return Resource(group=group, version=version, plural=f"{kind.lower()}s", kind=kind, namespaced=namespaced)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true answer of ``condition``."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.25)
    return answer
