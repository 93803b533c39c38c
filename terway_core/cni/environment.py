"""The CNI_* variables of a request: which are needed, what they may be, what CNI_ARGS says.

Character rules are those of the CNI specification (SPEC.md, "Parameters"), and of Linux for interface names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from terway_core.errors import InvalidEnvironment, UndecodableInput

#: Container ids and network names.
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Command(StrEnum):
    """What ``CNI_COMMAND`` can be."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


_REQUIRED: Final[Mapping[Command, tuple[str, ...]]] = {
    Command.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Command.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Command.DEL: ("CNI_CONTAINERID", "CNI_IFNAME"),
}
_KNOWN_ARGS: Final = frozenset(
    {
        "IgnoreUnknown",
        "IP",
        "K8S_POD_INFRA_CONTAINER_ID",
        "K8S_POD_NAME",
        "K8S_POD_NAMESPACE",
        "K8S_POD_UID",
        "MAC",
    }
)


def split_request(body: bytes) -> tuple[dict[str, str], bytes]:
    """The CNI_* variables, and standard input. Bytes that are no UTF-8 become lone surrogates.

    :raises UndecodableInput: this is no request of the plugin's form.
    """
    if body.startswith(b"\0"):
        return {}, body[1:]
    head, end, data = body.partition(b"\0\0")
    pairs = [item.partition(b"=") for item in head.split(b"\0")]
    if not end or not all(equals for _, equals, _ in pairs):
        raise UndecodableInput(
            "the request is not a list of NAME=value with a NUL byte each, and one more NUL"
        )
    return {_decode(name): _decode(value) for name, _, value in pairs}, data


def _decode(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _is_ifname(value: str) -> bool:
    # Linux counts bytes (IFNAMSIZ, 16 with the NUL). Lone surrogates and control characters do not print.
    if not value.isprintable() or value in (".", "..") or set(value) & set("/:"):
        return False
    return len(value.encode()) < 16 and value.split() == [value]


def is_path(value: str) -> bool:
    """Whether it can be the path of a namespace: absolute, as the daemon's working directory is its own."""
    return value.startswith("/") and value.isprintable()


_RULES: Final[Mapping[str, tuple[Callable[[str], object], str]]] = {
    "CNI_CONTAINERID": (IDENTIFIER.fullmatch, "a letter or digit, then letters, digits, '_', '.' and '-'"),
    "CNI_NETNS": (is_path, "an absolute path"),
    "CNI_IFNAME": (_is_ifname, "at most 15 bytes, without '/', ':' and white space, not '.' or '..'"),
}


def parse_command(variables: Mapping[str, str]) -> Command:
    """What is asked for. :raises InvalidEnvironment: it is none of ours."""
    command = variables.get("CNI_COMMAND", "")
    try:
        return Command(command)
    except ValueError:
        raise InvalidEnvironment(
            f"CNI_COMMAND is {command!r}; it must be one of {', '.join(Command)}"
        ) from None


def check_variables(command: Command, variables: Mapping[str, str]) -> None:
    """:raises InvalidEnvironment: variables that the command needs are missing or malformed, all named."""
    problems = []
    for name in _REQUIRED.get(command, ()):
        is_right, rule = _RULES[name]
        if not (value := variables.get(name, "")):
            problems.append(f"{name} is missing")
        elif not is_right(value):
            problems.append(f"{name} is {value!r}, which must be {rule}")
    if problems:
        raise InvalidEnvironment(f"{command} cannot be served: {'; '.join(problems)}")


def parse_args(text: str, *, strict: bool) -> dict[str, str]:
    """CNI_ARGS: ``K=V;K=V`` in any order; a key that comes twice has its last value, as in libcni.

    :param strict: otherwise what is malformed or unknown is passed over.
    :raises InvalidEnvironment: a pair is malformed; a key is unknown and IgnoreUnknown is not set.
    """
    args: dict[str, str] = {}
    malformed = []
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if key and equals and pair.isprintable():
            args[key] = value
        else:
            malformed.append(repr(pair))
    ignore_unknown = args.get("IgnoreUnknown", "0").lower()
    if ignore_unknown not in ("0", "1", "false", "true"):
        malformed.append(repr(f"IgnoreUnknown={args['IgnoreUnknown']}"))
    if strict and malformed:
        raise InvalidEnvironment(f"CNI_ARGS has what is no KEY=value: {', '.join(malformed)}")
    unknown = sorted(args.keys() - _KNOWN_ARGS)
    if strict and unknown and ignore_unknown in ("0", "false"):
        raise InvalidEnvironment(
            f"CNI_ARGS has unknown keys: {', '.join(unknown)}; remove them or add IgnoreUnknown=1"
        )
    return args


def refuse_addresses(args: Mapping[str, str]) -> None:
    """:raises InvalidEnvironment: CNI_ARGS asks for an address, as ``podman run --ip`` does.

    Which address a pod has is decided by the VPC and the driver; one that started with another than its user
    asked for would only look right.
    """
    wishes = [f"{key}={args[key]}" for key in ("IP", "MAC") if args.get(key)]
    if wishes:
        raise InvalidEnvironment(
            f"CNI_ARGS asks for {' and '.join(wishes)}, but an address cannot be chosen here; "
            "start the pod without a fixed IP or MAC address"
        )
