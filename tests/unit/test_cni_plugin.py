"""The plugins, in Python and in C, as a runtime sees them: a process, with a good daemon, a bad one, none."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import pytest

from terway_core.cni import plugin
from terway_core.cni.protocol import SUPPORTED_VERSIONS, Command, parse_request
from terway_core.config import Config
from tests.unit.cni_program import (
    ENVIRONMENT,
    ERROR,
    KINDS,
    PLUGIN,
    PYTHON,
    RESULT,
    Program,
    error_of,
    raw_daemon,
)


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory) -> Program:
    return Program(request.param, tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Program:
    return Program(PYTHON, tmp_path_factory.mktemp("plugin"))


class Handler(BaseHTTPRequestHandler):
    """Answers what the test says, and keeps what came."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.requests.append((self.path, dict(self.headers), self.rfile.read(length)))
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body:  # otherwise the client has all it needs, and may be gone
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Daemon(ThreadingUnixStreamServer):
    """A real HTTP server on a unix socket."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, Handler)
        self.requests = []
        self.answer = (200, RESULT)


@pytest.fixture
def netconf(tmp_path: Path) -> dict[str, object]:
    return {
        "cniVersion": "1.0.0",
        "name": "terway",
        "type": "terway",
        "socket": str(tmp_path / "terway.sock"),
        "spool": str(tmp_path / "state/spool"),
    }


@pytest.fixture
def daemon(netconf):
    with Daemon(netconf["socket"]) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# ---- with a daemon ----------------------------------------------------------------------------------------


def test_request_and_answer_pass_unchanged(run, daemon, netconf) -> None:
    data = b' \n{"z": 1,  "a": "\\u00e4\xc3\xa4", ' + json.dumps(netconf).encode()[1:] + b"\n "
    environment = {"PATH": "/bin", "LANG": "C", "CNIX": "no", **ENVIRONMENT, "CNI_ODD": "a=b\udcff"}
    done = run(environment, data)
    assert (done.returncode, done.stdout) == (0, RESULT)
    ((path, headers, body),) = daemon.requests
    assert path == "/v1/cni"
    assert headers["Content-Type"] == "application/octet-stream"
    assert body == (
        b"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web-0\0CNI_COMMAND=ADD\0CNI_CONTAINERID=3f6940ab5ab4\0"
        b"CNI_IFNAME=eth0\0CNI_NETNS=/var/run/netns/cni-1\0CNI_ODD=a=b\xff\0CNI_PATH=/opt/cni/bin\0\0" + data
    )
    assert parse_request(body).config == json.loads(data)


@pytest.mark.parametrize("command", sorted(set(Command) - {"VERSION"}))
@pytest.mark.parametrize("status", [400, 503])
def test_error_of_the_daemon_is_printed(run, daemon, netconf, command: str, status: int) -> None:
    daemon.answer = (status, ERROR)
    done = run({**ENVIRONMENT, "CNI_COMMAND": command}, json.dumps(netconf).encode())
    assert (done.returncode, done.stdout) == (1, ERROR)


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
def test_success_without_output(run, daemon, netconf, command: str) -> None:
    daemon.answer = (200, b"")
    done = run({"CNI_COMMAND": command}, json.dumps(netconf).encode())
    assert (done.returncode, done.stdout) == (0, b"")
    assert not Path(netconf["spool"]).exists()


def test_largest_input(run, daemon, netconf) -> None:
    data = json.dumps(netconf).encode()
    done = run(ENVIRONMENT, data + b" " * (plugin.MAX_INPUT - len(data)))
    assert (done.returncode, done.stdout) == (0, RESULT)
    assert len(daemon.requests[0][2]) > plugin.MAX_INPUT


def test_answer_in_pieces(run, netconf) -> None:
    answer = b"HTTP/1.0 200\r\nX: y\r\ncontent-length:%d\r\n\r\n%b" % (len(RESULT), RESULT)
    with raw_daemon(netconf["socket"], *(bytes([byte]) for byte in answer)):
        done = run(ENVIRONMENT, json.dumps(netconf).encode())
    assert (done.returncode, done.stdout) == (0, RESULT)


def test_unknown_versions_are_for_the_daemon_to_judge(run, daemon, netconf) -> None:
    run(ENVIRONMENT, json.dumps(netconf | {"cniVersion": "7.0.0"}).encode())
    assert len(daemon.requests) == 1


def test_closed_standard_output(run, daemon, netconf) -> None:
    """Nobody can be told, so the exit status must say it: the runtime then sends a DEL."""
    command = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *run.argv]
    done = subprocess.run(command, env=ENVIRONMENT, input=json.dumps(netconf).encode(), stderr=-1, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"")


# ---- without one ------------------------------------------------------------------------------------------

AWAY = {"ADD": 11, "CHECK": 11, "GC": 11, "STATUS": 50}


@pytest.fixture(params=["no socket", "refused", "no socket but a file", "path too long"])
def away(request, tmp_path: Path, netconf):
    if request.param == "refused":
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(netconf["socket"])
    elif request.param == "no socket but a file":
        Path(netconf["socket"]).write_text("")
    elif request.param == "path too long":
        netconf["socket"] = str(tmp_path / ("x" * 108))
    return netconf


@pytest.mark.parametrize(("command", "code"), AWAY.items())
def test_daemon_away(run, away, command: str, code: int) -> None:
    error = error_of(run({**ENVIRONMENT, "CNI_COMMAND": command}, json.dumps(away).encode()))
    assert (error["cniVersion"], error["code"]) == ("1.0.0", code)
    assert f"daemon is not reachable at {away['socket']}" in error["msg"]
    assert "'terway daemon'" in error["msg"]


def spooled(netconf) -> list[Path]:
    return sorted(Path(netconf["spool"]).iterdir())


def test_daemon_away_spools_a_del(run, away) -> None:
    data = json.dumps(away, indent=1).encode() + b"\n"
    environment = {**ENVIRONMENT, "CNI_COMMAND": "DEL", "CNI_NETNS": ""}
    for count in (1, 2):
        done = run({"HOME": "/root", **environment}, data)
        assert (done.returncode, done.stdout) == (0, b"")
        assert len(spooled(away)) == count
    first, second = spooled(away)
    assert re.fullmatch(r"\d{20}-\d+\.del", first.name)
    assert (
        first.read_bytes()
        == second.read_bytes()
        == (
            b"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web-0\0CNI_COMMAND=DEL\0CNI_CONTAINERID=3f6940ab5ab4\0"
            b"CNI_IFNAME=eth0\0CNI_NETNS=\0CNI_PATH=/opt/cni/bin\0\0" + data
        )
    )
    request = parse_request(first.read_bytes())
    assert request.command is Command.DEL
    assert str(request.attachment.key) == "terway/3f6940ab5ab4/eth0"
    assert first.stat().st_mode & 0o777 == 0o600
    assert first.parent.stat().st_mode & 0o777 == 0o700


def test_concurrent_spools_do_not_collide(run, netconf) -> None:
    data = json.dumps(netconf).encode()
    processes = []
    for number in range(24):
        environment = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": f"c{number}", "CNI_IFNAME": "eth0"}
        process = subprocess.Popen(run.argv, env=environment, stdin=-1, stdout=-1, stderr=-1)
        processes.append(process)
    for process in processes:
        assert process.communicate(data, timeout=60) == (b"", b"")
        assert process.returncode == 0
    found = [parse_request(path.read_bytes()).attachment.container_id for path in spooled(netconf)]
    assert sorted(found) == sorted(f"c{number}" for number in range(24))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"CNI_CONTAINERID": None}, ["CNI_CONTAINERID"]),
        ({"CNI_CONTAINERID": ""}, ["CNI_CONTAINERID"]),
        ({"CNI_CONTAINERID": "../x", "CNI_IFNAME": None}, ["CNI_CONTAINERID", "CNI_IFNAME"]),
        ({"CNI_CONTAINERID": "-x"}, ["CNI_CONTAINERID"]),
        ({"CNI_CONTAINERID": "a b"}, ["CNI_CONTAINERID"]),
        ({"CNI_CONTAINERID": "\udcff"}, ["CNI_CONTAINERID"]),
        ({"CNI_IFNAME": "."}, ["CNI_IFNAME"]),
        ({"CNI_IFNAME": ".."}, ["CNI_IFNAME"]),
        ({"CNI_IFNAME": "a/b"}, ["CNI_IFNAME"]),
        ({"CNI_IFNAME": "a:b"}, ["CNI_IFNAME"]),
        ({"CNI_IFNAME": "a b"}, ["CNI_IFNAME"]),
        ({"CNI_IFNAME": "a\n"}, ["CNI_IFNAME"]),
        ({"CNI_IFNAME": "abcdefghijklmnop"}, ["CNI_IFNAME"]),
    ],
)
def test_a_del_of_nothing_is_not_spooled(run, netconf, changes, named) -> None:
    environment = {**ENVIRONMENT, "CNI_COMMAND": "DEL", **changes}
    environment = {name: value for name, value in environment.items() if value is not None}
    error = error_of(run(environment, json.dumps(netconf).encode()))
    assert error["code"] == 4
    assert [name for name in ("CNI_CONTAINERID", "CNI_IFNAME") if name in error["msg"]] == named
    assert not Path(netconf["spool"]).exists()


def test_spool_in_the_way(run, tmp_path: Path, netconf) -> None:
    (tmp_path / "state").write_text("a file where a folder belongs")
    error = error_of(run({**ENVIRONMENT, "CNI_COMMAND": "DEL"}, json.dumps(netconf).encode()))
    assert error["code"] == 5
    assert netconf["spool"] in error["msg"]


def test_full_disk_leaves_no_half_file(run, netconf) -> None:
    def no_file_may_grow() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    environment = {**ENVIRONMENT, "CNI_COMMAND": "DEL"}
    error = error_of(run(environment, json.dumps(netconf).encode(), preexec_fn=no_file_may_grow))
    assert error["code"] == 5
    assert netconf["spool"] in error["msg"]
    assert spooled(netconf) == []


# ---- with one that gives no answer ------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        HEAD % (len(RESULT) + 1) + RESULT,
        HEAD % 4 + b"nope",
        HEAD % 2 + b"[]",
        HEAD % 2 + b"\xff\xff",
        b"HTTP/1.1 200 OK\r\n\r\n" + RESULT,
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + RESULT,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nOops",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}",
        b'HTTP/1.1 400 Bad Request\r\nContent-Length: 8\r\n\r\n{"x": 1}',
        b"220 mail.example ESMTP\r\n\r\n",
    ],
)
def test_no_answer(run, netconf, reply: bytes) -> None:
    data = json.dumps(netconf).encode()
    with raw_daemon(netconf["socket"], reply):
        error = error_of(run(ENVIRONMENT, data))
    assert (error["cniVersion"], error["code"]) == ("1.0.0", 11)
    assert f"daemon is not reachable at {netconf['socket']}" in error["msg"]
    os.unlink(netconf["socket"])
    with raw_daemon(netconf["socket"], reply):
        assert run({**ENVIRONMENT, "CNI_COMMAND": "DEL"}, data).stdout == b""
    assert parse_request(spooled(netconf)[0].read_bytes()).command is Command.DEL


def test_add_has_no_empty_result(run, netconf) -> None:
    with raw_daemon(netconf["socket"], HEAD % 0):
        assert error_of(run(ENVIRONMENT, json.dumps(netconf).encode()))["code"] == 11


def test_silent_daemon(run, tmp_path: Path, netconf) -> None:
    """It has the request and may be at work on it, so a DEL is not spooled: the runtime asks again."""
    codes = {**AWAY, "DEL": 11}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(netconf["socket"])
        listener.listen()
        impatient = run.variant(tmp_path, TIME_LIMIT=1)

        def ask(command: str) -> dict[str, object]:
            return error_of(impatient({**ENVIRONMENT, "CNI_COMMAND": command}, json.dumps(netconf).encode()))

        with ThreadPoolExecutor(len(codes)) as pool:  # all wait at once
            errors = dict(zip(codes, pool.map(ask, codes), strict=True))
    assert {command: error["code"] for command, error in errors.items()} == codes
    for error in errors.values():
        assert f"{netconf['socket']} gave no answer in 1 s" in error["msg"]
    assert not Path(netconf["spool"]).exists()


def test_full_backlog_is_waited_for(run, tmp_path: Path, netconf) -> None:
    """Many pods start together: that connect() finds no room does not mean that nobody listens."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(netconf["socket"])
        listener.listen(0)
        other.connect(netconf["socket"])
        impatient = run.variant(tmp_path, TIME_LIMIT=1)
        error = error_of(impatient(ENVIRONMENT, json.dumps(netconf).encode()))
    assert "gave no answer in 1 s" in error["msg"]


