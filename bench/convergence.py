"""Networks of EdgeVPN nodes, of ours and of both: how soon all see a write, and what idleness costs.

Every node runs with its own defaults, a static address and a token that never rotates. First the network is left alone:
bytes of each node's link in both directions, processor, memory. Then writes through the API of one node of each kind,
and every other node's API is asked until it shows the value: the delay is that of the last one. All of it is measured
by one process that asks in turn, so that differences below some ten milliseconds mean nothing at ten nodes.
"""

from __future__ import annotations

import argparse
import http.client
import random
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.boxes import Process
from bench.peers import need, sites
from bench.table import show
from tests.interop.network import Node, Site, until

NETWORKS = {
    "2 Go": (2, 0),
    "1 Go, 1 ours": (1, 1),
    "2 ours": (0, 2),
    "10 Go": (10, 0),
    "9 Go, 1 ours": (9, 1),
    "1 Go, 9 ours": (1, 9),
    "10 ours": (0, 10),
}
GIVE_UP = 30.0


class Asked:
    """A node's API over one connection that stays open: opening one costs more than the answer."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._connection = http.client.HTTPConnection("unix")
        self._connection.sock = socket.socket(socket.AF_UNIX)
        self._connection.sock.connect(str(node.socket))

    def get(self, path: str) -> bytes:
        self._connection.request("GET", path)
        return self._connection.getresponse().read()


@dataclass
class Cost:
    """What the nodes of one kind cost while nothing happens."""

    bytes_per_second: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


def link_bytes(node: Node) -> int:
    """Bytes of the node's link, in and out, since it came up."""
    for line in Path(f"/proc/{node.space.pid}/net/dev").read_text().splitlines():
        name, _, rest = line.strip().partition(":")
        if name == "eth0":
            return int(rest.split()[0]) + int(rest.split()[8])
    return 0


def idle(nodes: Sequence[Node], seconds: float) -> dict[str, Cost]:
    """Cost by kind, over ``seconds`` of doing nothing."""
    assert all(node.process for node in nodes)
    processes = {node.name: Process(node.process.pid) for node in nodes if node.process}
    before = {node.name: (link_bytes(node), processes[node.name].cpu_seconds) for node in nodes}
    time.sleep(seconds)
    costs: dict[str, Cost] = {}
    for node in nodes:
        process, (sent, used) = processes[node.name], before[node.name]
        cost = costs.setdefault(node.kind, Cost())
        cost.bytes_per_second.append((link_bytes(node) - sent) / seconds)
        cost.cores.append((process.cpu_seconds - used) / seconds)
        cost.megabytes.append(process.rss_mb)
    return costs


def delays(writer: Node, nodes: Iterable[Node], writes: int, rng: random.Random) -> list[float]:
    """Seconds from each write's answer until the last other node shows it; :data:`GIVE_UP` for those that none did."""
    others = [Asked(node) for node in nodes if node is not writer]
    found = []
    for number in range(writes):
        time.sleep(rng.uniform(0.5, 1.5))
        key = f"{writer.name}-{number % 20}"
        value = f"{number}-{rng.getrandbits(32)}"
        began = time.monotonic()
        writer.put("bench", key, value)
        waiting = list(others)
        while waiting and time.monotonic() - began < GIVE_UP:
            waiting = [each for each in waiting if value.encode() not in each.get(f"/api/ledger/bench/{key}")]
        found.append(time.monotonic() - began)
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def full(site: Site) -> bool:
    """Everybody has everybody's heartbeat and address."""
    peers = {node.peer for node in site.nodes}
    return all(peers <= node.heartbeats() and set(node.machines().values()) == peers for node in site.nodes)


def measure(site: Site, options: argparse.Namespace) -> tuple[dict[str, Cost], dict[str, list[float]]]:
    """Costs and delays of one network, by kind of node and of writer."""
    site.start()
    until(lambda: full(site), "the network is whole", 300)
    time.sleep(options.settle)
    costs = idle(site.nodes, options.seconds)
    writers = [nodes[0] for nodes in (site.go, site.ours) if nodes]
    return costs, {each.kind: delays(each, site.nodes, options.writes, random.Random(1)) for each in writers}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settle", type=float, default=100, help="seconds until a network counts as idle")
    parser.add_argument("--seconds", type=float, default=120, help="seconds of idleness that are measured")
    parser.add_argument("--writes", type=int, default=100, help="writes per network and kind of writer")
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    need()
    costs: dict[str, dict[str, Cost]] = {}
    found: dict[tuple[str, str], list[float]] = {}
    for name in options.only:
        with sites() as make:
            costs[name], delay = measure(make(*NETWORKS[name], heartbeat=0), options)
            found |= {(name, kind): values for kind, values in delay.items()}
            print(f"{name}: measured", flush=True)
    base = {size: found.get((f"{size} Go", "go"), []) for size in (2, 10)}
    rows = []
    for (name, kind), values in found.items():
        p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
        go = base[sum(NETWORKS[name])]
        ratio = f"{p50 / percentile(go, 0.5):.2f}, {p99 / percentile(go, 0.99):.2f}" if go else "-"
        lost = sum(value >= GIVE_UP for value in values)
        rows.append(
            (
                name,
                kind,
                f"{p50 * 1000:.0f} ms",
                f"{p99 * 1000:.0f} ms",
                f"{max(values) * 1000:.0f} ms",
                ratio,
                str(lost),
            )
        )
    show(
        f"A write is seen by all: {options.writes} writes each, about one a second",
        ("network", "writer", "p50", "p99", "most", "p50, p99 / Go's", "never seen"),
        rows,
    )
    idle_rows = []
    for name, of_kinds in costs.items():
        for kind, cost in of_kinds.items():
            alone = costs.get(f"{sum(NETWORKS[name])} Go", {}).get("go")
            ratio = f"{mean(cost.bytes_per_second) / mean(alone.bytes_per_second):.2f}" if alone else "-"
            idle_rows.append(
                (
                    name,
                    kind,
                    f"{mean(cost.bytes_per_second):.0f} B/s",
                    ratio,
                    f"{mean(cost.cores) * 100:.2f} %",
                    f"{mean(cost.megabytes):.0f} MB",
                )
            )
    show(
        f"Idle, {options.seconds:g} s: a node's link in both directions, its processor and memory (means)",
        ("network", "kind", "traffic", "/ Go's", "core", "memory"),
        idle_rows,
    )


if __name__ == "__main__":
    main()
