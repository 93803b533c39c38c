"""Programs on kernels before Linux 5.11, where they count as locked memory."""

import os
import resource

import pytest

from terway_core.wiring import bpf

USUAL = 64 * 1024


@pytest.fixture
def limits(monkeypatch):
    """Those that are in force, the last one now; a program needs more than the first."""
    limits = [USUAL]

    def prog_load(instructions):
        if limits[-1] == USUAL:
            raise PermissionError(1, "Operation not permitted")
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(bpf, "_prog_load", prog_load)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: limits.append(limit[0]))
    return limits


def test_the_limit_is_raised_once(limits):
    for _ in range(2):
        with bpf.loaded(bpf.leave()) as program:
            assert os.readlink(f"/proc/self/fd/{program}") == os.devnull
    assert limits == [USUAL, resource.RLIM_INFINITY]


def test_who_may_not_raise_it_is_told(limits, monkeypatch):
    def refuse(kind, limit):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(PermissionError, match="Operation not permitted"), bpf.loaded(bpf.leave()):
        pass
