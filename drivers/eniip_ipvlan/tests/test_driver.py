"""What the driver declares, what it needs of a machine, and what it chains. No kernel is asked."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from terway_driver_eniip_ipvlan import EniipIpvlanDriver
from typer.testing import CliRunner

from terway_core.cli.app import build
from terway_core.errors import InvalidConfig
from terway_core.registry import Drivers
from terway_core.store import Store
from terway_core.testing.fakes import FakeClock, NoCloud, WatchedStore, make_attachment
from terway_core.types import Lease, Node, Problem, Services, Wiring
from terway_core.wiring import nft as wiring_nft
from terway_core.wiring import probe as wiring_probe
from terway_core.wiring.objects import Address, Ipvlan, Masquerade, Redirect, Route, Rule, describe

NODE = Node(
    name="node-1",
    addresses=(ip_address("192.168.0.10"), ip_address("2001:db8::10")),
    service_cidrs=(ip_network("172.21.0.0/20"), ip_network("fd21::/112")),
)
LEASE = Lease(
    addresses=(ip_interface("192.168.1.20/32"), ip_interface("2001:db8:1::20/128")),
    gateways=(ip_address("192.168.1.253"), ip_address("2001:db8:1::fd")),
    data={"eni": "eni-1", "dev": "eth1", "index": 3, "mac": "00:16:3e:00:00:01"},
)


@pytest.fixture
def wire(terway_store: WatchedStore, terway_clock: FakeClock) -> Any:
    """Start the driver with options, and set up one pod."""

    def wire(lease: Lease = LEASE, ifname: str = "eth0", node: Node = NODE, **options: Any) -> Wiring:
        drivers = Drivers()
        drivers.register("eniip_ipvlan", EniipIpvlanDriver())
        services = Services(
            options=options,
            node=node,
            store=cast(Store, terway_store),
            cloud=cast(Any, NoCloud()),
            eni_pool=lambda use: cast(Any, SimpleNamespace()),
            clock=terway_clock,
        )
        drivers.start("eniip_ipvlan", services)
        return drivers.setup("eniip_ipvlan", make_attachment(1, ifname=ifname), lease, node)

    return wire


def redirects(wiring: Wiring) -> set[tuple[str, str]]:
    return {(str(obj.dst), obj.to) for obj in wiring.node if isinstance(obj, Redirect)}


def test_a_wiring_in_words(wire: Any) -> None:
    lease = Lease(addresses=LEASE.addresses[:1], gateways=LEASE.gateways[:1], data=LEASE.data)
    wiring = wire(lease)
    assert [describe(obj) for obj in wiring.node] == [
        "link eth1 up mtu 1500",
        "ipvlan ipvl_3 link eth1 mode l2 mtu 1500 noarp",
        "clsact dev eth1",
        "address 192.168.0.10/32 dev ipvl_3",
        "neighbour 192.168.1.253 lladdr ee:ff:ff:ff:ff:ff dev eth1 permanent",
        "redirect 172.21.0.0/20 from eth1 egress to ipvl_3 ingress",
        "sysctl net/ipv4/ip_forward = 1",
        "masquerade from 192.168.1.20/32",
    ]
    assert [describe(obj) for obj in wiring.host] == [
        "route 192.168.1.20/32 dev ipvl_3",
        "redirect 192.168.1.20/32 from eth1 egress to eth1 ingress",
    ]
    assert [describe(obj) for obj in wiring.pod] == [
        "link lo up",
        "ipvlan eth0 link eth1 mode l2 mtu 1500",
        "address 192.168.1.20/32 dev eth0",
        "neighbour 192.168.0.10 lladdr 00:16:3e:00:00:01 dev eth0 permanent",
        "route 192.168.0.10/32 dev eth0",
        "route default via 192.168.1.253 dev eth0",
    ]


def test_services_of_both_families_and_more_go_through_the_host(wire: Any) -> None:
    wiring = wire(host_stack_cidrs=["169.254.20.10/32", "fd00::53/128"])
    cidrs = {"172.21.0.0/20", "169.254.20.10/32", "fd21::/112", "fd00::53/128"}
    assert redirects(wiring) == {(cidr, "ipvl_3") for cidr in cidrs}


def test_what_is_named_twice_is_redirected_once(wire: Any) -> None:
    wiring = wire(host_stack_cidrs=["172.21.0.0/20"])
    assert len([obj for obj in wiring.node if isinstance(obj, Redirect)]) == 2


def test_with_cilium_nothing_is_redirected_to_the_host(wire: Any) -> None:
    wiring = wire(cilium_chaining=True, host_stack_cidrs=["169.254.20.10/32"])
    assert redirects(wiring) == set()
    assert not any(isinstance(obj, Masquerade) for obj in wiring.node)


def test_without_services_nothing_is(wire: Any) -> None:
    wiring = wire(node=Node(name="node-1", addresses=NODE.addresses))
    assert redirects(wiring) == set()
    assert not any(isinstance(obj, Masquerade) for obj in wiring.node)


def test_masquerading_can_be_left_to_kube_proxy(wire: Any) -> None:
    assert not any(isinstance(obj, Masquerade) for obj in wire(masquerade=False).node)


def test_pods_of_one_eni_share_and_of_two_do_not(wire: Any) -> None:
    other = Lease(
        addresses=(ip_interface("192.168.1.30/32"), ip_interface("2001:db8:1::30/128")),
        gateways=LEASE.gateways,
        data=LEASE.data,
    )
    apart = Lease(
        addresses=other.addresses, gateways=other.gateways, data={**LEASE.data, "dev": "eth2", "index": 4}
    )
    shared, same, different = (
        {obj for obj in wire(lease).node if isinstance(obj, Ipvlan | Address | Redirect)}
        for lease in (LEASE, other, apart)
    )
    assert shared == same
    assert not shared & different


def test_a_further_interface_answers_by_a_table_of_its_own(wire: Any) -> None:
    wiring = wire(ifname="net1")
    tables = {obj.table for obj in wiring.pod if isinstance(obj, Route | Rule)}
    assert len(tables) == 1
    assert tables != {254}
    assert {str(obj.src) for obj in wiring.pod if isinstance(obj, Rule) and obj.src} == {
        "192.168.1.20/32",
        "2001:db8:1::20/128",
    }


@pytest.mark.parametrize("options", [{"masquerad": True}, {"host_stack_cidrs": ["moon"]}])
def test_wrong_options_are_refused(wire: Any, options: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=r"options\.eniip_ipvlan"):
        wire(**options)


# -- what it needs ----------------------------------------------------------------------------------------


@pytest.fixture
def preflight(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The driver's problems on a machine of this release, whose kernel has all or lacks something."""

    def preflight(
        release: str = "5.10.134", lacking: str = "", nft: str = "", **options: Any
    ) -> list[Problem]:
        def problem(text: str) -> Problem | None:
            return Problem(summary=text, remedy="as told") if text else None

        monkeypatch.setattr(platform, "release", lambda: release)
        monkeypatch.setattr(
            wiring_probe,
            "preflight",
            lambda samples, remedy: lacking and Problem(summary=lacking, remedy=remedy),
        )
        monkeypatch.setattr(wiring_nft, "preflight", lambda: problem(nft))
        drivers = Drivers()
        drivers.register("eniip_ipvlan", EniipIpvlanDriver())
        return drivers.preflight("eniip_ipvlan", NODE, options)

    return preflight


