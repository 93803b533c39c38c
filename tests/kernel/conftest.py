"""A node (a network namespace, a daemon in it, the real plugin), the pods on it, and a guard against leaks.

``make_node`` makes nodes as a test wants them; most tests take ``node``, one for all tests of their module.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from terway_core.audit import audit
from terway_core.cli.client import ask
from terway_core.config import Config, load_config
from terway_core.lab.ping import ping
from terway_core.wiring.netns import NETNS_DIR, Namespace, create_netns, delete_netns
from terway_core.wiring.snapshot import Snapshot

#: Marks what this run of the tests makes.
RUN = f"terway-kt{os.getpid()}"
TERWAY = Path(sys.executable).with_name("terway")
LAUNCHER = Path(__file__).with_name("daemon_under_test.py")
RTPROT_KERNEL = 2
#: Only a test that fails waits this long, in seconds.
DEADLINE = 30.0

POD_CIDRS = ("172.20.1.0/24", "fd00:1::/64")
NODE_ADDRESSES = ("192.168.0.10/32", "fd00:ffff::10/128")


def require(*tools: str) -> None:
    """Skip the test where it cannot run; where ``CI`` is set it fails, for there nobody would notice."""
    missing = [f"the command {tool!r}" for tool in tools if shutil.which(tool) is None]
    if os.geteuid():
        missing.insert(0, "root")
    if missing:
        reason = f"this test needs {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true answer of ``condition``."""
    until = time.monotonic() + DEADLINE
    while not (answer := condition()):
        if time.monotonic() > until:
            pytest.fail(f"waited {DEADLINE:g} s in vain: {what}")
        time.sleep(0.005)
    return answer


def run(*argv: str, **options: Any) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=False, **options)
    assert done.returncode == 0, f"{argv} failed: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Answer:
    """What the plugin printed, and its exit status."""

    status: int
    body: dict[str, Any] | None

    @property
    def code(self) -> int:
        """The CNI error code; 0 for success."""
        return self.body["code"] if self.status else 0

    @property
    def text(self) -> str:
        """All that the error says."""
        return f"{self.body['msg']}\n{self.body.get('details', '')}"

    @property
    def addresses(self) -> list[str]:
        """The pod's addresses."""
        return [ip["address"].partition("/")[0] for ip in self.body["ips"]]


