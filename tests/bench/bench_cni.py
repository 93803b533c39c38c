"""``make bench``: ADD and DEL of the vpc mode against ptp with host-local, interleaved in one run.

Each figure is a whole plugin process, from start to exit, with the daemon's journal on disk. Ratios are of
medians; compare those, not milliseconds of different machines.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from terway_core.cli.client import ask
from terway_core.cni import install
from terway_core.config import load_config
from terway_core.errors import IOFailure
from terway_core.wiring.netns import Namespace, create_netns, delete_netns

ROUNDS = int(os.environ.get("ROUNDS", "100"))
PTP_FOLDER = Path("/usr/lib/cni")
PREFIX = f"terway-bench-{os.getpid()}"


@contextmanager
def daemon(folder: Path, node: Namespace) -> Iterator[Path]:
    """A daemon of the vpc mode in ``node``; yields the plugin's path."""
    settings = {
        "drivers": ["vpc"],
        "options": {
            "vpc": {
                "pod_cidrs": ["172.20.0.0/20"],
                "cluster_cidrs": ["172.20.0.0/16"],
                "rest_seconds": 0,
            }
        },
        "vpc_cidrs": ["192.168.0.0/16"],
        **{f"{name}_dir": str(folder / name) for name in ("state", "run", "cni_bin", "cni_conf")},
        "log_level": "error",
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    config = load_config(path, env={})
    install.install_binary(config)
    argv = [Path(sys.executable).with_name("terway"), "daemon", "--config", path]
    process = node.run(subprocess.Popen, argv)
    try:
        while True:
            try:
                if ask(config.socket, "GET", "/readyz")["ready"]:
                    break
            except IOFailure:
                assert process.poll() is None
            time.sleep(0.05)
        yield install.binary_path(config)
    finally:
        process.terminate()
        process.wait()


def call(node: Namespace, plugin: Path, config: dict[str, object], command: str, netns: Path) -> float:
    """Milliseconds of one plugin process."""
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": netns.name,
        "CNI_NETNS": str(netns),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PTP_FOLDER),
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAME={netns.name};K8S_POD_NAMESPACE=bench",
    }
    stdin = json.dumps(config).encode()
    start = time.perf_counter()
    done = node.run(subprocess.run, [plugin], input=stdin, env=env, capture_output=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stdout
    return seconds * 1000


def main() -> None:
    if os.geteuid() or not (PTP_FOLDER / "ptp").exists():
        sys.exit("bench needs root and the Debian package containernetworking-plugins")
    names = [PREFIX, f"{PREFIX}-ours", f"{PREFIX}-ptp"]
    paths = [create_netns(name) for name in names]
    times: dict[tuple[str, str], list[float]] = {}
    try:
        with tempfile.TemporaryDirectory() as scratch, Namespace.open(paths[0]) as node:
            folder = Path(scratch)
            with daemon(folder, node) as plugin:
                ours = {"cniVersion": "1.0.0", "name": "ours", "type": "terway"}
                ours |= {"socket": str(folder / "run/terway.sock"), "spool": str(folder / "spool")}
                ipam = {"type": "host-local", "subnet": "172.30.0.0/20", "dataDir": str(folder / "ipam")}
                ptp = {"cniVersion": "1.0.0", "name": "ptp", "type": "ptp", "ipam": ipam}
                kinds = [("terway", plugin, ours, paths[1]), ("ptp", PTP_FOLDER / "ptp", ptp, paths[2])]
                for _ in range(ROUNDS):
                    for command in ("ADD", "DEL"):
                        for name, binary, config, netns in kinds:
                            taken = call(node, binary, config, command, netns)
                            times.setdefault((command, name), []).append(taken)
    finally:
        for name in names:
            delete_netns(name)
    print(f"{ROUNDS} rounds, ms      min   median      p99    ratio of medians")
    for command in ("ADD", "DEL"):
        base = statistics.median(times[command, "ptp"])
        for name in ("terway", "ptp"):
            found = sorted(times[command, name])
            median = statistics.median(found)
            p99 = found[min(len(found) - 1, int(len(found) * 0.99))]
            label = f"{command} {'vpc' if name == 'terway' else 'ptp + host-local'}"
            print(f"{label:22}{found[0]:7.1f} {median:8.1f} {p99:8.1f} {median / base:8.2f}")


if __name__ == "__main__":
    main()
