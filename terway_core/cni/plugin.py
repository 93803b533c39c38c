#!/usr/bin/python3 -IS
"""terway CNI plugin: hands each request to the daemon of this node and prints the daemon's answer.

``terway cni install`` copies this file as it is, but for the first line, so it stands alone: standard library
only, nothing of terway. Each pod pays for its start, so it imports little (``tests/unit/test_cni_plugin.py``
holds the list). Where the package was built with a C compiler, ``plugin.c`` is installed in its place. What
follows is the contract of both.

Input: the CNI_* environment variables, and at most 1 MiB of JSON on standard input: an object with the keys
    ``socket`` (the daemon's, default /run/terway/terway.sock) and ``spool`` (default /var/lib/terway/spool),
    both absolute paths of printable ASCII characters.
Request: ``POST /v1/cni`` by HTTP/1.1 over that socket. Its body is each CNI_* variable as NAME=value and a
    NUL byte, sorted as bytes, then one more NUL byte, then standard input as it came.
Answer: has a Content-Length, and at most 8 MiB. With status 200 the body is the result, a JSON object or
    nothing (never nothing for an ADD); it is printed and the exit status is 0. With any other status the body
    is a CNI error object; it is printed and the exit status is 1.
Time: 110 s for the exchange, then error 11 (50 for STATUS); also for a DEL, which the daemon may be at work
    on. The kubelet gives up a CRI call after 2 minutes (4 for a new sandbox), and the runtime then kills what
    still runs: a plugin that ends earlier can say what it waited for.
VERSION is answered here; it needs neither the daemon nor any key but ``cniVersion``.
Daemon away (no socket, connection refused, closed without an answer, or what answers is no such daemon): ADD,
    CHECK and GC get error 11, STATUS 50. A DEL with a well-formed CNI_CONTAINERID and CNI_IFNAME is written
    to the spool folder and succeeds, so that a node whose daemon is dead can still delete pods. The file
    holds exactly the body of the request. Its name is ``<nanoseconds since the epoch, 20 digits>-<pid>.del``,
    so that names sort in time; it is written as ``….tmp``, fsynced and renamed, then the folder is fsynced.
Errors are CNI error objects on standard output with exit status 1; standard error stays empty. ``cniVersion``
    is the one asked for if it could be read, else the newest. Codes: 4 CNI_* variables, 5 input or spool
    cannot be read or written, 6 input is too large or no JSON object, 7 ``socket`` or ``spool`` is no path,
    11 and 50 as above, 999 a defect of the plugin.
"""

import _signal  # type: ignore[import-not-found]  # the public module brings enum, as slow as all the others
import _socket
import os
import time

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
DEFAULT_SOCKET = "/run/terway/terway.sock"
DEFAULT_SPOOL = "/var/lib/terway/spool"
MAX_INPUT = 1 << 20
MAX_ANSWER = 8 << 20
TIME_LIMIT = 110


