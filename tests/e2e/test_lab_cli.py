"""The lab's commands, on one lab, as a user types them."""

import json
import os
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from terway_core.lab.build import down
from terway_core.lab.state import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

TERWAY = str(Path(sysconfig.get_path("scripts")) / "terway")


class Cli:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"TERWAY_LAB_DIR": str(folder or self.folder)}
        return subprocess.run(
            [TERWAY, "lab", *arguments], env=env, capture_output=True, text=True, timeout=60
        )

    def __call__(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str):
        return json.loads(self(*arguments, "--json"))

    def fails(self, *arguments: str, folder: Path | None = None) -> str:
        done = self.run(*arguments, folder=folder)
        assert done.returncode == 1, done.stdout
        assert done.stderr.startswith("terway: ")
        return done.stderr


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    cli = Cli(tmp_path_factory.mktemp("cli") / "lab")
    try:
        cli("up", "--nodes", "2", "--drivers", "vpc")
        yield cli
    finally:
        down(Lab(cli.folder))


@pytest.fixture
def web(cli: Cli) -> Iterator[str]:
    cli("pod", "add", "node-1", "web", "--namespace", "shop")
    yield "web"
    cli("pod", "delete", "web")


def test_env_names_what_other_tools_need(cli):
    found = cli.json("env")
    for node in found["nodes"]:
        assert Path(node["netns"]).is_file()
        assert Path(node["socket"]).is_socket()
        assert (Path(node["cni_bin_dir"]) / "terway").is_file()
        assert list(Path(node["cni_conf_dir"]).glob("*.conflist"))
        assert Path(node["state_dir"]).is_dir()
        assert Path(node["config"]).is_file()
        assert "ready" in Path(node["log"]).read_text()
    region = found["region"]
    assert region["endpoint"] == "http://100.100.0.10"
    assert region["region_id"] == "cn-hangzhou"
    assert region["access_key_id"]
    assert region["access_key_secret"] in cli("env")


def test_secrets_are_for_root_alone(cli):
    assert cli.folder.stat().st_mode & 0o077 == 0


def test_status_shows_each_process(cli):
    assert [(one["name"], one["state"]) for one in cli.json("status")] == [
        ("region", "ready"),
        ("node-1", "ready"),
        ("node-2", "ready"),
    ]
    assert all(Path(f"/proc/{one['pid']}").exists() for one in cli.json("status"))
    assert "node-2" in cli("status")


def test_a_pod_is_listed_and_runs_commands(cli, web):
    (pod,) = cli.json("pod", "list")
    assert (pod["name"], pod["namespace"], pod["node"]) == ("web", "shop", "node-1")
    address = pod["result"]["ips"][0]["address"]
    assert address.removesuffix("/32") in cli("pod", "list")
    assert address in cli("pod", "exec", web, "--", "ip", "-4", "address", "show", "dev", "eth0")
    assert cli.run("pod", "exec", web, "--", "sh", "-c", "exit 7").returncode == 7


def test_ctrl_c_is_for_the_command(cli, web):
    script = "trap 'exit 9' INT; echo started; while :; do sleep 0.05; done"
    argv = [TERWAY, "lab", "pod", "exec", "--dir", str(cli.folder), web, "--", "sh", "-c", script]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"started\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=10) == (b"", b"")
    assert process.returncode == 9


def test_node_exec_runs_in_the_nodes_namespace(cli):
    netns = os.stat(cli.json("env")["nodes"][1]["netns"]).st_ino
    assert cli("node", "exec", "node-2", "--", "readlink", "/proc/self/ns/net").strip() == f"net:[{netns}]"


def test_ping_says_how_long_it_took_or_fails(cli, web):
    assert " ms" in cli("ping", web, "node-2")
    assert cli.json("ping", web, "internet")[0]["milliseconds"] > 0
    address = cli.json("pod", "list")[0]["result"]["ips"][0]["address"].removesuffix("/32")
    assert " ms" in cli("ping", "node-2", address)
    done = cli.run("ping", web, "192.168.0.99", "--timeout", "0.3")
    assert (done.returncode, done.stdout) == (1, "web → 192.168.0.99 192.168.0.99: none\n")


def test_api_log_lists_the_calls(cli):
    calls = cli.json("api", "log")
    created = [call["params"] for call in calls if call["action"] == "CreateRouteEntry" and not call["code"]]
    assert {params["DestinationCidrBlock"] for params in created} == {"172.20.1.0/24", "172.20.2.0/24"}
    assert "CreateRouteEntry" in cli("api", "log")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("up",), "a lab is up in"),
        (("pod", "delete", "nobody"), "no pod 'nobody'; its pods: none yet"),
        (("pod", "exec", "nobody", "--", "true"), "no pod 'nobody'"),
        (("pod", "add", "node-9", "web"), "no node 'node-9'; its nodes: node-1, node-2"),
        (("pod", "add", "node-1", "node-2"), "'node-2' is in the lab already"),
        (("node", "exec", "node-1", "--", "no-such-command"), "no-such-command cannot be executed"),
        (("ping", "node-1", "nobody"), "'nobody' is no address and nothing in the lab"),
        (("ping", "192.0.2.1", "node-1"), "packets can be sent from pods and nodes"),
        (("ping", "node-1", "2001:db8::1"), "no address family in common"),
    ],
)
def test_errors_name_what_is_wrong(cli, arguments, message):
    assert message in cli.fails(*arguments)


def test_without_a_lab_commands_say_how_to_get_one(cli, tmp_path):
    for arguments in (("status",), ("env",), ("pod", "list"), ("ping", "a", "b")):
        assert "start one with: terway lab up" in cli.fails(*arguments, folder=tmp_path / "none")
    assert "no region answers" in cli.fails("api", "log", folder=tmp_path / "none")
    assert cli.run("down", folder=tmp_path / "none").returncode == 0
    assert not (tmp_path / "none").exists()


def test_a_folder_with_other_files_is_left_alone(cli, tmp_path):
    (tmp_path / "precious").touch()
    for command in ("up", "down"):
        assert "holds other files" in cli.fails(command, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--drivers", "vpc,nonsense"), "pip install terway-driver-nonsense"),
        (("--nodes", "0"), "a lab has 1 to 250 nodes"),
        (("--dir", "/tmp/" + "long" * 20), "characters shorter with --dir"),
        (("--dir", "/no/such/parent"), "cannot be used: No such file or directory"),
    ],
)
def test_up_refuses_what_cannot_be_built(cli, tmp_path, options, message):
    assert message in cli.fails("up", *options, folder=tmp_path / "lab")
    assert not (tmp_path / "lab").exists()
