"""Where a lab is: one folder, and network namespaces whose names follow from that folder.

::

    FOLDER/lab.json                what was asked for; its presence marks the folder as a lab's
    FOLDER/complete                says that the lab was built to the end
    FOLDER/region/                 log, state and socket of the simulated region
    FOLDER/kubernetes/             kubeconfig, and the files of a real API server
    FOLDER/kernel/                 of a lab in user-mode Linux; everything else of it is as always
    FOLDER/nodes/NODE/             config.yaml, daemon.log, state/, run/, cni/bin/, cni/net.d/, pods/

Everything of a lab can be found from its folder's path alone, whatever was written into it: the namespaces by
their prefix, the processes by their namespace. That is how a lab that was killed at any moment is cleaned up.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from terway_core.errors import TerwayError
from terway_core.lab.process import Process, end_all, netns_id
from terway_core.wiring.netns import NETNS_DIR, Namespace, delete_netns

DEFAULT_FOLDER = Path("/var/lib/terway-lab")
ENV_FOLDER = "TERWAY_LAB_DIR"
DEFAULT_INSTANCE_TYPE = "ecs.g7.xlarge"

IpStack: TypeAlias = Literal["ipv4", "ipv6", "dual"]
Kubernetes: TypeAlias = Literal["none", "simulated", "real"]
Kernel: TypeAlias = Literal["auto", "host", "uml"]


class LabError(TerwayError):
    """The lab cannot do what it was asked to; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """What a lab consists of.

    :param ip_stack: the families of the pods. Nodes have IPv4, as on ECS, and IPv6 unless this is ``ipv4``.
    :param instance_type: of every node; it decides how many ENIs and addresses a node can have.
    :param vswitches: more vSwitches than there are anyway, each ``[ZONE=]CIDR``.
    :param kubernetes: the API server that the nodes belong to.
    """

    nodes: int
    drivers: tuple[str, ...]
    ip_stack: IpStack = "ipv4"
    instance_type: str = DEFAULT_INSTANCE_TYPE
    vswitches: tuple[str, ...] = ()
    kubernetes: Kubernetes = "none"


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """The paths of one node."""

    name: str
    folder: Path
    netns: Path

    @property
    def config(self) -> Path:
        """The configuration file of its daemon, as a user would write it."""
        return self.folder / "config.yaml"

    @property
    def log(self) -> Path:
        """What its daemon prints."""
        return self.folder / "daemon.log"

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def socket(self) -> Path:
        """Where its daemon listens."""
        return self.run_dir / "terway.sock"

    @property
    def cni_bin_dir(self) -> Path:
        return self.folder / "cni" / "bin"

    @property
    def cni_conf_dir(self) -> Path:
        return self.folder / "cni" / "net.d"

    @property
    def kubeconfig(self) -> Path:
        """That of its daemon; only in a lab with Kubernetes."""
        return self.folder / "kubeconfig"

    @property
    def admin_kubeconfig(self) -> Path:
        """That of the lab, which the runtime uses in place of a kubelet's."""
        return Lab(self.folder.parents[1]).kubeconfig

    @property
    def pods(self) -> Path:
        """One record for each sandbox of its runtime."""
        return self.folder / "pods"


