"""Two EdgeVPN nodes and two of ours, a token that rotates every 30 s, and kill -9 for one of each kind every 45 s.

All lease their addresses and keep their identities. Every second a node's API takes a write. A write counts as
acknowledged when our daemon answered 200 (then it is on its disk), or when another node shows what an EdgeVPN node
answered 200 for (EdgeVPN keeps its ledger in memory alone). Ten minutes later everybody must see everybody, every
acknowledged write or a later one of its key must be everywhere, and every address must be what it was. Ends with status
1 when that is not so.
"""

from __future__ import annotations

import argparse
import http.client
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import permutations

from bench.peers import need, sites
from bench.table import show
from tests.interop.network import Node, Site, until

INTERVAL = 30
KEYS = 30
"""Keys of each node; one is written again only when EdgeVPN's 20 s of defending the earlier value are over."""

NO_ANSWER = (OSError, ValueError, http.client.HTTPException)


@dataclass
class Writes:
    """What was written through one node's API, as numbers that grow per key."""

    node: Node
    tried: int = 0
    answered: int = 0
    acknowledged: dict[str, int] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)

    def write(self) -> None:
        """One more write; nothing happens when the node is down."""
        self.tried += 1
        key = f"{self.node.name}-{self.tried % KEYS}"
        self.pending.pop(key, None)  # nobody showed it in all that time
        try:
            self.node.put("storm", key, str(self.tried))
        except NO_ANSWER:
            return
        self.answered += 1
        (self.acknowledged if self.node.kind == "ours" else self.pending)[key] = self.tried

    def look(self, bucket: dict[str, str]) -> None:
        """Another node shows this bucket."""
        for key, number in list(self.pending.items()):
            if number_in(bucket.get(key, "")) >= number:
                self.acknowledged[key] = self.pending.pop(key)


def number_in(text: str) -> int:
    """The number in a record; -1 when there is none."""
    digits = text.strip('"')
    return int(digits) if digits.isdigit() else -1


def storm(
    site: Site, seconds: float, every: float, down: float, rng: random.Random
) -> tuple[list[Writes], Counter[str]]:
    """Write, kill and start again for ``seconds``."""
    writes = [Writes(node) for node in site.nodes]
    kills: Counter[str] = Counter()
    began = time.monotonic()
    next_kill, starts = began + every, list[tuple[float, Node]]()
    turn = 0
    while (now := time.monotonic()) < began + seconds:
        if now >= next_kill and began + seconds - now > down:
            next_kill += every
            for node in (rng.choice(site.go), rng.choice(site.ours)):
                node.end(signal.SIGKILL)
                kills[node.name] += 1
                starts.append((now + down, node))
        for due, node in [each for each in starts if now >= each[0]]:
            starts.remove((due, node))
            node.start()
        writes[turn % len(writes)].write()
        turn += 1
        for node in site.nodes:
            with suppress(*NO_ANSWER):
                bucket = node.bucket("storm")
                for each in writes:
                    if each.node is not node:
                        each.look(bucket)
        time.sleep(max(0.0, now + 1 - time.monotonic()))
    for _, node in starts:
        node.start()
    return writes, kills


def all_see_all(site: Site) -> bool:
    """Everybody has everybody's heartbeat and machine record."""
    peers = {node.peer for node in site.nodes}
    return all(peers <= node.heartbeats() and set(node.machines().values()) == peers for node in site.nodes)


def missing(site: Site, writes: list[Writes]) -> list[str]:
    """Acknowledged writes that some node has not got, nor a later one of the same key."""
    shown = {node.name: node.bucket("storm") for node in site.nodes}
    return [
        f"{name} lacks {key}={number}"
        for each in writes
        for key, number in each.acknowledged.items()
        for name, bucket in shown.items()
        if number_in(bucket.get(key, "")) < number
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--every", type=float, default=45, help="seconds between kills")
    parser.add_argument("--down", type=float, default=3, help="seconds until a killed node starts again")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ownership", choices=["enforce", "observe", "off"], default="enforce")
    parser.add_argument("--patience", type=float, default=60, help="seconds for the end state")
    options = parser.parse_args()
    need()
    with sites() as make:
        site = make(2, 2, interval=INTERVAL, address="", cached_key=True, ownership=options.ownership)
        site.start()
        for node in site.nodes:
            until(lambda node=node: node.lease, f"{node.name} leases", 240)
        until(lambda: all_see_all(site), "all see all at the beginning", 120)
        before = {node.name: (node.peer, node.lease) for node in site.nodes}
        writes, kills = storm(site, options.minutes * 60, options.every, options.down, random.Random(options.seed))
        began = time.monotonic()
        failures = []
        for what, true in {
            "all see all": lambda: all_see_all(site),
            "no record is lost": lambda: not missing(site, writes),
            "identities and addresses are kept": lambda: (
                {node.name: (node.peer, node.lease) for node in site.nodes} == before
            ),
        }.items():
            try:
                until(true, what, options.patience)
                print(f"{what}: yes, {time.monotonic() - began:.1f} s after the end")
            except AssertionError:
                failures.append(what)
                print(f"{what}: NO")
        print("\n".join(missing(site, writes)[:20]))
        pings = Counter[str]()
        for one, other in permutations(site.nodes, 2):
            answered = any(one.ping(before[other.name][1], 1) for _ in range(15))
            pings[one.name] += answered
            if not answered:
                failures.append(f"{one.name} reaches {other.name}")
        rows = []
        for each in writes:
            node = each.node
            rows.append(
                (
                    node.name,
                    kills[node.name],
                    each.tried,
                    each.answered,
                    len(each.acknowledged),
                    before[node.name][1],
                    node.lease,
                    f"{len(node.heartbeats())} of 4",
                    node.get("/api/summary")["OnChainNodes"],
                    f"{pings[node.name]} of 3",
                )
            )
        show(
            f"{options.minutes:g} minutes, {options.ownership}, a rotation every {INTERVAL} s, one of each kind killed every "
            f"{options.every:g} s (seed {options.seed})",
            ("node", "kills", "writes", "answered", "keys", "address", "at the end", "heartbeats", "room", "pings"),
            rows,
        )
        print(f"  failed: {failures or 'nothing'}")
        if failures:
            for node in site.nodes:
                print(f"--- {node.name}, last lines\n" + "\n".join(node.log.splitlines()[-15:]))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
