"""Masquerading in nftables, through libnftables: no process to start, and the kernel's words for errors.

All rules are in one table of our own, ``inet terway``, and are found again by what they do. (A comment would
be simpler, but holds 128 characters, which a handful of networks fills.)
"""

from __future__ import annotations

import ctypes
import functools
import json
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any

from terway_core.errors import TerwayError, WiringError
from terway_core.types import Problem
from terway_core.wiring.netns import temporary_netns
from terway_core.wiring.objects import IPNetwork, Masquerade

TABLE = "terway"
CHAIN = "postrouting"
LIBRARY = "libnftables.so.1"
_JSON_OUTPUT = 1 << 4  # NFT_CTX_OUTPUT_JSON in nftables/libnftables.h
_ECHO_HANDLES = 1 << 3  # NFT_CTX_OUTPUT_HANDLE


class NftUnavailable(WiringError):
    """libnftables is not installed."""


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NftUnavailable(
            f"{LIBRARY} cannot be loaded, so pod addresses cannot be masqueraded; "
            "install the package libnftables1"
        ) from error
    lib.nft_ctx_new.restype = ctypes.c_void_p
    lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
        getattr(lib, name).restype = ctypes.c_char_p
    lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return lib


def _run(command: str) -> str:
    """Run an nft command in the calling thread's namespace; return what it prints."""
    lib = _library()
    context = lib.nft_ctx_new(0)
    try:
        lib.nft_ctx_buffer_output(context)
        lib.nft_ctx_buffer_error(context)
        lib.nft_ctx_output_set_flags(context, _JSON_OUTPUT | _ECHO_HANDLES)
        if lib.nft_run_cmd_from_buffer(context, command.encode()):
            problem = lib.nft_ctx_get_error_buffer(context).decode(errors="replace").strip()
            raise WiringError(f"nftables refused a command: {problem.splitlines()[0]}", details=command)
        output: bytes = lib.nft_ctx_get_output_buffer(context)
        return output.decode()
    finally:
        lib.nft_ctx_free(context)


def preflight() -> Problem | None:
    """What keeps masquerading from working here; tried in a namespace that is thrown away."""
    try:
        with temporary_netns() as namespace:
            namespace.run(add_masquerade, Masquerade(src=ip_network("192.0.2.0/24")))
    except NftUnavailable as error:
        return Problem(
            summary=f"{LIBRARY} cannot be loaded: {error.__cause__}", remedy="apt-get install libnftables1"
        )
    except TerwayError as error:
        return Problem(
            summary=f"the kernel cannot masquerade: {error}",
            remedy="run on a kernel with nf_tables, with CAP_NET_ADMIN, or set masquerade: false",
        )
    return None


def masquerades() -> dict[Masquerade, int]:
    """Our rules in the calling thread's namespace: what each does, and its handle."""
    tables = json.loads(_run("list tables"))["nftables"]
    if not any(_is_ours(entry) for entry in tables):
        return {}
    entries = json.loads(_run(f"list table inet {TABLE}"))["nftables"]
    rules = [entry["rule"] for entry in entries if "rule" in entry]
    return {obj: rule["handle"] for rule in rules if (obj := _parse(rule["expr"]))}


def add_masquerade(obj: Masquerade) -> None:
    """Make the rule, unless it is there."""
    if obj in masquerades():
        return
    _run(
        f"add table inet {TABLE}\n"
        f"add chain inet {TABLE} {CHAIN} {{ type nat hook postrouting priority srcnat; }}\n"
        f"add rule inet {TABLE} {CHAIN} {_match(obj)} masquerade fully-random"
    )


def delete_masquerade(obj: Masquerade) -> None:
    """Take a rule away; with the last one goes the table."""
    found = masquerades()
    handle = found.pop(obj, None)
    if handle is None:
        return
    if found:
        _run(f"delete rule inet {TABLE} {CHAIN} handle {handle}")
    else:
        _run(f"delete table inet {TABLE}")


def _match(obj: Masquerade) -> str:
    word = "ip" if obj.src.version == 4 else "ip6"
    exclude = ", ".join(map(str, obj.exclude))
    return f"{word} saddr {obj.src}" + (f" {word} daddr != {{ {exclude} }}" if exclude else "")


def _parse(expressions: list[dict[str, Any]]) -> Masquerade | None:
    """The object whose rule this is; None for one that is not of our making (libnftables-json(5))."""
    found: dict[str, list[IPNetwork]] = {}
    masquerade = False
    for expression in expressions:
        match expression:
            case {"match": {"op": op, "left": {"payload": {"field": field}}, "right": right}}:
                found[f"{field} {op}"] = _networks(right)
            case {"masquerade": _}:
                masquerade = True
            case _:
                return None
    src = found.pop("saddr ==", [])
    exclude = found.pop("daddr !=", [])
    if not masquerade or len(src) != 1 or found:
        return None
    return Masquerade(src=src[0], exclude=tuple(exclude))


def _networks(value: Any) -> list[IPNetwork]:
    match value:
        case {"set": items}:
            return [network for item in items for network in _networks(item)]
        case {"prefix": {"addr": address, "len": length}}:
            return [ip_network(f"{address}/{length}")]
        case {"range": [first, last]}:  # the kernel joins neighbours
            return [*summarize_address_range(ip_address(first), ip_address(last))]
        case str():
            return [ip_network(value)]
        case _:
            return []


def _is_ours(entry: dict[str, Any]) -> bool:
    table = entry.get("table", {})
    return bool(table.get("family") == "inet" and table.get("name") == TABLE)
