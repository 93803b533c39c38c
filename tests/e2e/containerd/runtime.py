"""containerd on a node, with the node's own plugin and conflist, and its sandboxes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import image
from .cri import Cri, CriError
from .machine import Machine
from .node import Node, eventually

# Root and state are in /var/lib and /run, as by default: those are the machine's own. A profile of
# AppArmor would stay in the kernel, and a root without CAP_SYS_RESOURCE cannot lower an oom_score_adj.
CONFIG = """
version = 2
root = "/var/lib/containerd/{node}"
state = "/run/containerd/{node}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/{node}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin_dir}"
    conf_dir = "{conf_dir}"
"""
#: containerd sets up ``lo`` by it before it asks for the first network.
LOOPBACK = Path("/usr/lib/cni/loopback")
#: Kubernetes' namespace of all pods.
POD_NAMESPACE = "e2e"


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A pod's sandbox with one container in it.

    :param addresses: the pod's, by the runtime's word.
    :param pid: the sandbox's own process.
    """

    id: str
    name: str
    addresses: list[str]
    pid: int
    container: str


class Containerd:
    """containerd on ``node``; its sandboxes end with the machine at the latest."""

    def __init__(self, node: Node, folder: Path) -> None:
        self._node = node
        self._machine: Machine = node.machine
        socket, config, archive = (
            folder / name for name in ("containerd.sock", "containerd.toml", "image.tar")
        )
        self.socket = socket
        loopback = node.cni_bin_dir / LOOPBACK.name
        loopback.symlink_to(LOOPBACK)
        settings = {"node": node.name, "bin_dir": node.cni_bin_dir, "conf_dir": node.cni_conf_dir}
        config.write_text(CONFIG.format(socket=socket, image=image.NAME, **settings))
        image.write_image(archive)
        node.start("containerd", "--config", config, log=folder / "containerd.log")
        self._cri = Cri(socket, folder)
        eventually(self._problem, "")
        self.load(archive)

    def load(self, archive: Path) -> None:
        """Take in an image for pods of Kubernetes."""
        ctr = ("ctr", "--address", self.socket, "--namespace", "k8s.io")
        self._node.run(*ctr, "images", "import", archive)

    def close(self) -> None:
        """Hang up; containerd itself ends with the machine."""
        self._cri.close()

    def run(self, name: str, *, attempt: int = 0, annotations: Mapping[str, str] | None = None) -> Sandbox:
        """Run a pod.

        :param attempt: how often the pod's sandbox was made before.
        :raises CriError: with what the runtime said; nothing of the sandbox is known then.
        """
        config = {
            "metadata": {
                "name": name,
                "uid": f"uid-of-{name}",
                "namespace": POD_NAMESPACE,
                "attempt": attempt,
            },
            "hostname": name,
            "dns_config": {"servers": ["192.0.2.53"]},  # else it would copy the machine's own
            "annotations": dict(annotations or {}),
            "linux": {"cgroup_parent": f"/{self._machine.name}"},
        }
        sandbox = self._cri.call("RunPodSandbox", config=config).pod_sandbox_id
        container = self._cri.call(
            "CreateContainer",
            pod_sandbox_id=sandbox,
            config={"metadata": {"name": "main", "attempt": attempt}, "image": {"image": image.NAME}},
            sandbox_config=config,
        ).container_id
        self._cri.call("StartContainer", container_id=container)
        answer = self._cri.call("PodSandboxStatus", pod_sandbox_id=sandbox, verbose=True)
        network = answer.status.network
        return Sandbox(
            id=sandbox,
            name=name,
            addresses=[network.ip, *(more.ip for more in network.additional_ips)],
            pid=json.loads(answer.info["info"])["pid"],
            container=container,
        )

    def execute(self, sandbox: Sandbox, *command: str) -> str:
        """Run a command in the sandbox's container and return what it prints; its exit status must be 0."""
        done = self._cri.call("ExecSync", container_id=sandbox.container, cmd=command, timeout=60)
        assert done.exit_code == 0, (
            f"{command} in {sandbox.name}: {done.stdout.decode()}{done.stderr.decode()}"
        )
        return str(done.stdout.decode())

    def reaches(self, sandbox: Sandbox, address: str) -> bool:
        """Whether an echo comes back to the pod."""
        command = ("ping", "-c", "1", "-W", "3", address)
        done = self._cri.call("ExecSync", container_id=sandbox.container, cmd=command, timeout=60)
        return bool(done.exit_code == 0)

    def inspect(self, sandbox: Sandbox, *command: str) -> str:
        """Run a command of the machine in the pod's network namespace and return what it prints."""
        return self._machine.run(*command, netns=f"/proc/{sandbox.pid}/ns/net")

    def stop(self, sandbox: Sandbox) -> None:
        """End the pod and its network."""
        self._cri.call("StopPodSandbox", pod_sandbox_id=sandbox.id)

    def remove(self, sandbox: Sandbox) -> None:
        """Stop the pod and forget it, as the kubelet does with a deleted pod."""
        self._remove(sandbox.id)

    def remove_all(self) -> None:
        """Remove all pods."""
        for sandbox in self.sandboxes():
            self._remove(sandbox)

    def _remove(self, sandbox: str) -> None:
        self._cri.call("StopPodSandbox", pod_sandbox_id=sandbox)
        self._cri.call("RemovePodSandbox", pod_sandbox_id=sandbox)

    def sandboxes(self) -> list[str]:
        """The ids of all sandboxes that it knows."""
        return [item.id for item in self._cri.call("ListPodSandbox").items]

    def _problem(self) -> str:
        """Why it cannot run pods yet."""
        try:
            conditions = self._cri.call("Status").status.conditions
        except CriError as error:
            return str(error)
        return "; ".join(condition.message for condition in conditions if not condition.status)
