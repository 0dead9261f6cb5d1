"""Real daemons on a link that breaks: partitions, restarts, rotations, packets between them."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from provider_kairos.token.codec import encode, generate

pytestmark = pytest.mark.root

_SPEC = importlib.util.spec_from_file_location("daemon_process", Path(__file__).parent / "daemon_process.py")
assert _SPEC
assert _SPEC.loader
daemon_process = importlib.util.module_from_spec(_SPEC)
sys.modules["daemon_process"] = daemon_process
_SPEC.loader.exec_module(daemon_process)
DaemonProcess = daemon_process.DaemonProcess

LONG = bool(os.environ.get("KAIROS_P2P_SOAK"))
"""The whole of what takes minutes: fifty restarts, two minutes of rotations."""


@pytest.fixture
def boxes(make_namespaces, tmp_path):
    """``boxes(n, token)`` starts n daemons, each in a namespace; ``.box`` is its namespace."""
    made = []

    def start(count, token=None, **environ):
        token = token or encode(generate())
        for number, box in enumerate(make_namespaces(count)):
            daemon = DaemonProcess(tmp_path / f"box{number}", token, box.argv([]), **environ)
            daemon.box = box
            made.append(daemon.start())
        for daemon in made:
            daemon.answers()
        return made

    yield start
    for daemon in made:
        daemon.kill()


def address(daemon):
    return daemon.address().split("/")[0]


def peers(daemon):
    return {peer["peer_id"] for peer in daemon.status()["peers"] if peer["connected"] and peer["on_topic"]}


def together(daemons):
    names = {daemon.status()["peer_id"] for daemon in daemons}
    for daemon in daemons:
        daemon.until(lambda daemon=daemon: peers(daemon) >= names - {daemon.status()["peer_id"]}, "all peers")


def ping(daemon, to, *options):
    """What ping prints."""
    printed: str = daemon.box.run(
        sys.executable,
        "-c",
        "import sys; from provider_kairos.lab.ping import main; sys.exit(main())",
        *options,
        to,
        check=False,
    )
    return printed


def reaches(daemon, to, *options):
    return re.search(r"(\d+) received", ping(daemon, to, "-c", "2", "-i", "0.2", "-W", "2", *options))[1] == "2"  # type: ignore[index]


SERVER = """
import socket, sys, hashlib
listener = socket.create_server((sys.argv[1], 7000))
print("ready", flush=True)
connection, _ = listener.accept()
digest, total = hashlib.sha256(), 0
while data := connection.recv(65536):
    digest.update(data)
    total += len(data)
print(total, digest.hexdigest(), flush=True)
"""
CLIENT = """
import socket, sys, time, hashlib, random
connection = socket.create_connection((sys.argv[1], 7000), timeout=120)
digest, rng = hashlib.sha256(), random.Random(1)
for _ in range(int(sys.argv[2])):
    data = rng.randbytes(16384)
    digest.update(data)
    connection.sendall(data)
    time.sleep(0.02)
