"""What a lab can be asked for: instance types and vSwitches."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

import pytest
from typer.testing import CliRunner

from terway_core.cli.lab import app
from terway_core.lab import build, fabric
from terway_core.lab.demo import spec_of
from terway_core.lab.state import Lab, LabError, Spec


def test_two_vswitches_in_each_of_two_zones_and_more() -> None:
    found = fabric.all_vswitches(["192.168.9.0/28", "cn-hangzhou-i=192.168.10.0/24"])
    zones = [zone for zone, _ in found[:-2]]
    assert [zones.count(zone) for zone in ("cn-hangzhou-h", "cn-hangzhou-i")] == [2, 2]
    assert found[-2:] == (
        ("cn-hangzhou-h", ip_network("192.168.9.0/28")),
        ("cn-hangzhou-i", ip_network("192.168.10.0/24")),
    )
    cidrs = [fabric.vswitch_ipv6_cidr(number) for number in range(len(found))]
    assert len(set(cidrs)) == len(found)
    assert all(cidr.subnet_of(fabric.VPC_IPV6_CIDR) for cidr in cidrs)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["10.0.0.0/24"], "part of the VPC"),
        (["192.168.9.0/30"], "/29 or larger"),
        (["192.168.0.128/25"], r"overlaps the vSwitch 192\.168\.0\.0/24"),
        (["192.168.9.0/24", "192.168.9.0/28"], r"overlaps the vSwitch 192\.168\.9\.0/24"),
        (["moon=192.168.9.0/24"], "no zone moon"),
        (["192.168.9.1/24"], r"not \[ZONE=\]CIDR"),
    ],
)
def test_vswitches_that_cannot_be(more: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        fabric.all_vswitches(more)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (
            Spec(nodes=1, drivers=("vpc",), instance_type="ecs.moon"),
            r"no instance type 'ecs\.moon'; it has .*g7",
        ),
        (Spec(nodes=1, drivers=("vpc",), vswitches=("moon",)), "no such vSwitch"),
        (Spec(nodes=1, drivers=("trunking", "vpc")), "selected in Kubernetes; use --kubernetes"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: Spec, problem: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(build.kernel, "unmet", lambda spec: "")
    with pytest.raises(LabError, match=problem):
        build.up(Lab(tmp_path / "lab"), spec, lambda share, step: None)
    assert not (tmp_path / "lab").exists()


@pytest.mark.parametrize(
    ("instance_type", "shown_on"),
    [("ecs.g7.xlarge", "ecs.g7.4xlarge"), ("ecs.ebmre7p.32xlarge", "ecs.ebmre7p.32xlarge")],
)
def test_the_demonstration_of_trunking_has_what_it_needs(instance_type: str, shown_on: str) -> None:
    spec = spec_of("trunking", "dual", instance_type)
    assert (spec.drivers, spec.instance_type) == (("trunking", "eniip_veth"), shown_on)
    assert (spec.kubernetes, spec.ip_stack) == ("simulated", "dual")
    assert spec_of("eni", "ipv4", instance_type).drivers == ("eni",)


def test_the_command_line_says_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Spec] = []

    def up(lab: Lab, spec: Spec, progress: object) -> None:
        asked.append(spec)
        lab.folder.mkdir()
        lab.mark(spec)

    monkeypatch.setattr(build, "up", up)
    arguments = ["up", "--dir", str(tmp_path / "lab"), "--instance-type", "ecs.g6.large", "--kernel", "host"]
    more = ["--vswitch", "192.168.9.0/28", "--vswitch", "cn-hangzhou-i=192.168.10.0/24"]
    result = CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    expected = Spec(
        nodes=2,
        drivers=("vpc",),
        instance_type="ecs.g6.large",
        vswitches=("192.168.9.0/28", "cn-hangzhou-i=192.168.10.0/24"),
    )
    assert asked == [expected]
    assert Lab(tmp_path / "lab").spec == expected
