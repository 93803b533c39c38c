"""A host with ``lo``, a pod, and every kind of object that a wiring can hold, ready to be combined."""

import json
import subprocess
from ipaddress import ip_address, ip_interface, ip_network

from terway_core.wiring.engine import Engine
from terway_core.wiring.inspect import diff
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import (
    Address,
    LinkUp,
    Masquerade,
    Neighbor,
    Route,
    Rule,
    Sysctl,
    TokenBucket,
    Veth,
    Wiring,
)
from terway_core.wiring.snapshot import Snapshot

from .conftest import RTPROT_KERNEL

OWNER = "m:net/c1/eth0"
MAC, POD_MAC = "0a:00:00:00:00:01", "0a:00:00:00:00:02"
VETH = Veth(name="cali0", peer="eth0", mac=MAC, peer_mac=POD_MAC, mtu=1400)
POD4, POD6 = ip_interface("172.20.0.2/32"), ip_interface("fd00::2/128")
HOP4, HOP6 = ip_address("169.254.1.1"), ip_address("fe80::1")
ALL4, ALL6 = ip_network("0.0.0.0/0"), ip_network("::/0")

#: None of them needs another, and no two are about the same thing.
HOST = (
    LinkUp(dev="lo"),
    Address(dev="cali0", address=ip_interface("192.0.2.1/32")),
    Address(dev="cali0", address=ip_interface("2001:db8::1/64")),
    Neighbor(dev="cali0", address=POD4.ip, mac=POD_MAC),
    Neighbor(dev="cali0", address=POD6.ip, mac=POD_MAC),
    Route(dst=ip_network(POD4), dev="cali0"),
    Route(dst=ip_network(POD6), dev="cali0"),
    Route(dst=ip_network("10.8.0.0/16"), dev="cali0", via=POD4.ip, table=100),
    Route(dst=ip_network("fd08::/16"), dev="cali0", via=POD6.ip, table=100_000),
    Rule(priority=512, dst=ip_network(POD4)),
    Rule(priority=512, dst=ip_network(POD6)),
    Rule(priority=2048, src=ip_network(POD4), iif="cali0", table=100),
    Rule(priority=2049, src=ip_network("10.7.0.0/16"), dst=ip_network("10.6.0.0/16"), table=100_000),
    Rule(priority=2050, oif="cali0", table=100, family=6),
    Rule(priority=2051, src=ip_network("10.5.0.0/16"), blackhole=True),
    Rule(priority=2052, src=ALL4, iif="cali0", table=101),
    Sysctl(key="ipv4/conf/cali0/rp_filter", value="0"),
    Sysctl(key="ipv6/conf/cali0/accept_ra", value="0"),
    TokenBucket(dev="cali0", rate=125_000, burst=65_536, limit=131_072),
)
POD = (
    LinkUp(dev="lo"),
    Address(dev="eth0", address=POD4),
    Address(dev="eth0", address=POD6),
    Neighbor(dev="eth0", address=HOP4, mac=MAC),
    Neighbor(dev="eth0", address=HOP6, mac=MAC),
    Route(dst=ALL4, dev="eth0", via=HOP4),
    Route(dst=ALL6, dev="eth0", via=HOP6),
    Route(dst=ip_network("10.9.0.0/16"), dev="eth0", via=HOP4, table=1001),
    Rule(priority=512, src=ip_network(POD4), table=1001),
    Rule(priority=512, oif="eth0", table=1001, family=6),
    Sysctl(key="ipv6/conf/eth0/accept_ra", value="0"),
    TokenBucket(dev="eth0", rate=1_000_000_000, burst=1_000_000, limit=2_000_000),
)
NODE = (
    LinkUp(dev="lo"),
    Sysctl(key="ipv4/ip_forward", value="1"),
    Rule(priority=3000, dst=ip_network("172.20.0.0/16")),
    Route(dst=ip_network("198.51.100.0/24"), dev="lo", table=102),
    Masquerade(src=ip_network("172.20.0.0/16"), exclude=(ip_network("10.0.0.0/8"),)),
    Masquerade(src=ip_network("fd00::/64"), exclude=(ip_network("fd00::/16"), ip_network("fd01::/16"))),
)
FULL = Wiring(node=NODE, host=(VETH, *HOST), pod=POD)


