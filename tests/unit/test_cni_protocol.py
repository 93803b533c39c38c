"""Requests are read, refused with the specification's codes, and answered in each version's format."""

from __future__ import annotations

import json
import string
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terway_core.cni import plugin
from terway_core.cni.protocol import (
    MAX_INPUT,
    SUPPORTED_VERSIONS,
    Command,
    asked_version,
    parse_request,
    result,
    version_result,
)
from terway_core.errors import (
    IncompatibleVersion,
    InvalidConfig,
    InvalidEnvironment,
    TerwayError,
    UndecodableInput,
)
from terway_core.types import Attachment, Lease, Pod
from terway_core.wiring.objects import Address, LinkUp, Neighbor, Route, Veth, Wiring

# What containerd sends (its CNI_ARGS come in another order each time).
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "3f6940ab5ab4",
    "CNI_NETNS": "/var/run/netns/cni-1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "K8S_POD_INFRA_CONTAINER_ID=3f69;K8S_POD_UID=u-1;IgnoreUnknown=1;"
    "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
    "CNI_PATH": "/opt/cni/bin",
}
CONFIG = {"cniVersion": "1.1.0", "name": "terway", "type": "terway", "socket": "/run/terway/terway.sock"}
DROP = object()


def encode(environment, data):
    return b"".join(f"{name}={value}\0".encode() for name, value in environment.items()) + b"\0" + data


def request_bytes(environment=None, config=None, **changes):
    """A right ADD with some variables and configuration keys changed or dropped."""
    variables = {**ENVIRONMENT, **changes, **(environment or {})}
    settings = {**CONFIG, **(config or {})}
    return encode(
        {name: value for name, value in variables.items() if value is not DROP},
        json.dumps({key: value for key, value in settings.items() if value is not DROP}).encode(),
    )


def test_plugin_and_daemon_agree() -> None:
    assert plugin.VERSIONS == SUPPORTED_VERSIONS
    assert set(plugin.COMMANDS) == set(Command)
    assert plugin.MAX_INPUT == MAX_INPUT


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_add(version: str) -> None:
    request = parse_request(
        request_bytes(config={"cniVersion": version, "runtimeConfig": {"bandwidth": {"ingressRate": 8}}})
    )
    assert request.command is Command.ADD
    assert request.cni_version == version
    assert request.network == "terway"
    assert request.attachment == Attachment(
        network="terway",
        container_id="3f6940ab5ab4",
        ifname="eth0",
        netns="/var/run/netns/cni-1",
        pod=Pod(namespace="default", name="web-0", uid="u-1"),
        runtime_config={"bandwidth": {"ingressRate": 8}},
    )
    assert request.prev_result is None
    assert request.config["socket"] == "/run/terway/terway.sock"


def test_podman_add_knows_no_namespace() -> None:
    request = parse_request(request_bytes(CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=quiet_curie"))
    assert request.attachment is not None
    assert request.attachment.pod == Pod(name="quiet_curie")


def test_add_without_args() -> None:
    request = parse_request(request_bytes(CNI_ARGS=DROP))
    assert request.attachment is not None
    assert request.attachment.pod == Pod()


# containerd's second DEL has an empty CNI_NETNS and no prevResult; the rest is odd where DEL needs nothing.
@pytest.mark.parametrize(
    ("environment", "config"),
    [
        ({"CNI_NETNS": ""}, {}),
        ({"CNI_NETNS": DROP, "CNI_ARGS": DROP}, {}),
        ({"CNI_NETNS": "relative"}, {}),
        ({"CNI_NETNS": ""}, {"prevResult": "nonsense", "runtimeConfig": 1, "dns": []}),
        ({"CNI_NETNS": "", "CNI_ARGS": ";;=;WHO=knows;IgnoreUnknown=perhaps;IP=192.0.2.1"}, {}),
    ],
)
def test_del_needs_only_the_key(environment, config) -> None:
    request = parse_request(request_bytes(environment, config, CNI_COMMAND="DEL"))
    assert request.attachment is not None
    assert request.attachment.key == parse_request(request_bytes()).attachment.key
    assert request.attachment.netns == ""
    assert request.prev_result is None


def test_del_keeps_what_it_is_told() -> None:
    previous = {"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.7/32"}]}
    request = parse_request(request_bytes({"CNI_COMMAND": "DEL"}, {"prevResult": previous}))
    assert request.attachment == parse_request(request_bytes()).attachment
    assert request.prev_result == previous


