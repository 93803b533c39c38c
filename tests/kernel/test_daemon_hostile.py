"""Whatever comes over the socket: there is an answer, nothing changes, and the daemon lives."""

import contextlib
import gc
import json
import os
import resource
import socket
import string

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.kernel

#: Each example is a request to a real daemon.
careful = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def target(module_node):
    """A node with a pod on it, which must stay as it is."""
    pod = module_node.pod()
    addresses = module_node.add(pod)
    before = module_node.kernel(), module_node.journal()
    yield module_node
    assert module_node.journal() == before[1]
    assert set(module_node.kernel()) == set(before[0])
    assert all(module_node.reaches(address) for address in addresses)
    assert module_node.audit() == []


def connect(node):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(node.config.socket))
    return connection


def exchange(node, request):
    """All that is answered to these bytes, after which the client says no more."""
    with connect(node) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
        return answer
    return b""


def post(node, path, body):
    """Status and body of the answer to a POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    head, _, content = exchange(node, head.encode() + body).partition(b"\r\n\r\n")
    return int(head.split()[1]), content


def assert_cni_answer(status, content):
    if status == 200:
        assert content == b""
        return
    error = json.loads(content)
    assert status == 409
    assert {"cniVersion": str, "code": int, "msg": str} == {
        key: type(value) for key, value in error.items() if key != "details"
    }
    assert "defect" not in error["msg"]


garbage = st.binary(max_size=40).filter(lambda value: b"\0" not in value)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def sometimes(*values):
    """Mostly one of the right ``values``, so that what is wrong elsewhere is reached."""
    return st.sampled_from([value.encode() for value in values] * 3) | garbage


variables = st.fixed_dictionaries(
    {},
    optional={
        b"CNI_COMMAND": sometimes("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"),
        b"CNI_CONTAINERID": sometimes("c0ffee", "0" * 63 + "1", "a" * 300),
        b"CNI_IFNAME": sometimes("eth0", "eth1", "x" * 15),
        b"CNI_NETNS": sometimes("/nowhere", "/proc/self/ns/net", "/dev/null", "/proc/self/ns/mnt", "/"),
        b"CNI_ARGS": sometimes("IgnoreUnknown=1;K8S_POD_NAME=pod-1;K8S_POD_NAMESPACE=default", "A=1"),
        b"CNI_PATH": garbage,
    },
)
#: Never the pod's own network: a well-formed GC for that may remove it.
configs = st.fixed_dictionaries(
    {},
    optional={
        "cniVersion": st.sampled_from(["0.3.1", "0.4.0", "1.0.0", "1.1.0"] * 3) | json_values,
        "name": st.sampled_from(["other", "second"] * 3) | json_values,
        "prevResult": json_values,
        "runtimeConfig": st.dictionaries(st.sampled_from(["bandwidth", "mac"]), json_values) | json_values,
        "dns": json_values,
        "cni.dev/valid-attachments": json_values,
        "cni.dev/attachments": json_values,
    },
)


@st.composite
def requests(draw):
    head = b"".join(b"%b=%b\0" % item for item in draw(variables).items())
    return head + b"\0" + json.dumps(draw(configs | json_values)).encode()


@careful
@given(st.binary(max_size=200) | requests())
@example(b"")
@example(b"\0")
@example(b"CNI_COMMAND=ADD\0\0" + b"[" * 100_000)
@example(b"CNI_COMMAND=STATUS\0\0" + b'{"a":' * 100_000)
@example(b"CNI_COMMAND=STATUS\0\0" + b"1" * 100_000)
def test_cni_requests(target, body):
    assert_cni_answer(*post(target, "/v1/cni", body))
    assert len(target.journal()) == 1


paths = st.sampled_from(["/", "/v1/pods", "/v1/cni", "/healthz", "/metrics", "http://[", "//[", "*", "/%00"])
texts = st.text(string.printable, max_size=30)
lines = st.builds(
    "{} {} {}\r\n{}\r\n\r\n{}".format,
    st.sampled_from(["GET", "POST", "HEAD", "PUT", "get", "", "PRI"]) | texts,
    paths | texts,
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/9.9", "HTTP/1.1.1", ""]) | texts,
    st.sampled_from(
        [
            "Content-Length: 3",
            "Content-Length: -1",
            "Content-Length: 99999999999",
            "Content-Length: 1e3",
            "Content-Length: 3\r\nContent-Length: 4",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue",
            "X: " + "y" * 70_000,
            "\r\n".join(f"H{number}: x" for number in range(200)),
            ":",
        ]
    )
    | texts,
    texts,
).map(str.encode)


@careful
@given(st.binary(max_size=200) | lines)
@example(b"GET http://[ HTTP/1.1\r\n\r\n")
@example(b"POST //[ HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
@example(b"POST /v1/pool/holds HTTP/1.1\r\nContent-Length: 3\r\n\r\n[1]")
@example(b"POST /v1/pool/holds HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000)
@example(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n")
def test_bytes_on_the_socket(target, request_bytes):
    answer = exchange(target, request_bytes)
    if answer.startswith(b"HTTP/"):
        status = int(answer.split()[1])
        assert status in (100, 200) or 400 <= status < 600
    assert target.status()["ready"]
    assert len(target.journal()) == 1


def test_request_that_is_too_large(target):
    head = b"POST /v1/cni HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (1 << 40)
    answer = exchange(target, head + b"x" * 1000)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == 6


def test_request_that_ends_early(target):
    answer = exchange(target, b"POST /v1/cni HTTP/1.1\r\nContent-Length: 100\r\n\r\nCNI_COMMAND=DEL")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "ends after 15 of 100 bytes" in json.loads(answer.partition(b"\r\n\r\n")[2])["msg"]


def test_clients_that_say_nothing(target):
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(target)).sendall(b"POST /v1/cni HTTP/1.1\r\n")
        pod = target.pod()
        target.add(pod)
        target.delete(pod)


def test_client_that_goes_away_gets_its_network_all_the_same(target):
    """What was done stays done; the runtime's DEL finds it."""
    pod = target.pod()
    process = target.call("ADD", pod)
    target.wait_for(lambda: len(target.journal()) == 2, "the ADD has begun")
    process.kill()
    process.communicate()
    target.delete(pod)
    assert len(target.journal()) == 1


