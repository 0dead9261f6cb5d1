"""Services and files between three nodes of ours over a real network: much data, slow and rude ends, power cuts.

The far node exposes, two others connect; commands are started as a user starts them. Limits are held against what the
processes really use. The servers behind the services are threads in the far namespace.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.token.codec import encode, generate
from tests.interop.network import until
from tests.interop.service_commands import Command
from tests.net.conftest import _cannot, namespaces

pytestmark = pytest.mark.root

SERVICES = {"echo": 7001, "digest": 7002, "pour": 7003, "abort": 7004, "watch": 7005}
MEGABYTE = 1 << 20

SERVERS = """
import hashlib, socket, struct, sys, threading
poured = 0
def echo(c):
    while data := c.recv(1 << 16): c.sendall(data)
def digest(c):  # needs the client's end to answer
    found = hashlib.sha256()
    while data := c.recv(1 << 16): found.update(data)
    c.sendall(found.hexdigest().encode())
def pour(c):
    global poured
    poured = 0
    block = bytes(range(256)) * 256
    while True: poured += c.send(block)
def abort(c):
    c.recv(1)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
def watch(c):  # says how the client's connection ended
    try:
        c.sendall(b"ready")
        while c.recv(1 << 16): pass
        print("ended", flush=True)
    except OSError as error: print("reset", flush=True)
def run(work, c):
    try: work(c)
    except OSError: pass
    finally: c.close()
def serve(work, port):
    s = socket.create_server(("127.0.0.1", port))
    while True: threading.Thread(target=run, args=(work, s.accept()[0]), daemon=True).start()
for name, port in (pair.split("=") for pair in sys.argv[1:]):
    threading.Thread(target=serve, args=(globals()[name], int(port)), daemon=True).start()