def test_check_takes_the_previous_result() -> None:
    previous = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0"}], "routes": None}
    request = parse_request(request_bytes({"CNI_COMMAND": "CHECK"}, {"prevResult": previous}))
    assert request.command is Command.CHECK
    assert request.prev_result == previous


VALID = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]


@pytest.mark.parametrize(
    ("config", "valid"),
    [
        ({"cni.dev/valid-attachments": VALID}, {("a", "eth0"), ("b", "net1")}),
        ({"cni.dev/attachments": VALID}, {("a", "eth0"), ("b", "net1")}),
        ({"cni.dev/valid-attachments": VALID, "cni.dev/attachments": VALID}, {("a", "eth0"), ("b", "net1")}),
        ({"cni.dev/valid-attachments": []}, set()),
        ({"cni.dev/valid-attachments": None}, set()),  # libcni's nil slice
    ],
)
def test_gc(config, valid) -> None:
    # libcni sets the attachment's variables to nothing.
    request = parse_request(
        encode({"CNI_COMMAND": "GC", "CNI_CONTAINERID": ""}, json.dumps(CONFIG | config).encode())
    )
    assert request.command is Command.GC
    assert request.valid == valid
    assert request.attachment is None


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"cni.dev/valid-attachments": {}},
        {"cni.dev/valid-attachments": ""},
        {"cni.dev/valid-attachments": [None]},
        {"cni.dev/valid-attachments": [{"containerID": "a"}]},
        {"cni.dev/valid-attachments": [{"containerID": "a", "ifname": 0}]},
        {"cni.dev/valid-attachments": [{"containerID": "", "ifname": "eth0"}]},
    ],
)
def test_gc_with_a_doubtful_list_removes_nothing(config) -> None:
    with pytest.raises(InvalidConfig, match=r"attachments.*nothing was removed"):
        parse_request(request_bytes({"CNI_COMMAND": "GC"}, config))


def test_status() -> None:
    request = parse_request(
        request_bytes(CNI_COMMAND="STATUS", CNI_CONTAINERID="", CNI_NETNS="", CNI_IFNAME="")
    )
    assert (request.command, request.network, request.attachment) == (Command.STATUS, "terway", None)


@pytest.mark.parametrize(
    ("config", "asked"),
    [({"cniVersion": "1.0.0"}, "1.0.0"), ({"cniVersion": "9.9.9"}, "9.9.9"), ({}, SUPPORTED_VERSIONS[-1])],
)
def test_version(config, asked) -> None:
    # podman sends nothing but the version, with dummy variables.
    request = parse_request(
        encode({"CNI_COMMAND": "VERSION", "CNI_NETNS": "dummy"}, json.dumps(config).encode())
    )
    assert version_result(request.cni_version) == {
        "cniVersion": asked,
        "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("ADD", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("CHECK", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", ["CNI_CONTAINERID", "CNI_IFNAME"]),
    ],
)
def test_missing_variables_are_named_at_once(command: str, needed) -> None:
    for gone in (DROP, ""):
        with pytest.raises(InvalidEnvironment) as caught:
            parse_request(request_bytes(dict.fromkeys(needed, gone), CNI_COMMAND=command))
        assert [name for name in ENVIRONMENT if f"{name} is missing" in str(caught.value)] == needed
        assert caught.value.cni_code == 4
    for name in needed:
        with pytest.raises(InvalidEnvironment, match=f"{command} .*: {name} is missing$"):
            parse_request(request_bytes({name: DROP}, CNI_COMMAND=command))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("CNI_CONTAINERID", ["-a", ".", "_", "a/b", "a b", "a\n", "ä", "a:b", "\udcff"]),
        ("CNI_NETNS", ["relative", "./x", "/run/\x01", "/run/\udcff"]),
        (
            "CNI_IFNAME",
            [
                ".",
                "..",
                "a/b",
                "a:b",
                "a b",
                " a",
                "a\t",
                "a\n",
                "a\u00a0",
                "abcdefghijklmnop",
                "ééééééé€",
                "\udcff",
            ],
        ),
    ],
)
def test_malformed_variables_are_named_with_value_and_rule(name: str, values) -> None:
    for value in values:
        body = request_bytes().replace(
            f"\0{name}={ENVIRONMENT[name]}\0".encode(),
            f"\0{name}=".encode() + value.encode(errors="surrogateescape") + b"\0",
        )
        with pytest.raises(InvalidEnvironment) as caught:
            parse_request(body)
        assert f"{name} is {value!r}, which must be" in str(caught.value)


