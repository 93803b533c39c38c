"""CHECK and audit notice each single thing that a hand can break in a pod's network, and name it."""

from dataclasses import dataclass

import pytest

pytestmark = pytest.mark.kernel

BANDWIDTH = {"ingressRate": 10**7, "ingressBurst": 10**6, "egressRate": 10**7, "egressBurst": 10**6}
WRONG_MAC = "0a:00:00:00:00:99"


@dataclass
class Wired:
    """A pod with everything: two networks of two families each, traffic shaped."""

    node: object
    pod: object
    addresses: dict
    other_link: str

    @property
    def host_link(self):
        return host_link(self.pod)

    def on_host(self, command):
        self.node.run(*command.format(**self.words()).split())

    def in_pod(self, command):
        self.pod.run(*command.format(**self.words()).split())

    def words(self):
        names = {"v4": self.addresses["eth0"][0], "v6": self.addresses["eth0"][1], "host": self.host_link}
        return names | {"second": self.addresses["eth1"][0], "mac": WRONG_MAC, "other": self.other_link}

    def check(self, ifname="eth0", version="1.0.0"):
        network = {"eth0": "terway", "eth1": "second"}[ifname]
        return self.node.cni("CHECK", self.pod, ifname=ifname, network=network, version=version)


def host_link(pod):
    return pod.results["eth0"]["interfaces"][0]["name"]


@pytest.fixture
def wired(node, bystander):
    pod = node.pod()
    addresses = {
        "eth0": node.add(pod, runtimeConfig={"bandwidth": BANDWIDTH}),
        "eth1": node.add(pod, ifname="eth1", network="second"),
    }
    return Wired(node, pod, addresses, host_link(bystander))


@pytest.fixture
def bystander(node):
    pod = node.pod()
    node.add(pod)
    return pod


#: What is done in the pod → what is said of it.
IN_THE_POD = {
    "ip address del {v4}/32 dev eth0": "pod: address {v4}/32 dev eth0: missing",
    "ip address del {v6}/128 dev eth0": "pod: address {v6}/128 dev eth0: missing",
    "ip route del default": "pod: route default via 169.254.1.1 dev eth0: missing",
    "ip -6 route del default dev eth0": "via fe80::1 dev eth0: missing",
    "ip route replace default dev eth0": "via 169.254.1.1 dev eth0: is route default dev eth0 instead",
    "ip neighbour del 169.254.1.1 dev eth0": "pod: neighbour 169.254.1.1 ",
    "ip neighbour replace 169.254.1.1 lladdr {mac} dev eth0": "dev eth0 permanent: has lladdr {mac}",
    "ip neighbour replace fe80::1 lladdr {mac} dev eth0": "dev eth0 permanent: has lladdr {mac}",
    "ip link set eth0 down": "eth0 ",
    "ip link set eth0 mtu 1400": "has mtu 1400",
    "ip link set eth0 address {mac}": "has mac {mac}",
    "tc qdisc del dev eth0 root": "pod: tbf dev eth0 rate 1250000 B/s",
    "tc qdisc replace dev eth0 root tbf rate 1mbit burst 5000 limit 9000": "has rate 125000 B/s",
    "sysctl -qw net.ipv6.conf.eth0.accept_ra=1": "sysctl net/ipv6/conf/eth0/accept_ra = 0: is 1",
    "ip link set lo down": "pod: link lo up: is down",
}

