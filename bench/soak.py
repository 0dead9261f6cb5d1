"""Three boxes and a token that rotates every 30 s, for minutes: nothing may be lost, nothing may grow.

Every two seconds one box writes one of ``RECORDS`` records anew (so that the ledger keeps its size and memory can be
judged); every daemon is asked for all of them, for its peers and its memory. A record that is missing, or older than
what all had seen, is lost; a peer that is missing from a topic for longer than ``PATIENCE`` is lost. Ends with status 1
when anything was.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import socket
import sys
import time
from pathlib import Path

from bench.boxes import lab, token
from bench.table import show

PATIENCE = 3.0
RECORDS = 30


def number_in(text: object) -> int:
    """The number in a record as the API shows it; -1 when there is none."""
    if not isinstance(text, str) or not text:
        return -1
    return int(json.loads(base64.urlsafe_b64decode(json.loads(text))))


class Api(http.client.HTTPConnection):
    """The daemon's socket in a box."""

    def __init__(self, root: Path) -> None:
        super().__init__("unix", timeout=5)
        self._path = str(root / "run/edgevpn-kairos.sock")

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(self._path)

    def ask(self, path: str, method: str = "GET") -> object:
        self.request(method, path)
        body = self.getresponse().read()
        self.close()
        return json.loads(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--interval", type=int, default=30, help="OTP interval in seconds")
    options = parser.parse_args()
    config = f"#cloud-config\np2p:\n  network_token: {token(options.interval)}\n"
    with lab("soak", 3, config) as (boxes, document):
        names = [box["name"] for box in document["boxes"]]
        apis = {name: Api(boxes.root(name)) for name in names}
        daemons = {name: boxes.daemon(name) for name in names}
        known: dict[str, int] = {}  # record to the number that every daemon has shown
        missing_since: dict[tuple[str, str], float] = {}
        lost_records: set[tuple[str, str]] = set()
        lost_peers: set[tuple[str, str]] = set()
        delays: list[float] = []
        written: dict[str, float] = {}
        memory: dict[str, list[float]] = {name: [] for name in names}
        cpu = {name: daemons[name].cpu_seconds for name in names}
        began = time.monotonic()
        number = 0
        while time.monotonic() - began < options.minutes * 60:
            writer = names[number % len(names)]
            key = f"soak-{number % RECORDS}"
            value = base64.urlsafe_b64encode(json.dumps(str(number)).encode()).decode()
            apis[writer].ask(f"/api/ledger/soak/{key}/{value}", "PUT")
            written[key] = time.monotonic()
            waiting = set(names)
            while waiting and time.monotonic() - written[key] < 10:
                for name in sorted(waiting):
                    if number_in(apis[name].ask(f"/api/ledger/soak/{key}")) == number:
                        waiting.discard(name)
                time.sleep(0.01)
            delays.append(time.monotonic() - written[key])
            lost_records |= {(name, key) for name in waiting}
            known[key] = number
            for name in names:
                records = apis[name].ask("/api/ledger/soak") or {}
                assert isinstance(records, dict)
                lost_records |= {(name, key) for key, least in known.items() if number_in(records.get(key)) < least}
                status = apis[name].ask("/api/v1/status")
                assert isinstance(status, dict)
                for peer in status["peers"]:
                    pair = (name, peer["hostname"] or peer["peer_id"])
                    if peer["on_topic"]:
                        missing_since.pop(pair, None)
                    elif time.monotonic() - missing_since.setdefault(pair, time.monotonic()) > PATIENCE:
                        lost_peers.add(pair)
                if len(status["peers"]) != len(names) - 1:
                    lost_peers.add((name, "not all known"))
                memory[name].append(daemons[name].rss_mb)
            number += 1
            time.sleep(max(0.0, written[key] + 2 - time.monotonic()))
        seconds = time.monotonic() - began
        rows = []
        for name in names:
            series = memory[name]
            tenth = max(1, len(series) // 10)
            first, last = sum(series[:tenth]) / tenth, sum(series[-tenth:]) / tenth
            used = (daemons[name].cpu_seconds - cpu[name]) / seconds * 100
            rows.append((name, f"{first:.1f} MB", f"{last:.1f} MB", f"{max(series):.1f} MB", f"{used:.2f} %"))
        show(
            f"Soak: {seconds / 60:.1f} minutes, {int(seconds // options.interval)} rotations, {number} writes of {min(number, RECORDS)} records",
            ("box", "memory, first tenth", "last tenth", "most", "core"),
            rows,
        )
        ordered = sorted(delays)
        print(
            f"  record to all boxes: median {ordered[len(ordered) // 2] * 1000:.0f} ms, most {ordered[-1] * 1000:.0f} ms"
        )
        print(f"  lost records: {len(lost_records)} {sorted(lost_records)[:5]}")
        print(f"  lost peers: {len(lost_peers)} {sorted(lost_peers)[:5]}")
    sys.exit(bool(lost_records or lost_peers))


if __name__ == "__main__":
    main()