# ---- without need for one ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [*SUPPORTED_VERSIONS, "0.1.0", "9.9.9", 'odd "version" \ud800'])
def test_version(run, version: str) -> None:
    # podman's request: dummy variables, and nothing but the version on standard input.
    environment = {"CNI_COMMAND": "VERSION", "CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_PATH": "dummy"}
    done = run(environment, json.dumps({"cniVersion": version}).encode())
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "cniVersion": version,
        "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize("data", [b"", b"{}", b'{"cniVersion": ""}', b'{"cniVersion": 1}'])
def test_version_asked_for_without_one(run, data: bytes) -> None:
    done = run({"CNI_COMMAND": "VERSION"}, data)
    assert json.loads(done.stdout)["cniVersion"] == SUPPORTED_VERSIONS[-1]


@pytest.mark.parametrize("command", ["ADD", "VERSION"])
@pytest.mark.parametrize(
    "data",
    [b"nonsense", b"[]", b"{", b"{} {}", b'{"a": NaN}', b"\xff", b"[" * 100_000, b'{"a":' * 50_000],
    ids=lambda data: repr(data[:12]),
)
def test_malformed_input(run, command: str, data: bytes) -> None:
    error = error_of(run({**ENVIRONMENT, "CNI_COMMAND": command}, data))
    assert (error["cniVersion"], error["code"]) == (SUPPORTED_VERSIONS[-1], 6)
    assert "no JSON object" in error["msg"]


