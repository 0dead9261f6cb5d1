"""Throughput of a service tunnel, both ways, between every pair of programs, beside the bare link: ``python -m bench.tunnel``.

Two namespaces on a bridge. The server behind the service swallows or pours for some seconds; the client counts, after a
second in which buffers fill. All pairs take turns, so that what else the machine does meets all of them. EDGEVPN_BIN names EdgeVPN.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers import need
from bench.table import show
from provider_kairos.token.codec import encode, generate
from tests.interop.network import NEW, until
from tests.interop.service_commands import Command, service
from tests.net.conftest import namespaces

SERVER = """
import socket, sys, threading
s = socket.create_server((sys.argv[1], 7000)); print("ready", flush=True)
def serve(c):
    try:
        if c.recv(1) == b"u":
            n, buffer = 0, bytearray(1 << 20)
            while (k := c.recv_into(buffer)): n += k
            c.sendall(b"%d" % n)
        else:
            data = bytes(1 << 16)
            while True: c.sendall(data)
    except OSError: pass
    finally: c.close()
while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""
CLIENT = """
import socket, sys, time
host, port, way, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
c = socket.create_connection((host, port)); c.sendall(way.encode()); data = bytes(1 << 16); buffer = bytearray(1 << 20)
warm = time.perf_counter() + 1; began, n = None, 0; end = warm + seconds
while (now := time.perf_counter()) < end:
    k = c.send(data) if way == "u" else c.recv_into(buffer)
    if not k: sys.exit("closed early")
    if now >= warm:
        began = began or now; n += k
print(n / (time.perf_counter() - began) * 8 / 1e6)
"""
PAIRS = (("ours", "ours"), ("ours", "EdgeVPN"), ("EdgeVPN", "ours"), ("EdgeVPN", "EdgeVPN"))


def measure(space: Any, host: str, port: int, way: str, seconds: float) -> float:
    """Megabits per second of one connection; 0 when it broke."""
    done = subprocess.run(
        space.argv([sys.executable, "-c", CLIENT, host, str(port), way, str(seconds)]),
        capture_output=True,
        text=True,
        timeout=seconds + 60,
    )
    return float(done.stdout) if done.returncode == 0 else 0.0


def processor(*commands: Command) -> float:
    """Seconds of processor time that the programs have used."""
    total = 0
    for command in commands:
        assert command.process is not None
        fields = Path(f"/proc/{command.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def answers(space: Any, port: int) -> bool:
    """Whether a connection through the tunnel lives."""
    with space.entered():
        stream = socket.create_connection(("127.0.0.1", port), 5)
    with stream:
        stream.settimeout(5)
        stream.sendall(b"d")
        return bool(stream.recv(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    options = parser.parse_args()
    need(NEW)
    programs = {"ours": "", "EdgeVPN": NEW}
    found: dict[tuple[str, str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, namespaces() as make:
        far, near = make(2)
        server = far.popen(sys.executable, "-c", SERVER, "0.0.0.0", stdout=subprocess.PIPE)
        assert server.stdout is not None
        server.stdout.readline()
        running: dict[tuple[str, str], tuple[Command, Command]] = {}
        costs: dict[tuple[str, str], list[float]] = {}
        ports = {}
        token = encode(generate())
        for number, (exposer, connector) in enumerate(PAIRS):
            ports[exposer, connector] = port = 7100 + number
            home, name = Path(folder) / str(number), f"pair{number}"
            running[exposer, connector] = (
                service(far, home / "a", token, name, "127.0.0.1:7000", go=programs[exposer]),
                service(near, home / "c", token, name, f"127.0.0.1:{port}", go=programs[connector], connect=True),
            )
        for pair, port in ports.items():
            until(lambda port=port: answers(near, port), f"{pair} answers", 120)
        for _ in range(options.rounds):
            for way in ("u", "d"):
                found.setdefault(("bare link", "", way), []).append(
                    measure(near, far.address, 7000, way, options.seconds)
                )
                for pair, port in ports.items():
                    before = processor(*running[pair])
                    speed = measure(near, "127.0.0.1", port, way, options.seconds)
                    gigabytes = speed * (options.seconds + 1) / 8000
                    found.setdefault((*pair, way), []).append(speed)
                    costs.setdefault(pair, []).append((processor(*running[pair]) - before) / max(gigabytes, 1e-9))
                    time.sleep(0.2)
        for exposing, connecting in running.values():
            exposing.end()
            connecting.end()
    base = {way: median(found["EdgeVPN", "EdgeVPN", way]) for way in ("u", "d")}
    rows = []
    for exposer, connector in (("bare link", ""), *PAIRS):
        up, down = (median(found[exposer, connector, way]) for way in ("u", "d"))
        rows.append(
            (
                f"{exposer} exposes, {connector} connects" if connector else exposer,
                f"{up:.0f} Mbit/s",
                f"{up / base['u']:.2f}",
                f"{down:.0f} Mbit/s",
                f"{down / base['d']:.2f}",
                f"{median(costs[exposer, connector]):.1f} s" if connector else "",
            )
        )
    show(
        f"One TCP connection through a service (median of {options.rounds} x {options.seconds:g} s)",
        ("path", "to the service", "ratio", "from the service", "ratio", "processor time per GB, both ends"),
        rows,
    )


if __name__ == "__main__":
    main()
