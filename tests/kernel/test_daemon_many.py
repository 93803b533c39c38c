"""A hundred pods at once; and what gc takes for stray."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from terway_core.wiring import inspect, snapshot

pytestmark = pytest.mark.kernel


def test_a_hundred_pods(node, record_property):
    before = node.kernel()
    daemon = Path(f"/proc/{node.status()['pid']}")
    files = len(os.listdir(daemon / "fd"))
    pods = [node.pod() for _ in range(100)]
    with ThreadPoolExecutor(16) as runtime:
        addresses = [address for answer in runtime.map(node.add, pods) for address in answer]
        assert len(set(addresses)) == 200
        assert node.audit() == []
        assert node.cni("CHECK", pods[50]).status == 0
        assert [address for address in addresses if not node.reaches(address)] == []
        (memory,) = [line for line in (daemon / "status").read_text().splitlines() if "VmRSS" in line]
        list(runtime.map(node.delete, pods))
    assert node.journal() == []
    assert node.audit() == []
    assert set(node.kernel()) == set(before)
    assert len(os.listdir(daemon / "fd")) <= files + 32  # a connection to the journal for each that works
    record_property("daemon memory with 100 pods", memory)
    print(memory)


STRAYS = {
    "a link of nobody": "ip link add stray type veth peer far; ip link set stray group 116",
    "a link of one that is unknown": (
        "ip link add stray type veth peer far; ip link set stray alias terway:vpc:terway/abc/eth0"
    ),
    "a route": "ip route add 192.0.2.1/32 dev lo protocol 116",
    "a route of IPv6": "ip route add 2001:db8::1/128 dev lo protocol 116 table 99",
    "a rule": "ip rule add from 192.0.2.1 lookup 99 protocol 116",
    "a rule of IPv6": "ip -6 rule add to 2001:db8::1 lookup 99 protocol 116",
    "a masquerade": """
        nft add table inet terway
        nft add chain inet terway postrouting '{ type nat hook postrouting priority srcnat; }'
        nft add rule inet terway postrouting ip saddr 192.0.2.0/24 masquerade
    """,
}
FOREIGN = """
ip link add foreign type veth peer far2
ip link set foreign alias somebody:else
ip route add 192.0.2.2/32 dev lo protocol static
ip rule add from 192.0.2.2 lookup 99
ip neighbour add 192.0.2.2 lladdr 0a:00:00:00:00:01 dev foreign
nft add table inet somebody
"""


@pytest.fixture
def foreign(node):
    """What others have on the node."""
    node.run("sh", "-ec", FOREIGN)
    yield
    node.run("sh", "-ec", "ip link del foreign; ip route del 192.0.2.2/32; ip rule del from 192.0.2.2")
    node.run("nft", "delete", "table", "inet", "somebody")


@pytest.mark.parametrize("kind", STRAYS)
def test_gc_takes_away_what_is_ours_and_nobodys(node, foreign, kind):
    pod = node.pod()
    addresses = node.add(pod)
    before = node.kernel()
    node.run("sh", "-ec", STRAYS[kind])
    with_stray = node.kernel()
    assert set(with_stray) != set(before)
    assert len([line for line in node.audit() if "belongs to no attachment" in line]) == 1

    told = node.ask("POST", "/v1/gc?dry_run=true")
    assert len(told["released"]) == 1
    assert set(node.kernel()) == set(with_stray)
    assert node.ask("POST", "/v1/gc") == told
    assert set(node.kernel()) == set(before)
    assert node.audit() == []
    assert node.ask("POST", "/v1/gc") == {"released": [], "problems": []}
    assert all(node.reaches(address) for address in addresses)


def test_gc_spares_the_routes_of_a_pod_that_comes_while_it_reads(terway_netns, monkeypatch):
    host = terway_netns()

    class Slow(snapshot.NetlinkSocket):
        def dump_links(self):
            links = super().dump_links()
            for command in (
                "ip link add cali type veth peer eth0",
                "ip link set cali up",
                "ip route add 192.0.2.1 dev cali protocol 116",
            ):
                subprocess.run(command.split(), check=True)
            return links

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "NetlinkSocket", Slow)
        assert inspect.HostState.read(host).strays([]) == []
    assert len(inspect.HostState.read(host).strays([])) == 1


def test_dry_run_changes_nothing(node):
    pod = node.pod()
    node.add(pod)
    node.remove(pod)
    node.wait_for(
        lambda: pod.results["eth0"]["interfaces"][0]["name"] not in str(node.kernel()), "it is gone"
    )
    spooled = node.config.spool / "00000000000000000001-1.del"
    spooled.parent.mkdir(exist_ok=True)
    spooled.write_bytes(b"no request")
    kernel, journal = node.kernel(), node.journal()
    assert node.ask("POST", "/v1/gc?dry_run=true") == {
        "released": [
            f"spooled DEL {spooled.name}",
            f"attachment terway/{pod.container_id}/eth0 (ready)",
        ],
        "problems": [],
    }
    assert set(node.kernel()) == set(kernel)
    assert node.journal() == journal
    assert spooled.exists()
    spooled.unlink()