class Lab:
    """The lab in ``folder``, whether or not anything is there yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        #: Short, and different for each folder, so that labs can live side by side.
        self.id = hashlib.sha1(str(self.folder).encode()).hexdigest()[:6]

    @property
    def exists(self) -> bool:
        """Whether the folder is marked as a lab's; the lab may be half built or half dead."""
        return self._marker.exists()

    @property
    def region_dir(self) -> Path:
        return self.folder / "region"

    @property
    def region_log(self) -> Path:
        return self.region_dir / "region.log"

    @property
    def region_state(self) -> Path:
        """Everything that exists in the region, secrets included."""
        return self.region_dir / "state.json"

    @property
    def region_socket(self) -> Path:
        """Where the region answers from outside its network."""
        return self.region_dir / "region.sock"

    @property
    def kubernetes_dir(self) -> Path:
        """What belongs to the API server, secrets included."""
        return self.folder / "kubernetes"

    @property
    def kubeconfig(self) -> Path:
        """An administrator's; it works inside the lab's network."""
        return self.kubernetes_dir / "kubeconfig"

    @property
    def kernel_dir(self) -> Path:
        """What belongs to the kernel of a lab that has its own."""
        return self.folder / "kernel"

    @property
    def _marker(self) -> Path:
        return self.folder / "lab.json"

    @property
    def complete(self) -> bool:
        """Whether it was built to the end; parts of it may have died since."""
        return self._complete.exists()

    @property
    def _complete(self) -> Path:
        return self.folder / "complete"

    @property
    def spec(self) -> Spec:
        """What the lab was built as.

        :raises LabError: there is no lab, or it was killed while it was being written down.
        """
        try:
            data = json.loads(self._marker.read_text())
            return Spec(
                nodes=data["nodes"],
                drivers=tuple(data["drivers"]),
                ip_stack=data["ip_stack"],
                instance_type=data["instance_type"],
                vswitches=tuple(data["vswitches"]),
                kubernetes=data["kubernetes"],
            )
        except FileNotFoundError:
            raise LabError(f"no lab is up in {self.folder}; start one with: terway lab up") from None
        except (ValueError, KeyError, TypeError):
            raise LabError(
                f"the lab in {self.folder} is damaged; take it down with: terway lab down"
            ) from None

    @property
    def nodes(self) -> tuple[NodeFiles, ...]:
        """The lab's nodes, by number."""
        return tuple(self.node_files(number) for number in range(1, self.spec.nodes + 1))

    def node_files(self, number: int) -> NodeFiles:
        """The node with this number, from 1, whether or not the lab has it."""
        name = f"node-{number}"
        return NodeFiles(name, self.folder / "nodes" / name, self.netns(name))

    def node(self, name: str) -> NodeFiles:
        """The node called ``name``.

        :raises LabError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes[:3]) + ("…" if self.spec.nodes > 3 else "")
        raise LabError(f"the lab has no node {name!r}; its nodes: {known}")

    def netns(self, role: str) -> Path:
        """The network namespace of the ``switch``, the ``internet`` or a node."""
        return NETNS_DIR / f"{self._prefix}{role}"

    @property
    def _prefix(self) -> str:
        return f"terway-lab-{self.id}-"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other commands from building or razing the same lab.

        The folder is made if it is not there, and removed if there is nothing in it afterwards.

        :raises LabError: somebody else is at it, or the folder holds something that is no lab.
        """
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise LabError(f"the lab's folder {self.folder} cannot be used: {error.strerror}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                busy = not os.fstat(handle).st_nlink  # removed by whoever had the lock
            except BlockingIOError:
                busy = True
            if busy:
                raise LabError(f"another command is building or removing the lab in {self.folder}; try again")
            try:
                if not self.exists and any(entry != self.kernel_dir for entry in self.folder.iterdir()):
                    raise LabError(
                        f"{self.folder} holds other files; give the lab an empty folder with --dir"
                    )
                yield
            finally:
                with suppress(OSError):
                    self.folder.rmdir()
        finally:
            os.close(handle)

    def mark(self, spec: Spec) -> None:
        """Claim the folder; comes before anything else that leaves a trace."""
        self._marker.write_text(json.dumps(asdict(spec), indent=2) + "\n")

    def mark_complete(self) -> None:
        """Every part has been built and serves."""
        self._complete.touch()

    def raze(self) -> None:
        """End every process, namespace and file of this lab, however much of it there is; a kernel stays."""
        paths = [*NETNS_DIR.glob(f"{self._prefix}*"), *self._pod_namespaces()]
        end_all(filter(None, map(netns_id, paths)))
        for path in paths:
            delete_netns(path.name)
        if not self.exists:
            return
        for entry in self.folder.iterdir():
            if entry in (self._marker, self.kernel_dir):
                continue
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self._marker.unlink()  # last: as long as anything is left, the folder is known as a lab's

    def _pod_namespaces(self) -> Iterator[Path]:
        for record in self.folder.glob("nodes/*/pods/*.json"):
            with suppress(ValueError, KeyError):  # razing goes on past a damaged record
                yield Path(json.loads(record.read_text())["netns"])


def remember(folder: Path, process: Process) -> None:
    """Write down which process serves ``folder``."""
    (folder / "process.json").write_text(json.dumps(asdict(process)))


def recall(folder: Path) -> Process | None:
    """The process that serves ``folder``, dead or alive."""
    try:
        data: dict[str, Any] = json.loads((folder / "process.json").read_text())
        return Process(**data)
    except (OSError, ValueError, TypeError):
        return None


def open_netns(path: Path) -> Namespace:
    """Open a namespace of the lab.

    :raises LabError: it is gone; the lab needs to be built again.
    """
    try:
        return Namespace.open(path)
    except TerwayError as error:
        raise LabError(f"{error.message}; build the lab again with: terway lab up") from error
