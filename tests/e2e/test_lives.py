"""A node's bad days with real packets: whatever happens to daemon, cloud and namespaces, nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import pytest

from terway_core.config import load_config
from terway_core.lab import fabric
from terway_core.lab.api import InjectedFault, Region
from terway_core.lab.build import down, status, up
from terway_core.lab.faults import clear, inject
from terway_core.lab.nodes import start_daemon, terway
from terway_core.lab.ping import ping
from terway_core.lab.runtime import PluginFailed, Runtime
from terway_core.lab.state import Lab, NodeFiles, Spec, recall
from terway_core.types import IPAddress
from terway_core.wiring.netns import Namespace, delete_netns

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]
if os.geteuid() and not os.environ.get("CI"):
    pytestmark.append(pytest.mark.skip(reason="the lab needs root"))

#: Other days: TERWAY_TEST_SEED=7 TERWAY_TEST_ROUNDS=1000 pytest …
SEED = int(os.environ.get("TERWAY_TEST_SEED", "20261124"))
ROUNDS = int(os.environ.get("TERWAY_TEST_ROUNDS", "60"))
REFUSED = ("Throttling", "ServiceUnavailable", "InternalError", "InvalidVSwitchId.IpNotEnough")
CALLS = ("*", "CreateNetworkInterface", "AttachNetworkInterface", "AssignPrivateIpAddresses")


@pytest.fixture
def lab(tmp_path) -> Iterator[Lab]:
    lab = Lab(tmp_path / "lab")
    up(lab, Spec(nodes=1, drivers=("eniip_veth",)), lambda share, step: None)
    yield lab
    down(lab)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.1)


def kill_daemon(node: NodeFiles) -> None:
    process = recall(node.folder)
    assert process
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: not process.alive, "the daemon is dead")


def restart_daemon(lab: Lab, node: NodeFiles) -> None:
    start_daemon(node)
    until(lambda: {health.state for health in status(lab)} == {"ready"}, "the daemon serves")


def addresses_in(netns: str) -> set[IPAddress]:
    """What the kernel has on a pod's eth0, beyond link-local."""
    with Namespace.open(netns) as namespace:
        argv = ["ip", "-j", "addr", "show", "dev", "eth0", "scope", "global"]
        done = namespace.run(subprocess.run, argv, capture_output=True, text=True)
    found = json.loads(done.stdout or "[]")
    return {ip_address(info["local"]) for link in found for info in link.get("addr_info", ()) if info}


def reaches_internet(netns: str) -> bool:
    with Namespace.open(netns) as namespace:
        return namespace.run(ping, fabric.INTERNET_HOST, timeout=3.0) is not None


def agrees(node: NodeFiles) -> bool:
    return terway(node, "audit").stdout.strip() == "no difference"


