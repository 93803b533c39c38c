"""Network namespaces: held open by a descriptor, entered by threads made for it.

``setns`` moves one thread. A thread that has worked in a namespace is never reused, so no worker of the
daemon can be left in a pod. (``pyroute2.NetNS`` forks instead, which costs more the larger the process is,
and is unsafe in one with threads.)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from terway_core.errors import IOFailure

P = ParamSpec("P")
T = TypeVar("T")

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, since Linux 5.14
MS_BIND = 4096
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceGone(IOFailure):
    """There is nothing at the path, or something that is no network namespace (any more)."""


class Namespace:
    """A network namespace. Close it, or use it as a context manager, to let go of the descriptor."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    @classmethod
    def current(cls) -> Self:
        """The namespace of the calling thread."""
        return cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), "host")

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The namespace bound to ``path``.

        :raises NamespaceGone: nothing is there, or it is no network namespace.
        :raises IOFailure: what is there could not be opened.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NamespaceGone(f"there is no network namespace {path}") from error
        except OSError as error:
            raise IOFailure(
                f"network namespace {path} cannot be opened: {os.strerror(error.errno or 0)}"
            ) from error
        try:
            kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != CLONE_NEWNET:
            os.close(fd)
            raise NamespaceGone(f"{path} is not a network namespace")
        return cls(fd, str(path))

    @functools.cached_property
    def route_socket(self) -> socket.socket:
        """A netlink socket of this namespace, for any thread, one at a time; closed with it.

        The one thing for which the calling thread enters by itself: that costs a tenth of what a thread does,
        and nothing in between can fail to come back.
        """
        with Namespace.current() as home:
            _check(_libc.setns(self.fd, CLONE_NEWNET), "setns", self.name)
            try:
                return route_socket()
            finally:
                if _libc.setns(home.fd, CLONE_NEWNET):
                    os.abort()  # whatever this thread did from here on, it would do to the pod

    @functools.cached_property
    def identity(self) -> int:
        """What tells the namespace from all others of this boot.

        Before Linux 5.14 only from those that live: the number may be used again, and soon is.

        :raises IOFailure: it cannot be asked now.
        """
        try:
            cookie = self.route_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
            return int.from_bytes(cookie, sys.byteorder)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise IOFailure(f"network namespace {self.name} cannot be asked: {error.strerror}") from error
            return os.fstat(self.fd).st_ino

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in a thread that has entered this namespace; return or raise what it does."""
        outcome: list[T] = []
        problem: list[BaseException] = []

        def enter() -> None:
            try:
                _check(_libc.setns(self.fd, CLONE_NEWNET), "setns", self.name)
                outcome.append(function(*args, **kwargs))
            except BaseException as error:
                problem.append(error)

        thread = threading.Thread(target=enter, name=f"netns:{self.name}")
        thread.start()
        thread.join()
        if problem:
            raise problem[0]
        return outcome[0]

    def close(self) -> None:
        """Let go; the namespace lives on if a process, a mount or another descriptor holds it."""
        os.close(self.fd)
        if opened := self.__dict__.get("route_socket"):
            opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def route_socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


@contextlib.contextmanager
def temporary_netns() -> Iterator[Namespace]:
    """A new namespace without a name, which ends with the block.

    :raises IOFailure: the kernel refuses.
    """

    def unshare() -> Namespace:
        _check(_libc.unshare(CLONE_NEWNET), "unshare", "without a name")
        return Namespace.current()

    with Namespace.current() as here, here.run(unshare) as namespace:
        yield namespace


def create_netns(name: str) -> Path:
    """Make a namespace and bind it to ``/run/netns/NAME``, as ``ip netns add`` does.

    :raises IOFailure: the name is taken, or the kernel refuses.
    """
    path = NETNS_DIR / name
    NETNS_DIR.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    except OSError as error:
        raise IOFailure(f"network namespace {name} cannot be made: {error}") from error

    def unshare() -> None:
        _check(_libc.unshare(CLONE_NEWNET), "unshare", name)
        bind = _libc.mount(b"/proc/thread-self/ns/net", bytes(path), b"none", MS_BIND, None)
        _check(bind, "mount", str(path))

    try:
        with Namespace.current() as here:
            here.run(unshare)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def delete_netns(name: str) -> None:
    """Unbind a namespace that :func:`create_netns` made; one that is not there is no error."""
    path = NETNS_DIR / name
    _libc.umount2(bytes(path), MNT_DETACH)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _check(result: int, call: str, what: str) -> None:
    if result < 0:
        reason = os.strerror(ctypes.get_errno())
        raise IOFailure(f"{call} for network namespace {what} failed: {reason}")
