"""Gossip on real streams: what happens to ours when the peer's gossip starts anew behind the same connection."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from provider_kairos.ids import PeerId, peer_id_of_public_key
from provider_kairos.mesh.gossip import PROTOCOLS, Gossip
from provider_kairos.mesh.gossip_wire import Rpc, decode_rpc, encode_rpc
from provider_kairos.mesh.multistream import select
from provider_kairos.mesh.muxer_stream import Stream
from provider_kairos.mesh.testing import muxer_pair
from provider_kairos.mesh.wire import DelimitedReader, encode_delimited

GO = PeerId("client")  # as the muxers of the fakes call each other
LIMIT = 1 << 20


class Peer:
    """The other end of a connection: keeps the streams that arrive and opens some of its own."""

    def __init__(self, gossip_of: Callable[[Any], Gossip]) -> None:
        self.arrived: list[Stream] = []
        self.said: dict[Stream, list[Rpc]] = {}
        self.theirs, self.ours, *_ = muxer_pair(serves=PROTOCOLS.__contains__, on_stream=self._to_us)
        self.theirs._serves = PROTOCOLS.__contains__
        self.theirs._on_stream = self._from_us
        self.gossip = gossip_of(self)
        self.nursery: trio.Nursery

    def preferred(self, _peer: PeerId) -> Any:
        return SimpleNamespace(muxer=self.ours, outbound=True)

    async def open_stream(self, _peer: PeerId, protocols: Any) -> Stream:
        stream = self.ours.open_stream()
        stream.protocol = await select(protocols, stream.read, stream.write)
        return stream

    def _to_us(self, stream: Stream) -> None:
        self.nursery.start_soon(self.gossip.serve, stream)

    def _from_us(self, stream: Stream) -> None:
        self.arrived.append(stream)
        self.said[stream] = []
        self.nursery.start_soon(self._read, stream)

    async def _read(self, stream: Stream) -> None:
        reader = DelimitedReader(stream.read, LIMIT)
        while (data := await reader.next()) is not None:
            self.said[stream].append(decode_rpc(data))

    async def speak(self, *topics: str) -> Stream:
        """Open a stream and say hello."""
        stream = self.theirs.open_stream()
        stream.protocol = await select(PROTOCOLS[:1], stream.read, stream.write)
        await self.say(stream, *((True, topic) for topic in topics))
        return stream

    async def say(self, stream: Stream, *subscriptions: tuple[bool, str]) -> None:
        await stream.write(encode_delimited(encode_rpc(Rpc(subscriptions=subscriptions))))
        await trio.testing.wait_all_tasks_blocked()


def make_gossip(network: Any) -> Gossip:
    key = Ed25519PrivateKey.from_private_bytes(b"g" * 32)
    return Gossip(
        peer_id_of_public_key(key.public_key().public_bytes_raw()),
        key,
        network,
        LIMIT,
        random.Random(1),
        first_seqno=1,
        deliver=lambda _message, _via: None,
        subscribed=lambda _peer: None,
        complain=lambda *_: None,
        say=lambda *_: None,
    )


def run(body: Callable[[Peer], Any], clock: trio.testing.MockClock | None = None) -> None:
    async def main() -> None:
        peer = Peer(make_gossip)
        async with trio.open_nursery() as nursery:
            peer.nursery = nursery
            for muxer in (peer.theirs, peer.ours):
                nursery.start_soon(muxer.run)
            await nursery.start(peer.gossip.run)
            peer.gossip.join("old")
            peer.gossip.nudge(GO)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(60):
                await body(peer)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


def topics_said(rpcs: list[Rpc]) -> set[str]:
    return {topic for rpc in rpcs for subscribe, topic in rpc.subscriptions if subscribe}


def test_a_peer_that_starts_its_gossip_anew_for_another_topic_gets_a_new_stream_with_all_that_we_are_in():
    """EdgeVPN's rotation: our stream of before still ends at the instance that is gone (spec/edgevpn.md 4.6)."""

    async def body(peer: Peer) -> None:
        await peer.speak("old")
        (before,) = peer.arrived
        peer.gossip.join("new")
        peer.gossip.publish("new", b"just before the peer was there")
        await peer.speak("new")
        assert len(peer.arrived) == 2
        assert before.fin_received
        said = peer.said[peer.arrived[1]]
        assert topics_said(said[:1]) == {"old", "new"}
        assert {message.data for rpc in said for message in rpc.messages} == {b"just before the peer was there"}
        assert any(rpc.graft == ("new",) for rpc in said)

    run(body)


def test_topics_that_are_told_after_an_empty_hello_count_too():
    async def body(peer: Peer) -> None:
        await peer.speak("old")
        peer.gossip.join("new")
        stream = await peer.speak()
        assert len(peer.arrived) == 1
        await peer.say(stream, (True, "new"))
        assert len(peer.arrived) == 2

    run(body)


def test_a_peer_that_only_moves_its_stream_does_not_make_us_move_ours():
    """Else two nodes of ours would answer each other's new stream with a new stream for ever."""

    async def body(peer: Peer) -> None:
        first = await peer.speak("old")
        await peer.say(first, (True, "new"))
        await peer.say(first, (False, "old"))
        await peer.speak("new", "newer")
        await peer.speak("newer")
        assert len(peer.arrived) == 1

    run(body)


def test_a_peer_that_comes_with_another_stream_is_told_our_topics_once_more():
    """Its old stream died, and with that Go forgets what we are in, though we said it to this very instance."""

    async def body(peer: Peer) -> None:
        await peer.speak("old")
        (ours,) = peer.arrived
        said = len(peer.said[ours])
        await peer.speak("old")
        assert topics_said(peer.said[ours][said:]) == {"old"}
        assert len(peer.arrived) == 1

    run(body)


def test_a_peer_that_speaks_long_after_us_is_told_our_topics_once_more():
    """A Go peer that still holds a dead connection to an earlier life of ours drops what we said when it notices."""

    async def body(peer: Peer) -> None:
        (ours,) = peer.arrived
        said = len(peer.said[ours])
        await trio.sleep(30)
        await peer.speak("old")
        assert topics_said(peer.said[ours][said:]) == {"old"}
        assert len(peer.arrived) == 1

    run(body, trio.testing.MockClock(autojump_threshold=0))


def test_a_peer_that_speaks_at_once_is_told_our_topics_once():
    async def body(peer: Peer) -> None:
        (ours,) = peer.arrived
        said = len(peer.said[ours])
        await peer.speak("old")
        assert topics_said(peer.said[ours][said:]) == set()

    run(body)
