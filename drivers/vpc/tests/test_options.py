"""The section ``options.vpc``: what is taken, and what an error names."""

from ipaddress import ip_network
from pathlib import Path

import pytest
from terway_driver_vpc.options import Options

from terway_core.config import parse_options
from terway_core.errors import InvalidConfig

GOOD = {"pod_cidrs": ["172.20.1.0/24"], "cluster_cidrs": ["172.20.0.0/16"]}
README = Path(__file__).parents[1] / "README.md"


def parse(options):
    return parse_options(Options, "vpc", options)


def test_defaults():
    options = parse(GOOD)
    assert options.pod_cidrs == (ip_network("172.20.1.0/24"),)
    assert (options.masquerade, options.route_controller, options.rest_seconds) == (True, False, 30)


@pytest.mark.parametrize(
    "pod_cidrs",
    [["172.20.1.0/24"], ["fd00:1::/64"], ["172.20.1.0/24", "fd00:1::/64"], ["fd00:1::/64", "172.20.1.0/24"]],
)
def test_either_family_or_both(pod_cidrs):
    options = parse({"pod_cidrs": pod_cidrs, "cluster_cidrs": ["172.20.0.0/16", "fd00::/16"]})
    assert [str(cidr) for cidr in options.pod_cidrs] == pod_cidrs


def test_a_cluster_may_be_of_one_node_or_of_several_ranges():
    parse(GOOD | {"cluster_cidrs": ["172.20.1.0/24"]})
    parse(GOOD | {"cluster_cidrs": ["10.0.0.0/8", "172.20.0.0/20"]})


@pytest.mark.parametrize(
    ("change", "where", "problem"),
    [
        ({"pod_cidrs": []}, "options.vpc.pod_cidrs", "at least 1"),
        ({"pod_cidrs": None}, "options.vpc.pod_cidrs", "tuple"),
        ({"pod_cidrs": ["172.20.1.1/24"]}, "options.vpc.pod_cidrs.0", "172.20.1.1/24 has host bits set"),
        ({"pod_cidrs": ["172.20.1.0/24", "x"]}, "options.vpc.pod_cidrs.1", "'x'"),
        ({"pod_cidrs": ["172.20.1.0/24"] * 3}, "options.vpc.pod_cidrs", "at most 2"),
        ({"pod_cidrs": ["172.20.1.0/24", "172.20.2.0/24"]}, "options.vpc", "two CIDRs of one address family"),
        ({"pod_cidrs": ["10.0.0.0/24"]}, "options.vpc", "10.0.0.0/24 lies in none of cluster_cidrs"),
        ({"pod_cidrs": ["fd00::/64"]}, "options.vpc", "fd00::/64 lies in none of cluster_cidrs"),
        ({"pod_cidrs": ["172.20.0.0/15"]}, "options.vpc", "172.20.0.0/15 lies in none of cluster_cidrs"),
        ({"cluster_cidrs": []}, "options.vpc.cluster_cidrs", "at least 1"),
        ({"rest_seconds": -1}, "options.vpc.rest_seconds", "greater than or equal to 0"),
        ({"masquerade": "perhaps"}, "options.vpc.masquerade", "boolean"),
        ({"podcidrs": []}, "options.vpc.podcidrs", "not permitted"),
    ],
)
def test_an_error_names_the_field_and_what_is_wrong(change, where, problem):
    with pytest.raises(InvalidConfig) as caught:
        parse(GOOD | change)
    assert f"{where}: " in caught.value.message
    assert problem in caught.value.message


def test_what_is_required_is_named_at_once():
    with pytest.raises(InvalidConfig, match=r"options\.vpc\.pod_cidrs: .*; options\.vpc\.cluster_cidrs: "):
        parse({})


def test_readme_lists_every_option():
    rows = [line.split("|")[1].strip() for line in README.read_text().splitlines() if line.startswith("| `")]
    assert rows == [f"`{name}`" for name in Options.model_fields]
