"""An attacker for the faces that only a whole daemon has: its ledger room, mDNS, its name server, the API's socket.

The room is entered with the right token, by a real mesh node: what it says there is sealed with the right key and
signed by its author, and means harm all the same. Each attack is a program of its own, so that it runs in a network
namespace::

    python tests/net/daemon_fuzz.py room --count 10000 --token T --bootstrap /ip4/10.77.0.1/tcp/4001/p2p/ID --victim ID
    python tests/net/daemon_fuzz.py mdns --count 10000 --token T --address 10.77.0.3
    python tests/net/daemon_fuzz.py dns --count 10000 --address 10.77.0.1
    python tests/net/daemon_fuzz.py http --count 10000 --socket /run/edgevpn-kairos.sock
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import socket
import time
import zlib
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Any

import trio

from provider_kairos.clock import SystemClock
from provider_kairos.ids import PeerId
from provider_kairos.ledger.block import Block, encode, pack_text
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.signing import Signer
from provider_kairos.mesh.gossip_router import Send
from provider_kairos.mesh.gossip_wire import Rpc, sign_message
from provider_kairos.mesh.mdns_wire import build_announcement, build_query, service_name
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.token import envelope, seal
from provider_kairos.token.codec import decode

NANO = 1_000_000_000


def bend(rng: random.Random, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(rng.randrange(1, 8)):
        if not data:
            break
        place = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[place] = rng.randrange(256)
            case 1:
                del data[place : place + rng.randrange(1, 8)]
            case 2:
                data[place:place] = data[place : place + rng.randrange(1, 16)]
            case _:
                del data[place:]
    return bytes(data)


# --- the room --------------------------------------------------------------------------------------------------------


class Room:
    """Makes hostile plaintexts of ledger messages against ``victim`` (a peer ID) and its ``records``."""

    def __init__(self, rng: random.Random, victim: str, records: list[tuple[str, str]]) -> None:
        self.rng = rng
        self.signer = Signer(rng.randbytes(32))
        self.victim = victim
        self.records = records or [("healthcheck", victim)]
        zeros = zlib.compressobj(9, zlib.DEFLATED, 31)
        self.bomb = b"".join(zeros.compress(bytes(1 << 20)) for _ in range(64)) + zeros.flush()
        self.kinds: tuple[tuple[int, Callable[[], bytes]], ...] = (
            (20, self.noise),
            (4, self.bombs),
            (10, self.bad_json),
            (20, self.wrong_types),
            (30, self.against_records),
            (10, self.versions),
            (4, self.many),
            (2, self.giants),
        )
        self._weights = [weight for weight, _ in self.kinds]

    def one(self) -> bytes:
        return self.rng.choices([make for _, make in self.kinds], self._weights)[0]()

    def noise(self) -> bytes:
        rng = self.rng
        good = self.packed({"x": {"k": self.signed("x", "k", '"1"')}})
        return rng.choice(
            (b"", rng.randbytes(rng.randrange(400)), bend(rng, good), good + good, gzip.compress(rng.randbytes(200)))
        )

    def bombs(self) -> bytes:
        return self.rng.choice((self.bomb, self.bomb[:-9], self.bomb[: len(self.bomb) // 2], self.bomb + self.bomb))

    def bad_json(self) -> bytes:
        rng = self.rng
        deep = rng.choice((1000, 100_000))
        texts = (
            b"[" * deep,
            b'{"Storage":' * deep,
            b'{"Storage":{"a":{"k":' + b"[" * deep + b"]" * deep + b"}}}",
            b'{"Index":' + b"9" * rng.choice((30, 5000)) + b"}",
            b'{"Index":1e999,"Storage":{}}',
            b'{"Index":NaN}',
            b'{"Index":5,"Storage":{"\\ud800":{"\\udfff":"\\ud83d"}}}',
            b'{"Index":5,"Storage":{"\xff\xfe":{"\x80":"\xc0"}}}',
            b'{"Index":5,"Storage":{"a\\u0000b":{"\\u0000":"\\u0000"}}}',
            b"\xef\xbb\xbf{}",
            b"null",
            b'"' + rng.randbytes(60) + b'"',
        )
        return pack_text(rng.choice(texts))

    def wrong_types(self) -> bytes:
        rng = self.rng
        odd: tuple[Any, ...] = (None, True, -1, 2**70, 1.5, "x", [], {}, [[]], {"a": 1}, "\x00", "é" * 50)
        entry = {name: rng.choice(odd) for name in ("Value", "Owner", "Version", "UpdatedAt", "Deleted", "Sig")}
        block = {
            "Index": rng.choice((5, *odd)),
            "Timestamp": rng.choice(odd),
            "Storage": rng.choice(({"x": {"k": entry}}, {"healthcheck": {self.victim: entry}}, {"x": "k"}, *odd)),
            "Hash": rng.choice(odd),
            "PrevHash": rng.choice(odd),
        }
        return pack_text(json.dumps(block).encode())

    def against_records(self) -> bytes:
        """Delete, overwrite, forge what is the victim's; each of it has to be refused."""
        rng = self.rng
        storage: dict[str, dict[str, Entry]] = {}
        now = time.time_ns() + rng.randrange(NANO)
        for bucket, key in rng.sample(self.records, min(len(self.records), 3)):
            text = rng.choice(('"gone"', "{}", "", '{"PeerID":"' + self.victim + '"}', "null", "\udcff", "\x00"))
            text = text.encode("utf-8", "replace").decode()
            owner = rng.choice((self.victim, self.signer.peer_id, "", "x"))
            signed = self.signer.sign(bucket, key, text, now, now // NANO, deleted=rng.random() < 0.4)
            entry = rng.choice(
                (
                    Entry(signed.value, owner, now, now // NANO, signed.deleted, signed.sig),
                    Entry(signed.value, owner, now, now // NANO, signed.deleted, rng.randbytes(64)),
                    Entry("", owner, now, now // NANO, deleted=True),
                    Entry(text, owner, 2**64 - 1, 2**63 - 1, sig=rng.randbytes(rng.choice((0, 63, 64, 65)))),
                    Entry(text),
                    signed,
                )
            )
            storage.setdefault(bucket, {})[key] = entry
        return self.packed(storage)

    def versions(self) -> bytes:
        rng = self.rng
        key = f"k{rng.randrange(200)}"
        version = rng.choice((0, 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, time.time_ns(), time.time_ns() + 10**17))
        updated = rng.choice((0, -(2**63), 2**63 - 1, int(time.time())))
        bucket = rng.choice(("fuzz", "machines", "healthcheck", "kairos-p2p.lease", "dhcp", "users"))
        entry = self.signer.sign(bucket, key, '"v"', version, updated, deleted=rng.random() < 0.3)
        return self.packed({bucket: {key: entry}}, index=rng.choice((0, -1, 2**62, 2**64, 5)))

    def many(self) -> bytes:
        """Twenty thousand buckets, or keys, at once."""
        rng = self.rng
        salt = rng.randrange(50)
        if rng.random() < 0.5:
            return self.packed({f"bucket-{salt}-{number}": {"k": Entry("1")} for number in range(20_000)})
        return self.packed({"fuzz-many": {f"key-{salt}-{number}": Entry("1") for number in range(20_000)}})

    def giants(self) -> bytes:
        rng = self.rng
        size = rng.choice((100_000, 1_000_000, 6_000_000))
        return rng.choice(
            (
                lambda: self.packed({"fuzz-giant": {"k" * size: Entry("1")}}),
                lambda: self.packed({"b" * size: {"k": Entry("1")}}),
                lambda: self.packed(
                    {"fuzz-giant": {f"v{rng.randrange(100)}": self.signed("fuzz-giant", "v", '"' + "x" * size + '"')}}
                ),
                lambda: self.packed({"machines": {"10.1.0." + "9" * size: self.signed("machines", "9", "{}")}}),
            )
        )()

    def signed(self, bucket: str, key: str, value: str) -> Entry:
        now = time.time_ns()
        return self.signer.sign(bucket, key, value, now, now // NANO)

    def packed(self, storage: dict[str, dict[str, Entry]], index: int = 5) -> bytes:
        return pack_text(encode(Block(index, "x", storage, "f" * 64, "")))


async def until(true: Callable[[], Any], seconds: float) -> None:
    """Wait until ``true()``; what it looks at has no event for a stranger."""
    with trio.fail_after(seconds):
        while not true():  # noqa: ASYNC110
            await trio.sleep(0.02)


def drained(host: Any, limit: int) -> bool:
    """Whether less than ``limit`` bytes wait for each peer."""
    return all(box._bytes < limit for box in host.gossip._outboxes.values())


async def attack_room(
    token: str, bootstrap: str, target: tuple[str, list[tuple[str, str]]], count: int, rng: random.Random
) -> dict[str, int]:
    """``target`` is the victim's peer ID and its records. Say ``count`` things in the room; one in five is not even sealed right, one in twenty a replay."""
    victim, records = target
    parsed = decode(token)
    mesh = Mesh(
        MeshSettings(
            seed=rng.randbytes(32),
            token=parsed,
            listen=("/ip4/0.0.0.0/tcp/0",),
            bootstrap_peers=(bootstrap,),
            mdns=False,
        ),
        SystemClock(),
        rng,
    )
    room = Room(rng, victim, records)
    replays: list[Any] = []
    sent = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(mesh.run)
        await until(lambda: PeerId(victim) in mesh.on_chain(), 30)
        while sent < count:
            host: Any = mesh._host
            if host is None or PeerId(victim) not in host.gossip._outboxes:
                await trio.sleep(0.05)
                continue
            await until(partial(drained, host, 2_000_000), 120)
            epoch = host.room.current
            choice = rng.random()
            if choice < 0.05 and replays:
                host.gossip._apply([Send(PeerId(victim), Rpc(messages=(rng.choice(replays),)))])
            elif choice < 0.25:
                message = envelope.encode(envelope.Envelope(seal.seal(epoch.seal_key, b"hello")))
                wrong = envelope.encode(envelope.Envelope(seal.seal(rng.randbytes(32), b"hello")))
                bad = rng.choice((bend(rng, message), wrong, rng.randbytes(300), b"{}", b'{"Message":5}', b"[" * 9000))
                host.gossip.publish(epoch.topic, bad)
            elif choice < 0.3:
                # in the victim's name, with the attacker's signature
                data = envelope.encode(envelope.Envelope(seal.seal(epoch.seal_key, room.one())))
                forged = sign_message(host.gossip._key, PeerId(victim), rng.randrange(2**63), epoch.topic, data)
                host.gossip._apply([Send(PeerId(victim), Rpc(messages=(forged,)))])
            else:
                await mesh.publish(room.one())
                if len(replays) < 50 and host.gossip.router._own:
                    replays.append(host.gossip.router._own[-1][1])
            sent += 1
            await trio.lowlevel.checkpoint()
            while mesh.messages.statistics().current_buffer_used:
                mesh.messages.receive_nowait()
            while mesh.events.statistics().current_buffer_used:
                mesh.events.receive_nowait()
        host = mesh._host
        if host is not None:
            await until(partial(drained, host, 1), 120)
        nursery.cancel_scope.cancel()
    return {"room": sent}


# --- mDNS ------------------------------------------------------------------------------------------------------------


def attack_mdns(token: str, address: str, count: int, rng: random.Random) -> dict[str, int]:
    """Garbage, bent packets and lying announcements to the group of the link that has ``address``."""
    service = service_name(decode(token).mdns)
    known = [Signer(rng.randbytes(32)).peer_id for _ in range(50)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", 5353))
        for number in range(count):
            lies = [
                f"/ip4/{rng.choice((address, '10.1.0.7', '127.0.0.1', '0.0.0.0', '224.0.0.251'))}/tcp/{rng.randrange(1, 65536)}",
                rng.choice(("/dns4/evil/tcp/1", "/ip4/10.77.0.1/udp/5/quic-v1", "x" * 200, "/ip6/fe80::1/tcp/9")),
            ]
            peer = rng.choice(known) if rng.random() < 0.9 else "x" * rng.randrange(80)
            instance = bytes(rng.choices(b"abcdefgh0123", k=40))
            try:
                good = build_announcement(service, instance, peer, lies, [ip_address(address)])
            except Exception:  # noqa: BLE001 - what our own builder refuses is not sent
                good = build_query(service, rng.randrange(0x10000))
            query = build_query(service, rng.randrange(0x10000))
            packet = rng.choice(
                (
                    rng.randbytes(rng.randrange(1, 600)),
                    bend(rng, good),
                    bend(rng, good),
                    bend(rng, query),
                    good,
                    query,
                    b"\0",
                )
            )
            sock.sendto(packet[:1400], ("224.0.0.251", 5353))
            if number % 50 == 0:
                time.sleep(0.01)  # the kernel's queue is short; what it drops attacks nobody
    return {"mdns": count}


# --- the name server ---------------------------------------------------------------------------------------------------

QUESTION = bytes.fromhex("12340100000100000000000003666f6f04746573740000010001")


def attack_dns(address: str, count: int, rng: random.Random) -> dict[str, int]:
    """Bent questions over UDP, and over TCP in pieces; in between a good one, which has to be answered."""
    kinds = (QUESTION, QUESTION[:10] + b"\0\1" + QUESTION[12:] + bytes.fromhex("0000290200000080000000"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((address, 53))
        udp.settimeout(20)
        for number in range(count):
            data = rng.choice((bend(rng, rng.choice(kinds)), rng.randbytes(rng.randrange(1, 600))))
            if rng.randrange(8):
                udp.send(data)
            else:
                try:
                    with socket.create_connection((address, 53), 5) as tcp:
                        tcp.sendall(rng.choice((len(data).to_bytes(2, "big"), rng.randbytes(2), b"")) + data)
                except OSError:
                    pass
            if number % 100 == 99:
                time.sleep(0.6)  # strangers get 200 answers in a second
                udp.send(b"\xff\xfe" + QUESTION[2:])
                while udp.recv(65535)[:2] != b"\xff\xfe":
                    pass
    return {"dns": count}


# --- the API ---------------------------------------------------------------------------------------------------------


def request(rng: random.Random) -> bytes:
    """A request that is nearly right."""
    method = rng.choice((b"GET", b"PUT", b"DELETE", b"POST", b"OPTIONS", b"HEAD", b"PATCH", rng.randbytes(5)))
    part = rng.choice(
        (
            b"x",
            b"%00",
            b"%ff%fe",
            b"..",
            b"",
            b"%",
            b"a" * rng.randrange(3000),
            rng.randbytes(30),
            b"eyJhIjoxfQ==",
            b"\xc3\xa9",
        )
    )
    paths = (
        b"/api/ledger/fuzz/" + part + b"/" + rng.choice((part, b"Ing=", b"W1tbW10=")),
        b"/api/ledger/" + part,
        b"/api/v1/watch?timeout=" + rng.choice((b"0", b"-1", b"nan", b"1e999", part)) + b"&since=" + part,
        b"/api/v1/status?" + part,
        b"/v1/ledger/fuzz/" + part,
        b"/v1/ledger/fuzz" + part + b"?deleted=" + rng.choice((b"true", part)),
        b"/v1/dns/fuzz" + part,
        b"/v1/peers/" + part,
        b"/v1/events?snapshot=" + rng.choice((b"true", part)) + b"&kind=" + rng.choice((b"ledger", part)),
        b"/v1/events?bucket=" + part + b"&last_event_id=" + part,
        rng.choice((b"/v1/metrics", b"/v1/openapi.json", b"/v1/nodes", b"/v1/traffic", b"/app/" + part)),
        b"/api/machines/" + part,
        b"/api/dns",
        b"/api/metrics/peer/" + part,
        b"/" + part,
        part,
    )
    headers = rng.choice(
        (
            b"Host: x\r\n",
            b"",
            b"Host: x\r\nContent-Length: 99999999999\r\n",
            b"Host: x\r\nContent-Length: -1\r\n",
            b"Host: x\r\nTransfer-Encoding: chunked\r\n",
            b"Host: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n",
            b"Host: x\r\n" + b"A: " + b"b" * rng.randrange(20_000) + b"\r\n",
            rng.randbytes(60) + b"\r\n",
        )
    )
    value = b'{"value":' + rng.choice((b"1", b"1e999", b"[" * rng.randrange(2000), part)) + b"}"
    body = rng.choice((b"", value, b'{"Regex":"[","Records":{}}', b"5\r\nhello\r\nFFFFFFFF\r\n", rng.randbytes(100)))
    return method + b" " + rng.choice(paths) + b" HTTP/1.1\r\n" + headers + b"\r\n" + body


def attack_http(path: str, count: int, rng: random.Random) -> dict[str, int]:
    """Garbage and bent requests; many leave without reading, some while they are answered, some pile up."""
    piled: list[socket.socket] = []
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(2)
        try:
            sock.connect(path)
            good = request(rng)
            data = rng.choice((good, good, good + request(rng), bend(rng, good), rng.randbytes(rng.randrange(1, 900))))
            sock.sendall(data)
            match rng.randrange(6):
                case 0:
                    sock.shutdown(socket.SHUT_WR)
                    sock.recv(100)
                case 1:
                    sock.settimeout(0.02)
                    sock.recv(65536)
                case 2:
                    piled.append(sock)
                    continue
        except OSError:
            pass
        finally:
            if sock not in piled:
                sock.close()
            if len(piled) > 90:  # more than the server takes
                for each in piled:
                    each.close()
                piled.clear()
    for each in piled:
        each.close()
    return {"http": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("room", "mdns", "dns", "http"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--token", default=os.environ.get("EDGEVPNTOKEN", ""))
    parser.add_argument("--bootstrap")
    parser.add_argument("--victim")
    parser.add_argument("--record", action="append", default=[], help="BUCKET/KEY of the victim's")
    parser.add_argument("--address")
    parser.add_argument("--socket")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    if given.kind == "room":
        records = [(bucket, key) for bucket, _, key in (each.partition("/") for each in given.record)]
        sent = trio.run(attack_room, given.token, given.bootstrap, (given.victim, records), given.count, rng)
    elif given.kind == "mdns":
        sent = attack_mdns(given.token, given.address, given.count, rng)
    elif given.kind == "dns":
        sent = attack_dns(given.address, given.count, rng)
    else:
        sent = attack_http(given.socket, given.count, rng)
    print(json.dumps({"seed": given.seed, "sent": sent}))


if __name__ == "__main__":
    main()
