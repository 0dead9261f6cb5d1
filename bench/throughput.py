"""Bulk TCP and round trips through the VPN, beside the bare link in the same run."""

from __future__ import annotations

import re
import sys
import time

from bench.boxes import Lab, lab
from bench.formation import config
from bench.table import show

SINK = """
import socket, sys, time
s = socket.create_server((sys.argv[1], 7000)); print("ready", flush=True)
c, _ = s.accept(); n = 0; began = time.perf_counter(); buffer = bytearray(1 << 20)
while (k := c.recv_into(buffer)): n += k
print(n / (time.perf_counter() - began) * 8 / 1e6, flush=True)
"""
SOURCE = """
import socket, sys, time
c = socket.create_connection((sys.argv[1], 7000)); end = time.perf_counter() + float(sys.argv[2]); data = bytes(1 << 16)
while time.perf_counter() < end: c.sendall(data)
"""


def bulk(boxes: Lab, source: str, sink: str, address: str, seconds: float = 8) -> float:
    """Megabits per second that arrived."""
    receiver = boxes.popen(sink, sys.executable, "-c", SINK, address)
    assert receiver.stdout is not None
    receiver.stdout.readline()
    boxes.exec(source, sys.executable, "-c", SOURCE, address, str(seconds))
    return float(receiver.stdout.readline())


def round_trip(boxes: Lab, source: str, address: str) -> float:
    """Median-like milliseconds of 20 pings (ping's average)."""
    text = boxes.exec(source, "ping", "-c", "20", "-i", "0.1", address)
    found = re.search(r"= [\d.]+/([\d.]+)/", text)
    return float(found[1]) if found else float("nan")


def main() -> None:
    with lab("benchbulk", 2, config()) as (boxes, document):
        time.sleep(2)
        first, second = document["boxes"]
        lan = boxes.lan_address(second["name"])
        rows = []
        figures = {}
        for name, address in (("bare link (veth, bridge)", lan), ("VPN, packet stream", second["address"])):
            figures[name] = (
                bulk(boxes, first["name"], second["name"], address),
                round_trip(boxes, first["name"], address),
            )
        bare = figures["bare link (veth, bridge)"]
        for name, (speed, delay) in figures.items():
            rows.append((name, f"{speed:.0f} Mbit/s", f"{speed / bare[0]:.4f}", f"{delay:.2f} ms"))
        rows.append(("EdgeVPN v0.35.4, recorded elsewhere", "33 - 49 Mbit/s", "0.0025", "0.86 - 1.15 ms"))
        show("One TCP stream between two boxes", ("path", "speed", "ratio to bare", "round trip"), rows)


if __name__ == "__main__":
    main()
