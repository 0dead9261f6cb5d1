"""A raw attacker for every protocol that a mesh node serves.

Finishes as many layers as needed (TCP, multistream, TLS or Noise, yamux, multistream again) and sends garbage on the
next one: random bytes, truncated or bent versions of what belongs there, absurd lengths. Give it any address::

    python tests/net/mesh_fuzz.py /ip4/127.0.0.1/tcp/4001/p2p/12D3KooW... --count 10000

It prints what was sent per kind and whether the node still answers an honest peer's ping; exit status 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import identify, parts
from provider_kairos.mesh.addresses import Endpoint, Networks, parse_endpoint
from provider_kairos.mesh.channels import NOISE, TLS, Handshakes, TcpChannel
from provider_kairos.mesh.gossip import PROTOCOLS as GOSSIP
from provider_kairos.mesh.kad import PROTOCOL as KAD
from provider_kairos.mesh.multistream import HEADER, encode_line, select
from provider_kairos.mesh.muxer import PROTOCOL as YAMUX
from provider_kairos.mesh.swarm import Connection, Swarm
from provider_kairos.mesh.wire import encode_delimited, encode_varint
from provider_kairos.mesh.yamux_frames import encode_header

PACKETS = "/kairos-p2p/packets/1"
"""Served by the daemon only."""

STREAM_PROTOCOLS = (*GOSSIP, identify.IDENTIFY, identify.PUSH, identify.PING, "/edgevpn/0.1", KAD)
WORKERS = 12
"""Connections at a time; a node takes 16 unfinished ones from one address."""

PATIENCE = 0.2
"""Seconds for one connection: after some garbage both sides wait for more."""

LAYERS = ("tcp", "multistream", "tls", "noise", "yamux", "stream-multistream")
KINDS = (*LAYERS, *STREAM_PROTOCOLS)


def garbage(rng: random.Random, most: int = 600) -> bytes:
    return rng.randbytes(rng.randrange(1, most))


def bend(rng: random.Random, good: bytes) -> bytes:
    """A message with bytes changed, cut out, doubled, or its end missing."""
    data = bytearray(good)
    for _ in range(rng.randrange(1, 6)):
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


def absurd_length(rng: random.Random) -> bytes:
    return rng.choice(
        (
            encode_varint(2**31),
            encode_varint(2**63),
            b"\xff" * rng.randrange(1, 12),
            encode_varint(20 * 1024 * 1024) + garbage(rng),
            b"\x00" * rng.randrange(1, 40),
        )
    )


def rpc(rng: random.Random) -> bytes:
    """A gossip RPC that is nearly right."""
    taken = parts.load()
    message = taken.Rpc()
    for _ in range(rng.randrange(4)):
        message.subscriptions.add(subscribe=rng.random() < 0.8, topicid="t" * rng.randrange(400))
    for _ in range(rng.randrange(4)):
        message.publish.add(
            from_id=rng.randbytes(rng.choice((0, 5, 38, 80))),
            seqno=rng.randbytes(rng.choice((0, 4, 8, 9))),
            data=garbage(rng),
            topicIDs=["t"] * rng.randrange(3),
            signature=rng.randbytes(64),
        )
    if rng.random() < 0.7:
        control = message.control
        control.ihave.add(topicID="t", messageIDs=[rng.randbytes(8) for _ in range(rng.randrange(50))])
        control.iwant.add(messageIDs=[rng.randbytes(8) for _ in range(rng.randrange(50))])
        control.graft.add(topicID="t" * rng.randrange(300))
        control.prune.add(topicID="t", backoff=rng.randrange(2**63))
        control.idontwant.add(messageIDs=[rng.randbytes(40)])
    return bytes(message.SerializeToString())


def identity(rng: random.Random) -> bytes:
    """An identify message that is nearly right."""
    message = parts.load().Identify(
        agent_version="x" * rng.randrange(300),
        public_key=garbage(rng),
        listen_addrs=[garbage(rng, 40) for _ in range(rng.randrange(80))],
        protocols=["/p" * rng.randrange(60) for _ in range(rng.randrange(20))],
        observed_addr=garbage(rng, 20),
    )
    return bytes(message.SerializeToString())


def question(rng: random.Random) -> bytes:
    """A message to a DHT server that is nearly right."""
    message = parts.load().KadMessage(type=rng.randrange(6), key=rng.randbytes(rng.choice((0, 34, 34, 81, 300))))
    for peers in (message.closerPeers, message.providerPeers):
        for _ in range(rng.choice((0, 1, 3, 200))):
            identity = rng.choice((b"\x12\x20" + rng.randbytes(32), rng.randbytes(rng.randrange(50))))
            peers.add(id=identity, addrs=[garbage(rng, 30) for _ in range(rng.randrange(3))])
    return bytes(message.SerializeToString())


def payload(rng: random.Random, protocol: str) -> bytes:
    """Something for a stream of ``protocol``."""
    if protocol == PACKETS:
        return packets(rng)
    make = rpc if protocol in GOSSIP else question if protocol == KAD else identity
    good = make(rng)
    return rng.choice(
        (
            garbage(rng),
            encode_delimited(garbage(rng)),
            encode_delimited(good),
            encode_delimited(bend(rng, good)),
            bend(rng, encode_delimited(good)),
            encode_varint(len(good) + rng.randrange(1, 100)) + good,
            absurd_length(rng),
        )
    )


def packets(rng: random.Random) -> bytes:
    """Frames of packets, right, bent, absurdly long, or of a later version; the packets in them are no better."""
    out = b""
    for _ in range(rng.randrange(1, 8)):
        size = rng.choice((0, 1, 19, 20, 40, 1200))
        head = bytes([rng.choice((0x45, 0x45, 0x4F, 0x40, 0x60, 0x00, 0xF5)), 0])
        packet = head + rng.choice((size, size + 1, 0xFFFF)).to_bytes(2, "big") + rng.randbytes(max(size - 4, 0))
        length = rng.choice((len(packet), len(packet), len(packet) + 1, 0, 262_144, 262_145, 2**24 - 1))
        out += bytes([rng.choice((0, 0, 0, 1, 2, 255))]) + length.to_bytes(3, "big") + packet
    return bend(rng, out) if rng.random() < 0.5 else out


def frames(rng: random.Random) -> bytes:
    """Yamux frames with fields at random, some with a body that is too short."""
    out = b""
    for _ in range(rng.randrange(1, 30)):
        if rng.random() < 0.1:
            out += garbage(rng, 30)
            continue
        kind = rng.choice((0, 0, 0, 1, 1, 2, 3, 4, 255)) if rng.random() < 0.3 else rng.choice((0, 1, 2))
        length = rng.choice((0, 1, 12, 262144, 2**20, 2**32 - 1)) if rng.random() < 0.2 else rng.randrange(64)
        out += encode_header(
            kind, rng.choice((0, 1, 2, 4, 8, 5, 15, 65535)), rng.choice((0, 1, 2, 3, 5, 7, 2**32 - 1)), length
        )
        if kind == 0:
            out += rng.randbytes(min(length, 64))
    return out


class Attacker:
    """One attacker against one node."""

    def __init__(self, endpoint: Endpoint, peer: PeerId | None, rng: random.Random) -> None:
        self.endpoint = endpoint
        self.peer = peer
        self.rng = rng
        self.sent: Counter[str] = Counter()
        self._handshakes = Handshakes(parts.load().create_ed25519(rng.randbytes(32)))

    async def attack(self, kind: str, count: int) -> None:
        """Send ``count`` pieces of garbage of one kind."""
        if kind.startswith("/") or kind == "stream-multistream":
            await self._streams(kind, count)
            return
        one: Callable[[], Awaitable[None]] = getattr(self, "_" + kind)

        async def worker() -> None:
            while self.sent[kind] < count:
                self.sent[kind] += 1
                try:
                    with trio.move_on_after(PATIENCE):
                        await one()
                except (PeerError, OSError):
                    pass

        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(worker)

    async def alive(self) -> bool:
        """Whether an honest peer is still served: connect, identify, ping."""
        with trio.move_on_after(20):
            async with trio.open_nursery() as nursery:
                connection = await self._connect(nursery)
                stream = connection.muxer.open_stream()
                await select((identify.IDENTIFY,), stream.read, stream.write)
                known = await identify.read(stream.read)
                ping = connection.muxer.open_stream()
                await select((identify.PING,), ping.read, ping.write)
                token = self.rng.randbytes(32)
                await ping.write(token)
                answered = identify.PING in known.protocols and await ping.read() == token
                nursery.cancel_scope.cancel()
                return answered
        return False

    async def _raw(self) -> TcpChannel:
        return TcpChannel(await trio.open_tcp_stream(self.endpoint.host, self.endpoint.port), initiator=True)

    async def _connect(self, nursery: trio.Nursery) -> Connection:
        """A real connection, held in ``nursery``."""
        swarm = Swarm(
            PeerId("attacker"),
            self._handshakes,
            Networks([]),
            serves=lambda _protocol: False,
            on_stream=lambda stream: stream.reset(),
            packet_handlers={},
            on_connected=lambda _connection: None,
            on_disconnected=lambda _connection: None,
            on_forget=lambda _stream: None,
            security=(NOISE,) if self.rng.random() < 0.5 else (TLS, NOISE),
        )
        swarm._nursery = nursery
        return await swarm.dial(self.endpoint, self.peer)

    async def _tcp(self) -> None:
        raw = await self._raw()
        try:
            await raw.write(garbage(self.rng, 3000))
        finally:
            await raw.close()

    async def _multistream(self) -> None:
        raw = await self._raw()
        rng = self.rng
        try:
            await raw.write(rng.choice((b"", HEADER)))
            for _ in range(rng.randrange(1, 5)):
                lines = (
                    encode_line("x" * rng.randrange(1000)),
                    garbage(rng, 50),
                    b"\xff\xff\xff",
                    b"\x00",
                    encode_line("ls"),
                )
                await raw.write(rng.choice(lines))
        finally:
            await raw.close()

    async def _tls(self) -> None:
        await self._handshake(TLS)

    async def _noise(self) -> None:
        await self._handshake(NOISE)

    async def _handshake(self, protocol: str) -> None:
        """Agree on ``protocol``, then garbage, or a real handshake with one message bent."""
        raw = await self._raw()
        rng = self.rng
        try:
            await select((protocol,), raw.read, raw.write)
            if rng.random() < 0.4:
                await raw.write(
                    rng.choice((garbage(rng), len(good := garbage(rng)).to_bytes(2, "big") + good, b"\x00\x00" * 5))
                )
                return
            clean = raw._stream.send_all
            left = rng.randrange(3)

            async def send_all(data: bytes) -> None:
                nonlocal left
                left -= 1
                await clean(bend(rng, data) if left < 0 else data)

            raw._stream.send_all = send_all  # type: ignore[assignment,method-assign]
            _, channel = await self._handshakes.secure(raw, protocol, None)
            await channel.send(garbage(rng))
        finally:
            await raw.close()

    async def _yamux(self) -> None:
        raw = await self._raw()
        rng = self.rng
        try:
            security = rng.choice((TLS, NOISE))
            await select((security,), raw.read, raw.write)
            _, channel = await self._handshakes.secure(raw, security, None)
            reader = _Lines(channel.receive)
            await select((YAMUX,), reader.read, channel.send)
            for _ in range(rng.randrange(1, 4)):
                await channel.send(frames(rng))
        finally:
            await raw.close()

    async def _streams(self, kind: str, count: int) -> None:
        """Many streams on one connection; a new connection whenever the node ends it."""
        done = 0
        while done < count:
            try:
                async with trio.open_nursery() as nursery:
                    connection = await self._connect(nursery)
                    try:
                        while done < count and connection.muxer.alive:
                            done += 1
                            with trio.move_on_after(5):
                                await self._stream(connection, kind)
                            self.sent[kind] += 1
                    finally:
                        nursery.cancel_scope.cancel()
            except* (PeerError, OSError):
                pass

    async def _stream(self, connection: Connection, kind: str) -> None:
        rng = self.rng
        stream = connection.muxer.open_stream()
        try:
            if kind == "stream-multistream":
                await stream.write(rng.choice((b"", HEADER)) + garbage(rng, 80))
            else:
                await select((kind,), stream.read, stream.write)
                for _ in range(rng.randrange(1, 4)):
                    await stream.write(payload(rng, kind))
            if rng.random() < 0.3:
                stream.close_write()
                await stream.read()
        except PeerError:
            pass
        finally:
            if rng.random() < 0.8:
                stream.reset()
            else:
                await stream.close()


class _Lines:
    """Exact reads from a channel."""

    def __init__(self, receive: Callable[[], Awaitable[bytes]]) -> None:
        self._receive = receive
        self._buffer = b""

    async def read(self, count: int) -> bytes:
        if not self._buffer:
            self._buffer = await self._receive()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data


def count_from_environment(default: int = 200) -> int:
    """Pieces per kind: KAIROS_P2P_FUZZ, or a number that a committed test can afford."""
    return int(os.environ.get("KAIROS_P2P_FUZZ") or default)


async def attack_all(address: str, count: int, seed: int, kinds: tuple[str, ...] = KINDS) -> dict[str, object]:
    """Attack every kind in turn; the node must answer an honest peer after each."""
    parsed = parse_endpoint(address)
    if parsed is None:
        raise SystemExit(f"{address} is no TCP address")
    attacker = Attacker(parsed[0], parsed[1], random.Random(seed))
    alive: dict[str, bool] = {}
    for kind in kinds:
        await attacker.attack(kind, count)
        alive[kind] = await attacker.alive()
    return {"seed": seed, "sent": dict(attacker.sent), "alive": alive}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--count", type=int, default=count_from_environment())
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--kind", action="append", choices=(*KINDS, PACKETS))
    given = parser.parse_args()
    report = trio.run(attack_all, given.address, given.count, given.seed, tuple(given.kind or KINDS))
    print(json.dumps(report))
    alive = report["alive"]
    assert isinstance(alive, dict)
    sys.exit(0 if all(alive.values()) else 1)


if __name__ == "__main__":
    main()
