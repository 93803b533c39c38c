"""A stand-in for kube-proxy, which needs modules of iptables or ipvs; not every kernel has them.

It does what kube-proxy does for a ClusterIP, once and for one Service: on each node, packets to the ClusterIP
get the address of one of the endpoints as they come in or are sent, one endpoint after the other; conntrack
translates the answers back. A pod that meets itself gets the node's address as the source, or it would answer
itself. Nothing of it is told to terway: what it must do for Services, it does for kube-proxy as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.containerd.node import Node


@contextmanager
def serving(
    nodes: Sequence[Node], folder: Path, cluster_ip: str, port: int, endpoints: Sequence[str], target: int
) -> Iterator[None]:
    """Have a Service on these nodes for as long as the block lasts."""
    serve([node.run for node in nodes], folder, cluster_ip, port, endpoints, target)
    try:
        yield
    finally:
        for node in nodes:
            node.run("nft", "delete", "table", *_table(cluster_ip).split())


def serve(
    runs: Sequence[Callable[..., str]],
    folder: Path,
    cluster_ip: str,
    port: int,
    endpoints: Sequence[str],
    target: int,
) -> None:
    """Have a Service wherever one of ``runs`` runs a command, and there until the end."""
    rules = folder / f"{cluster_ip}.nft"
    rules.write_text(_rules(cluster_ip, port, endpoints, target))
    for run in runs:
        run("nft", "-f", rules)


def _table(cluster_ip: str) -> str:
    return f"ip service_{cluster_ip.replace('.', '_')}"


def _rules(cluster_ip: str, port: int, endpoints: Sequence[str], target: int) -> str:
    choice = ", ".join(f"{number} : {address} . {target}" for number, address in enumerate(endpoints))
    itself = ", ".join(f"{address} . {address}" for address in endpoints)
    chosen = f"numgen inc mod {len(endpoints)} map {{ {choice} }}"
    translate = f"ip daddr {cluster_ip} tcp dport {port} dnat ip to {chosen}"
    return f"""
table {_table(cluster_ip)} {{
  chain incoming {{ type nat hook prerouting priority dstnat; {translate}; }}
  chain sent {{ type nat hook output priority -100; {translate}; }}
  chain outgoing {{
    type nat hook postrouting priority srcnat;
    ct status dnat ip saddr . ip daddr {{ {itself} }} masquerade;
  }}
}}
"""