@pytest.mark.parametrize("command", sorted(set(Command) - {"VERSION"}))
def test_empty_input(run, command: str) -> None:
    assert error_of(run({**ENVIRONMENT, "CNI_COMMAND": command}, b""))["code"] == 6


@pytest.mark.parametrize("command", ["DEL", "VERSION"])
def test_oversize_input(run, command: str) -> None:
    error = error_of(run({**ENVIRONMENT, "CNI_COMMAND": command}, b"{" + b" " * plugin.MAX_INPUT + b"}"))
    assert error["code"] == 6
    assert str(plugin.MAX_INPUT) in error["msg"]


@pytest.mark.parametrize(
    "environment", [{}, {"CNI_COMMAND": ""}, {"CNI_COMMAND": "add"}, {"CNI_COMMAND": "X\udcff"}]
)
def test_unknown_command(run, netconf, environment) -> None:
    error = error_of(run(environment, json.dumps(netconf).encode()))
    assert (error["cniVersion"], error["code"]) == ("1.0.0", 4)
    assert "CNI_COMMAND" in error["msg"]
    assert "ADD, DEL, CHECK, GC, STATUS, VERSION" in error["msg"]


@pytest.mark.parametrize("key", ["socket", "spool"])
@pytest.mark.parametrize("value", [None, 1, "", "relative/path", "/a\u0000b", "/\ud800"])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_socket_and_spool_are_absolute_paths(run, netconf, command: str, key: str, value: object) -> None:
    error = error_of(
        run({**ENVIRONMENT, "CNI_COMMAND": command}, json.dumps(netconf | {key: value}).encode())
    )
    assert error["code"] == 7
    assert repr(key) in error["msg"]