def test_missing_and_malformed_variables_are_named_together() -> None:
    with pytest.raises(InvalidEnvironment, match=r"CNI_CONTAINERID is '-'.*CNI_NETNS is missing"):
        parse_request(request_bytes(CNI_CONTAINERID="-", CNI_NETNS=DROP))


@pytest.mark.parametrize("ifname", ["abcdefghijklmno", "éééééééa", "eth0.100", "a@b", "-"])
def test_odd_but_legal_interface_names(ifname: str) -> None:
    request = parse_request(request_bytes(CNI_IFNAME=ifname))
    assert request.attachment is not None
    assert request.attachment.ifname == ifname


@pytest.mark.parametrize("command", ["", "add", "ADD ", "UPDATE", DROP])
def test_unknown_command(command) -> None:
    with pytest.raises(InvalidEnvironment, match=r"CNI_COMMAND is .*ADD, DEL, CHECK, GC, STATUS, VERSION"):
        parse_request(request_bytes(CNI_COMMAND=command))


def test_no_variables_at_all() -> None:
    body = encode({}, json.dumps(CONFIG).encode())
    with pytest.raises(InvalidEnvironment, match="CNI_COMMAND is ''"):
        parse_request(body)
    assert asked_version(body) == CONFIG["cniVersion"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b'"text"',
        b"{",
        b"{} {}",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"\\ud800": 1}',
        b"\xff{}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"a":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b" " * MAX_INPUT + b"{}",
    ],
    ids=lambda data: repr(data[:16]),
)
@pytest.mark.parametrize("command", list(Command))
def test_undecodable_input(command: Command, data: bytes) -> None:
    body = encode(ENVIRONMENT | {"CNI_COMMAND": command}, data)
    with pytest.raises(UndecodableInput) as caught:
        parse_request(body)
    assert caught.value.to_cni(asked_version(body))["code"] == 6
    assert asked_version(body) == SUPPORTED_VERSIONS[-1]


@pytest.mark.parametrize("body", [b"", b"\0", b"CNI_COMMAND=ADD", b"CNI_COMMAND=ADD\0", b"CNI_COMMAND\0\0{}"])
def test_unframed_body(body: bytes) -> None:
    with pytest.raises((UndecodableInput, InvalidEnvironment)):
        parse_request(body)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.5.0", "1.1", "1.2.0", "2.0.0", "latest"])
@pytest.mark.parametrize("command", sorted(set(Command) - {"VERSION"}))
def test_unknown_version(command: str, version: str) -> None:
    body = request_bytes({"CNI_COMMAND": command}, {"cniVersion": version})
    with pytest.raises(IncompatibleVersion, match=r"0\.3\.0, 0\.3\.1, 0\.4\.0, 1\.0\.0, 1\.1\.0") as caught:
        parse_request(body)
    assert caught.value.to_cni(asked_version(body))["cniVersion"] == version
    assert caught.value.cni_code == 1


@pytest.mark.parametrize("version", [DROP, "", None])
def test_missing_version_means_the_oldest(version) -> None:
    with pytest.raises(IncompatibleVersion, match=r"0\.1\.0"):
        parse_request(request_bytes(config={"cniVersion": version}))


