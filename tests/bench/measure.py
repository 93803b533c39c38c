"""The measurements; times are in seconds."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

from terway_core.cli.client import ask
from terway_core.cni import install
from terway_core.config import load_config
from terway_core.ipam import AddressPool
from terway_core.lab.ping import ping
from terway_core.store import Store
from terway_core.types import Attachment, Lease
from terway_core.wiring import netlink
from terway_core.wiring.engine import Engine
from terway_core.wiring.netlink import NetlinkSocket
from terway_core.wiring.netns import Namespace
from terway_core.wiring.news import LinkNews
from terway_core.wiring.objects import Address, LinkUp, Neighbor, Route, Veth, Wiring
from terway_core.wiring.veth import wire_by_veth
from tests.bench.subjects import Subject, daemon, namespaces, netconf_of, vpc_config

BURST, AT_ONCE = 110, 16
#: Seconds between bursts.
CALM = 0.3
#: Seconds after which new links no longer solicit routers and report groups, for which the kernel takes the
#: same lock as for new ones (MAX_RTR_SOLICITATIONS and RTR_SOLICITATION_INTERVAL of RFC 4861).
SETTLED = 15
Times = dict[tuple[str, str], list[float]]


def one_by_one(subjects: Sequence[Subject], rounds: int) -> Times:
    """ADD, CHECK and DEL of a pod, each subject in turn."""
    times: Times = defaultdict(list)
    with namespaces(len(subjects), "one") as paths:
        pairs = list(zip(subjects, paths, strict=True))
        for _ in range(rounds):
            pairs.append(pairs.pop(0))  # what the kernel still has to do after a call disturbs the next one
            for command in ("ADD", "CHECK", "DEL"):
                for subject, netns in pairs:
                    times[command, subject.name].append(subject.call(command, netns))
    return times


def bursts(subjects: Sequence[Subject], repeats: int) -> tuple[Times, dict[str, float]]:
    """Wall time of many ADDs and many DELs, and the CPU time of the daemon for each pod."""
    times: Times = defaultdict(list)
    cpu: dict[str, float] = {}
    with namespaces(BURST, "many") as paths:
        turns = list(subjects)
        for _ in range(repeats):
            turns.append(turns.pop(0))
            for subject in turns:
                time.sleep(CALM)  # the kernel still frees what the last one has deleted
                before = _cpu(subject)
                for command in ("ADD", "DEL"):
                    times[command, subject.name].append(subject.call_all(command, paths, at_once=AT_ONCE))
                if subject.socket:
                    cpu[subject.name] = (_cpu(subject) - before) / BURST
    return times, cpu


def _cpu(subject: Subject) -> float:
    if not subject.socket:
        return 0.0
    pid = ask(subject.socket, "GET", "/v1/status")["pid"]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(subject: Subject) -> float:
    """MiB of the subject's daemon, after a gc round."""
    assert subject.socket
    ask(subject.socket, "POST", "/v1/gc")
    pid = ask(subject.socket, "GET", "/v1/status")["pid"]
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def at_scale(folder: Path, most: int, rounds: int) -> dict[str, float]:
    """The vpc mode's daemon with no, 10, 110 and ``most`` attachments."""
    found: dict[str, float] = {}
    config_file = vpc_config(folder)
    config = load_config(config_file, env={})
    install.install_binary(config)
    with (
        namespaces(most + 1, "scale") as (one, *pods),
        namespaces(1, "vpc-scale") as (path,),
        Namespace.open(path) as node,
    ):
        subject = Subject("vpc", install.binary_path(config), netconf_of(config), node, config.socket)

        def raw() -> float:
            with closing(Engine(node)) as engine, NetlinkSocket(node) as sock, Namespace.open(one) as pod:
                return statistics.median(_raw(engine, sock, pod) for _ in range(rounds))

        def median_add() -> float:
            times = []
            for _ in range(rounds):
                times.append(subject.call("ADD", one))
                subject.call("DEL", one)
            return statistics.median(times)

        with daemon(config_file, node) as found["start at 0"]:
            found["memory at 0"] = resident(subject)
            subject.call_all("ADD", pods[:10], at_once=AT_ONCE)
            found["ADD at 10"] = median_add()
            found["raw at 10"] = raw()
            subject.call_all("ADD", pods[10:BURST], at_once=AT_ONCE)
            found[f"memory at {BURST}"] = resident(subject)
            subject.call_all("ADD", pods[BURST:], at_once=AT_ONCE)
            time.sleep(SETTLED)
            found[f"ADD at {most}"] = median_add()
            found[f"raw at {most}"] = raw()
            found[f"memory at {most}"] = resident(subject)
            start = time.perf_counter()
            ask(config.socket, "POST", "/v1/gc")
            found[f"gc at {most}"] = time.perf_counter() - start
        with daemon(config_file, node) as found[f"start at {most}"]:
            pass
    return found