def test_defaults_are_those_of_the_settings() -> None:
    assert str(Config().socket) == plugin.DEFAULT_SOCKET
    assert str(Config().spool) == plugin.DEFAULT_SPOOL


def test_defaults_are_used(run, tmp_path: Path, netconf) -> None:
    data = json.dumps({"cniVersion": "1.0.0", "name": "terway"}).encode()
    run = run.variant(tmp_path, DEFAULT_SOCKET=netconf["socket"], DEFAULT_SPOOL=netconf["spool"])
    assert netconf["socket"] in error_of(run(ENVIRONMENT, data))["msg"]
    run({**ENVIRONMENT, "CNI_COMMAND": "DEL"}, data)
    assert len(spooled(netconf)) == 1


def test_closed_standard_input(run) -> None:
    command = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *run.argv]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=-1, stderr=-1, timeout=60)
    assert error_of(done)["code"] == 5
    assert done.stderr == b""


def test_defect_is_reported_as_an_error(python, tmp_path: Path, netconf) -> None:
    error = error_of(python.variant(tmp_path, COMMANDS=None)(ENVIRONMENT, json.dumps(netconf).encode()))
    assert (error["cniVersion"], error["code"]) == ("1.0.0", 999)
    assert "TypeError" in error["msg"]


def test_console_script_is_the_same_program(python) -> None:
    command = [sys.executable, "-c", "import sys; from terway_core.cni.plugin import main; sys.exit(main())"]
    done = subprocess.run(command, env={"CNI_COMMAND": "VERSION"}, input=b"", capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        python({"CNI_COMMAND": "VERSION"}, b"").stdout,
        b"",
    )


