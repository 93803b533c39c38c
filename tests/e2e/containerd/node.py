"""A lab's node as its operator has it: commands, the daemon's process and its API."""

from __future__ import annotations

import json
import os
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, TypeVar

import yaml

from terway_core.cli.client import ask
from terway_core.errors import IOFailure

from .machine import Machine, Traces

TERWAY = Path(sysconfig.get_path("scripts")) / "terway"
#: How long anything may take to come about, in seconds.
PATIENCE = 30
#: Commands whose output shows what is in the node's network namespace.
LOOKS = {
    "links": "ip -oneline link",
    "routes": "ip -4 route show table all",
    "routes of IPv6": "ip -6 route show table all",
    "rules": "ip -4 rule",
    "rules of IPv6": "ip -6 rule",
    "neighbours": "ip neighbour show nud permanent",
    "queues": "tc qdisc",
    "packet filter": "nft list ruleset",
}

T = TypeVar("T")


class Lab:
    """A lab of two nodes on the machine; it ends with the machine.

    :param options: of ``terway lab up``.
    """

    def __init__(self, machine: Machine, folder: Path, *options: object) -> None:
        self._machine = machine
        self._folder = folder
        self.terway("up", "--nodes", 2, *options)
        #: What ``terway lab env`` says.
        self.env: dict[str, Any] = json.loads(self.terway("env", "--json"))
        self.internet: list[str] = self.env["internet"]["addresses"]
        self.nodes = [Node(machine, node) for node in self.env["nodes"]]

    def add_pod(self, node: Node, name: str) -> list[str]:
        """Start a pod by the lab's own runtime; its addresses."""
        self.terway("pod", "add", node.name, name)
        (pod,) = (pod for pod in json.loads(self.terway("pod", "list", "--json")) if pod["name"] == name)
        return [str(ip_interface(ip["address"]).ip) for ip in pod["result"]["ips"]]

    def terway(self, *arguments: object) -> str:
        """Run ``terway lab …`` and return what it prints."""
        return self._machine.run(TERWAY, "lab", *arguments, "--dir", self._folder)


class Node:
    """One node.

    :param env: what ``terway lab env --json`` says of it.
    """

    def __init__(self, machine: Machine, env: dict[str, Any]) -> None:
        self.machine = machine
        self.name: str = env["name"]
        self.netns: str = env["netns"]
        #: What a command is preceded by: one that enters a mount namespace of the node's own, if it has one.
        self.within: tuple[str, ...] = ()
        self.addresses: list[str] = env["addresses"]
        self.cni_bin_dir = Path(env["cni_bin_dir"])
        self.cni_conf_dir = Path(env["cni_conf_dir"])
        self._socket = Path(env["socket"])
        self._spool = Path(env["state_dir"]) / "spool"
        self.config = Path(env["config"])
        self._log = Path(env["log"])
        #: What differs from the defaults in the daemon's configuration.
        self.settings: dict[str, Any] = yaml.safe_load(self.config.read_text())

    def run(self, *command: object) -> str:
        """Run a command on the node and return what it prints."""
        return self.machine.run(*self.within, *command, netns=self.netns)

    def start(self, *command: object, log: Path, env: dict[str, str] | None = None) -> None:
        """Start a command on the node that stays."""
        self.machine.start(*self.within, *command, netns=self.netns, log=log, env=env)

    # -- the daemon ---------------------------------------------------------------------------------------

    def kill_daemon(self) -> None:
        """Kill the daemon with no chance to clean up."""
        self.machine.kill(ask(self._socket, "GET", "/v1/status")["pid"])

    def start_daemon(self, **settings: object) -> None:
        """Start the daemon, unless it runs, and wait until it is ready.

        :param settings: what shall differ from the node's configuration file.
        """
        if not self._problem():
            return
        env = {f"TERWAY_{name.upper()}": json.dumps(value) for name, value in settings.items()}
        self.start(TERWAY, "daemon", "--config", self.config, log=self._log, env=env)
        eventually(self._problem, "")

    def _problem(self) -> str:
        """Why the daemon is not ready."""
        try:
            return "; ".join(ask(self._socket, "GET", "/readyz")["problems"])
        except IOFailure as error:
            return f"{error}; its log: {self._log}"

    def rows(self) -> list[dict[str, Any]]:
        """The daemon's journal: a row for each sandbox."""
        return list(ask(self._socket, "GET", "/v1/pods"))

    def pods(self) -> dict[str, list[str]]:
        """The addresses of each sandbox that the daemon's journal knows, by the sandbox's id."""
        return {pod["container_id"]: pod["addresses"] for pod in self.rows()}

    def spooled(self) -> list[str]:
        """What waits for the daemon."""
        return os.listdir(self._spool) if self._spool.exists() else []

    def audit(self) -> str:
        """Run ``terway audit``, which must find no difference."""
        return self.run(TERWAY, "audit", "--config", self.config)

    def traces(self) -> Traces:
        """Everything that a pod could leave behind in the node's network, and in the spool."""
        looks = {name: self.run(*look.split()).splitlines() for name, look in LOOKS.items()}
        # Routes of link-local addresses come when the kernel has made sure that nobody else has the address.
        looks["routes of IPv6"] = [line for line in looks["routes of IPv6"] if "proto kernel" not in line]
        return {name: Counter(lines) for name, lines in looks.items()} | {"spool": Counter(self.spooled())}


def eventually(look: Callable[[], T], wanted: T) -> None:
    """Wait until ``look`` returns what is wanted."""
    deadline = time.monotonic() + PATIENCE
    while (found := look()) != wanted:
        assert time.monotonic() < deadline, f"still {found} and not {wanted}"
        time.sleep(0.05)
