"""What a region is made of, and that it survives on disk."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from terway_core.lab.api import Region


def test_ids_look_like_real_ones() -> None:
    region = Region.create(region_id="cn-hangzhou")
    vpc = region.add_vpc("10.0.0.0/8")
    vswitch = region.add_vswitch(vpc, "10.0.0.0/24", "cn-hangzhou-h")
    node = region.add_instance("node", instance_type="ecs.g7.large", vswitch=vswitch)
    for prefix, value in (
        ("vpc", vpc.vpc_id),
        ("vtb", vpc.route_table_id),
        ("vsw", vswitch.vswitch_id),
        ("i", node.instance_id),
        ("eni", node.network_interface_id),
    ):
        assert re.fullmatch(rf"{prefix}-bp1[0-9a-z]{{17}}", value)
    assert re.fullmatch(r"00:16:3e(:[0-9a-f]{2}){3}", node.mac)


def test_addresses_of_a_vswitch_without_those_of_the_vpc() -> None:
    region = Region.create()
    vpc = region.add_vpc("10.0.0.0/8")
    vswitch = region.add_vswitch(vpc, "10.0.0.0/29", "cn-hangzhou-h")
    assert vswitch.gateway == ip_address("10.0.0.5")
    given = [
        region.add_instance(f"node-{number}", instance_type="t", vswitch=vswitch).private_ip
        for number in range(4)
    ]
    assert given == [ip_address(f"10.0.0.{last}") for last in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match="no address is free"):
        region.add_instance("one-too-many", instance_type="t", vswitch=vswitch)


@pytest.mark.parametrize("address", ["10.0.0.0", "10.0.0.7", "10.0.0.253", "10.0.0.255", "10.0.1.1"])
def test_addresses_that_are_not_free(address: str) -> None:
    region = Region.create()
    vswitch = region.add_vswitch(region.add_vpc("10.0.0.0/8"), "10.0.0.0/24", "cn-hangzhou-h")
    region.add_instance("node", instance_type="t", vswitch=vswitch, private_ip="10.0.0.7")
    with pytest.raises(ValueError, match="not free"):
        region.add_instance("other", instance_type="t", vswitch=vswitch, private_ip=address)


def test_dual_stack() -> None:
    region = Region.create()
    vpc = region.add_vpc("10.0.0.0/8", "2408:4000::/56")
    vswitch = region.add_vswitch(vpc, "10.0.1.0/24", "cn-hangzhou-h", "2408:4000:0:1::/64")
    node = region.add_instance("node", instance_type="t", vswitch=vswitch, private_ip="10.0.1.9")
    assert node.ipv6 == ip_address("2408:4000:0:1::9")
    system = {entry.cidr for entry in region.routes_of(vpc.route_table_id)}
    assert system == {ip_network(cidr) for cidr in ("100.64.0.0/10", "10.0.1.0/24", "2408:4000:0:1::/64")}


@pytest.mark.parametrize(
    ("cidr", "ipv6_cidr"),
    [
        ("172.16.0.0/24", None),
        ("10.0.0.0/30", None),
        ("10.0.0.128/25", None),
        ("10.0.1.0/24", "2001:db8::/64"),
    ],
)
def test_vswitches_that_do_not_fit(cidr: str, ipv6_cidr: str | None) -> None:
    region = Region.create()
    vpc = region.add_vpc("10.0.0.0/8", "2408:4000::/56")
    region.add_vswitch(vpc, "10.0.0.0/24", "cn-hangzhou-h")
    with pytest.raises(ValueError, match="vSwitch"):
        region.add_vswitch(vpc, cidr, "cn-hangzhou-h", ipv6_cidr)


def test_every_change_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "region.json"
    region = Region.create(path=path)
    assert Region.load(path) == region
    key = region.add_access_key()
    region.add_sts_credentials(600)
    assert Region.load(path) == region
    vpc = region.add_vpc("10.0.0.0/8", "2408:4000::/56")
    vswitch = region.add_vswitch(vpc, "10.0.0.0/24", "cn-hangzhou-h", "2408:4000::/64")
    assert Region.load(path) == region
    node = region.add_instance("node", instance_type="ecs.g7.large", vswitch=vswitch)
    entry = region.add_route(region.route_tables[vpc.route_table_id], ip_network("172.16.0.0/24"), node)
    loaded = Region.load(path)
    assert loaded == region
    assert loaded.route_entries[entry.entry_id] == entry
    region.drop_route(entry)
    region.disable_access_key(key.access_key_id)
    assert Region.load(path) == region

    loaded = Region.load(path)
    loaded.add_vpc("192.168.0.0/16")
    assert len(Region.load(path).vpcs) == 2  # a loaded region goes on being written
    assert [file.name for file in tmp_path.iterdir()] == ["region.json"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "region.json"
    region = Region.create(path=path)
    before = path.read_bytes()

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            region.add_vpc("10.0.0.0/8")
    assert path.read_bytes() == before
    region.add_access_key()
    assert Region.load(path) == region


def test_secrets_are_not_in_a_repr() -> None:
    region = Region.create()
    keys = [region.add_access_key(), region.add_sts_credentials(600)]
    for key in keys:
        assert key.access_key_secret not in repr(region)
    assert keys[1].security_token not in repr(region)
