"""Small programs for tc's cls_bpf: their instructions, and the one system call that hands them to the kernel.

The encoding is that of ``include/uapi/linux/bpf.h`` and ``Documentation/bpf/`` in Linux. A dozen kinds of
instruction are enough, so no compiler is needed. A program finds its packet (``struct __sk_buff``) in
register 1; :func:`call` takes its arguments from 1 on and answers in 0; 6 outlives a call.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import socket
import struct
from collections.abc import Iterator
from typing import Final

#: Verdicts of a direct-action program: ask the next filter, drop the packet.
TC_ACT_UNSPEC, TC_ACT_SHOT = -1, 2
SKB_VLAN_PUSH, SKB_VLAN_POP, REDIRECT = 18, 19, 23
ETH_P_8021Q = 0x8100

_PROG_LOAD, _PROG_TYPE_SCHED_CLS = 5, 3
#: Of bpf(2): on x86_64, and where the table is that of ``include/uapi/asm-generic/unistd.h``, as on aarch64.
_SYSCALL: Final = 321 if os.uname().machine == "x86_64" else 280

_libc = ctypes.CDLL(None, use_errno=True)


# -- instructions -----------------------------------------------------------------------------------------


def _instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhI", code, src << 4 | dst, offset, value & 0xFFFFFFFF)


def load_word(offset: int) -> bytes:
    """Register 0: 32 bits of the packet's own bytes, from its Ethernet header on, as a number.

    Needs the packet in 6 and leaves nothing in 1 to 5. A packet that is too short ends the program, with 0.
    """
    return _instruction(0x20, value=offset)


def load_field(dst: int, src: int, offset: int) -> bytes:
    """32 bits of the ``struct __sk_buff`` in ``src``."""
    return _instruction(0x61, dst, src, offset)


def mask(dst: int, value: int) -> bytes:
    return _instruction(0x54, dst, value=value)


def move(dst: int, value: int) -> bytes:
    return _instruction(0xB4, dst, value=value)


def copy(dst: int, src: int) -> bytes:
    return _instruction(0xBF, dst, src)


def call(helper: int) -> bytes:
    return _instruction(0x85, value=helper)


def leave() -> bytes:
    """The end, with the verdict in 0."""
    return _instruction(0x95)


def leave_unless(value: int, verdict: int) -> bytes:
    """The end, with this verdict, for whatever has not this number in 0."""
    # Compared with a register: a number in the instruction would count as negative from 2³¹ on.
    ended = move(0, verdict) + leave()
    return move(1, value) + _instruction(0x1D, 0, 1, offset=len(ended) // 8) + ended


def push_vlan(vid: int) -> bytes:
    """The packet in 1 gets a tag, or is dropped."""
    tag = move(2, socket.htons(ETH_P_8021Q)) + move(3, vid)
    return tag + call(SKB_VLAN_PUSH) + leave_unless(0, TC_ACT_SHOT)


def pop_vlan() -> bytes:
    """The packet in 1 loses its tag, or is dropped."""
    return call(SKB_VLAN_POP) + leave_unless(0, TC_ACT_SHOT)


# -- loading ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def loaded(instructions: bytes) -> Iterator[int]:
    """A descriptor of the program; once a filter has it, the program lives as long as the filter.

    :raises OSError: the kernel has no bpf(2), allows us none, or refused the program.
    """
    program = _load(instructions)
    try:
        yield program
    finally:
        os.close(program)


def _load(instructions: bytes) -> int:
    try:
        return _prog_load(instructions)
    except PermissionError:
        # Before Linux 5.11 programs count as locked memory, of which 64 KiB are usual: some dozen.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return _prog_load(instructions)


def _prog_load(instructions: bytes) -> int:
    code, license = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"Apache-2.0")
    attributes = ctypes.create_string_buffer(
        struct.pack(
            "=IIQQIIQI4x",
            _PROG_TYPE_SCHED_CLS,
            len(instructions) // 8,
            ctypes.addressof(code),
            ctypes.addressof(license),
            *(0, 0, 0, 0),  # no log, no kernel version
        ),
        48,
    )
    program: int = _libc.syscall(_SYSCALL, _PROG_LOAD, attributes, 48)
    if program < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return program