@pytest.mark.parametrize("release", ["3.10.0-1160.el7.x86_64", "4.1.12", "4.2.0-42-generic"])
def test_kernels_up_to_4_2_are_refused(preflight: Any, release: str) -> None:
    (problem,) = preflight(release)
    assert release in problem.summary
    assert "newer than 4.2" in problem.summary
    assert "run a newer kernel, or use the driver eniip_veth" in problem.remedy


@pytest.mark.parametrize(
    "release", ["4.3.0", "4.19.91-26.an7", "5.10.134", "6.1.0-18-amd64", "a kernel of mine"]
)
def test_newer_kernels_are_asked_what_they_have(preflight: Any, release: str) -> None:
    assert preflight(release) == []
    (problem,) = preflight(release, lacking="the kernel lacks ipvlan (Unknown device type)")
    assert problem.summary == "the kernel lacks ipvlan (Unknown device type)"
    assert "CONFIG_IPVLAN" in problem.remedy
    assert "eniip_veth" in problem.remedy


def test_nftables_are_needed_to_masquerade_and_for_nothing_else(preflight: Any) -> None:
    (problem,) = preflight(nft="the kernel cannot masquerade")
    assert problem.summary == "the kernel cannot masquerade"
    assert preflight(nft="the kernel cannot masquerade", masquerade=False) == []
    assert preflight(nft="the kernel cannot masquerade", cilium_chaining=True) == []


def test_the_list_of_drivers_says_what_is_unmet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    problem = Problem(summary="the kernel lacks ipvlan (Unknown device type)", remedy="run another")
    monkeypatch.setattr(wiring_probe, "preflight", lambda samples, remedy: problem)
    config = tmp_path / "config.yaml"
    config.write_text("drivers: [eniip_ipvlan]\noptions: {eniip_ipvlan: {masquerade: false}}\n")
    result = CliRunner().invoke(build(["drivers"]), ["drivers", "list", "--config", str(config)])
    assert result.exit_code == 1
    (line,) = (line for line in result.output.splitlines() if line.startswith("eniip_ipvlan "))
    assert "unmet: the kernel lacks ipvlan (Unknown device type)" in line


# -- what it chains ---------------------------------------------------------------------------------------


def test_cilium_is_chained_when_told(terway_store: WatchedStore) -> None:
    drivers = Drivers()
    drivers.register("eniip_ipvlan", EniipIpvlanDriver())
    plain = {"cniVersion": "1.0.0", "name": "terway", "plugins": [{"type": "terway"}]}
    assert drivers.conflist("eniip_ipvlan", plain) == plain
    chained = drivers.conflist("eniip_ipvlan", plain, {"cilium_chaining": True})
    assert chained == plain | {"plugins": [{"type": "terway"}, {"type": "cilium-cni"}]}


def test_the_conflist_that_would_be_installed_has_cilium(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("drivers: [eniip_ipvlan]\noptions: {eniip_ipvlan: {cilium_chaining: true}}\n")
    result = CliRunner().invoke(build(["cni"]), ["cni", "conflist", "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert [entry["type"] for entry in json.loads(result.output)["plugins"]] == ["terway", "cilium-cni"]
