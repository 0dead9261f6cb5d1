"""Services, files and egress beside the real EdgeVPN, each in both directions, v0.35.4 and v0.30.2.

Each test is a network of its own (another token) in namespaces that all share; commands of both programs are started
with EdgeVPN's words. v0.30.2's ``proxy`` has no row: it answers with its own API pages and never asks an egress node
(spec/edgevpn.md 17 on 8.5).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.token.codec import encode, generate
from tests.interop.network import NEW, OLD, cannot, until
from tests.interop.service_commands import Command
from tests.net.conftest import namespaces

pytestmark = pytest.mark.root

both = pytest.mark.parametrize(("version", "mode"), [(NEW, "enforce"), (OLD, "off")], ids=[NEW, OLD])
DATA = os.urandom(1 << 20)

# Behind every service: a line `pieces` is answered in ten pieces, a while apart; anything else is echoed until its end.
SERVER = """
import socket, sys, threading, time
s = socket.create_server((sys.argv[1], int(sys.argv[2]))); print("ready", flush=True)
def serve(c):
    with c:
        first = c.recv(65536)
        if first.startswith(b"pieces"):
            for number in range(10): c.sendall(b"piece %d\\n" % number); time.sleep(0.2)
            return
        while first: c.sendall(first); first = c.recv(65536)
while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""
# Sends what is on standard input, half-closes when told to, prints what comes back.
CLIENT = """
import socket, sys, threading
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60); data = sys.stdin.buffer.read(); got = bytearray()
def send():
    c.sendall(data)
    if sys.argv[2] == "half-close": c.shutdown(socket.SHUT_WR)
t = threading.Thread(target=send); t.start()
while len(got) < int(sys.argv[3]) and (more := c.recv(65536)): got += more
sys.stdout.buffer.write(got)
"""
WEB = """
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        text = f"{self.requestline}\\n{self.headers}".encode() + body
        self.send_response(404 if "missing" in self.path else 200)
        self.send_header("Content-Length", str(len(text))); self.end_headers(); self.wfile.write(text)
    do_POST = do_GET
    def log_message(self, *_): pass
class Server(socketserver.ThreadingMixIn, socketserver.TCPServer): allow_reuse_address = True; daemon_threads = True
with Server((sys.argv[1], 80), Handler) as server: print("ready", flush=True); server.serve_forever()
"""
# One request through a proxy, as it is; prints the whole answer.
ASK = """
import socket, sys
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60); c.sendall(sys.stdin.buffer.read()); c.settimeout(60)
try:
    while data := c.recv(65536): sys.stdout.buffer.write(data)
except OSError as error: print("broken:", error)
"""


class Place:
    """Three namespaces, a server behind every service in the first, a web server in the last."""

    def __init__(self, make: Any, home: Path) -> None:
        self.far, self.near, self.web = make(3)
        self.home = home
        self.runs = 0
        for space, code, *args in (
            (self.far, SERVER, "127.0.0.1", "7000"),
            (self.web, WEB, self.web.address),
        ):
            process = space.popen(sys.executable, "-c", code, *args, stdout=subprocess.PIPE)
            assert process.stdout.readline() == b"ready\n"

    def network(self, version: str, mode: str) -> Network:
        if reason := cannot(version):
            pytest.skip(reason)
        self.runs += 1
        return Network(self, version, mode, self.home / str(self.runs))


class Network:
    """Commands with one token."""

    def __init__(self, place: Place, version: str, mode: str, home: Path) -> None:
        self.place, self.version, self.mode, self.home = place, version, mode, home
        self.token = encode(generate())
        self.commands: list[Command] = []

    def start(self, space: Any, *words: str, go: bool, **environment: str) -> Command:
        """One command of either program."""
        home = self.home / str(len(self.commands))
        command = Command(
            space, home, self.token, words, self.version if go else "", {"EDGEVPNOWNERSHIP": self.mode, **environment}
        )
        self.commands.append(command.start())
        return command

    def end(self) -> None:
        for command in self.commands:
            command.end()

    def talk(self, port: int, data: bytes, *, half_close: bool = False, expect: int = 0) -> bytes:
        """What comes back through a local port near by; until the end, or ``expect`` bytes."""
        argv = [sys.executable, "-c", CLIENT, str(port), "half-close" if half_close else "", str(expect or 1 << 40)]
        done = subprocess.run(self.place.near.argv(argv), input=data, capture_output=True, timeout=120)
        return done.stdout

    def ask(self, port: int, request: str) -> bytes:
        argv = [sys.executable, "-c", ASK, str(port)]
        return subprocess.run(
            self.place.near.argv(argv), input=request.encode(), capture_output=True, timeout=120
        ).stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if all(cannot(version) for version in (NEW, OLD)):
        pytest.skip(cannot(NEW))
    with namespaces() as make:
        yield Place(make, tmp_path_factory.mktemp("services"))


@pytest.fixture
def network(place: Place, version: str, mode: str) -> Iterator[Network]:
    found = place.network(version, mode)
    yield found
    found.end()


# --- services --------------------------------------------------------------------------------------------------------


def tunnel(network: Network, port: int, *, exposer_is_go: bool) -> None:
    """Start both ends and wait until bytes come through."""
    network.start(network.place.far, "service-add", "--name", "echo", "--address", "127.0.0.1:7000", go=exposer_is_go)
    network.start(
        network.place.near,
        "service-connect",
        "--name",
        "echo",
        "--address",
        f"127.0.0.1:{port}",
        go=not exposer_is_go,
    )
    until(lambda: network.talk(port, b"ping", expect=4) == b"ping", "the tunnel answers")