def ask_as_nobody(folder):
    """What a process without rights gets to hear; its errno if it cannot even connect."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        gc.disable()  # what the parent left behind is not the child's to finalise
        try:
            os.chdir(folder)
            os.setgroups([])
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(30)
                connection.connect("terway.sock")
                connection.sendall(b"GET /v1/pods HTTP/1.0\r\n\r\n")
                os.write(writable, b"answer: " + connection.recv(100))
        except OSError as error:
            os.write(writable, f"error: {error.strerror}".encode())
        finally:
            os._exit(0)
    os.close(writable)
    os.waitpid(child, 0)
    with open(readable, "rb") as file:
        return file.read().decode()


def test_other_users_are_refused(target):
    folder = target.config.run_dir
    assert folder.stat().st_mode & 0o777 == 0o700
    assert target.config.socket.stat().st_mode & 0o777 == 0o600
    folder.chmod(0o777)
    assert ask_as_nobody(folder) == "error: Permission denied"
    target.config.socket.chmod(0o666)
    assert ask_as_nobody(folder) in ("answer: ", "error: Connection reset by peer", "error: Broken pipe")
    target.config.socket.chmod(0o600)
    folder.chmod(0o700)


def test_without_file_descriptors_no_pod_loses_its_network(make_node):
    node = make_node(gc_interval=0.1)
    node.start()
    pod = node.pod()
    addresses = node.add(pod)
    node.ask("POST", "/v1/gc")  # which loads what it needs
    pid = node.status()["pid"]
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)

    def rounds_that_failed():
        return node.log.read_text().count("Too many open files")

    with contextlib.ExitStack() as stack:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (30, limit[1]))
        for _ in range(40):
            stack.enter_context(connect(node)).sendall(b"POST /v1/cni HTTP/1.1\r\n")
        node.wait_for(lambda: rounds_that_failed() > 3, "gc finds no descriptor")
        assert all(node.reaches(address) for address in addresses)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    node.wait_until_ready()
    assert [row["state"] for row in node.journal()] == ["ready"]
    assert node.cni("CHECK", pod).status == 0
    node.delete(pod)
    assert node.audit() == []
