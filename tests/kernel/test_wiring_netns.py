"""Namespaces: held, entered by threads of their own, and told apart."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from terway_core.errors import IOFailure
from terway_core.wiring.netlink import NetlinkSocket
from terway_core.wiring.netns import NETNS_DIR, Namespace, NamespaceGone, create_netns, delete_netns

from .conftest import RUN, require

pytestmark = pytest.mark.kernel


@pytest.fixture
def name():
    require("ip")
    name = f"{RUN}-ns"
    yield name
    delete_netns(name)


def inode():
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_run_is_inside_and_the_caller_stays_where_it_is(name):
    outside, main = inode(), threading.get_native_id()
    with Namespace.open(create_netns(name)) as namespace:
        there, thread = namespace.run(lambda: (inode(), threading.get_native_id()))
    assert there != outside
    assert thread != main
    assert inode() == outside


def test_run_passes_arguments_results_and_exceptions(name):
    with Namespace.open(create_netns(name)) as namespace:
        assert namespace.run(int, "ff", base=16) == 255
        with pytest.raises(ValueError, match="invalid literal"):
            namespace.run(int, "x")
        with pytest.raises(SystemExit):
            namespace.run(exit, 3)


def test_a_socket_stays_in_the_namespace_in_which_it_was_opened(name):
    with (
        Namespace.open(create_netns(name)) as namespace,
        namespace.run(socket.socket, socket.AF_INET, socket.SOCK_STREAM) as sock,
        pytest.raises(OSError, match="unreachable"),
    ):
        sock.connect(("127.0.0.1", 1))  # lo is down in there


def test_who_opens_a_netlink_socket_comes_back(name):
    outside = inode()
    with Namespace.open(create_netns(name)) as namespace:
        links = NetlinkSocket.of(namespace).dump_links()
        assert [index for index, _, _ in links] == [1]  # lo alone
        assert inode() == outside


CANNOT_COME_BACK = """
import sys
from terway_core.wiring import netns
calls = []
setns = netns._libc.setns
def once(fd, kind):
    calls.append(fd)
    return setns(fd, kind) if len(calls) == 1 else -1
netns._libc.setns = once
with netns.Namespace.open(sys.argv[1]) as namespace:
    namespace.route_socket
print("went on")
"""


def test_a_process_that_cannot_come_back_ends(name):
    """Rather than to do to the pod what it means for the host."""
    path = create_netns(name)
    done = subprocess.run([sys.executable, "-c", CANNOT_COME_BACK, path], capture_output=True, cwd="/")
    assert done.returncode == -signal.SIGABRT
    assert done.stdout == b""


def test_many_threads_in_many_namespaces(name):
    with Namespace.open(create_netns(name)) as namespace, Namespace.current() as here:
        inside, outside = namespace.run(inode), here.run(inode)
        seen = {}
        threads = [
            threading.Thread(target=lambda n=n: seen.update({n: (namespace if n % 2 else here).run(inode)}))
            for n in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {n: inside if n % 2 else outside for n in range(50)}


def test_identity_is_that_of_the_namespace_not_of_the_path(name):
    first = create_netns(name)
    with Namespace.open(first) as one, Namespace.open(first) as same:
        assert one.identity == same.identity
        delete_netns(name)
        with Namespace.open(create_netns(name)) as other:
            assert other.identity != one.identity


def test_identity_is_never_used_again(name):
    """The inode is: that is why it is not the identity."""
    seen = set()
    for _ in range(20):
        with Namespace.open(create_netns(name)) as namespace:
            seen.add(namespace.identity)
        delete_netns(name)
    assert len(seen) == 20


def test_a_namespace_lives_as_long_as_somebody_holds_it(name):
    with Namespace.open(create_netns(name)) as namespace:
        delete_netns(name)
        delete_netns(name)
        assert not (NETNS_DIR / name).exists()
        assert namespace.run(socket.if_nameindex) == [(1, "lo")]


def test_a_name_is_taken_once(name):
    create_netns(name)
    with pytest.raises(IOFailure, match=f"{name} cannot be made"):
        create_netns(name)
    with Namespace.open(NETNS_DIR / name):
        pass


@pytest.mark.parametrize(
    "path",
    ["/run/netns/no-such-thing", "/etc/passwd/x", "/etc/passwd", "/dev/null", "/proc/self/ns/uts", "/"],
)
def test_what_is_no_namespace_is_named(path):
    with pytest.raises(NamespaceGone, match=path):
        Namespace.open(path)


def test_a_path_that_leads_in_a_circle_is_not_taken_for_gone(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(IOFailure, match="cannot be opened") as caught:
        Namespace.open(loop)
    assert not isinstance(caught.value, NamespaceGone)


def test_descriptors_are_let_go(name):
    path = create_netns(name)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        with Namespace.open(path) as namespace:
            namespace.run(inode)
        with pytest.raises(NamespaceGone):
            Namespace.open("/proc/self/ns/uts")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
