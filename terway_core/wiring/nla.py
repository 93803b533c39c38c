"""Netlink attributes: a length, a kind, a value, padding to four bytes (``include/uapi/linux/netlink.h``)."""

from __future__ import annotations

import struct

_HEADER = struct.Struct("=HH").unpack_from


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute; several of them are the payload of a nested one."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def attr_u32(kind: int, value: int) -> bytes:
    """A number of 32 bits."""
    return struct.pack("=HHI", 8, kind, value)


def attr_str(kind: int, value: str) -> bytes:
    """A text, with its final NUL."""
    return attr(kind, value.encode() + b"\0")


def parse_attrs(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from ``offset`` on: kind → value; of two of a kind the last."""
    found = {}
    end = len(data) - 4
    while offset <= end:
        length, kind = _HEADER(data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def attr_text(value: bytes) -> str:
    """The value of an attribute that :func:`attr_str` made."""
    return value.rstrip(b"\0").decode(errors="replace")