connection.close()
print(digest.hexdigest(), flush=True)
"""


def test_packets_of_every_size_pass_and_go_on_after_the_interface_was_made_anew(boxes):
    one, two = boxes(2)
    there = address(two)
    address(one)
    one.until(lambda: reaches(one, there), "a ping")
    for size in ("0", "1172", "4000", "20000"):
        assert reaches(one, there, "-s", size), size
    two.box.run("ip", "link", "del", "edgevpn0")
    one.until(lambda: reaches(one, there), "a ping after the interface was made anew")
    assert reaches(two, address(one))
    rtt = ping(one, there, "-c", "50", "-i", "0.05", "-q").splitlines()[-1]
    print(rtt)
    for daemon in (one, two):
        assert not daemon.lines("Traceback")


def test_tcp_survives_a_link_that_breaks_for_longer_than_the_connection_lives(boxes):
    one, two = boxes(2)
    there = address(two)
    address(one)
    one.until(lambda: reaches(one, there), "a ping")
    server = two.box.popen(sys.executable, "-c", SERVER, there, stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "ready\n"
    client = one.box.popen(sys.executable, "-c", CLIENT, there, "200", stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    two.box.run("ip", "link", "set", "eth0", "down")
    one.until(lambda: not peers(one), "the connection's end")
    two.box.run("ip", "link", "set", "eth0", "up")
    sent = client.communicate(timeout=120)[0].strip()
    total, received = server.communicate(timeout=120)[0].split()
    assert (int(total), received) == (200 * 16384, sent)


def test_a_peer_that_vanishes_is_unreachable_soon_and_back_when_it_is_back(boxes):
    one, two = boxes(2)
    there = address(two)
    address(one)
    one.until(lambda: reaches(one, there), "a ping")
    two.box.run("ip", "link", "set", "eth0", "down")  # no FIN, no RST
    two.kill()
    one.until(lambda: not peers(one), "the loss")
    probe = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], 80), timeout=30)\n"
        "except OSError as error: print(type(error).__name__, error.errno)\n"
    )
    assert one.box.python(probe, "10.1.0.254").split()[-1] == "113"  # EHOSTUNREACH: nobody has it
    one.until(lambda: one.box.python(probe, there).split()[-1] == "113", "EHOSTUNREACH")
    two.box.run("ip", "link", "set", "eth0", "up")
    two.start().answers()
    assert address(two) == there
    together([one, two])
    one.until(lambda: reaches(one, there), "a ping")


def test_both_sides_of_a_partition_go_on_and_agree_when_it_heals(boxes):
    one, two, three = daemons = boxes(3)
    before = [address(daemon) for daemon in daemons]
    together(daemons)
    three.box.run("ip", "link", "set", "eth0", "down")
    one.until(lambda: len(peers(one)) == 1, "the loss")
    for number, daemon in enumerate(daemons):
        daemon.put("mine", f"during-{number}", number)
        daemon.put("mine", "same", number)
    three.box.run("ip", "link", "set", "eth0", "up")
    together(daemons)
    one.until(lambda: one.bucket("mine") == two.bucket("mine") == three.bucket("mine"), "one view")
    assert {f"during-{number}" for number in range(3)} <= set(one.bucket("mine"))
    assert [address(daemon) for daemon in daemons] == before


def test_two_nodes_that_hold_one_address_after_a_partition_end_with_two(make_namespaces, tmp_path):
    plain = generate()
    token = encode(plain)
    from provider_kairos.daemon.lease_file import LeaseFile

    daemons = []
    for number, box in enumerate(make_namespaces(2)):
        daemon = DaemonProcess(tmp_path / f"box{number}", token, box.argv([]))
        daemon.box = box
        LeaseFile(daemon.state / "lease", plain).write("10.1.0.20")
        daemons.append(daemon)
    one, two = daemons
    try:
        two.box.run("ip", "link", "set", "eth0", "down")
        one.start().answers()
        two.start().answers()
        assert address(one) == address(two) == "10.1.0.20"
        two.box.run("ip", "link", "set", "eth0", "up")
        together(daemons)
        one.until(lambda: address(one) != address(two), "two addresses")
        assert "10.1.0.20" in {address(one), address(two)}
        one.until(lambda: reaches(one, address(two)) and reaches(two, address(one)), "a ping both ways")
        one.until(lambda: set(one.bucket("machines")) == {address(one), address(two)}, "the right machines")
    finally:
        for daemon in daemons:
            daemon.kill()


def test_restarts_of_a_neighbour_leave_nothing_behind(boxes, capsys):
    one, two = boxes(2)
    address(one)
    address(two)
    together([one, two])
    rounds = 50 if LONG else 6
    figures = []
    for number in range(rounds):
        two.signal(signal.SIGTERM if number % 2 else signal.SIGKILL)
        two.wait()
        two.start().answers()
        together([one, two])
        figures.append((one.rss_mb, one.descriptors))
    assert len(one.status()["peers"]) == 1
    one.until(lambda: one.descriptors <= figures[0][1] + 4, "closed sockets")
    with capsys.disabled():
        print(
            f"\n{rounds} restarts: memory {figures[0][0]:.1f} -> {figures[-1][0]:.1f} MB, sockets {figures[0][1]} -> "
            f"{one.descriptors}"
        )
    assert figures[-1][0] < figures[0][0] + 10
    assert not one.lines("Traceback")


def test_every_write_arrives_through_rotations(boxes, capsys):
    """A boundary every three seconds: topic and key change while both sides write."""
    one, two = boxes(2, encode(generate(3)), KAIROS_P2P_VPN="false")
    together([one, two])
    ends = time.monotonic() + (120 if LONG else 15)
    delays, number = [], 0
    while time.monotonic() < ends:
        writer, reader = (one, two) if number % 2 else (two, one)
        key = f"k{number % 50}-{number}"
        writer.put("mine", key, number)
        wrote = time.monotonic()
        reader.until(lambda reader=reader, key=key: key in reader.bucket("mine"), key)
        delays.append(time.monotonic() - wrote)
        number += 1
        time.sleep(0.15)
    delays.sort()
    with capsys.disabled():
        print(
            f"\n{number} writes through rotations of 3 s: median {delays[number // 2] * 1000:.0f} ms, "
            f"99th {delays[number * 99 // 100] * 1000:.0f} ms, slowest {delays[-1] * 1000:.0f} ms"
        )
    assert len(one.bucket("mine")) == number
    counters = one.status()["counters"]
    assert not counters.get("host_restarts")