class Days:
    """What happens to one node, round after round."""

    def __init__(self, lab: Lab, dice: random.Random) -> None:
        self.lab, self.dice = lab, dice
        self.node = lab.nodes[0]
        self.runtime = Runtime(self.node)
        self.names = 0

    def add(self, count: int = 1) -> None:
        """So many pods at once; some may be refused while the daemon or the cloud is away."""
        with ThreadPoolExecutor(count) as pool:
            futures = [
                pool.submit(self.runtime.run_pod, f"pod-{self.names + number}") for number in range(count)
            ]
            self.names += count
        for future in futures:
            if error := future.exception():
                assert isinstance(error, PluginFailed), error

    def delete(self) -> None:
        pods = self.runtime.pods()
        for pod in self.dice.sample(pods, min(len(pods), self.dice.randrange(1, 5))):
            self.runtime.remove_pod(pod)

    def destroy(self) -> None:
        """The runtime crashed: a namespace is gone, and its DEL comes late if ever."""
        if pods := self.runtime.pods():
            delete_netns(Path(self.dice.choice(pods).netns).name)

    def kill_at_work(self) -> None:
        """The daemon dies while pods come; the runtime goes on meanwhile, and another one is started."""
        with ThreadPoolExecutor(1) as pool:
            adding = pool.submit(self.add, 4)
            time.sleep(self.dice.random() * 0.3)
            kill_daemon(self.node)
        adding.result()
        if self.dice.random() < 0.5:
            self.delete()  # spooled
        restart_daemon(self.lab, self.node)

    def lose_journal(self) -> None:
        """The file is gone; without it, a daemon needs the API to know which addresses there are."""
        kill_daemon(self.node)
        for path in self.node.state_dir.glob("terway.db*"):
            path.unlink()
        clear(self.lab)
        restart_daemon(self.lab, self.node)

    def fault(self) -> None:
        kind = self.dice.choice(("error", "lost", "down"))
        code = self.dice.choice(REFUSED) if kind == "error" else ""
        fault = InjectedFault(
            kind=kind, action=self.dice.choice(CALLS), code=code, times=self.dice.randrange(1, 4), until=None
        )
        inject(self.lab, fault)

    def happen(self) -> str:
        acts: list[tuple[float, str, Callable[[], object]]] = [
            (30, "add", self.add),
            (10, "burst", lambda: self.add(self.dice.randrange(2, 7))),
            (24, "delete", self.delete),
            (6, "destroy", self.destroy),
            (6, "kill", self.kill_at_work),
            (2, "lose the journal", self.lose_journal),
            (8, "fault", self.fault),
            (4, "clear", lambda: clear(self.lab)),
        ]
        ((_, what, act),) = self.dice.choices(acts, [weight for weight, _, _ in acts])
        act()
        return what

    def check(self) -> None:
        """No address is on two pods, and every running pod has just what the runtime was told."""
        seen: Counter[IPAddress] = Counter()
        for pod in self.runtime.pods():
            if Path(pod.netns).exists():
                has = addresses_in(pod.netns)
                assert has == set(pod.addresses), f"{pod.name} was told {pod.addresses} and has {has}"
                seen.update(has)
        assert [address for address, times in seen.items() if times > 1] == []

    def finish(self) -> None:
        """With faults gone, cloud, kernel and store agree, with pods and without."""
        clear(self.lab)
        for pod in self.runtime.pods():
            if not Path(pod.netns).exists():
                self.runtime.remove_pod(pod)
        until(lambda: agrees(self.node), "the audit finds no difference with pods running")
        pods = [pod.netns for pod in self.runtime.pods()]
        assert [netns for netns in pods if not reaches_internet(netns)] == []
        self.check()
        for pod in self.runtime.pods():
            self.runtime.remove_pod(pod)
        until(lambda: agrees(self.node), "the audit finds no difference without pods")
        rows = json.loads(terway(self.node, "enis", "list", "--json").stdout)
        assert {address["state"] for eni in rows for address in eni["addresses"]} <= {"free", "cooling"}
        until(self._pool_is_the_clouds, "pool and cloud have the same addresses")

    def _pool_is_the_clouds(self) -> bool:
        """Compared with what the region itself has, which the daemon knows by its API only."""
        rows = json.loads(terway(self.node, "enis", "list", "--json").stdout)
        known = {eni["eni"]: {ip_address(one["address"]) for one in eni["addresses"]} for eni in rows}
        interfaces = Region.load(self.lab.region_state).network_interfaces.values()
        ours = {eni.network_interface_id: set(eni.ipv4) for eni in interfaces if eni.type == "Secondary"}
        return known == ours


@pytest.mark.timeout(120 + 5 * ROUNDS)
def test_random_days_end_with_cloud_kernel_and_store_in_agreement(lab):
    days = Days(lab, random.Random(SEED))
    happened: list[str] = []
    try:
        for _ in range(ROUNDS):
            happened.append(days.happen())
            days.check()
        days.finish()
    except BaseException as error:
        error.add_note(f"seed {SEED}, round {len(happened)}: … {', '.join(happened[-12:])}")
        raise


def test_a_lagging_metadata_service_is_no_reason_to_lose_or_free_anything(lab):
    """Ten seconds behind, it shows neither the ENI that is attached nor the addresses on it."""
    node, runtime = lab.nodes[0], Runtime(lab.nodes[0])
    inject(lab, InjectedFault(kind="metadata-lag", seconds=10))
    with ThreadPoolExecutor(8) as pool:  # more than are warm
        pods = list(pool.map(runtime.run_pod, [f"pod-{number}" for number in range(20)]))
    assert len({pod.addresses for pod in pods}) == 20
    kill_daemon(node)
    restart_daemon(lab, node)
    assert terway(node, "gc").returncode == 0
    assert all(reaches_internet(pod.netns) for pod in pods)
    until(lambda: agrees(node), "the audit finds no difference")
    for pod in pods:
        runtime.remove_pod(pod)


def test_pods_that_wait_for_an_address_are_no_more_work_than_they_make(lab):
    """More of them than work at once; a pod's end does not wait for theirs."""
    node, runtime = lab.nodes[0], Runtime(lab.nodes[0])
    runtime.run_pod("first")
    inject(lab, InjectedFault(kind="error", action="AssignPrivateIpAddresses", code="InternalError"))

    def waiting() -> int:
        rows = json.loads(terway(node, "pods", "list", "--json").stdout)
        return sum(row["state"] == "allocating" for row in rows)

    with ThreadPoolExecutor(20) as pool:
        adding = [pool.submit(runtime.run_pod, f"pod-{number}") for number in range(20)]
        until(lambda: waiting() > load_config(node.config).workers, "they wait")
        runtime.remove_pod(next(pod for pod in runtime.pods() if pod.name == "first"))
        assert waiting()
        clear(lab)
    assert len({pod.result().addresses for pod in adding}) == 20
    until(lambda: agrees(node), "the audit finds no difference")
    for pod in runtime.pods():
        runtime.remove_pod(pod)
