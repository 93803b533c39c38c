"""A container runtime for lab nodes that treats CNI plugins as containerd 1.6 and 1.7 do.

Seen with a recorder in place of the plugin, and repeated here:

* CNI_ARGS come in another order at each call; CNI_NETNS is ``/run/netns/cni-UUID``; the plugin inherits the
  runtime's whole environment; the keys of the configuration on standard input are sorted.
* A pod's life is ADD, DEL with the namespace and ``prevResult``, then, the namespace being gone, DEL with an
  empty CNI_NETNS and without ``prevResult``. After a failed ADD a DEL without ``prevResult`` comes at once.
* CHECK is never called.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terway_core.errors import TerwayError
from terway_core.lab.state import Lab, LabError, NodeFiles, open_netns
from terway_core.wiring.engine import Engine
from terway_core.wiring.netns import NETNS_DIR, Namespace, create_netns, delete_netns
from terway_core.wiring.objects import IPAddress, LinkUp

if TYPE_CHECKING:
    from terway_core.lab.kubelet import Kubelet

IFNAME = "eth0"
#: What the kubelet gives a CRI call before it gives up (``--runtime-request-timeout``), in seconds.
TIME_LIMIT = 120


_NOTHING: Mapping[str, str] = {}


class PluginFailed(LabError):
    """A CNI plugin answered with an error object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sandbox:
    """What the runtime keeps of one pod.

    :param config: the conflist that its ADD was done with.
    :param result: the ADD's result; None until there is one.
    """

    node: str
    namespace: str
    name: str
    uid: str
    container_id: str
    netns: str
    config: dict[str, Any]
    result: dict[str, Any] | None = None

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The pod's addresses, in the order of the result."""
        ips = (self.result or {}).get("ips", [])
        return tuple(ip_interface(entry["address"]).ip for entry in ips)


class Runtime:
    """The runtime of one node. Its state is in the node's folder: one command goes on where another ended."""

    def __init__(self, node: NodeFiles) -> None:
        self._node = node
        self._kubelet = _kubelet(node)

    def run_pod(
        self,
        name: str,
        namespace: str = "default",
        *,
        labels: Mapping[str, str] = _NOTHING,
        annotations: Mapping[str, str] = _NOTHING,
        requests: Mapping[str, str] = _NOTHING,
    ) -> Sandbox:
        """Make a sandbox and attach it to the node's network; with Kubernetes, for a new pod.

        :param requests: extended resources, such as ``aliyun/eni``.
        :raises LabError: the name is taken, or the node has no network.
        :raises PluginFailed: the ADD failed; nothing is left of the sandbox.
        :raises KubeError: the API server refused the pod.
        """
        if self._kubelet is None:
            if labels or annotations or requests:
                raise LabError("only pods of Kubernetes have labels, annotations and requests")
            return self._run_sandbox(name, namespace, str(uuid.uuid4()))
        uid = self._kubelet.create(name, namespace, labels=labels, annotations=annotations, requests=requests)
        try:
            sandbox = self._run_sandbox(name, namespace, uid)
        except BaseException:
            self._kubelet.removed(name, namespace, uid)
            raise
        self._kubelet.started(name, namespace, sandbox.addresses)
        return sandbox

    def _run_sandbox(self, name: str, namespace: str, uid: str) -> Sandbox:
        sandbox = Sandbox(
            node=self._node.name,
            namespace=namespace,
            name=name,
            uid=uid,
            container_id=secrets.token_hex(32),
            netns=str(NETNS_DIR / f"cni-{uuid.uuid4()}"),
            config=self._network(),
        )
        # Written before the namespace is made: what is not known cannot be cleaned up.
        self._reserve(sandbox)
        try:
            create_netns(Path(sandbox.netns).name)
            _loopback(sandbox)
            result: dict[str, Any] | None = None
            for plugin in sandbox.config["plugins"]:
                result = self._call("ADD", sandbox, plugin, previous=result)
            sandbox = replace(sandbox, result=result)
            self._update(sandbox)
        except BaseException:
            with suppress(TerwayError):  # the ADD's own error is the one to tell
                self._delete(sandbox, previous=None)
            delete_netns(Path(sandbox.netns).name)
            self._record(sandbox).unlink()
            raise
        return sandbox

    def remove_pod(self, sandbox: Sandbox) -> None:
        """Stop and remove a sandbox.

        :raises PluginFailed: a DEL failed; the sandbox is kept and may be removed again.
        """
        if Path(sandbox.netns).exists():
            self._delete(sandbox, previous=sandbox.result)
            delete_netns(Path(sandbox.netns).name)
        self._delete(replace(sandbox, netns=""), previous=None)
        self._record(sandbox).unlink(missing_ok=True)
        if self._kubelet:
            self._kubelet.removed(sandbox.name, sandbox.namespace, sandbox.uid)

    def pods(self) -> list[Sandbox]:
        """The sandboxes of this node, by name."""
        found = []
        for path in sorted(self._node.pods.glob("*.json")):
            with suppress(FileNotFoundError):  # removed since it was listed
                found.append(Sandbox(**json.loads(path.read_text())))
        return found

    # -- CNI ----------------------------------------------------------------------------------------------

    def _network(self) -> dict[str, Any]:
        """The first network configuration by name, as libcni picks it."""
        for path in sorted(self._node.cni_conf_dir.glob("*.conflist")):
            config: dict[str, Any] = json.loads(path.read_text())
            return config
        raise LabError(
            f"{self._node.name} has no CNI network in {self._node.cni_conf_dir}: is its daemon ready?"
        )

    def _delete(self, sandbox: Sandbox, *, previous: dict[str, Any] | None) -> None:
        for plugin in reversed(sandbox.config["plugins"]):
            self._call("DEL", sandbox, plugin, previous=previous)

    def _call(
        self, command: str, sandbox: Sandbox, plugin: dict[str, Any], *, previous: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        config = {
            **plugin,
            "name": sandbox.config["name"],
            "cniVersion": sandbox.config["cniVersion"],
            **({"prevResult": previous} if previous else {}),
        }
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": sandbox.namespace,
            "K8S_POD_NAME": sandbox.name,
            "K8S_POD_INFRA_CONTAINER_ID": sandbox.container_id,
            "K8S_POD_UID": sandbox.uid,
        }
        env = os.environ | {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": sandbox.container_id,
            "CNI_NETNS": sandbox.netns,
            "CNI_IFNAME": IFNAME,
            "CNI_PATH": str(self._node.cni_bin_dir),
            "CNI_ARGS": ";".join(f"{key}={args[key]}" for key in random.sample(sorted(args), len(args))),
        }
        executable = self._node.cni_bin_dir / plugin["type"]
        with open_netns(self._node.netns) as node:
            try:
                done = node.run(
                    subprocess.run,
                    [str(executable)],
                    input=json.dumps(config, sort_keys=True).encode(),
                    env=env,
                    capture_output=True,
                    timeout=TIME_LIMIT,
                )
            except OSError as error:
                raise LabError(f"the CNI plugin {executable} cannot be executed: {error.strerror}") from error
            except subprocess.TimeoutExpired:
                raise PluginFailed(
                    f"{command} of pod {sandbox.name}: {plugin['type']} took longer than {TIME_LIMIT} s"
                ) from None
        return _answer(command, sandbox, plugin["type"], done)

    # -- records ------------------------------------------------------------------------------------------

    def _record(self, sandbox: Sandbox) -> Path:
        return self._node.pods / f"{sandbox.namespace}.{sandbox.name}.json"

    def _reserve(self, sandbox: Sandbox) -> None:
        temporary = self._write_aside(sandbox)
        try:
            os.link(temporary, self._record(sandbox))
        except FileExistsError:
            raise LabError(
                f"{self._node.name} has a pod {sandbox.namespace}/{sandbox.name} already"
            ) from None
        finally:
            temporary.unlink()

    def _update(self, sandbox: Sandbox) -> None:
        self._write_aside(sandbox).replace(self._record(sandbox))

    def _write_aside(self, sandbox: Sandbox) -> Path:
        path = self._node.pods / f"{sandbox.container_id}.tmp"
        path.write_text(json.dumps(asdict(sandbox)))
        return path