print("serving", flush=True)
for line in sys.stdin: print(poured, flush=True)
"""


class Network:
    """Three nodes' commands and the servers."""

    def __init__(self, make: Any, home: Path) -> None:
        self.far, self.near, self.third = self.spaces = make(3)
        self.home = home
        self.token = encode(generate())
        self.servers = self.far.popen(
            sys.executable,
            "-c",
            SERVERS,
            *(f"{name}={port}" for name, port in SERVICES.items()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.servers.stdout.readline() == "serving\n"
        self.exposer = self.expose()
        pairs = [word for name, port in SERVICES.items() for word in (name, f"127.0.0.1:{port}")]
        self.connectors = [
            self.command(space, "service", "connect", *pairs).start() for space in (self.near, self.third)
        ]
        for space in (self.near, self.third):
            until(lambda space=space: talk(space, "echo", b"ping") == b"ping", "a service is reached")

    def expose(self) -> Command:
        """The far node, the same one each time."""
        pairs = [word for name, port in SERVICES.items() for word in (name, f"127.0.0.1:{port}")]
        key = {"EDGEVPNPRIVKEYCACHE": "true", "EDGEVPNPRIVKEYCACHEDIR": str(self.home / "key")}
        return self.command(self.far, "service", "add", *pairs, **key).start()

    def command(self, space: Any, *words: str, **environment: str) -> Command:
        home = self.home / f"command{len(list(self.home.iterdir()))}"
        home.mkdir()
        return Command(space, home, self.token, words, environment=environment)

    def poured(self) -> int:
        """Bytes that the pouring server's kernel has taken."""
        self.servers.stdin.write("\n")
        self.servers.stdin.flush()
        return int(self.servers.stdout.readline())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if reason := _cannot():
        pytest.skip(reason)
    with namespaces() as make:
        yield Network(make, tmp_path_factory.mktemp("services"))


def dial(space: Any, service: str) -> socket.socket:
    with space.entered():
        stream = socket.create_connection(("127.0.0.1", SERVICES[service]), 60)
    stream.settimeout(60)
    return stream


def read_to_end(stream: socket.socket) -> bytes:
    found = bytearray()
    while data := stream.recv(1 << 16):
        found += data
    return bytes(found)


def talk(space: Any, service: str, data: bytes) -> bytes:
    """Send and half-close in one thread, read to the end in this one."""
    with dial(space, service) as stream:

        def send() -> None:
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            return read_to_end(stream)
        finally:
            sender.join()


def memory(command: Command) -> int:
    """Resident bytes."""
    assert command.process is not None
    text = Path(f"/proc/{command.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


def test_many_megabytes_both_ways_from_two_nodes_at_once(network: Network):
    data = os.urandom(8 * MEGABYTE)
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(talk, space, "echo", data) for space in (network.near, network.third) for _ in range(2)]
        wanted = hashlib.sha256(data).digest()
        assert [hashlib.sha256(answer.result()).digest() for answer in answers] == [wanted] * 4


def test_an_answer_that_needs_the_clients_end_arrives(network: Network):
    data = os.urandom(5 * MEGABYTE)
    assert talk(network.near, "digest", data).decode() == hashlib.sha256(data).hexdigest()


def test_a_reader_that_does_not_read_costs_a_window_and_delays_nobody(network: Network):
    processes = [network.exposer, network.connectors[0]]
    before = [memory(command) for command in processes]
    with dial(network.near, "pour") as slow:
        assert slow.recv(1)
        seen = [-1]

        def stands_still() -> bool:
            seen.append(network.poured())
            return seen[-1] == seen[-2]

        until(stands_still, "the server is held up")
        grown = [memory(command) - was for command, was in zip(processes, before, strict=True)]
        assert max(grown) < 24 * MEGABYTE, f"resident memory grew by {grown} bytes"
        # the same two nodes go on serving others meanwhile
        assert talk(network.near, "echo", b"in between") == b"in between"
        # and what was held up arrives in order once it is read
        total, place = seen[-1] + 4 * MEGABYTE, 1
        while place < total:
            data = slow.recv(1 << 20)
            assert data == bytes((place + offset) % 256 for offset in range(min(len(data), 256))) + data[256:]
            place += len(data)
    assert network.poured() < 200 * MEGABYTE


def test_a_servers_reset_reaches_the_client(network: Network):
    with dial(network.near, "abort") as stream:
        stream.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            read_to_end(stream)


@pytest.mark.parametrize(("lingers", "words"), [(False, "reset\n"), (True, "ended\n")])
def test_a_clients_end_reaches_the_server_as_what_it_was(network: Network, lingers: bool, words: str):
    stream = dial(network.near, "watch")
    assert stream.recv(5) == b"ready"
    if not lingers:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()
    assert network.servers.stdout.readline() == words


def test_a_killed_exposer_resets_its_clients_and_serves_them_again_under_its_name(network: Network):
    with dial(network.near, "echo") as stream:
        stream.sendall(b"alive")
        assert stream.recv(5) == b"alive"
        network.exposer.end(signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            read_to_end(stream)
    network.exposer = network.expose()

    def again() -> bool:
        try:
            return talk(network.near, "echo", b"ping") == b"ping" == talk(network.third, "echo", b"ping")
        except ConnectionError:
            return False

    until(again, "the service is back")


def test_a_file_goes_on_after_sender_and_receiver_were_killed(network: Network, tmp_path: Path):
    data = os.urandom(12 * MEGABYTE)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    part = tmp_path / "target.part"
    # slow enough that both can be killed in the middle
    network.far.run(
        "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "100mbit", "burst", "64k", "latency", "50ms"
    )
    key = {"EDGEVPNPRIVKEYCACHE": "true", "EDGEVPNPRIVKEYCACHEDIR": str(tmp_path / "key")}

    def size() -> int:
        return part.stat().st_size if part.exists() else 0

    try:
        sender = network.command(network.far, "file", "send", "image", str(source), **key).start()
        receiver = network.command(network.third, "file", "receive", "image", str(target), "--json").start()
        until(lambda: size() > MEGABYTE, "the file is on its way")
        sender.end(signal.SIGKILL)
        network.command(network.far, "file", "send", "image", str(source), **key).start()
        receiver.says("going on at byte ")
        until(lambda: size() > 3 * MEGABYTE, "it goes on")
        receiver.end(signal.SIGKILL)
        assert not target.exists()
    finally:
        network.far.run("tc", "qdisc", "del", "dev", "eth0", "root")
    receiver = network.command(network.third, "file", "receive", "image", str(target), "--json").start()
    assert receiver.wait() == 0, receiver.log
    found = re.search(r'"resumed_at": (\d+)', receiver.log)
    assert found is not None
    assert int(found[1]) > 3 * MEGABYTE
    assert '"verified": true' in receiver.log
    assert target.read_bytes() == data
    assert not part.exists()