@pytest.mark.row("services", "theirs reached by ours, whole answers also after a half-close")
@both
def test_a_service_of_edgevpns_is_reached(network: Network, seen: Callable[[str], None]) -> None:
    tunnel(network, 7101, exposer_is_go=True)
    assert network.talk(7101, DATA, expect=len(DATA)) == DATA
    pieces = b"".join(b"piece %d\n" % number for number in range(10))
    assert network.talk(7101, b"pieces\n", half_close=True) == pieces
    seen("1 MiB each way; an answer that takes 2 s after the client's end")


@pytest.mark.row("services", "ours reached by theirs, to the end of the server")
@both
def test_a_service_of_ours_is_reached(network: Network, seen: Callable[[str], None]) -> None:
    tunnel(network, 7102, exposer_is_go=False)
    assert network.talk(7102, DATA, expect=len(DATA)) == DATA
    assert network.talk(7102, b"pieces\n") == b"".join(b"piece %d\n" % number for number in range(10))
    seen("1 MiB each way; the server's end reaches the client")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.row("files", "theirs received by ours, said to be unverified")
@both
def test_a_file_of_edgevpns_is_received(network: Network, tmp_path: Path, seen: Callable[[str], None]) -> None:
    (tmp_path / "source").write_bytes(DATA)
    network.start(network.place.far, "file-send", "--name", "image", "--path", str(tmp_path / "source"), go=True)
    receiver = network.start(
        network.place.near, "file-receive", "--name", "image", "--path", str(tmp_path / "got"), go=False
    )
    assert receiver.wait() == 0, receiver.log
    assert (tmp_path / "got").read_bytes() == DATA
    assert hashlib.sha256(DATA).hexdigest() in receiver.log
    assert "not verified" in receiver.log
    seen("1 MiB")


@pytest.mark.row("files", "ours received by theirs")
@both
def test_a_file_of_ours_is_received(network: Network, tmp_path: Path, seen: Callable[[str], None]) -> None:
    (tmp_path / "source").write_bytes(DATA)
    network.start(network.place.far, "file-send", "--name", "image", "--path", str(tmp_path / "source"), go=False)
    receiver = network.start(
        network.place.near, "file-receive", "--name", "image", "--path", str(tmp_path / "got"), go=True
    )
    assert receiver.wait() == 0, receiver.log
    assert (tmp_path / "got").read_bytes() == DATA
    seen("1 MiB")


# --- egress ----------------------------------------------------------------------------------------------------------


def get(address: str, path: str = "/x?y=1") -> str:
    return f"GET http://{address}{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"


@pytest.mark.row("egress", "theirs behind our proxy: http; https refused in words")
@both
def test_an_egress_of_edgevpns_behind_our_proxy(network: Network, seen: Callable[[str], None]) -> None:
    web = network.place.web.address
    network.start(network.place.far, "--address", "10.1.0.1/24", "--egress", go=True)
    network.start(network.place.near, "proxy", "--listen", "127.0.0.1:7103", go=False)
    until(lambda: network.ask(7103, get(web)).startswith(b"HTTP/1.1 200"), "the proxy answers")
    assert b"GET /x?y=1 HTTP/1.1" in network.ask(7103, get(web))
    assert network.ask(7103, get(web, "/missing")).startswith(b"HTTP/1.1 404")
    body = f"POST http://{web}/p HTTP/1.1\r\nHost: {web}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nabcde"
    assert network.ask(7103, body).endswith(b"abcde")
    refused = network.ask(7103, f"CONNECT {web}:80 HTTP/1.1\r\nHost: {web}:80\r\nConnection: close\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 501")
    assert network.ask(7103, get(f"{web}:81")).startswith(b"HTTP/1.1 502")
    seen("GET, POST, 404; CONNECT 501; nothing listens: 502")


@pytest.mark.row("egress", "ours behind their proxy: http; CONNECT and closed addresses refused in words")
@pytest.mark.parametrize(("version", "mode"), [(NEW, "enforce")], ids=[NEW])
def test_our_egress_behind_edgevpns_proxy(network: Network, seen: Callable[[str], None]) -> None:
    web = network.place.web.address
    network.start(
        network.place.far,
        "daemon",
        go=False,
        EGRESS="true",
        KAIROS_P2P_VPN="false",
        API="false",
        KAIROS_P2P_STATE_DIR=str(network.home / "state"),
    )
    network.start(network.place.near, "proxy", "--listen", "127.0.0.1:7104", go=True)
    until(lambda: network.ask(7104, get(web)).startswith(b"HTTP/1.1 200"), "the proxy answers")
    assert b"GET /x?y=1 HTTP/1.1" in network.ask(7104, get(web))
    assert network.ask(7104, get(web, "/missing")).startswith(b"HTTP/1.1 404")
    refused = network.ask(7104, f"CONNECT {web}:80 HTTP/1.1\r\nHost: {web}:80\r\nConnection: close\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 501")
    closed = network.ask(7104, get("127.0.0.1:7000"))
    assert closed.startswith(b"HTTP/1.1 403")
    assert b"loopback" in closed
    seen("GET, 404; CONNECT 501; loopback 403")