def execute(netns: Path, argv: Sequence[str]) -> int:
    """Run a command in a namespace with the caller's terminal; its exit status, 128 + N after signal N.

    :raises LabError: it cannot be started.
    """
    with open_netns(netns) as namespace:
        try:
            status = namespace.run(subprocess.run, list(argv)).returncode
        except OSError as error:
            raise LabError(f"{argv[0]} cannot be executed: {error.strerror}") from error
    return status if status >= 0 else 128 - status


def _kubelet(node: NodeFiles) -> Kubelet | None:
    if not node.kubeconfig.exists():
        return None
    from terway_core.lab.kubelet import Kubelet

    return Kubelet(node)


def _loopback(sandbox: Sandbox) -> None:
    """What the ``loopback`` plugin does, which containerd calls before the first network."""
    with Namespace.open(sandbox.netns) as namespace:
        engine = Engine(namespace)
        try:
            engine.ensure([LinkUp(dev="lo")])
        finally:
            engine.close()


def _answer(
    command: str, sandbox: Sandbox, plugin: str, done: subprocess.CompletedProcess[bytes]
) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] | None = json.loads(done.stdout) if done.stdout else None
    except ValueError:
        answer = None
    if done.returncode == 0:
        return answer
    said = (
        f"{answer.get('msg')} (CNI code {answer.get('code')})" if answer else f"exit status {done.returncode}"
    )
    raise PluginFailed(
        f"{command} of pod {sandbox.namespace}/{sandbox.name} on {sandbox.node} failed in {plugin}: {said}",
        details="\n".join(
            filter(None, [(answer or {}).get("details", ""), done.stderr.decode(errors="replace")])
        ),
    )


def all_pods(lab: Lab) -> list[Sandbox]:
    """The pods of every node of the lab."""
    return [pod for node in lab.nodes for pod in Runtime(node).pods()]


def find_pod(lab: Lab, name: str) -> Sandbox:
    """The pod called ``name``, on whichever node.

    :raises LabError: there is none.
    """
    pods = all_pods(lab)
    for pod in pods:
        if pod.name == name:
            return pod
    known = ", ".join(pod.name for pod in pods) or "none yet; add one with: terway lab pod add"
    raise LabError(f"the lab has no pod {name!r}; its pods: {known}")