def wiring(number: int) -> Wiring:
    """What one of many pods needs."""
    name, mac, pod_mac = f"cali{number}", f"0a:00:00:00:01:{number:02x}", f"0a:00:00:00:02:{number:02x}"
    address = ip_interface(f"172.20.1.{number}/32")
    return Wiring(
        host=(
            Veth(name=name, peer="eth0", mac=mac, peer_mac=pod_mac),
            Neighbor(dev=name, address=address.ip, mac=pod_mac),
            Route(dst=ip_network(address), dev=name),
            Rule(priority=512, dst=ip_network(address)),
        ),
        pod=(
            LinkUp(dev="lo"),
            Address(dev="eth0", address=address),
            Neighbor(dev="eth0", address=HOP4, mac=mac),
            Route(dst=ALL4, dev="eth0", via=HOP4),
        ),
    )


class Rig:
    """An engine for a host's namespace, and a pod."""

    def __init__(self, host: Namespace, pod: Namespace) -> None:
        self.host, self.pod = host, pod
        self.engine = Engine(host)

    def apply(self, wiring: Wiring, owner: str = OWNER) -> None:
        self.engine.ensure(wiring.node)
        self.engine.apply(wiring, self.pod, owner)

    def remove(self, wiring: Wiring, owner: str = OWNER) -> None:
        self.engine.remove(wiring, self.pod, owner)
        self.engine.remove_shared(wiring.node)

    def diff(self, wiring: Wiring) -> list[str]:
        found = diff(wiring, self.pod, owner=OWNER, host=self.host)
        return [str(difference) for difference in found]

    def by_hand(self, where: str, command: str) -> str:
        """Run a command in one of the namespaces."""
        return run_in({"host": self.host, "pod": self.pod}[where], command)

    def state(self) -> dict[str, str]:
        """All there is to see in both namespaces."""
        return {"host": dump(self.host), "pod": dump(self.pod)}


def traces(*namespaces: Namespace) -> tuple[object, ...]:
    """What is left in each that somebody has made; links may be up or down."""
    return tuple(
        (
            {name: (link.kind, link.alias) for name, link in snapshot.links.items()},
            {(dev, address) for dev, address in snapshot.addresses if not address.is_link_local},
            {route for route, protocol in snapshot.routes.items() if protocol != RTPROT_KERNEL},
            {key for key, (_, permanent) in snapshot.neighbors.items() if permanent},
            snapshot.redirects,
        )
        for snapshot in (namespace.run(Snapshot.take) for namespace in namespaces)
    )


QUESTIONS = (
    "ip -j -d addr",
    "ip -j route show table all",
    "ip -j -6 route show table all",
    "ip -j rule",
    "ip -j -6 rule",
    "ip -j neigh show nud permanent",
    "tc -j qdisc",
    "nft -j list ruleset",
)
#: Numbers that count up, or times.
TRANSIENT = {"ifindex", "link_index", "link_netnsid", "valid_life_time", "preferred_life_time", "handle"}


def run_in(namespace: Namespace, command: str) -> str:
    """What a shell command prints; it must succeed."""
    options = {"capture_output": True, "text": True, "timeout": 30, "check": False}
    done = namespace.run(subprocess.run, ["sh", "-c", command], **options)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def dump(namespace: Namespace) -> str:
    """What ``ip``, ``tc`` and ``nft`` say of a namespace, without what is another number each time."""
    output = run_in(namespace, "; ".join(f"{question} || exit 1; echo" for question in QUESTIONS))
    return json.dumps([_lasting(json.loads(line)) for line in output.splitlines() if line], indent=1)


def _lasting(value):
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in TRANSIENT}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value
