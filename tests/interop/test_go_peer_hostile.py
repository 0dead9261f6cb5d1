"""Members without manners: what they send is refused or bounded, counted in status, and honest nodes keep converging.

Two daemons of ours and an honest Go peer share a network with a Go peer that is told to misbehave. It speaks the real
protocols on the real stack, so that everything reaches the code that a malicious member would reach.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from provider_kairos.mesh.wire import encode_delimited, encode_varint
from provider_kairos.token.codec import decode, encode, generate
from tests.interop.go_peer import GoError, data_of
from tests.interop.network import PATIENCE, Node, Site, until
from tests.interop.test_go_peer import ENFORCE, listen_address

pytestmark = pytest.mark.root


class Crowd:
    """The honest ones. ``space`` is where the hostile one lives."""

    def __init__(self, site: Site, go, space) -> None:
        self.site, self.go, self.space = site, go, space
        self.ours: list[Node] = site.ours[:2]
        self.round = 0

    def converge(self, *, go=True, patience=PATIENCE):
        """A fresh write of each honest node is seen by every honest node. Without ``go``: by ours."""
        self.round += 1
        names = {f"{self.round}-{node.name}" for node in self.ours}
        for node, name in zip(self.ours, sorted(names), strict=True):
            node.put("honest", name, name)
        if go:
            names.add(f"{self.round}-go")
            self.go.do("put", bucket="honest", key=f"{self.round}-go", value="x", patience=patience)
        self.have(names, go=go, patience=patience)

    def have(self, names, *, go=True, patience=PATIENCE):
        for node in self.ours:
            until(lambda node=node: names <= set(node.bucket("honest")), f"{node.name} has {names}", patience)
        if go:
            self.go.until(
                lambda: all(self.go.value("honest", name) for name in names), f"the Go peer has {names}", patience
            )

    def counters(self):
        return [dict(node.get("/api/v1/status")["counters"]) for node in self.ours]

    def counted(self, before, *names):
        """Wait until one of the counters grew at each of ours."""

        def grew():
            return all(
                any(now.get(name, 0) > then.get(name, 0) for name in names)
                for now, then in zip(self.counters(), before, strict=True)
            )

        until(grew, f"counters {names} at both; they were {before}")

    def meet(self, hostile):
        for node in self.ours:
            hostile.connect(listen_address(node))
        (address,) = [each for each in self.go.addrs if "/10.77.0." in each]
        hostile.connect(address)
        return hostile

    def alive(self):
        for node in self.ours:
            assert node.process
            assert node.process.poll() is None


def crowd_of(site, make_go_peer, **ledger):
    for node in site.ours[:2]:
        node.start()
    space = site.ours[2].space
    go = make_go_peer(space, token=site.token, mdns=True, ledger={**ENFORCE, "sync": 2, "heartbeat": 2, **ledger})
    crowd = Crowd(site, go, site.ours[3].space)
    go.until(lambda: {node.peer for node in crowd.ours} <= go.room(), "the Go peer has found both")
    go.do("sync")
    for node in crowd.ours:
        until(lambda node=node: go.id in node.heartbeats(), f"{node.name} has the Go peer's heartbeat")
    return crowd


@pytest.fixture(scope="module")
def crowd(make_lasting_site, make_lasting_go_peer):
    """One network for the attacks that leave nothing behind."""
    return crowd_of(make_lasting_site(0, 4, vpn=False, heartbeat=5), make_lasting_go_peer)


@pytest.fixture
def hostile(crowd, go_peer):
    """A member of the network, connected to both of ours, in their room."""
    peer = crowd.meet(go_peer(crowd.space, token=crowd.site.token))
    for node in crowd.ours:
        peer.event("subscribed", peer=node.peer)
    return peer


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_hostile_with_another_token_is_connected_and_in_no_room(crowd, go_peer):
    peer = crowd.meet(go_peer(crowd.space, token=encode(generate())))
    for _ in range(3):
        peer.do("flood", kind="foreign", amount=50)
    for node in crowd.ours:
        (view,) = until(
            lambda node=node: [each for each in node.get("/api/v1/status")["peers"] if each["peer_id"] == peer.id], "it"
        )
        assert view["connected"]
        assert not view["on_topic"]
    assert peer.room() == set()
    crowd.converge()
    for node in crowd.ours:
        assert peer.id not in node.heartbeats()


def test_hostile_with_the_room_but_another_key_is_not_opened(crowd, go_peer):
    token = decode(crowd.site.token)
    crypto = dataclasses.replace(token.crypto, key="another key" * 4)
    peer = crowd.meet(go_peer(crowd.space, token=encode(dataclasses.replace(token, crypto=crypto))))
    for node in crowd.ours:
        peer.event("subscribed", peer=node.peer)
    before = crowd.counters()
    peer.do("flood", kind="versions", amount=5)
    crowd.counted(before, "unopened_message")
    crowd.converge()


# --- blocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [2**63 - 1, 2**62 + 1, -(2**63)])
def test_hostile_index(crowd, hostile, index):
    before = crowd.counters()
    hostile.do("flood", kind="foreign", amount=1, index=index)
    crowd.counted(before, "blocks_malformed")
    crowd.converge()


def test_hostile_versions(crowd, hostile):
    """Signed as they should be, but from the far future: the ledger could never be changed there again."""
    before = crowd.counters()
    hostile.do("flood", kind="versions", amount=50, index=1)
    crowd.counted(before, "rejected")
    for node in crowd.ours:
        assert not node.bucket("flood")
    crowd.converge()


def test_hostile_entries_of_others(crowd, hostile):
    """Heartbeats and machine records in the names of three hundred others, and one of a node that is there."""
    before = crowd.counters()
    hostile.do("flood", kind="foreign", amount=300)
    crowd.counted(before, "rejected")
    victim = crowd.ours[0].peer
    now = time.time_ns()
    entry = hostile.do("sign", bucket="healthcheck", key=victim, text='"2030-01-01T00:00:00Z"', version=now * 2)[
        "entry"
    ]
    storage = {"healthcheck": {victim: entry, crowd.go.id: {**entry, "Owner": crowd.go.id}}}
    before = crowd.counters()
    hostile.do("block", block={"Index": 1, "Storage": storage})
    crowd.counted(before, "rejected")
    for node in crowd.ours:
        assert len(node.heartbeats()) == 3
    crowd.converge()


BLOCKS = {
    "deep": "[" * 100_000,
    "storage is a list": '{"Index": 1, "Storage": []}',
    "an entry is a number": '{"Index": 1, "Storage": {"a": {"b": 5}}}',
    "version is no integer": '{"Index": 1, "Storage": {"a": {"b": {"Value": "1", "Version": 1e30}}}}',
    "index is huge": f'{{"Index": {"9" * 5000}}}',
}


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_hostile_json(crowd, hostile, kind):
    before = crowd.counters()
    hostile.do("publish", data=gzip.compress(BLOCKS[kind].encode()))
    crowd.counted(before, "blocks_malformed")
    crowd.converge()


def test_hostile_messages_that_are_none(crowd, hostile):
    """Sealed garbage, bodies that are no envelope, and a seal that is no hex."""
    for data, sealed, name in (
        (b"\x00" * 1000, True, "blocks_malformed"),
        (b"", True, "blocks_malformed"),
        (b"not json", False, "unopened_message"),
        (b'{"Message": "zz", "SenderID": 5}', False, "unopened_message"),
        (json.dumps({"Message": "00" * 100_000}).encode(), False, "unopened_message"),
    ):
        before = crowd.counters()
        hostile.do("publish", data=data, sealed=sealed)
        crowd.counted(before, name)
    crowd.converge()


# --- RPCs -----------------------------------------------------------------------------------------------------------


def field(number, value):
    """One protobuf field."""
    if isinstance(value, int):
        return encode_varint(number << 3) + encode_varint(value)
    return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value


def rpcs(topic):
    """Bytes for a pubsub stream; each is its own stream."""
    message = field(1, b"author") + field(2, b"\x00" * 100) + field(3, b"12345678") + field(4, topic)
    ihave = field(1, topic) + b"".join(field(2, bytes([number % 256]) * 40) for number in range(20_000))
    return {
        "endless length": b"\xff" * 20,
        "length of 4 GiB": encode_varint(2**32) + b"x" * 1000,
        "garbage": b"".join(encode_delimited(bytes([value]) * 200) for value in range(256)),
        "empty RPCs": b"\x00" * 50_000,
        "ten thousand topics": encode_delimited(
            b"".join(field(1, field(1, 1) + field(2, b"topic %d" % number)) for number in range(10_000))
        ),
        "unsigned message": encode_delimited(field(2, message)),
        "wrong signature": encode_delimited(field(2, message + field(5, b"s" * 64))),
        "message of nobody": encode_delimited(field(2, field(2, b"data") + field(4, topic))),
        "ihave flood": encode_delimited(field(3, field(1, ihave))) * 5,
        "graft and prune": encode_delimited(
            field(3, b"".join(field(3, field(1, b"t%d" % number)) + field(4, field(1, topic)) for number in range(200)))
        ),
        "cut off": encode_varint(1000) + b"x" * 10,
    }


def send(peer, node, protocol, data):
    """On a stream of its own; it may be reset before all is written."""
    stream = peer.do("open_stream", peer=node.peer, protocol=protocol)["stream"]
    with suppress(GoError):
        peer.do("write_stream", stream=stream, data=data, seconds=10)
        peer.do("close_write", stream=stream)


@pytest.mark.parametrize("kind", sorted(rpcs(b"")))
def test_hostile_rpc(crowd, hostile, kind):
    topic = crowd.go.do("subscriptions")["topic"].encode()
    for node in crowd.ours:
        send(hostile, node, "/meshsub/1.1.0", rpcs(topic)[kind])
    crowd.converge()
    crowd.alive()


@pytest.mark.parametrize(
    ("kind", "counter"),
    [("garbage", "malformed"), ("length of 4 GiB", "oversized"), ("wrong signature", "bad_signature")],
)
def test_hostile_rpcs_are_counted(crowd, hostile, kind, counter):
    topic = crowd.go.do("subscriptions")["topic"].encode()
    before = crowd.counters()
    for node in crowd.ours:
        send(hostile, node, "/meshsub/1.1.0", rpcs(topic)[kind])
    crowd.counted(before, counter)


def test_hostile_other_protocols(crowd, hostile):
    """Garbage on every protocol that we serve."""
    for node in crowd.ours:
        for protocol in hostile.peers()[node.peer]["protocols"]:
            send(hostile, node, protocol, b"\xff\xff\x7f" + b"\x0a\xff" * 100_000)
    crowd.converge()
    crowd.alive()


# --- what stays in the ledger of every Go node: a network for each --------------------------------------------------


@pytest.fixture
def own_crowd(make_site, go_peer):
    def make(**ledger):
        mode = str(ledger.get("ownership", "enforce"))
        crowd = crowd_of(
            make_site(0, 4, vpn=False, heartbeat=5, ownership=mode), go_peer, **{"sync": 10, "heartbeat": 60, **ledger}
        )
        return crowd, crowd.meet(go_peer(crowd.space, token=crowd.site.token))

    return make


SLOW = 240.0
"""Patience where every block of the Go peer is megabytes from then on, and a busy machine takes its time."""


def test_hostile_block_of_15_mb(own_crowd):
    """EdgeVPN nodes take it and show it to all from then on; ours leave it out and take the rest."""
    crowd, hostile = own_crowd()
    before = crowd.counters()
    said = hostile.do("flood", kind="big", amount=15_000_000)
    assert said["json"] > 15_000_000
    crowd.counted(before, "surplus", "full")
    crowd.go.until(lambda: crowd.go.do("get", bucket="flood", key="big")["entry"], "the Go peer has taken it", SLOW)
    crowd.converge(patience=SLOW)
    for node in crowd.ours:
        assert not node.bucket("flood")


def test_hostile_million_keys(own_crowd):
    crowd, hostile = own_crowd()
    before = crowd.counters()
    said = hostile.do("flood", kind="keys", amount=1_000_000)
    assert said["json"] > 16 << 20
    crowd.counted(before, "surplus")
    crowd.go.until(lambda: crowd.go.do("get", bucket="flood", key="key-0999999")["entry"], "the Go peer has them", SLOW)
    crowd.converge(patience=SLOW)
    for node in crowd.ours:
        assert node.get("/api/v1/status")["ledger"]["records"] < 20_000


def test_hostile_million_keys_where_nobody_signs(own_crowd):
    """Mode ``off``: whoever shows the highest block is believed. Ours take what fits and bring the others back to it."""
    crowd, hostile = own_crowd(ownership="off", heartbeat=5)
    before = crowd.counters()
    hostile.do("flood", kind="keys", amount=1_000_000, index=10_000)
    crowd.counted(before, "surplus")
    crowd.converge(go=False, patience=SLOW)
    crowd.go.until(lambda: crowd.go.do("get", bucket="flood", key="key-0999999")["entry"] is None, "it has ours", SLOW)

    def repeated():
        # A write that meets a higher block is gone, in this mode; EdgeVPN's services write theirs again as well.
        crowd.go.do("put", bucket="honest", key="go", value="x")
        return all("go" in node.bucket("honest") for node in crowd.ours)

    crowd.go.until(repeated, "ours have the Go peer's write", SLOW)
    for node in crowd.ours:
        assert node.get("/api/v1/status")["ledger"]["records"] <= 20_010


def test_hostile_block_that_unpacks_beyond_the_limit(own_crowd):
    crowd, hostile = own_crowd()
    before = crowd.counters()
    said = hostile.do("flood", kind="bomb", amount=70_000_000)
    assert said["gzip"] < 100_000
    crowd.counted(before, "blocks_malformed")
    crowd.converge(go=False)


# --- streams that nobody reads --------------------------------------------------------------------------------------

BACKEND = """
import socket, sys, threading
server = socket.create_server((sys.argv[1], 8000))
print("ready", flush=True)
sent = [0]
def serve(c):
    try:
        ask = c.recv(4096)
        if b"small" in ask:
            c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\nConnection: close\\r\\n\\r\\nhello")
            c.shutdown(socket.SHUT_WR)
            while c.recv(4096): pass
        else:
            c.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
            while True: sent[0] += c.send(b"x" * 65536)
    except OSError:
        pass
    c.close()