@pytest.mark.parametrize("version", [1, ["1.0.0"], {"a": 1}, True])
def test_version_that_is_no_string(version) -> None:
    body = request_bytes(config={"cniVersion": version})
    with pytest.raises(UndecodableInput, match="cniVersion"):
        parse_request(body)
    assert asked_version(body) == SUPPORTED_VERSIONS[-1]


@pytest.mark.parametrize(("command", "since"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_commands_came_with_a_version(command: str, since: str, version: str) -> None:
    body = request_bytes(
        {"CNI_COMMAND": command},
        {"cniVersion": version, "prevResult": {}, "cni.dev/valid-attachments": []},
    )
    if version >= since:
        assert parse_request(body).command == command
    else:
        with pytest.raises(IncompatibleVersion, match=f"CNI {version} has no {command}.*{since}"):
            parse_request(body)


@pytest.mark.parametrize("name", [DROP, None, "", 7, "-x", ".x", "a b", "a/b", "../x", "ü", "a\n"])
def test_network_name(name) -> None:
    for command in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
        with pytest.raises(InvalidConfig, match="name is"):
            parse_request(request_bytes({"CNI_COMMAND": command}, {"name": name}))


@pytest.mark.parametrize("key", ["runtimeConfig", "dns"])
def test_sections_are_objects(key: str) -> None:
    with pytest.raises(InvalidConfig, match=f"{key} .* must be an object"):
        parse_request(request_bytes(config={key: ["x"]}))
    assert parse_request(request_bytes(config={key: None})).command is Command.ADD


def test_dns_is_passed_on() -> None:
    assert parse_request(request_bytes(config={"dns": {"domain": "x.example"}})).dns == {
        "domain": "x.example"
    }
    assert parse_request(request_bytes()).dns == {}


@pytest.mark.parametrize(
    "previous",
    ["text", [], {"ips": "x"}, {"ips": [1]}, {"interfaces": {"a": 1}}, {"routes": [[]]}],
)
def test_malformed_previous_result(previous) -> None:
    for command in ("ADD", "CHECK"):
        with pytest.raises(InvalidConfig, match="prevResult"):
            parse_request(request_bytes({"CNI_COMMAND": command}, {"prevResult": previous}))


def test_check_without_previous_result() -> None:
    with pytest.raises(InvalidConfig, match="prevResult"):
        parse_request(request_bytes(CNI_COMMAND="CHECK"))


@pytest.mark.parametrize(
    "args", ["K8S_POD_NAME", "=x", "K8S_POD_NAME=a;", ";", "K8S_POD_NAME=a;;IgnoreUnknown=1"]
)
def test_malformed_args(args: str) -> None:
    with pytest.raises(InvalidEnvironment, match="CNI_ARGS"):
        parse_request(request_bytes(CNI_ARGS=args))


def test_unknown_args_are_named() -> None:
    with pytest.raises(InvalidEnvironment, match=r"CNI_ARGS.* BAR, FOO;"):
        parse_request(request_bytes(CNI_ARGS="FOO=1;K8S_POD_NAME=a;BAR=2"))
    with pytest.raises(InvalidEnvironment, match=r"CNI_ARGS.* FOO;"):
        parse_request(request_bytes(CNI_ARGS="FOO=1;IgnoreUnknown=false"))


@pytest.mark.parametrize("yes", ["1", "true", "True", "TRUE"])
def test_unknown_args_are_ignored_on_demand(yes: str) -> None:
    for args in (f"FOO=1;IgnoreUnknown={yes};K8S_POD_NAME=a", f"IgnoreUnknown={yes};K8S_POD_NAME=a;FOO=1"):
        request = parse_request(request_bytes(CNI_ARGS=args))
        assert request.attachment is not None
        assert request.attachment.pod == Pod(name="a")


def test_ignore_unknown_is_a_boolean() -> None:
    with pytest.raises(InvalidEnvironment, match="IgnoreUnknown=perhaps"):
        parse_request(request_bytes(CNI_ARGS="IgnoreUnknown=perhaps"))


@pytest.mark.parametrize(
    "args", ["IP=192.0.2.1", "MAC=02:00:00:00:00:01", "IP=192.0.2.1;MAC=02:00:00:00:00:01"]
)
def test_add_with_a_wish_that_cannot_be_granted(args: str) -> None:
    with pytest.raises(InvalidEnvironment) as caught:
        parse_request(request_bytes(CNI_ARGS=f"IgnoreUnknown=1;{args}"))
    assert all(wish in str(caught.value) for wish in args.split(";"))


# ---- results ----------------------------------------------------------------------------------------------

ATTACHMENT = Attachment(network="terway", container_id="c", ifname="eth0", netns="/run/netns/pod")
LEASE = Lease(
    addresses=(ip_interface("10.0.3.7/32"), ip_interface("fd00::7/128")),
    gateways=(ip_address("169.254.1.1"), ip_address("fe80::1")),
)
VETH = Veth(
    name="cali0123456789a", peer="eth0", mac="0a:00:00:00:00:01", peer_mac="0a:00:00:00:00:02", mtu=1400
)
WIRING = Wiring(
    host=(VETH, Route(dst=ip_network("10.0.3.7/32"), dev="cali0123456789a")),
    pod=(
        LinkUp(dev="lo"),
        Address(dev="eth0", address=ip_interface("10.0.3.7/32")),
        Neighbor(dev="eth0", address=ip_address("169.254.1.1"), mac="0a:00:00:00:00:01"),
        Route(dst=ip_network("169.254.1.1/32"), dev="eth0"),
        Route(dst=ip_network("0.0.0.0/0"), dev="eth0", via=ip_address("169.254.1.1")),
        Route(dst=ip_network("::/0"), dev="eth0", via=ip_address("fe80::1")),
        Route(dst=ip_network("0.0.0.0/0"), dev="eth0", via=ip_address("10.0.0.253"), table=100),
    ),
)
IN_04X = {
    "interfaces": [
        {"name": "cali0123456789a", "mac": "0a:00:00:00:00:01"},
        {"name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/run/netns/pod"},
    ],
    "ips": [
        {"version": "4", "interface": 1, "address": "10.0.3.7/32", "gateway": "169.254.1.1"},
        {"version": "6", "interface": 1, "address": "fd00::7/128", "gateway": "fe80::1"},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
}
IN_100 = IN_04X | {
    "ips": [
        {"interface": 1, "address": "10.0.3.7/32", "gateway": "169.254.1.1"},
        {"interface": 1, "address": "fd00::7/128", "gateway": "fe80::1"},
    ]
}
IN_110 = IN_100 | {
    "interfaces": [
        {"name": "cali0123456789a", "mac": "0a:00:00:00:00:01", "mtu": 1400},
        {"name": "eth0", "mac": "0a:00:00:00:00:02", "mtu": 1400, "sandbox": "/run/netns/pod"},
    ]
}


@pytest.mark.parametrize(
    ("version", "expected"),
    list(zip(SUPPORTED_VERSIONS, [IN_04X, IN_04X, IN_04X, IN_100, IN_110], strict=True)),
)
def test_result(version: str, expected) -> None:
    dns = {"nameservers": ["10.0.0.10"], "search": ["svc.example"]}
    assert result(ATTACHMENT, LEASE, WIRING, version, dns=dns) == {
        "cniVersion": version,
        **expected,
        "dns": dns,
    }
    assert result(ATTACHMENT, LEASE, WIRING, version) == {"cniVersion": version, **expected}


def test_result_without_gateway_and_default_route() -> None:
    lease = Lease(addresses=(ip_interface("10.0.3.7/24"),), gateways=(ip_address("fe80::1"),))
    wiring = Wiring(host=(VETH,), pod=(Route(dst=ip_network("0.0.0.0/0"), dev="eth0"),))
    success = result(ATTACHMENT, lease, wiring, "1.0.0")
    assert success["ips"] == [{"interface": 1, "address": "10.0.3.7/24"}]
    assert success["routes"] == [{"dst": "0.0.0.0/0"}]


def test_result_of_a_pod_whose_own_interface_is_no_veth() -> None:
    """As in the eni mode: eth0 is the ENI itself, a veth beside it carries Service traffic."""
    wiring = Wiring(
        host=(Veth(name="cali1", peer="veth1", mac="0a:00:00:00:00:01", peer_mac="0a:00:00:00:00:02"),)
    )
    success = result(ATTACHMENT, LEASE, wiring, "1.0.0")
    assert success["interfaces"] == [
        {"name": "cali1", "mac": "0a:00:00:00:00:01"},
        {"name": "veth1", "mac": "0a:00:00:00:00:02", "sandbox": "/run/netns/pod"},
        {"name": "eth0", "sandbox": "/run/netns/pod"},
    ]
    assert [ip["interface"] for ip in success["ips"]] == [2, 2]
    assert success["routes"] == []


def test_result_has_the_pods_own_interface_last() -> None:
    other = Veth(name="cali1", peer="veth1", mac="0a:00:00:00:00:03", peer_mac="0a:00:00:00:00:04")
    success = result(ATTACHMENT, LEASE, Wiring(host=(VETH, other)), "1.0.0")
    assert [i["name"] for i in success["interfaces"]] == ["cali1", "cali0123456789a", "veth1", "eth0"]
    assert {ip["interface"] for ip in success["ips"]} == {3}


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_chained_result_keeps_the_previous_one(version: str) -> None:
    previous = {
        "cniVersion": version,
        "interfaces": [{"name": "br0"}, {"name": "net0", "sandbox": "/run/netns/pod"}],
        "ips": [{"address": "192.0.2.7/24", "interface": 1}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"domain": "old.example"},
        "extra": {"kept": True},
    }
    before = json.dumps(previous)
    success = result(ATTACHMENT, LEASE, WIRING, version, previous)
    assert success["interfaces"][:2] == previous["interfaces"]
    assert [i["name"] for i in success["interfaces"][2:]] == ["cali0123456789a", "eth0"]
    assert success["ips"][0] == previous["ips"][0]
    assert [ip["interface"] for ip in success["ips"][1:]] == [3, 3]
    assert success["routes"][0] == previous["routes"][0]
    assert (success["dns"], success["extra"]) == ({"domain": "old.example"}, {"kept": True})
    assert result(ATTACHMENT, LEASE, WIRING, version, previous, {"domain": "new.example"})["dns"] == {
        "domain": "new.example"
    }
    assert json.dumps(previous) == before


def test_previous_result_of_a_go_plugin_may_hold_null() -> None:
    previous = {"interfaces": None, "ips": None, "routes": None}
    success = result(ATTACHMENT, LEASE, WIRING, "1.0.0", previous)
    assert success == {"cniVersion": "1.0.0", **IN_100}


# ---- anything at all --------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
config_keys = st.sampled_from(
    ["cniVersion", "name", "runtimeConfig", "dns", "prevResult", "cni.dev/valid-attachments"]
)
variable_text = st.text(st.characters(exclude_characters="\0"), max_size=20) | st.text(
    string.ascii_letters + ";=._-/", max_size=20
)


@st.composite
def bodies(draw) -> bytes:
    """Near a right request: a few variables and keys replaced by anything."""
    variables = ENVIRONMENT | draw(
        st.dictionaries(
            st.sampled_from(sorted(ENVIRONMENT)), st.sampled_from(Command) | variable_text, max_size=2
        )
    )
    config = CONFIG | draw(
        st.dictionaries(config_keys, json_values | st.sampled_from(SUPPORTED_VERSIONS), max_size=3)
    )
    head = b"".join(f"{n}={v}\0".encode(errors="surrogatepass") for n, v in variables.items())
    return head + b"\0" + json.dumps(config).encode()


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200) | bodies())
def test_nothing_but_our_errors_escapes(body: bytes) -> None:
    try:
        request = parse_request(body)
    except TerwayError as error:
        answer = error.to_cni(asked_version(body))
        assert answer["code"] in (1, 4, 6, 7)
        assert answer["msg"]
    else:
        answer = (
            result(
                request.attachment or ATTACHMENT,
                LEASE,
                WIRING,
                request.cni_version,
                request.prev_result,
                request.dns,
            )
            if request.command is Command.ADD
            else version_result(request.cni_version)
        )
        assert answer["cniVersion"] == asked_version(body)
    json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
