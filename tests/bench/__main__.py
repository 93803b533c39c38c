"""``make bench``: writes ``bench-results/bench.md`` and ``bench.png``. ROUNDS and PODS make it shorter.

Where other work runs beside, ``chrt -f 5 make bench`` keeps it off the processors, for all plugins alike.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench import measure
from tests.bench.report import (
    BASE,
    Promise,
    machine,
    percentile,
    picture,
    table,
    times_table,
)
from tests.bench.subjects import GO_PLUGINS, go_ptp, lab_mode, namespaces, vpc

ROUNDS = int(os.environ.get("ROUNDS", "200"))
PODS = int(os.environ.get("PODS", "1000"))
RESULTS = Path("bench-results")


def main() -> None:
    if os.geteuid() or not (GO_PLUGINS / "ptp").exists():
        sys.exit("bench needs root, and the Debian packages containernetworking-plugins and iperf3")
    RESULTS.mkdir(exist_ok=True)
    where = machine()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp", prefix="tb-")))
        ours = stack.enter_context(vpc(folder / "vpc"))
        shared = stack.enter_context(lab_mode("eniip_veth", folder / "lab"))
        go = stack.enter_context(go_ptp(folder))
        own = stack.enter_context(lab_mode("eni", folder / "eni"))
        subjects = [ours, shared, go]
        for subject, path in zip([*subjects, own], stack.enter_context(namespaces(4, "stays")), strict=True):
            # What only the first pod of a node pays for is not measured.
            subject.call("ADD", path)
            stack.callback(subject.call, "DEL", path)
        say("one by one")
        single = measure.one_by_one([ours, shared, own, go], ROUNDS)
        say("bursts")
        many, cpu = measure.bursts(subjects, 7)
        say("pod to pod")
        network = measure.pod_to_pod([ours, go], 3)
        memory_with_sdk = measure.resident(shared)
        floor = measure.floors(ours, folder, 100)
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="tb-") as scratch:
        say(f"{PODS} attachments")
        scale = measure.at_scale(Path(scratch) / "vpc", PODS, 50)
        say("parts")
        pool = measure.address_pool(Path(scratch), 10_000)
        wiring = {way: statistics.median(t) for way, t in measure.wiring_alone(200).items()}

    def ratio(times: measure.Times, command: str, name: str) -> float:
        return statistics.median(times[command, name]) / statistics.median(times[command, BASE])

    promises = []
    for name in ("vpc", "eniip_veth"):
        tail = percentile(single["ADD", name], 99) / percentile(single["ADD", BASE], 99)
        promises += [
            Promise(f"ADD, {name}, against {BASE}", ratio(single, "ADD", name), 0.33),
            Promise(f"ADD p99, {name}", tail, 0.5),
            Promise(f"DEL, {name}", ratio(single, "DEL", name), 0.5),
            Promise(f"110 ADDs, {name}", ratio(many, "ADD", name), 0.33),
            Promise(f"110 DELs, {name}", ratio(many, "DEL", name), 0.15),
        ]
    promises += [
        Promise("wiring one pod, against raw netlink", wiring["engine"] / wiring["raw"], 2.0),
        Promise("throughput, vpc against ptp", network["vpc"][0] / network[BASE][0], 0.98, least=True),
        Promise("memory at 110 without the cloud SDK", scale["memory at 110"], 48, unit=" MiB"),
        Promise("memory of eniip_veth, with it", memory_with_sdk, 96, unit=" MiB"),
        Promise(f"ADD at {PODS} attachments, against 10", scale[f"ADD at {PODS}"] / scale["ADD at 10"], 1.2),
    ]
    others = [
        *([f"memory at {n}", f"{scale[f'memory at {n}']:.0f} MiB"] for n in (0, 110, PODS)),
        *([f"start to ready at {n}", f"{1000 * scale[f'start at {n}']:.0f} ms"] for n in (0, PODS)),
        [f"one gc round at {PODS}", f"{1000 * scale[f'gc at {PODS}']:.0f} ms"],
        *([f"daemon CPU for an ADD and a DEL, {name}", f"{1000 * t:.1f} ms"] for name, t in cpu.items()),
        *([f"address out of a pool that has {n}", f"{1000 * t:.2f} ms"] for n, t in pool.items()),
        *([f"floor: {part}", f"{1000 * t:.2f} ms"] for part, t in floor.items()),
        *(
            [f"floor: wiring one pod by raw netlink beside {n}", f"{1000 * scale[f'raw at {n}']:.2f} ms"]
            for n in (10, PODS)
        ),
        *([f"wiring one pod, {way}", f"{1000 * t:.2f} ms"] for way, t in wiring.items()),
        *(
            [f"pod to pod, {n}", f"{rate:.1f} Gbit/s, {1e6 * trip:.0f} µs"]
            for n, (rate, trip) in network.items()
        ),
    ]
    text = "\n".join(
        [
            f"# {where}\n",
            "What must hold:\n",
            table(["what", "found", "limit", "holds"], [promise.row() for promise in promises]),
            f"One by one, {ROUNDS} rounds, the process from start to exit:\n",
            times_table(single),
            "110 pods, 16 at a time, until the last is done:\n",
            times_table(many),
            "Besides:\n",
            table(["what", "found"], others),
        ]
    )
    (RESULTS / "bench.md").write_text(text)
    picture(RESULTS / "bench.png", single, many)
    print(text)


def say(what: str) -> None:
    print(f"… {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
