"""The least RAM policy knows every action that the code can call, and asks for none that is not needed."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import terway_core
from terway_core.cli.app import build
from terway_core.cloud import ecs, vpc

CORE = Path(terway_core.__file__).parent
DRIVERS = CORE.parent / "drivers"
ACTION = re.compile(
    "(?:Assign|Attach|Create|Delete(?!OnRelease)|Describe|Detach|Modify|Unassign)[A-Z][A-Za-z0-9]+"
    "|(?:Tag|Untag)Resources"
)

ENIS = {
    f"ecs:{action}"
    for action in (
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "DetachNetworkInterface",
        "DeleteNetworkInterface",
        "DescribeNetworkInterfaces",
        "DescribeInstanceTypes",
    )
} | {"vpc:DescribeVSwitches"}
ADDRESSES = {"ecs:AssignPrivateIpAddresses", "ecs:UnassignPrivateIpAddresses"}
IPV6 = {"ecs:AssignIpv6Addresses", "ecs:UnassignIpv6Addresses"}
ROUTES = {
    f"vpc:{action}"
    for action in (
        "DescribeRouteTableList",
        "DescribeRouteEntryList",
        "CreateRouteEntry",
        "DeleteRouteEntry",
    )
}


def sources() -> Iterator[Path]:
    for path in (*CORE.rglob("*.py"), *DRIVERS.glob("*/src/**/*.py")):
        if "lab" not in path.relative_to(CORE.parent).parts:
            yield path


def strings(node: ast.AST) -> Iterator[str]:
    """Every text in a piece of code but docstrings and the tables themselves."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.AnnAssign) and ast.unparse(child.target) == "NEEDED_BY":
            continue
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        yield from strings(child)


def test_the_tables_have_exactly_the_actions_that_the_code_can_call() -> None:
    called = {text for path in sources() for text in strings(ast.parse(path.read_text()))}
    actions = {text for text in called if ACTION.fullmatch(text)}
    assert len(actions) > 10
    assert actions == {*ecs.NEEDED_BY, *vpc.NEEDED_BY}


def run(tmp_path: Path, **settings: Any) -> tuple[set[str], str]:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    result = CliRunner().invoke(build(["ram-policy"]), ["ram-policy", "--config", str(config)])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["Version"] == "1"
    for statement in document["Statement"]:
        assert (statement["Effect"], statement["Resource"]) == ("Allow", "*")
        assert statement["Action"]
    actions = [action for statement in document["Statement"] for action in statement["Action"]]
    assert len(set(actions)) == len(actions)
    return set(actions), result.stderr


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"drivers": ["vpc"]}, set()),
        ({"drivers": ["vpc"], "options": {"vpc": {"route_controller": True}}}, ROUTES),
        ({"drivers": ["trunking", "eniip_veth"]}, ENIS | ADDRESSES),
        ({"drivers": ["eniip_veth"], "options": {"vpc": {"route_controller": True}}}, ENIS | ADDRESSES),
        ({"drivers": ["eni"]}, ENIS),
        ({"drivers": ["eni"], "pool": {"ip_stack": "dual"}}, ENIS),
        ({"drivers": ["eniip_veth"], "pool": {"ip_stack": "dual"}}, ENIS | ADDRESSES | IPV6),
        (
            {"drivers": ["vpc", "eni", "eniip_veth"], "options": {"vpc": {"route_controller": True}}},
            ROUTES | ENIS | ADDRESSES,
        ),
    ],
)
def test_what_the_configured_drivers_need(
    tmp_path: Path, settings: dict[str, Any], expected: set[str]
) -> None:
    assert run(tmp_path, **settings) == (expected, "")


def test_of_an_unknown_driver_it_says_that_it_does_not_know(tmp_path: Path) -> None:
    actions, warning = run(tmp_path, drivers=["homemade", "eni"])
    assert actions == ENIS
    assert "'homemade'" in warning