# ---- start-up ---------------------------------------------------------------------------------------------

#: All that the plugin may load beyond what Python itself loads; each entry costs every pod.
BUDGET = {
    "_collections_abc",
    "_json",
    "_signal",
    "_socket",
    "_stat",
    "genericpath",
    "os",
    "os.path",
    "posixpath",
    "stat",
    "time",
}
LIST_MODULES = """
import sys
before = set(sys.modules)
{setup}
with open({path!r}, encoding="utf-8") as file:
    source = file.read()
scope = {{"__name__": "plugin"}}
exec(compile(source, {path!r}, "exec"), scope)
print(scope["main"](), *sorted(set(sys.modules) - before), sep="\\n", file=sys.stderr)
"""


def loaded(environment, data: bytes, setup: str = "") -> tuple[str, set[str], bytes]:
    code = LIST_MODULES.format(path=str(PLUGIN), setup=setup)
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], env=environment, input=data, stdout=-1, stderr=-1
    )
    status, *modules = done.stderr.decode().splitlines()
    return status, set(modules), done.stdout


def test_start_up_budget(daemon, netconf) -> None:
    status, modules, output = loaded(ENVIRONMENT, json.dumps(netconf).encode())
    assert (status, output) == ("0", RESULT)
    assert modules <= BUDGET


def test_start_up_budget_of_a_spooled_del(netconf) -> None:
    status, modules, _ = loaded({**ENVIRONMENT, "CNI_COMMAND": "DEL"}, json.dumps(netconf).encode())
    assert (status, len(spooled(netconf))) == ("0", 1)
    assert modules <= BUDGET


def test_python_without_the_accelerator(daemon, netconf) -> None:
    data = json.dumps(netconf).encode()
    status, modules, output = loaded(ENVIRONMENT, data, setup="sys.modules['_json'] = None")
    assert (status, output) == ("0", RESULT)
    assert "json" in modules