class Failure(Exception):
    """Ends the request with a CNI error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def main() -> int:
    """Serve the one request that environment and standard input hold; the result is the exit status."""
    version = VERSIONS[-1]
    try:
        command = os.environ.get("CNI_COMMAND", "")
        data = read_input()
        netconf = parse_netconf(command, data)
        asked = netconf.get("cniVersion")
        if isinstance(asked, str) and asked:
            version = asked
        if command not in COMMANDS:
            raise Failure(4, f"CNI_COMMAND is {command!r}; it must be one of {', '.join(COMMANDS)}")
        if command == "VERSION":
            status, output = 0, to_json({"cniVersion": version, "supportedVersions": VERSIONS})
        else:
            status, output = forward(command, netconf, data)
    except Failure as failure:
        status, output = 1, to_json({"cniVersion": version, "code": failure.code, "msg": str(failure)})
    except BaseException as error:  # a traceback is no answer that a runtime understands
        message = f"the terway CNI plugin failed, which is a defect of it: {error!r}"
        status, output = 1, to_json({"cniVersion": version, "code": 999, "msg": message})
    try:
        write_all(1, output)
    except OSError:
        return 1
    return status


def read_input() -> bytes:
    """Standard input up to its end."""
    data = b""
    try:
        while chunk := os.read(0, 1 << 16):
            data += chunk
            if len(data) > MAX_INPUT:
                raise Failure(6, f"the network configuration on standard input exceeds {MAX_INPUT} bytes")
    except OSError as error:
        raise Failure(5, f"standard input cannot be read: {error}") from error
    return data


def parse_netconf(command: str, data: bytes) -> dict[str, object]:
    """The network configuration; a person who asks for the version by hand need not give one."""
    if command == "VERSION" and not data:
        return {}
    try:
        return parse_object(data)
    except ValueError as error:
        raise Failure(6, f"the network configuration on standard input is no JSON object: {error}") from error


def forward(command: str, netconf: dict[str, object], data: bytes) -> tuple[int, bytes]:
    """Let the daemon serve the request; exit status and output."""
    socket = path_in(netconf, "socket", DEFAULT_SOCKET)
    spool = path_in(netconf, "spool", DEFAULT_SPOOL)
    variables = [b"%b=%b\0" % item for item in os.environb.items() if item[0].startswith(b"CNI_")]
    request = b"".join(sorted(variables)) + b"\0" + data
    retry_code = 50 if command == "STATUS" else 11
    try:
        return ask(command, socket, request)
    except TimeoutError:
        message = (
            f"the terway daemon at {socket} gave no answer in {TIME_LIMIT} s; see its log and 'terway status'"
        )
        raise Failure(retry_code, message) from None
    except (OSError, ValueError) as error:
        if command != "DEL":
            message = (
                f"the terway daemon is not reachable at {socket}: {error}; "
                "start it ('terway daemon') or see what 'terway doctor' says; the request can be made again"
            )
            raise Failure(retry_code, message) from error
    check_attachment()
    write_spool(spool, request)
    return 0, b""


def path_in(netconf: dict[str, object], key: str, default: str) -> str:
    """The absolute path that the network configuration has under ``key``."""
    path = netconf.get(key, default)
    if isinstance(path, str) and path.startswith("/") and path.isascii() and path.isprintable():
        return path
    raise Failure(
        7, f"{key!r} in the network configuration is {path!r}; it must be an absolute path in ASCII"
    )


def ask(command: str, socket: str, request: bytes) -> tuple[int, bytes]:
    """Exchange the request for exit status and output.

    OSError: nobody is there. ValueError: what came back is no answer. TimeoutError: nothing came in time.
    """
    head = (
        "POST /v1/cni HTTP/1.1\r\nHost: terway\r\nConnection: close\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(request)}\r\n\r\n"
    )
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    # One alarm for the whole exchange, not a time limit of the socket: that makes it non-blocking, and then
    # connect() fails at once (EAGAIN) when many pods start together and the daemon's backlog is full.
    _signal.signal(_signal.SIGALRM, time_is_up)
    _signal.alarm(TIME_LIMIT)
    try:
        connection.connect(socket)
        connection.sendall(head.encode() + request)
        reply = b""
        while (answer := parse_answer(reply)) is None:
            chunk = connection.recv(1 << 16)
            if not chunk:
                raise ValueError("it closed the connection without an answer")
            reply += chunk
            if len(reply) > MAX_ANSWER:
                raise ValueError("its answer has no end")
    finally:
        _signal.alarm(0)
        connection.close()
    status, body = answer
    if status == 200:
        if body or command == "ADD":
            parse_object(body)
        return 0, body
    if "code" not in parse_object(body):
        raise ValueError(f"it answered with status {status} and no CNI error")
    return 1, body


def time_is_up(signum: int, frame: object) -> None:
    """Leave the exchange."""
    raise TimeoutError


def parse_answer(reply: bytes) -> tuple[int, bytes] | None:
    """Status and body of an HTTP response, or None while there is more to come. ValueError: it is none."""
    head, end, body = reply.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *headers = head.split(b"\r\n")
    fields = (header.partition(b":") for header in headers)
    length = next((value for name, _, value in fields if name.lower() == b"content-length"), b"").strip(
        b" \t"
    )
    status = first[9:12]
    if first.startswith(b"HTTP/1.") and status.isdigit() and int(status) >= 100 and length.isdigit():
        return (int(status), body[: int(length)]) if len(body) >= int(length) else None
    raise ValueError(f"it does not answer as a terway daemon: {reply[:60]!r}")


def check_attachment() -> None:
    """Refuse a DEL that names no attachment (SPEC.md, "Parameters"): nobody could ever carry it out."""
    container_id, ifname = (os.environb.get(name, b"") for name in (b"CNI_CONTAINERID", b"CNI_IFNAME"))
    wrong = []
    if not container_id[:1].isalnum() or not container_id.translate(None, b"_.-").isalnum():
        wrong.append(f"CNI_CONTAINERID {os.fsdecode(container_id)!r}")
    if ifname.split() != [ifname] or len(ifname) > 15 or ifname in (b".", b"..") or set(ifname) & set(b"/:"):
        wrong.append(f"CNI_IFNAME {os.fsdecode(ifname)!r}")
    if wrong:
        raise Failure(4, f"missing or malformed: {', '.join(wrong)}")


def write_spool(folder: str, request: bytes) -> None:
    """Leave a DEL for the daemon to find, on disk before this returns."""
    path = f"{folder}/{time.time_ns():020d}-{os.getpid()}"
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        file = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            write_all(file, request)
            os.fsync(file)
            os.rename(f"{path}.tmp", f"{path}.del")
        except OSError:
            os.unlink(f"{path}.tmp")
            raise
        finally:
            os.close(file)
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    except OSError as error:
        message = f"the terway daemon is away and the DEL cannot be left for it in {folder}: {error}"
        raise Failure(5, message) from error


def write_all(file: int, data: bytes) -> None:
    """Write ``data`` to the file descriptor."""
    while data:
        data = data[os.write(file, data) :]


class JsonRules:
    """How ``_json.make_scanner`` shall decode: JSON as the standard has it, without NaN and Infinity."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")


def parse_object(data: bytes) -> dict[str, object]:
    """Decode a JSON object. ValueError: it is none."""
    text = data.decode().strip(" \t\r\n")
    try:
        from _json import make_scanner  # the core of json.loads without its imports (re, enum…)

        value, end = make_scanner(JsonRules)(text, 0)  # type: ignore[arg-type]
    except Exception:
        # This Python has no such scanner, or the input is wrong: only the whole module can say how.
        from json import JSONDecoder

        try:
            value, end = JSONDecoder(parse_constant=JsonRules.parse_constant).raw_decode(text)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict) or end != len(text):
        raise ValueError(f"it is {text[:40]!r}")
    return value


def to_json(value: dict[str, object]) -> bytes:
    """Encode; only what no pod waits for comes this way, so the import may cost."""
    import json

    return json.dumps(value).encode()


if __name__ == "__main__":
    # Nothing is left to flush, and tidying up the interpreter would be a sixth of the whole run.
    os._exit(main())
