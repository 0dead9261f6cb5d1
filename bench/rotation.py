"""What the nodes of a small network hear of each other through rotations of topic and key (spec/edgevpn.md 17).

Two EdgeVPN nodes alone, and two with one of ours among them, at the same time, each with a token that rotates every
30 s. Every two seconds each node's own API is asked how many peers it counts in its room and how old the heartbeats are
that it has of the others: the measurement of ``recordings/rotation.jsonl``. A node is in step in a rotation when at the
end of it the newest heartbeat of everybody else is younger than ``FRESH`` seconds; EdgeVPN nodes beat every 5 to 15 s
here. ``--out`` keeps every sample.
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TextIO

from bench.peers import need, sites
from bench.table import show
from tests.interop.network import NEW, OLD, Node

INTERVAL = 30
FRESH = 30.0
HEARTBEAT = 10


@dataclass
class Hearing:
    """What one node's API showed. ``samples``: Unix time, on-chain count, age in seconds of each other's heartbeat."""

    others: int
    samples: list[tuple[float, int, dict[str, float]]] = field(default_factory=list)

    def epochs(self) -> dict[int, tuple[int, dict[str, float]]]:
        """The last sample of each whole epoch: on-chain count and ages. The first epoch is for finding each other."""
        last: dict[int, tuple[int, dict[str, float]]] = {}
        for unix, count, ages in self.samples:
            last[int(unix) // INTERVAL] = (count, ages)
        return dict(sorted(last.items())[1:])

    def in_step(self) -> list[bool]:
        """For each rotation whether everybody was heard at its end."""
        return [
            len(ages) >= self.others and all(age < FRESH for age in ages.values()) for _, ages in self.epochs().values()
        ]

    def worst(self) -> float:
        """The oldest that a heartbeat was, after the first epoch; infinity when one never came."""
        ages = [ages for _, ages in self.epochs().values()]
        if any(len(each) < self.others for each in ages):
            return float("inf")
        begins = (int(self.samples[0][0]) // INTERVAL + 1) * INTERVAL
        return max(age for unix, _, each in self.samples if unix >= begins for age in each.values())

    def on_chain(self) -> str:
        """The counts of the room at the ends of rotations, most frequent first."""
        counts = [count for count, _ in self.epochs().values()]
        return ", ".join(f"{each}: {counts.count(each)}" for each in sorted(set(counts), key=counts.count)[::-1])


def sample(
    nodes: Iterable[Node], peers: dict[str, str], hearings: dict[str, Hearing], run: str, out: TextIO | None
) -> None:
    """Ask every node once. A node that does not answer has no sample."""
    for node in nodes:
        try:
            summary, beats = node.get("/api/summary"), node.bucket("healthcheck")
        except (OSError, ValueError, http.client.HTTPException):
            continue
        now = time.time()
        ages = {
            name: now - datetime.fromisoformat(json.loads(beats[peer])).timestamp()
            for name, peer in peers.items()
            if name != node.name and peer in beats
        }
        hearings[node.name].samples.append((now, summary["OnChainNodes"], ages))
        if out is not None:
            record = {"run": run, "record": "view", "t": int(now * 1e9), "seconds_into_step": round(now % INTERVAL, 1)}
            record |= {"node": node.name, "on_chain_nodes": summary["OnChainNodes"], "index": summary["BlockChain"]}
            out.write(json.dumps(record | {"heartbeat_age_s": {name: round(age) for name, age in ages.items()}}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rotations", type=int, default=20)
    parser.add_argument("--version", choices=[NEW, OLD], default=NEW)
    parser.add_argument("--ownership", choices=["enforce", "observe", "off"], default="")
    parser.add_argument("--out", type=Path, help="file for every sample (JSON lines)")
    options = parser.parse_args()
    need(options.version)
    ownership = options.ownership or ("enforce" if options.version == NEW else "off")
    common = {"interval": INTERVAL, "heartbeat": HEARTBEAT, "version": options.version, "ownership": ownership}
    with sites() as make:
        out = options.out.open("w") if options.out else None
        runs = {"2 Go alone": make(2, 0, **common), "2 Go, 1 ours": make(2, 1, **common)}
        hearings: dict[str, dict[str, Hearing]] = {}
        peers: dict[str, dict[str, str]] = {}
        for name, site in runs.items():
            site.start()
            hearings[name] = {node.name: Hearing(len(site.nodes) - 1) for node in site.nodes}
        for name, site in runs.items():
            peers[name] = {node.name: node.peer for node in site.nodes}
        ends = (int(time.time()) // INTERVAL + 1 + options.rotations) * INTERVAL
        while time.time() < ends - 0.5:
            began = time.monotonic()
            for name, site in runs.items():
                sample(site.nodes, peers[name], hearings[name], name, out)
            time.sleep(max(0.0, began + 2 - time.monotonic()))
        if out is not None:
            out.close()
    rows = []
    for name, of_nodes in hearings.items():
        for node, hearing in of_nodes.items():
            steps = hearing.in_step()
            rows.append((name, node, f"{sum(steps)} of {len(steps)}", f"{hearing.worst():.0f} s", hearing.on_chain()))
    show(
        f"EdgeVPN {options.version} ({ownership}), a rotation every {INTERVAL} s: who hears everybody",
        ("network", "node", "rotations in step", "oldest heartbeat", "peers in its room: rotations"),
        rows,
    )


if __name__ == "__main__":
    main()
