"""The command tree: help for everything, errors in one line, and nothing loaded that is not needed."""

import json
import socket
import subprocess
import sys
import threading

import pytest
import typer
import yaml
from typer.testing import CliRunner

from terway_core import __version__
from terway_core.cli import main
from terway_core.cli.app import build
from terway_core.cli.client import ask
from terway_core.errors import IOFailure


def commands(group=None, path=()):
    """Every command and group of the tree, as words to type."""
    group = group or typer.main.get_command(build(["status"]))
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


ALL = list(commands())


def test_the_tree_has_what_the_documentation_names():
    assert {
        ("daemon",),
        ("status",),
        ("doctor",),
        ("gc",),
        ("audit",),
        ("drivers", "list"),
        ("drivers", "show"),
        ("pods", "list"),
        ("pods", "show"),
        ("cni", "install"),
        ("cni", "uninstall"),
        ("cni", "conflist"),
        ("lab", "demo"),
    } <= set(ALL)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help(path):
    result = CliRunner().invoke(build(["status"]), [*path, "--help"])
    assert result.exit_code == 0
    assert f"Usage: terway {' '.join(path)}".rstrip() in " ".join(result.output.split())


def test_version():
    result = CliRunner().invoke(build(["status"]), ["--version"])
    assert (result.exit_code, result.output) == (0, f"terway {__version__}\n")


@pytest.mark.parametrize(
    "path", [path for path in ALL if path in ((), ("pods",), ("drivers",), ("cni",))], ids=" ".join
)
def test_a_group_alone_shows_what_it_has(path):
    result = CliRunner().invoke(build(["status"]), list(path))
    assert "Usage:" in result.output


# -- what is loaded ---------------------------------------------------------------------------------------

HEAVY = {"aiohttp", "alibabacloud_credentials", "alibabacloud_tea_openapi", "Tea", "pyroute2", "pytest"}
LIST = "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
RUN = f"""
import sys
from terway_core.cli import main
sys.argv = ["terway", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
{LIST}
"""


def loaded(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["pods", "list"], ["cni", "conflist"]], ids=" ".join)
def test_commands_load_neither_netlink_nor_the_cloud(arguments):
    modules = loaded(RUN, *arguments)
    assert "terway_core" in modules
    assert modules & HEAVY == set()


def test_importing_the_tree_loads_neither_netlink_nor_the_cloud():
    assert loaded(f"import sys, terway_core.cli.app; {LIST}") & HEAVY == set()


# -- errors -----------------------------------------------------------------------------------------------


@pytest.fixture
def terway(tmp_path, monkeypatch, capsys):
    """Run ``terway …`` with a configuration file; its exit status, output and errors."""

    def terway(*arguments, **settings):
        file = tmp_path / "config.yaml"
        folders = {
            name: str(tmp_path / name) for name in ("run_dir", "state_dir", "cni_bin_dir", "cni_conf_dir")
        }
        file.write_text(yaml.safe_dump(folders | settings))
        monkeypatch.setattr(sys, "argv", ["terway", *arguments, "--config", str(file)])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code or 0, *capsys.readouterr()

    return terway


ASKING = [
    ["status"],
    ["status", "--json"],
    ["pods", "list"],
    ["pods", "show", "cart"],
    ["gc"],
    ["gc", "--dry-run", "--json"],
    ["enis", "list"],
]


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_without_a_daemon_one_line_says_so(terway, tmp_path, arguments):
    status, out, err = terway(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith(f"terway: the terway daemon does not answer at {tmp_path}/run_dir/terway.sock")
    assert err.endswith("start it with: terway daemon\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["status"], ["doctor"], ["cni", "conflist"], ["drivers", "list"]], ids=" ".join
)
def test_a_wrong_setting_is_one_line(terway, arguments):
    status, out, err = terway(*arguments, mtu=1)
    assert (status, out) == (1, "")
    assert "mtu" in err
    assert err.count("\n") == 1


def test_details_follow_the_line(monkeypatch, capsys):
    def fail(arguments):
        raise IOFailure("it broke", details="first\nsecond")

    monkeypatch.setattr("terway_core.cli.app.build", fail)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "terway: it broke\n  first\n  second\n"


def test_a_socket_that_answers_nonsense_is_an_error(tmp_path):
    path = tmp_path / "terway.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer():
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhey!")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(IOFailure, match="does not answer at"):
            ask(path, "GET", "/v1/status")
        thread.join()


# -- doctor, on a machine where nothing is installed ------------------------------------------------------


def problems(terway, **settings):
    status, out, _ = terway("doctor", "--json", **settings)
    found = json.loads(out)
    assert status == (1 if found else 0)
    assert all(problem["summary"] and problem["remedy"] for problem in found)
    return [problem["summary"] for problem in found]


def test_doctor_names_all_that_is_missing(terway, tmp_path):
    found = problems(terway)
    assert found[0] == "no driver is configured"
    assert f"does not answer at {tmp_path}/run_dir/terway.sock" in found[1]
    assert found[2] == f"the runtime finds no plugin at {tmp_path}/cni_bin_dir/terway"
    assert found[3].startswith(f"the runtime finds no network configuration at {tmp_path}/cni_conf_dir/")
    assert len(found) == 4


def test_doctor_names_a_driver_that_is_not_installed(terway):
    assert any(
        "'nowhere'" in problem or "nowhere:" in problem for problem in problems(terway, drivers=["nowhere"])
    )


def test_doctor_sees_another_network_that_comes_first(terway, tmp_path):
    terway("cni", "install")
    first = tmp_path / "cni_conf_dir" / "05-other.conflist"
    assert not any("sorts before" in problem for problem in problems(terway))
    first.write_text("{}")
    assert [p for p in problems(terway) if "sorts before" in p] == [
        f"the runtime uses {first}, which sorts before 10-terway.conflist"
    ]


def test_doctor_for_people(terway):
    status, out, _ = terway("doctor")
    assert status == 1
    lines = out.splitlines()
    assert lines[0] == "problem: no driver is configured"
    assert all(line.startswith(("problem: ", "  remedy: ")) for line in lines)