def address_pool(folder: Path, size: int) -> dict[int, float]:
    """Median of allocating and giving back an address, by how many are owned."""
    found = {}
    store = Store(folder / "pool.db")
    for owned in (10, size):
        pool = AddressPool(store, f"pool of {owned}", ip_network("10.0.0.0/16"), rest=0, clock=time.time)
        for number in range(owned):
            pool.allocate(f"owner-{number}")
        times = []
        for number in range(100):
            start = time.perf_counter()
            pool.allocate(f"one-{number}")
            pool.release(f"one-{number}")
            times.append(time.perf_counter() - start)
        found[owned] = statistics.median(times)
    store.close()
    return found


def floors(subject: Subject, folder: Path, rounds: int) -> dict[str, float]:
    """What a command or a burst cannot do without, each part by itself."""
    nowhere = [Path("none")] * BURST
    processes = [subject.call("VERSION", nowhere[0]) for _ in range(rounds)]
    many = [subject.call_all("VERSION", nowhere, at_once=AT_ONCE) for _ in range(5)]
    return {
        "a process": statistics.median(processes),
        "a sync of the disk": statistics.median(_syncs(folder / "floor", rounds)),
        f"{BURST} processes, {AT_ONCE} at a time": statistics.median(many),
        f"{BURST} veth pairs deleted by one message": statistics.median(_deletions(BURST, BURST, 5)),
        f"{BURST} veth pairs deleted, {AT_ONCE} by a message": statistics.median(
            _deletions(BURST, AT_ONCE, 5)
        ),
    }


def _syncs(path: Path, rounds: int) -> list[float]:
    """Of a page that was written anew, each after a pause: as of a disk that has nothing else to do."""
    times = []
    with path.open("wb") as file:
        for _ in range(rounds):
            os.pwrite(file.fileno(), os.urandom(4096), 0)
            time.sleep(0.01)
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return times


def _deletions(count: int, at_once: int, rounds: int) -> list[float]:
    """Until the kernel has taken the last one out of its tables."""
    times = []
    with (
        namespaces(count + 1, "doomed") as (first, *paths),
        Namespace.open(first) as host,
        NetlinkSocket(host) as sock,
        closing(LinkNews(host)) as news,
        contextlib.ExitStack() as senders,
    ):
        requests = range(0, count, at_once)
        socks = [senders.enter_context(NetlinkSocket(host)) for _ in requests]
        threads = senders.enter_context(ThreadPoolExecutor(len(requests)))
        for _ in range(rounds):
            for number, path in enumerate(paths):
                mac = f"0a:00:00:00:00:{number:02x}"
                veth = Veth(name=f"v{number}", peer="eth0", mac=mac, peer_mac=f"0a:01{mac[5:]}")
                with Namespace.open(path) as pod, NetlinkSocket.of(pod) as inside:
                    sock.send([netlink.new_veth(veth, pod.fd)])
                    sock.send([netlink.set_up(sock.links([veth.name])[veth.name].index)])
                    inside.send([netlink.set_up(inside.links(["eth0"])["eth0"].index)])
            indices = [link.index for link in sock.links([f"v{n}" for n in range(count)]).values()]
            answers = []
            start = time.perf_counter()
            for first_one, sender in zip(requests, socks, strict=True):
                left = {*indices[first_one : first_one + at_once]}
                messages = [*map(netlink.doom, left), netlink.delete_doomed()]
                answers.append(threads.submit(sender.send, messages))
                while left:
                    left -= news.deleted(1.0)
            times.append(time.perf_counter() - start)
            for answer in answers:
                assert not answer.result()[-1].errno
    return times


