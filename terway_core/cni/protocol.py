"""The CNI protocol as the daemon speaks it: a request's bytes in, a result's JSON out.

What the bytes are, the plugin says (``terway_core/cni/plugin.py``). Rules and names are those of the CNI
specification 1.1.0 (SPEC.md), older result formats included. Nothing here touches the system.

A DEL is judged by nothing but what it needs, the attachment's key: a request that is otherwise odd may fail
an ADD, but a pod that cannot be deleted is worse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from terway_core.cni.environment import (
    IDENTIFIER,
    Command,
    check_variables,
    is_path,
    parse_args,
    parse_command,
    refuse_addresses,
    split_request,
)
from terway_core.errors import IncompatibleVersion, InvalidConfig, TerwayError, UndecodableInput
from terway_core.types import Attachment, IPInterface, Lease, Pod, Wiring
from terway_core.wiring.objects import MAIN_TABLE, MoveLink, Route, Veth

__all__ = [
    "SUPPORTED_VERSIONS",
    "Command",
    "Request",
    "asked_version",
    "parse_request",
    "result",
    "version_result",
]

SUPPORTED_VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST: Final = SUPPORTED_VERSIONS[-1]
#: Bytes of network configuration that are read; the plugin has the same limit.
MAX_INPUT: Final = 1 << 20

_SINCE: Final = {Command.CHECK: "0.4.0", Command.GC: "1.1.0", Command.STATUS: "1.1.0"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One CNI request whose form is right.

    :param cni_version: one of ``SUPPORTED_VERSIONS``; for ``VERSION`` whatever was asked.
    :param network: name of the network; ``""`` for ``VERSION``.
    :param attachment: whom ``ADD``, ``DEL`` and ``CHECK`` are about.
    :param config: the network configuration that came on standard input, as JSON.
    :param valid: for ``GC``: container id and interface name of each attachment of this network that is
        still wanted.
    :param prev_result: what the plugin before us in the chain (``ADD``) or the whole ADD returned.
    """

    command: Command
    cni_version: str
    network: str = ""
    attachment: Attachment | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    valid: frozenset[tuple[str, str]] = frozenset()
    prev_result: Mapping[str, Any] | None = None

    @property
    def dns(self) -> Mapping[str, Any]:
        """The network configuration's ``dns``, which a result passes on."""
        return self.config.get("dns") or {}


def parse_request(body: bytes) -> Request:
    """Read what the plugin sent or left in the spool.

    :raises InvalidEnvironment: variables are missing or malformed; all of them are named at once.
    :raises UndecodableInput: standard input is no JSON object, or too large.
    :raises IncompatibleVersion: we do not speak the ``cniVersion``, or it has no such command.
    :raises InvalidConfig: the network configuration has a wrong value.
    """
    variables, data = split_request(body)
    command = parse_command(variables)
    check_variables(command, variables)
    config = _parse_config(data)
    version = _check_version(command, config)
    if command is Command.VERSION:
        return Request(command=command, cni_version=version, config=config)
    network = config.get("name")
    if not isinstance(network, str) or not IDENTIFIER.fullmatch(network):
        raise InvalidConfig(
            f"the network configuration's name is {network!r}; it must begin with a letter or digit "
            "and go on with letters, digits, '_', '.' and '-'"
        )
    if command is Command.STATUS:
        return Request(command=command, cni_version=version, network=network, config=config)
    if command is Command.GC:
        valid = _valid_attachments(config)
        return Request(command=command, cni_version=version, network=network, config=config, valid=valid)
    strict = command is not Command.DEL
    args = parse_args(variables.get("CNI_ARGS", ""), strict=strict)
    if command is Command.ADD:
        refuse_addresses(args)
    netns = variables.get("CNI_NETNS", "")
    attachment = Attachment(
        network=network,
        container_id=variables["CNI_CONTAINERID"],
        ifname=variables["CNI_IFNAME"],
        netns=netns if is_path(netns) else "",
        pod=Pod(
            namespace=args.get("K8S_POD_NAMESPACE", ""),
            name=args.get("K8S_POD_NAME", ""),
            uid=args.get("K8S_POD_UID", ""),
        ),
        runtime_config=_object(config, "runtimeConfig", strict=strict),
    )
    _object(config, "dns", strict=strict)
    return Request(
        command=command,
        cni_version=version,
        network=network,
        attachment=attachment,
        config=config,
        prev_result=_prev_result(command, config),
    )


def asked_version(body: bytes) -> str:
    """The ``cniVersion`` for the answer to a request that may be wrong in every respect.

    It is the one asked for, even if we do not speak it (SPEC.md, "Error": "the same value as provided by the
    configuration"), or the newest when that cannot be read. Raises nothing.
    """
    try:
        version = _parse_config(split_request(body)[1]).get("cniVersion")
    except TerwayError:
        return NEWEST
    return version if isinstance(version, str) and version else NEWEST