@dataclass
class Pod:
    """A sandbox as a runtime has it."""

    name: str
    container_id: str
    netns: Path
    uid: str = ""
    namespace: str = "default"
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, *argv: str) -> str:
        """What a command prints that is run in the pod; it must succeed."""
        return self.inside(run, *argv)

    def inside(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``function`` in the pod."""
        with Namespace.open(self.netns) as namespace:
            return namespace.run(function, *args, **kwargs)

    def reaches(self, address: str, *, timeout: float = 3.0) -> bool:
        """Whether the pod gets answers from ``address``."""
        return self.inside(ping, ip_address(address), timeout=timeout) is not None

    def ip(self, *argv: str) -> Any:
        """What ``ip`` says or does in the pod."""
        return ip_command(self.netns.name, *argv)


def ip_command(netns: str, *argv: str) -> Any:
    """What ``ip -json`` says in a namespace; None if nothing."""
    text = run("ip", "-json", "-netns", netns, *argv)
    return json.loads(text) if text.strip() else None


class Node:
    """One node. Methods fail the test when something is not as it must be.

    :ivar folder: everything it has on disk; ``faults`` in it is what the launcher looks at.
    """

    def __init__(self, name: str, folder: Path, **settings: Any) -> None:
        self.name = name
        self.folder = folder
        self.faults = folder / "faults"
        self.faults.mkdir(parents=True)
        self.netns = NETNS_DIR / name
        self.config_file = folder / "config.yaml"
        self.config = self._configure(settings)
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.pods: list[Pod] = []
        self._pod_number = 0

    def boot(self) -> None:
        """Make the namespace, with what a node has before terway comes: loopback, and its own addresses."""
        create_netns(self.name)
        ip_command(self.name, "link", "set", "lo", "up")
        for address in NODE_ADDRESSES:
            ip_command(self.name, "address", "add", address, "dev", "lo")

    def reboot(self) -> None:
        """Everything in memory is gone: processes, namespaces, links."""
        self.close()
        self.pods.clear()
        self.boot()

    def _configure(self, settings: dict[str, Any]) -> Config:
        vpc = {
            "pod_cidrs": [*POD_CIDRS],
            "cluster_cidrs": ["172.20.0.0/16", "fd00::/16"],
            "rest_seconds": 0,
            **settings.pop("vpc", {}),
        }
        data = {
            "drivers": ["vpc"],
            "options": {"vpc": vpc},
            "node_name": self.name,
            "vpc_cidrs": ["192.168.0.0/16"],
            "state_dir": str(self.folder / "state"),
            "run_dir": str(self.folder / "run"),
            "cni_bin_dir": str(self.folder / "bin"),
            "cni_conf_dir": str(self.folder / "net.d"),
            "gc_interval": 3600,
            **settings,
        }
        self.config_file.write_text(yaml.safe_dump(data))
        return load_config(self.config_file, env={})

    wait_for = staticmethod(wait_for)

    # -- the daemon ---------------------------------------------------------------------------------------

    def spawn(self, *argv: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command on the node; its output is added to the log."""
        with Namespace.open(self.netns) as namespace, self.log.open("ab") as log:
            return namespace.run(
                subprocess.Popen,
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PYTHONWARNINGS": "error"} | (env or {}),
            )

    def start(self, *, wait: bool = True, env: dict[str, str] | None = None) -> None:
        """Start the daemon as an operator would."""
        self.process = self.spawn(str(TERWAY), "daemon", "--config", str(self.config_file), env=env)
        if wait:
            self.wait_until_ready()

    def start_with_faults(self, *, wait: bool = True) -> None:
        """Start the daemon under the launcher, which starts it again when it is killed."""
        self.process = self.spawn(sys.executable, str(LAUNCHER), str(self.config_file), str(self.faults))
        if wait:
            self.wait_until_ready()

    @contextlib.contextmanager
    def held(self, step: str) -> Iterator[None]:
        """Within the block the daemon waits when it comes to a step."""
        gate = self.faults / f"hold-{step}"
        gate.touch()
        yield
        gate.unlink()

    def wait_until_ready(self, *, but_not: int = 0) -> int:
        """Wait for a daemon that serves, another than the one of the pid ``but_not``; return its pid."""

        def ready() -> int:
            if self.process and self.process.poll() is not None:
                pytest.fail(f"the daemon ended with {self.process.returncode}:\n{self.log_text()}")
            status = self.status()
            return status["pid"] if status and status["ready"] and status["pid"] != but_not else 0

        return wait_for(ready, "the daemon is ready")

    def status(self) -> dict[str, Any] | None:
        """``/v1/status``; None while nobody answers."""
        try:
            return ask(self.config.socket, "GET", "/v1/status")
        except Exception:
            return None

    def ask(self, method: str, path: str) -> Any:
        """One request to the daemon."""
        return ask(self.config.socket, method, path)

    def stop(self) -> None:
        """End the daemon as systemd does."""
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                assert self.process.wait(DEADLINE) == 0, self.log_text()
            finally:
                self.kill()

    def kill(self) -> None:
        """End the daemon so that it cannot do anything more."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Within the block the daemon, started by :meth:`start_with_faults`, is killed; after it there is
        another one."""
        pid = self.status()["pid"]
        gate = self.faults / "away"
        gate.touch()
        os.kill(pid, signal.SIGKILL)
        self.wait_for(lambda: self.status() is None, "the daemon is gone")
        yield
        gate.unlink()
        self.wait_until_ready(but_not=pid)

    def log_text(self) -> str:
        """The end of the daemon's log."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def terway(self, *argv: str, status: int = 0) -> str:
        """Run the command line tool on the node; what it prints on either channel."""
        with Namespace.open(self.netns) as namespace:
            done = namespace.run(
                subprocess.run,
                [str(TERWAY), *argv, "--config", str(self.config_file)],
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                check=False,
            )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    # -- the runtime --------------------------------------------------------------------------------------

    def pod(self, name: str = "", *, netns: Path | None = None) -> Pod:
        """A new sandbox for a pod; a new pod by default, another sandbox of one whose ``name`` was used."""
        self._pod_number += 1
        number = self._pod_number
        netns = netns or create_netns(f"{self.name}-{number}")
        pod = Pod(name or f"pod-{number}", f"{number:064x}", netns, uid=f"uid-{number}")
        self.pods.append(pod)
        return pod

    def remove(self, pod: Pod) -> None:
        """The sandbox's namespace goes, without a DEL."""
        delete_netns(pod.netns.name)
        self.pods.remove(pod)

    def renew(self, pod: Pod) -> None:
        """Another namespace takes the place of the sandbox's, of the same inode if it can be had."""
        inode = pod.netns.stat().st_ino
        for _ in range(100):
            delete_netns(pod.netns.name)
            create_netns(pod.netns.name)
            if pod.netns.stat().st_ino == inode:
                break

    def cni(
        self,
        command: str,
        pod: Pod | None = None,
        *,
        ifname: str = "eth0",
        network: str = "terway",
        version: str = "1.0.0",
        env: dict[str, str] | None = None,
        **netconf: Any,
    ) -> Answer:
        """Call the plugin as a runtime does."""
        process = self.call(command, pod, ifname=ifname, network=network, version=version, env=env, **netconf)
        answer = self.answer(process)
        if command == "ADD" and pod and not answer.status:
            pod.results[ifname] = answer.body
        return answer

    def call(
        self,
        command: str,
        pod: Pod | None = None,
        *,
        ifname: str = "eth0",
        network: str = "terway",
        version: str = "1.0.0",
        env: dict[str, str] | None = None,
        **netconf: Any,
    ) -> subprocess.Popen[bytes]:
        """As :meth:`cni`, but do not wait for the answer."""
        config = {
            "cniVersion": version,
            "name": network,
            "type": "terway",
            "socket": str(self.config.socket),
            "spool": str(self.config.spool),
            **netconf,
        }
        variables = {"PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_PATH": str(self.folder / "bin")}
        if pod:
            if command == "CHECK" and "prevResult" not in config:
                config["prevResult"] = pod.results[ifname]
            args = {
                "IgnoreUnknown": "1",
                "K8S_POD_NAMESPACE": pod.namespace,
                "K8S_POD_NAME": pod.name,
                "K8S_POD_INFRA_CONTAINER_ID": pod.container_id,
                "K8S_POD_UID": pod.uid,
            }
            variables |= {
                "CNI_CONTAINERID": pod.container_id,
                "CNI_NETNS": str(pod.netns),
                "CNI_IFNAME": ifname,
                "CNI_ARGS": ";".join(f"{key}={value}" for key, value in args.items()),
            }
        process = subprocess.Popen(
            [str(self.folder / "bin" / "terway")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=variables | (env or {}),
        )
        process.stdin.write(json.dumps(config).encode())
        process.stdin.close()
        process.stdin = None  # communicate() would flush it
        return process

    @staticmethod
    def answer(process: subprocess.Popen[bytes]) -> Answer:
        """Wait for the plugin. Whatever happens, it says it on standard output, in JSON or not at all."""
        stdout, stderr = process.communicate(timeout=DEADLINE)
        assert stderr == b""
        assert process.returncode in (0, 1)
        answer = Answer(process.returncode, json.loads(stdout) if stdout else None)
        assert answer.body is not None or not answer.status
        return answer

    def add(self, pod: Pod, **options: Any) -> list[str]:
        """ADD, which must succeed; the pod's addresses."""
        answer = self.cni("ADD", pod, **options)
        assert not answer.status, answer.body
        return answer.addresses

    def delete(self, pod: Pod, **options: Any) -> None:
        """DEL, which must succeed."""
        answer = self.cni("DEL", pod, **options)
        assert (answer.status, answer.body) == (0, None), answer.body

    def run(self, *argv: str) -> str:
        """What a command prints that is run on the node; it must succeed."""
        with Namespace.open(self.netns) as namespace:
            return namespace.run(run, *argv)

    def ip(self, *argv: str) -> Any:
        """What ``ip`` says or does on the node."""
        return ip_command(self.name, *argv)

    # -- what is there ------------------------------------------------------------------------------------

    def audit(self) -> list[str]:
        """What ``terway audit`` finds."""
        with Namespace.open(self.netns) as namespace:
            return namespace.run(audit, self.config)

    def wait_until_clean(self) -> None:
        """gc until ``terway audit`` finds nothing: the kernel takes a namespace apart when it has time."""

        def clean() -> bool:
            self.ask("POST", "/v1/gc")
            return not self.audit()

        wait_for(clean, "audit finds nothing")

    def kernel(self) -> list[str]:
        """All that anybody but the kernel itself has made on the node: links, addresses, routes, rules,
        permanent neighbours, nftables."""
        with Namespace.open(self.netns) as namespace:
            snapshot = namespace.run(Snapshot.take)
        rules = self.run("nft", "list", "ruleset")
        links = [f"link {link.name} {link.mtu} {link.group} {link.alias}" for link in snapshot.links.values()]
        return sorted(
            [
                *links,
                *(
                    f"address {address} {dev}"
                    for dev, address in snapshot.addresses
                    if not address.is_link_local
                ),
                *(f"{route}" for route, protocol in snapshot.routes.items() if protocol != RTPROT_KERNEL),
                *(f"{rule}" for rule in snapshot.rules),
                *(f"neighbour {key}" for key, (_, permanent) in snapshot.neighbors.items() if permanent),
                *rules.splitlines(),
            ]
        )

    def reaches(self, address: str, *, timeout: float = 3.0) -> bool:
        """Whether the node's host gets answers from ``address``."""
        with Namespace.open(self.netns) as namespace:
            return namespace.run(ping, ip_address(address), timeout=timeout) is not None

    def journal(self) -> list[dict[str, Any]]:
        """The rows of the journal, as ``/v1/pods`` tells them."""
        return self.ask("GET", "/v1/pods")

    def close(self) -> None:
        """Take the node away."""
        self.kill()
        for name in [*(pod.netns.name for pod in self.pods), self.name]:
            delete_netns(name)


_numbers = itertools.count()


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Callable[..., Node]]:
    """Makes nodes; those are gone in the end, and their daemons met no defect."""
    nodes: list[Node] = []

    def make(**settings: Any) -> Node:
        require("ip", "nft")
        name = f"{RUN}-{next(_numbers)}"
        node = Node(name, folder / name, **settings)
        nodes.append(node)
        node.boot()
        node.terway("cni", "install", "--no-conflist")
        return node

    try:
        yield make
        for node in nodes:
            node.stop()
    finally:
        for node in nodes:
            print(node.log_text())
            node.close()
    for node in nodes:
        assert '"trace"' not in node.log.read_text(), "the daemon's log has a traceback"


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Make a node; keyword arguments are settings, ``vpc`` the driver's options."""
    with machine(tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def module_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """What ``node`` is made of."""
    with machine(tmp_path_factory.mktemp("node")) as make:
        node = make()
        node.start()
        yield node


@pytest.fixture
def node(module_node: Node) -> Iterator[Node]:
    """The module's node, whose daemon runs. When the test is over its pods vanish, and gc leaves nothing."""
    before = module_node.kernel()
    yield module_node
    for pod in [*module_node.pods]:
        module_node.remove(pod)
    module_node.wait_until_clean()
    assert set(module_node.kernel()) == set(before)


@pytest.fixture
def mounted() -> Iterator[Callable[..., None]]:
    """Mount on a folder, with options of mount(8); unmounted when the test is over."""
    require("mount", "umount")
    folders: dict[Path, None] = {}

    def mount(folder: Path, *options: str) -> None:
        run("mount", *options, str(folder))
        folders[folder] = None

    yield mount
    for folder in folders:
        run("umount", "--lazy", str(folder))


# -- leaks ------------------------------------------------------------------------------------------------


def machine_state() -> dict[str, set[str]]:
    """What tests could leave on the machine.

    Away from CI others may work on the same machine; there only what bears this run's mark counts.
    """
    everything = bool(os.environ.get("CI"))
    found = {
        "namespaces": {path.name for path in NETNS_DIR.glob("*")},
        "mounts": {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()},
        "links": set(os.listdir("/sys/class/net")),
        "rules": {*run("ip", "rule").splitlines(), *run("ip", "-6", "rule").splitlines()},
        "processes": set(),
    }
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            # User-mode Linux runs the tests marked for it all the while.
            if "terway" in command and "linux.uml" not in command and entry.name != str(os.getpid()):
                found["processes"].add(f"{entry.name} {command}")
    return {kind: {item for item in items if everything or RUN in item} for kind, items in found.items()}


@pytest.fixture(scope="module", autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Every module leaves the machine as it found it."""
    require("ip")
    before = machine_state()
    yield
    left: dict[str, set[str]] = {}

    def same() -> bool:
        left.clear()
        left.update({kind: new for kind, items in machine_state().items() if (new := items - before[kind])})
        return not left

    until = time.monotonic() + 5
    while not same() and time.monotonic() < until:
        time.sleep(0.05)
    assert left == {}