#: What is done on the node to the pod's own objects.
ON_THE_HOST = {
    "ip route del {v4}/32": "host: route {v4}/32 dev {host}: missing",
    "ip -6 route del {v6}/128": "host: route {v6}/128 dev {host}: missing",
    "ip route replace {v4}/32 dev {other}": "route {v4}/32 dev {host}: is route {v4}/32 dev {other} instead",
    "ip neighbour del {v4} dev {host}": "host: neighbour {v4} ",
    "ip neighbour replace {v4} lladdr {mac} dev {host}": "host: neighbour {v4} ",
    "ip link set {host} down": "host: veth {host}",
    "ip link set {host} mtu 1400": "has mtu 1400",
    "ip link set {host} address {mac}": "has mac {mac}",
    "ip link set {host} alias somebody": "belongs to somebody",
    "ip link del {host}": "host: veth {host}",
    "tc qdisc del dev {host} root": "host: tbf dev {host} rate 1250000 B/s",
    "sysctl -qw net.ipv6.conf.{host}.disable_ipv6=1": "{host}/disable_ipv6 = 0: is 1",
}


def assert_told(wired, expected, ifname="eth0"):
    expected = expected.format(**wired.words())
    answer = wired.check(ifname)
    assert answer.code == 103
    assert expected in answer.text
    assert wired.pod.container_id in answer.text
    about = [line for line in wired.node.audit() if expected in line]
    assert about
    assert expected.startswith("node: ") or all(wired.pod.name in line for line in about)


@pytest.mark.parametrize("command", IN_THE_POD)
def test_broken_in_the_pod(wired, bystander, command):
    wired.in_pod(command)
    assert_told(wired, IN_THE_POD[command])
    assert wired.node.cni("CHECK", bystander).status == 0


@pytest.mark.parametrize("command", ON_THE_HOST)
def test_broken_on_the_host(wired, bystander, command):
    wired.on_host(command)
    assert_told(wired, ON_THE_HOST[command])
    assert wired.node.cni("CHECK", bystander).status == 0


def test_host_link_renamed(wired, bystander):
    name = wired.host_link
    for command in ("ip link set {host} down", "ip link set {host} name stolen", "ip link set stolen up"):
        wired.on_host(command)
    assert_told(wired, f"host: veth {name}")
    assert wired.node.cni("CHECK", bystander).status == 0


@pytest.mark.parametrize("selector", ["from {second}", "oif eth1"])
def test_rules_of_a_further_interface(wired, bystander, selector):
    wired.in_pod(f"ip rule del priority 512 {selector}")
    said = selector.format(**wired.words()).replace(wired.words()["second"], f"{wired.words()['second']}/32")
    assert_told(wired, f"pod: rule 512: {said} lookup", ifname="eth1")
    assert wired.check("eth0").status == 0
    assert wired.node.cni("CHECK", bystander).status == 0


#: What all pods of the node share: done by hand → what is said. gc brings it back.
SHARED = {
    "sysctl -qw net.ipv4.ip_forward=0": "node: sysctl net/ipv4/ip_forward = 1: is 0",
    "sysctl -qw net.ipv6.conf.all.forwarding=0": "node: sysctl net/ipv6/conf/all/forwarding = 1: is 0",
    "nft delete table inet terway": "node: masquerade from 172.20.1.0/24",
    "nft flush chain inet terway postrouting": "node: masquerade from fd00:1::/64",
}


@pytest.mark.parametrize("command", SHARED)
def test_what_pods_share(wired, bystander, command):
    wired.on_host(command)
    assert_told(wired, SHARED[command])
    assert wired.node.cni("CHECK", bystander).code == 103
    wired.node.ask("POST", "/v1/gc")
    assert wired.check().status == 0
    assert wired.node.audit() == []


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_clean_right_after_add(node, version):
    pod = node.pod()
    node.add(pod, version=version, runtimeConfig={"bandwidth": BANDWIDTH})
    for _ in range(2):
        answer = node.cni("CHECK", pod, version=version)
        assert (answer.status, answer.body) == (0, None)


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1"])
def test_versions_without_check(node, version):
    pod = node.pod()
    node.add(pod, version=version)
    assert node.cni("CHECK", pod, version=version).code == 1


def test_check_of_a_pod_that_nobody_added(node):
    answer = node.cni("CHECK", node.pod(), prevResult={"cniVersion": "1.0.0"})
    assert answer.code == 3
    assert "delete the pod" in answer.text