def result(
    attachment: Attachment,
    lease: Lease,
    wiring: Wiring,
    cni_version: str,
    prev_result: Mapping[str, Any] | None = None,
    dns: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The success object of an ADD, in the format of ``cni_version`` (SPEC.md, "Success").

    Shown are the ends of each veth and links that moved in, the pod's own interface last; the lease's
    addresses; and the pod's default routes, which are the only ones that a later plugin of the chain can
    make sense of. What ``prev_result`` holds comes first and stays as it is.
    """
    previous = prev_result or {}
    interfaces = [*(previous.get("interfaces") or ()), *_interfaces(attachment, wiring, cni_version)]
    ips = [
        *(previous.get("ips") or ()),
        *(_ip(address, lease, len(interfaces) - 1, cni_version) for address in lease.addresses),
    ]
    routes = [*(previous.get("routes") or ()), *_default_routes(wiring)]
    success = {**previous, "cniVersion": cni_version, "interfaces": interfaces, "ips": ips, "routes": routes}
    if dns:
        success["dns"] = dict(dns)
    return success


def version_result(cni_version: str) -> dict[str, Any]:
    """The answer to VERSION. :param cni_version: what the request said, whether we speak it or not."""
    return {"cniVersion": cni_version, "supportedVersions": list(SUPPORTED_VERSIONS)}


# Most pods of a node come with the same one. Nobody changes what it returns.
@lru_cache(maxsize=8)
def _parse_config(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_INPUT:
        raise UndecodableInput(f"the network configuration has {len(data)} bytes; {MAX_INPUT} are the limit")
    try:
        config = json.loads(data.decode())
        # NaN and lone surrogates pass loads() but are no JSON text, and could not be stored or answered.
        json.dumps(config, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise UndecodableInput(f"the network configuration is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UndecodableInput(f"the network configuration is a JSON {type(config).__name__}, not an object")
    return config


def _check_version(command: Command, config: Mapping[str, Any]) -> str:
    version = config.get("cniVersion") or ""
    if not isinstance(version, str):
        raise UndecodableInput(f"cniVersion is {version!r}, not a string")
    if command is Command.VERSION:
        return version or NEWEST
    version = version or "0.1.0"  # what libcni takes a configuration without a version for
    if version not in SUPPORTED_VERSIONS:
        raise IncompatibleVersion(
            f"cniVersion {version!r} of the network configuration is not supported; "
            f"set one of {', '.join(SUPPORTED_VERSIONS)}"
        )
    since = _SINCE.get(command, SUPPORTED_VERSIONS[0])
    if SUPPORTED_VERSIONS.index(version) < SUPPORTED_VERSIONS.index(since):
        raise IncompatibleVersion(f"CNI {version} has no {command}; set cniVersion to {since} or later")
    return version


def _valid_attachments(config: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    # The specification's text once said cni.dev/attachments; libcni sends both, and null for an empty list.
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if key in config:
            break
    else:
        raise InvalidConfig(
            "GC came without cni.dev/valid-attachments, which would make every pod's network stale; "
            "nothing was removed"
        )
    entries = [] if config[key] is None else config[key]
    if not isinstance(entries, list) or not all(_is_attachment(entry) for entry in entries):
        raise InvalidConfig(
            f"{key} must be a list of objects with containerID and ifname; nothing was removed"
        )
    return frozenset((entry["containerID"], entry["ifname"]) for entry in entries)


def _is_attachment(entry: Any) -> bool:
    names = [entry.get("containerID"), entry.get("ifname")] if isinstance(entry, dict) else []
    return bool(names) and all(isinstance(name, str) and name for name in names)


def _object(config: Mapping[str, Any], key: str, *, strict: bool) -> dict[str, Any]:
    value = config.get(key)
    if isinstance(value, dict):
        return value
    if strict and value is not None:
        raise InvalidConfig(f"{key} in the network configuration is {value!r}; it must be an object")
    return {}


def _prev_result(command: Command, config: Mapping[str, Any]) -> dict[str, Any] | None:
    previous = config.get("prevResult")
    if command is Command.DEL:
        return previous if isinstance(previous, dict) else None
    if previous is None and command is Command.ADD:
        return None
    if not isinstance(previous, dict):
        raise InvalidConfig(
            f"prevResult in the network configuration is {previous!r}; {command} takes the result of an ADD"
        )
    for key in ("interfaces", "ips", "routes"):
        entries = previous.get(key) or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InvalidConfig(f"{key} of prevResult must be a list of objects")
    return previous


def _interfaces(attachment: Attachment, wiring: Wiring, cni_version: str) -> list[dict[str, Any]]:
    veths = [obj for obj in wiring.host if isinstance(obj, Veth)]
    veths.sort(key=lambda veth: veth.peer == attachment.ifname)
    host = [_interface(veth.name, veth.mac, veth.mtu, cni_version) for veth in veths]
    pod = [_interface(veth.peer, veth.peer_mac, veth.mtu, cni_version) for veth in veths]
    pod += [
        _interface(obj.name, obj.mac, obj.mtu, cni_version)
        for obj in wiring.host
        if isinstance(obj, MoveLink)
    ]
    if not pod or pod[-1]["name"] != attachment.ifname:
        pod.append({"name": attachment.ifname})
    return host + [{**interface, "sandbox": attachment.netns} for interface in pod]


def _interface(name: str, mac: str, mtu: int, cni_version: str) -> dict[str, Any]:
    interface: dict[str, Any] = {"name": name, "mac": mac}
    if cni_version == "1.1.0":
        interface["mtu"] = mtu
    return interface


def _ip(address: IPInterface, lease: Lease, interface: int, cni_version: str) -> dict[str, Any]:
    ip: dict[str, Any] = {"address": str(address), "interface": interface}
    if cni_version.startswith("0."):
        ip["version"] = str(address.version)
    for gateway in lease.gateways:
        if gateway.version == address.version:
            ip["gateway"] = str(gateway)
    return ip


def _default_routes(wiring: Wiring) -> list[dict[str, str]]:
    routes = [
        obj
        for obj in wiring.pod
        if isinstance(obj, Route) and obj.dst.prefixlen == 0 and obj.table == MAIN_TABLE
    ]
    return [
        {"dst": str(route.dst)} | ({"gw": str(route.via)} if route.via is not None else {})
        for route in routes
    ]