def _one_pod() -> Wiring:
    attachment = Attachment(network="bench", container_id="c", ifname="eth0")
    pair = wire_by_veth(attachment, Lease(addresses=(ip_interface("172.20.0.2/32"),)), 1500)
    return Wiring(host=pair.host, pod=pair.pod)


def wiring_alone(rounds: int) -> dict[str, list[float]]:
    """The engine, and the same objects by raw netlink messages that were encoded beforehand."""
    times: dict[str, list[float]] = {"engine": [], "raw": []}
    wiring = _one_pod()
    with (
        namespaces(2, "wire") as (path, pod_path),
        Namespace.open(path) as host,
        closing(Engine(host)) as engine,
        NetlinkSocket(host) as sock,
    ):
        for _ in range(rounds):
            with Namespace.open(pod_path) as pod:
                start = time.perf_counter()
                engine.apply(wiring, pod, "bench:c")
                times["engine"].append(time.perf_counter() - start)
                engine.remove(wiring, pod, "bench:c")
            with Namespace.open(pod_path) as pod:
                times["raw"].append(_raw(engine, sock, pod))
    return times


def _raw(engine: Engine, sock: NetlinkSocket, pod: Namespace) -> float:
    """Seconds of nothing but system calls: a socket in the pod, the pair, two batches."""
    wiring = _one_pod()
    veth = next(obj for obj in wiring.host if isinstance(obj, Veth))
    make = [netlink.new_veth(veth, pod.fd)]
    start = time.perf_counter()
    inside = NetlinkSocket.of(pod)
    sock.send(make)
    spent = time.perf_counter() - start
    index = sock.links([veth.name])[veth.name].index
    inner = inside.links(["lo", veth.peer])
    encode = {
        LinkUp: lambda obj, i, ours: netlink.set_up(i),
        Address: lambda obj, i, ours: netlink.address(obj, i),
        Neighbor: lambda obj, i, ours: netlink.neighbor(obj, i, ours=ours),
        Route: lambda obj, i, ours: netlink.route(obj, i, ours=ours),
    }
    host_batch = [netlink.set_up(index, alias="terway:bench:c")]
    host_batch += [encode[type(o)](o, index, True) for o in wiring.host if type(o) in encode]
    pod_batch = [netlink.set_up(inner[veth.peer].index)]
    pod_batch += [encode[type(o)](o, inner[o.dev].index, False) for o in wiring.pod if type(o) in encode]
    start = time.perf_counter()
    inside.send(pod_batch)
    sock.send(host_batch)
    spent += time.perf_counter() - start
    engine.remove(wiring, pod, "bench:c")
    return spent


def pod_to_pod(subjects: Sequence[Subject], seconds: int) -> dict[str, tuple[float, float]]:
    """Gbit/s by iperf3, and the median round trip, between two pods of one node."""
    rates: dict[str, list[float]] = defaultdict(list)
    trips: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        pairs = {}
        for subject in subjects:
            client, server = stack.enter_context(namespaces(2, f"net-{subject.name[:3]}"))
            for path in (client, server):
                subject.call("ADD", path)
                stack.callback(subject.call, "DEL", path)
            pairs[subject.name] = (
                stack.enter_context(Namespace.open(client)),
                stack.enter_context(Namespace.open(server)),
                subject.address(server),
            )
        for _ in range(3):
            for name, (client, server, address) in pairs.items():
                rates[name].append(_iperf3(client, server, address, seconds))
        for name, (client, _, address) in pairs.items():
            found = client.run(lambda a=address: [ping(ip_address(a)) for _ in range(300)])
            trips[name] = statistics.median(trip for trip in found if trip is not None)
    return {name: (statistics.median(rates[name]), trips[name]) for name in pairs}


def _iperf3(client: Namespace, server: Namespace, address: str, seconds: int) -> float:
    serving = server.run(subprocess.Popen, ["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.2)
        argv = ["iperf3", "-c", address, "-t", str(seconds), "-J"]
        done = client.run(subprocess.run, argv, capture_output=True, check=True)
        return json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 1e9
    finally:
        serving.terminate()
        serving.wait()
