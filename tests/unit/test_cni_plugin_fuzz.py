"""Hostile input and hostile replies: each plugin answers as it should, and both answer the same."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from terway_core.cni.protocol import Command
from tests.unit.cni_program import ENVIRONMENT, ERROR, KINDS, PYTHON, RESULT, SANITIZED, Program, raw_daemon

no_nul = st.binary(max_size=20).map(lambda value: value.replace(b"\0", b""))
# Never a real path: what is spooled there would stay.
no_path = st.text(max_size=8).map(lambda text: text.lstrip("/"))
near_json = st.dictionaries(
    st.sampled_from(["cniVersion", "name", "socket", "spool", "x"]),
    st.none() | st.integers() | st.floats() | no_path | st.lists(st.booleans(), max_size=2),
    max_size=3,
)


@pytest.fixture(scope="module", params=KINDS)
def alone(request, tmp_path_factory) -> Program:
    """A plugin whose default paths lead nowhere."""
    folder = tmp_path_factory.mktemp("alone")
    program = Program(request.param, folder)
    return program.variant(folder, DEFAULT_SOCKET=f"{folder}/no.sock", DEFAULT_SPOOL=f"{folder}/spool")


@settings(max_examples=40, deadline=None)
@given(
    environment=st.dictionaries(st.sampled_from(sorted(ENVIRONMENT)), no_nul),
    command=st.sampled_from([*Command, None]),
    data=st.binary(max_size=60) | near_json.map(lambda value: json.dumps(value).encode()),
)
def test_any_input_gets_a_cni_answer(alone, environment, command, data: bytes) -> None:
    variables = {os.fsencode(name): value for name, value in environment.items()}
    if command is not None:
        variables[b"CNI_COMMAND"] = command.encode()
    done = alone(variables, data)
    if done.returncode == 0 and not done.stdout:
        assert command == "DEL"
    else:
        answer = json.loads(done.stdout)
        assert isinstance(answer["cniVersion"], str)
        assert ("supportedVersions" in answer) == (done.returncode == 0)
        assert answer.get("code") in (None, 4, 5, 6, 7, 11, 50)


# ---- the same in both -------------------------------------------------------------------------------------


@st.composite
def mutated(draw, texts) -> bytes:
    """A text with some bytes changed, put in or left out; no slash comes in, for it could make a path."""
    data = bytearray(draw(texts))
    odd = st.sampled_from(list(b'{}[]",:\\\0\n\r\t\x7f\xc3\xa9\xed\xa0\xf4\x90u0123456789abcdefnrtNaI-+.eE '))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 2))] = draw(st.lists(odd, max_size=2))
    return bytes(data)


def netconf(near: dict[str, object], more: object, as_ascii: bool) -> bytes:
    text = json.dumps({**near, "more": more}, ensure_ascii=as_ascii)
    return text.encode(errors="surrogatepass")


def reply(start: bytes, name: bytes, body: bytes, missing: int) -> bytes:
    return b"%b\r\nX: y\r\n%b: %d\r\n\r\n%b" % (start, name, len(body) + missing, body)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text('"\\a\u00e4\u2028\ud800\U0001f600\n', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
netconfs = st.builds(netconf, near_json, json_values, st.booleans())
replies = st.builds(
    reply,
    st.sampled_from(
        [b"HTTP/1.1 200 OK", b"HTTP/1.0 409 No", b"HTTP/1.1 000", b"HTTP/1.1 20", b"HTTP/2 200 "]
    ),
    st.sampled_from([b"Content-Length", b"content-length", b"Content-Length "]),
    st.sampled_from([RESULT, ERROR, b"", b"{}", b"[]", b'{"code": 7']),
    st.sampled_from([0, 0, 0, -1, 1, 10**12]),
)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[Program]:
    """The plugins with one default socket, where nobody listens, and one spool folder."""
    folders = [tmp_path_factory.mktemp("both") for _ in range(2)]
    defaults = {"DEFAULT_SOCKET": f"{folders[0]}/no.sock", "DEFAULT_SPOOL": f"{folders[0]}/spool"}
    kinds = zip((PYTHON, SANITIZED), folders, strict=True)
    return [Program(kind, folder).variant(folder, **defaults) for kind, folder in kinds]


def verdict(done: subprocess.CompletedProcess[bytes]) -> object:
    """What must be the same: all but the words of an error of the plugin's own."""
    if not done.stdout:
        return done.returncode
    answer = json.loads(done.stdout)
    return done.returncode, {name: value for name, value in answer.items() if name != "msg"}


@settings(max_examples=40, deadline=None)
@given(command=st.sampled_from(["ADD", "DEL", "VERSION", "STATUS", "add"]), data=mutated(netconfs))
def test_same_answer_to_any_input(both, command, data: bytes) -> None:
    python, native = (verdict(run({**ENVIRONMENT, "CNI_COMMAND": command}, data)) for run in both)
    assert native == python


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(command=st.sampled_from(["ADD", "CHECK", "STATUS"]), reply=mutated(replies))
@example(command="ADD", reply=b"HTTP/1.1 200 OK\r\nContent-Length: 000000000002\r\n\r\n{}")
def test_same_answer_to_any_reply(both, tmp_path, command, reply: bytes) -> None:
    socket = f"{tmp_path}/sock"
    data = json.dumps({"socket": socket}).encode()
    verdicts = []
    for run in both:
        with raw_daemon(socket, reply):
            verdicts.append(verdict(run({**ENVIRONMENT, "CNI_COMMAND": command}, data)))
        os.unlink(socket)
    assert verdicts[0] == verdicts[1]
