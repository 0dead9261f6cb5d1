"""Packets to and from an EdgeVPN node, beside EdgeVPN with EdgeVPN in the same run.

Four pairs in networks of their own: EdgeVPN with EdgeVPN, ours with EdgeVPN in both directions, ours with ours. For each: flood
pings (one on its way: the round trip; sixteen: the rate), and UDP datagrams of 1000 bytes at several offered rates, what
arrives and what is lost. Pairs take turns, so that whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.peers import need, sites
from bench.table import show
from tests.interop.network import NEW, OLD, Node, until

PING = "import sys; from provider_kairos.lab.ping import main; sys.exit(main())"

SINK = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
s.bind((sys.argv[1], 7001)); print("ready", flush=True); buffer = bytearray(2048); count = size = 0; first = last = 0.0
s.settimeout(30); seen = set()
while True:
    try: n = s.recv_into(buffer)
    except TimeoutError: break
    last = time.perf_counter(); first = first or last
    if count == 0: s.settimeout(1.5)
    count += 1; size += n; seen.add(bytes(buffer[:8]))
print(len(seen), count - len(seen), size, last - first, flush=True)
"""

SOURCE = """
import socket, sys, time
address, megabits, seconds, payload = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((address, 7001))
rate = megabits * 1e6 / 8 / payload; began = time.perf_counter(); sent = 0; rest = bytes(payload - 8); refused = 0
while (now := time.perf_counter()) < began + seconds:
    while sent < (now - began) * rate:
        try: s.send(sent.to_bytes(8, "big") + rest)
        except OSError: refused += 1
        sent += 1
    time.sleep(0.001)
print(sent, refused, flush=True)
"""

PAYLOAD = 1000


@dataclass
class Pair:
    """Who sends to whom. ``replies``: milliseconds and rate per round; ``udp``: offered → (arrived, lost) per round."""

    name: str
    source: Node
    sink: Node
    trips: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    lost_pings: list[float] = field(default_factory=list)
    udp: dict[float, list[tuple[float, float]]] = field(default_factory=dict)
    busy: list[tuple[float, float]] = field(default_factory=list)


def flood(pair: Pair, window: int, seconds: float) -> tuple[float, float, float]:
    """Median-like (average) round trip in ms, replies per second, share lost."""
    text: str = pair.source.space.run(
        sys.executable,
        "-c",
        PING,
        "-n",
        "-q",
        "-f",
        "-l",
        str(window),
        "-w",
        str(seconds),
        pair.sink.address,
        check=False,
    )
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", text)
    trip = re.search(r"= [\d.]+/([\d.]+)/", text)
    if counts is None or trip is None:
        return float("nan"), 0.0, 1.0
    sent, received = int(counts[1]), int(counts[2])
    return float(trip[1]), received / seconds, max(0, sent - received - window) / max(sent, 1)


def datagrams(pair: Pair, megabits: float, seconds: float) -> tuple[float, float]:
    """Megabits per second that arrived, and the share lost."""
    receiver = pair.sink.space.popen(sys.executable, "-c", SINK, pair.sink.address, stdout=subprocess.PIPE, text=True)
    assert receiver.stdout is not None
    receiver.stdout.readline()
    said = pair.source.space.run(
        sys.executable, "-c", SOURCE, pair.sink.address, str(megabits), str(seconds), str(PAYLOAD)
    )
    sent = int(said.split()[0])
    arrived = int((receiver.stdout.readline() or "0").split()[0])
    receiver.wait(60)
    return arrived * PAYLOAD * 8 / 1e6 / seconds, 1 - arrived / max(sent, 1)


def used(node: Node) -> float:
    """Seconds of processor time of a node's daemon, all its threads."""
    assert node.process is not None
    # `nsenter` executes the program in its own place
    fields = open(f"/proc/{node.process.pid}/stat").read().rpartition(")")[2].split()  # noqa: PTH123, SIM115
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(pair: Pair, rates: Sequence[float], seconds: float) -> None:
    """One round of everything."""
    trip, _, _ = flood(pair, 1, seconds)
    before = used(pair.source), used(pair.sink)
    _, rate, lost = flood(pair, 16, seconds)
    pair.busy.append(((used(pair.source) - before[0]) / seconds, (used(pair.sink) - before[1]) / seconds))
    pair.trips.append(trip)
    pair.rates.append(rate)
    pair.lost_pings.append(lost)
    for megabits in rates:
        pair.udp.setdefault(megabits, []).append(datagrams(pair, megabits, seconds))


def report(pairs: Sequence[Pair], rates: Sequence[float]) -> None:
    base = pairs[0]
    rows: list[tuple[str, ...]] = []
    for pair in pairs:
        rate = median(pair.rates)
        source, sink = (median(each) for each in zip(*pair.busy, strict=True))
        rows.append(
            (
                pair.name,
                f"{median(pair.trips):.2f} ms",
                f"{rate:.0f}/s",
                f"{rate / median(base.rates):.2f}",
                f"{median(pair.lost_pings):.1%}",
                f"{source:.2f} / {sink:.2f}",
            )
        )
    show(
        f"Flood ping, 84 bytes (medians of {len(base.rates)})",
        ("pair", "round trip", "16 on their way", "ratio", "lost", "cores: source / sink"),
        rows,
    )
    rows = []
    for pair in pairs:
        cells = []
        for megabits in rates:
            arrived = median(each[0] for each in pair.udp[megabits])
            lost = median(each[1] for each in pair.udp[megabits])
            cells.append(f"{arrived:.1f} ({lost:.0%})")
        best = max(median(each[0] for each in pair.udp[megabits]) for megabits in rates)
        ratio = best / max(median(each[0] for each in base.udp[megabits]) for megabits in rates)
        rows.append((pair.name, *cells, f"{ratio:.2f}"))
    show(
        f"UDP, {PAYLOAD} bytes: Mbit/s that arrived, and the share lost, by what was offered",
        ("pair", *(f"{megabits:g} Mbit/s" for megabits in rates), "ratio of the best"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rates", type=float, nargs="+", default=[5, 10, 20, 40, 80])
    parser.add_argument("--version", choices=[NEW, OLD], default=NEW)
    parser.add_argument("--only", default="", help="pairs whose name contains this, and the first")
    options = parser.parse_args()
    need(options.version)
    ownership = "enforce" if options.version == NEW else "off"
    with sites() as make:
        common = {"version": options.version, "ownership": ownership}
        networks = [make(2, 0, **common), make(1, 1, **common), make(0, 2, **common)]
        for network in networks:
            network.start()
        (go, other_go), (a_go, ours), (our, other_ours) = (network.nodes for network in networks)
        pairs = [
            Pair(f"EdgeVPN {options.version} -> EdgeVPN", go, other_go),
            Pair("EdgeVPN -> ours", a_go, ours),
            Pair("ours -> EdgeVPN", ours, a_go),
            Pair("ours -> ours", our, other_ours),
        ]
        pairs = [pair for number, pair in enumerate(pairs) if not number or options.only in pair.name]
        for pair in pairs:
            until(lambda pair=pair: pair.source.ping(pair.sink.address, 1), f"{pair.name} reach each other", 120)
        time.sleep(3)
        for _ in range(options.rounds):
            for pair in pairs:
                measure(pair, options.rates, options.seconds)
        report(pairs, options.rates)


if __name__ == "__main__":
    main()
