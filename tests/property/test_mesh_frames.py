"""Codecs of the mesh: what is written is read again, and no bytes make a reader do anything but refuse them."""

from __future__ import annotations

import itertools

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.errors import PeerError
from provider_kairos.ids import peer_id_of_public_key
from provider_kairos.mesh import identify
from provider_kairos.mesh.addresses import parse_endpoint
from provider_kairos.mesh.gossip_wire import Prune, Rpc, decode_rpc, encode_rpc, sign_message, verify_message
from provider_kairos.mesh.multistream import NegotiationError, Responder, encode_line
from provider_kairos.mesh.wire import DelimitedReader, encode_delimited
from provider_kairos.mesh.yamux_frames import MAX_BODY, Frame, FrameParser, Kind, YamuxError

u32 = st.integers(0, 2**32 - 1)
frames = st.one_of(
    st.binary(max_size=200).flatmap(
        lambda body: st.builds(Frame, st.just(0), st.integers(0, 0xFFFF), u32, st.just(len(body)), st.just(body))
    ),
    st.builds(Frame, st.integers(1, 3), st.integers(0, 0xFFFF), u32, u32, st.just(b"")),
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


@given(st.lists(frames, max_size=20), st.lists(st.integers(0, 10_000), max_size=20))
def test_frames_survive_any_cutting(sent, cuts):
    parser = FrameParser()
    wire = b"".join(frame.encode() for frame in sent)
    got = [frame for piece in pieces(wire, cuts) for frame in parser.feed(piece)]
    assert got == sent
    assert parser.pending == 0


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_random_bytes_are_frames_or_refused_and_never_pile_up(chunks):
    parser = FrameParser()
    try:
        for chunk in chunks:
            for frame in parser.feed(chunk):
                assert frame.kind in set(Kind)
                assert len(frame.body) <= MAX_BODY
    except YamuxError:
        return
    assert parser.pending <= MAX_BODY + 12


protocols = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=300)


@given(st.lists(protocols, max_size=5), protocols, st.binary(max_size=50), st.lists(st.integers(0, 5000), max_size=20))
def test_a_responder_agrees_on_the_first_protocol_that_it_serves(others, served, rest, cuts):
    others = [other for other in others if other not in {served, "/multistream/1.0.0"}]
    wire = b"".join(encode_line(line) for line in ("/multistream/1.0.0", *others, served)) + rest
    responder = Responder(served.__eq__)
    for piece in pieces(wire, cuts):
        responder.feed(piece)
    assert responder.chosen == served
    assert responder.rest == rest
    expected = [encode_line("/multistream/1.0.0"), *[encode_line("na")] * len(others), encode_line(served)]
    assert responder.take_reply() == b"".join(expected)


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_random_negotiation_is_refused_or_waits(chunks):
    responder = Responder(lambda _protocol: False)
    try:
        for chunk in chunks:
            assert not responder.feed(chunk)
    except NegotiationError:
        return
    assert len(responder.rest) <= 1026


def reader_of(chunks: list[bytes], limit: int) -> DelimitedReader:
    left = [chunk for chunk in chunks if chunk]

    async def read() -> bytes:
        await trio.lowlevel.checkpoint()
        return left.pop(0) if left else b""

    return DelimitedReader(read, limit)


@given(st.lists(st.binary(max_size=300), max_size=10), st.lists(st.integers(0, 3000), max_size=20))
def test_messages_survive_any_cutting(messages, cuts):
    wire = b"".join(encode_delimited(message) for message in messages)

    async def read_all():
        reader = reader_of(pieces(wire, cuts), 1000)
        got = []
        while (message := await reader.next()) is not None:
            got.append(message)
        return got

    assert trio.run(read_all) == messages


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_random_lengths_are_refused_or_end(chunks):
    async def read_all():
        reader = reader_of(chunks, 60)
        try:
            while (message := await reader.next()) is not None:
                assert len(message) <= 60
        except PeerError:
            pass

    trio.run(read_all)


KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
AUTHOR = peer_id_of_public_key(KEY.public_key().public_bytes_raw())
topics = st.text(st.characters(codec="utf-8"), max_size=64)
ids = st.binary(min_size=1, max_size=48)
messages = st.builds(
    lambda seqno, topic, data: sign_message(KEY, AUTHOR, seqno, topic, data),
    st.integers(0, 2**64 - 1),
    topics,
    st.binary(max_size=200),
)
rpcs = st.builds(
    Rpc,
    subscriptions=st.lists(st.tuples(st.booleans(), topics), max_size=4).map(tuple),
    messages=st.lists(messages, max_size=3).map(tuple),
    ihave=st.lists(st.tuples(topics, st.lists(ids, max_size=3).map(tuple)), max_size=3).map(tuple),
    iwant=st.lists(ids, max_size=3).map(tuple),
    graft=st.lists(topics, max_size=3).map(tuple),
    prune=st.lists(st.builds(Prune, topics, st.integers(0, 3600)), max_size=3).map(tuple),
    idontwant=st.lists(ids, max_size=3).map(tuple),
)


@given(rpcs)
def test_an_rpc_is_read_as_it_was_written_and_its_messages_verify(rpc):
    again = decode_rpc(encode_rpc(rpc))
    assert again == rpc
    assert all(verify_message(message) for message in again.messages)


@given(messages, st.data())
def test_a_changed_message_does_not_verify(message, data):
    wire = bytearray(encode_rpc(Rpc(messages=(message,))))
    place = data.draw(st.integers(0, len(wire) - 1))
    wire[place] ^= data.draw(st.integers(1, 255))
    try:
        changed = decode_rpc(bytes(wire))
    except PeerError:
        return
    for each in changed.messages:
        same = (each.author, each.seqno, each.topic, each.data) == (
            message.author,
            message.seqno,
            message.topic,
            message.data,
        )
        assert same or not verify_message(each)


@given(
    st.one_of(
        st.binary(max_size=400), rpcs.map(encode_rpc).flatmap(lambda wire: st.permutations(list(wire)).map(bytes))
    )
)
def test_random_rpcs_are_refused_or_read(data):
    try:
        for message in decode_rpc(data).messages:
            verify_message(message)
    except PeerError:
        pass


@given(st.binary(max_size=400))
def test_random_identify_messages_are_refused_or_read(data):
    try:
        identity = identify.decode(data)
    except PeerError:
        return
    assert len(identity.endpoints) <= 64


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_random_addresses_in_identify_are_left_out(addresses):
    from provider_kairos.mesh import parts

    message = parts.load().Identify(listen_addrs=addresses, protocols=["/a"])
    assert identify.decode(message.SerializeToString()).protocols == {"/a"}


@given(st.text(max_size=80))
def test_random_text_is_an_address_or_none(text):
    parsed = parse_endpoint(text)
    assert parsed is None or parse_endpoint(str(parsed[0])) == (parsed[0], None)