def count():
    for _ in sys.stdin: print(sent[0], flush=True)
threading.Thread(target=count, daemon=True).start()
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
"""Answers what asks for "small", and sends for ever to anybody else; a line on stdin asks how much."""


class Backend:
    def __init__(self, space):
        self.process = space.popen(
            sys.executable, "-c", BACKEND, space.address, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout.readline() == b"ready\n"

    def sent(self):
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def memory_mb(pid):
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


@pytest.fixture
def served(make_site, go_peer):
    """A node that gives TCP or HTTP to the network, its backend, and two Go users of it."""

    def make(protocol, start, **environment):
        site = make_site(0, 3, vpn=False, heartbeat=5, environment=environment)
        node = site.ours[0]
        backend = Backend(node.space)
        start(node, f"{node.space.address}:8000")
        users = [
            go_peer(each.space, token=site.token, mdns=True, ledger={"ownership": "enforce", "sync": 1, "heartbeat": 1})
            for each in site.ours[1:]
        ]
        for user in users:
            user.do("put", bucket="users", key=user.id, value={"PeerID": user.id, "Timestamp": "now"})
        hostile, honest = users
        (name,) = until(lambda: set(hostile.peers()) - {honest.id}, "it is found")
        for user in users:
            user.until(lambda user=user: protocol in user.peers().get(name, {}).get("protocols", ()), "it serves")
        return node, name, backend, hostile, honest

    return make


ASK = "GET http://{0}:8000/{1} HTTP/1.1\r\nHost: {0}:8000\r\n\r\n"


def unread(user, name, protocol, node, count):
    """So many requests whose answers nobody reads."""
    streams = [user.do("open_stream", peer=name, protocol=protocol)["stream"] for _ in range(count)]
    for stream in streams:
        with suppress(GoError):  # one too many
            user.do("write_stream", stream=stream, data=ASK.format(node.space.address, "endless").encode())


def small_answer(user, name, protocol, node):
    """What a user gets that reads; until its record has come round it is reset, as by EdgeVPN."""

    def tried():
        with suppress(GoError):
            stream = user.do("open_stream", peer=name, protocol=protocol)["stream"]
            user.do("write_stream", stream=stream, data=ASK.format(node.space.address, "small").encode())
            answer = user.do("read_stream", stream=stream, all=True)
            user.do("close_stream", stream=stream)
            return data_of(answer)

    return user.until(tried, "an answer")


def test_hostile_service_client_that_never_reads(served, tmp_path):
    """What a stream and TCP hold is all that is ever sent; others are served meanwhile."""
    protocol = "/edgevpn/service/0.1"
    processes = []

    def start(node, target):
        with (tmp_path / "service.log").open("wb") as log:
            processes.append(
                node.space.popen(
                    str(Path(sys.executable).parent / "kairos-p2p"), *("service", "add", "web", target),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "EDGEVPNTOKEN": node.token, "EDGEVPNDHT": "false"},
                )
            )  # fmt: skip

    node, name, backend, hostile, honest = served(protocol, start)
    (process,) = processes
    assert small_answer(honest, name, protocol, node).endswith(b"hello")
    small_answer(hostile, name, protocol, node)
    unread(hostile, name, protocol, node, 60)
    sent = -1
    while sent != (sent := backend.sent()):
        assert small_answer(honest, name, protocol, node).endswith(b"hello")
        time.sleep(0.5)
    assert sent < 60 * 24_000_000
    assert memory_mb(process.pid) < 400
    assert process.poll() is None


def test_hostile_egress_clients_that_never_read_are_limited_and_counted(served):
    protocol = "/edgevpn/egress/0.1"
    node, name, _, hostile, honest = served(
        protocol,
        lambda node, _: node.start(),
        EGRESS="true",
        KAIROS_P2P_EGRESS_ALLOW="10.77.0.0/24",
        EDGEVPNDHT="false",
    )
    assert small_answer(honest, name, protocol, node).endswith(b"hello")
    small_answer(hostile, name, protocol, node)
    unread(hostile, name, protocol, node, 80)
    until(lambda: node.get("/api/v1/status")["counters"].get("egress_full", 0) >= 10, "refusals in status")
    for _ in range(3):
        assert small_answer(honest, name, protocol, node).endswith(b"hello")
    assert memory_mb(node.process.pid) < 400
