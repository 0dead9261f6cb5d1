"""Whatever bytes come as DHT messages and addresses: read or refused, bounded, and what is read can be written."""

from __future__ import annotations

from contextlib import suppress

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.clock import ManualClock
from provider_kairos.errors import ConfigError, PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import kad_wire, multiaddr
from provider_kairos.mesh.bootstrap import parse_bootstrap
from provider_kairos.mesh.kad_providers import Providers
from provider_kairos.mesh.kad_server import Server
from provider_kairos.mesh.kad_table import Table
from provider_kairos.mesh.kad_wire import KadMessage, KadPeer, Kind

ME = PeerId(base58.b58encode(b"\x12\x20" + b"m" * 32).decode())
ASKER = PeerId(base58.b58encode(b"\x12\x20" + b"a" * 32).decode())

ids = st.binary(min_size=32, max_size=32).map(lambda raw: multiaddr.peer_id(b"\x12\x20" + raw))
addresses = st.one_of(
    st.tuples(st.ip_addresses(), st.integers(1, 65535)).map(
        lambda each: multiaddr.encode(f"/ip{each[0].version}/{each[0]}/tcp/{each[1]}")
    ),
    st.integers(1, 65535).map(lambda port: multiaddr.encode(f"/ip4/192.0.2.1/udp/{port}/quic-v1/webtransport")),
)
peers = st.builds(KadPeer, ids, st.lists(addresses, max_size=4).map(tuple), st.booleans())
messages = st.builds(
    KadMessage,
    st.sampled_from(Kind),
    st.binary(max_size=kad_wire.MAX_KEY),
    st.lists(peers, max_size=5, unique_by=lambda each: each.peer).map(tuple),
    st.lists(peers, max_size=5, unique_by=lambda each: each.peer).map(tuple),
)


@given(messages)
def test_what_is_written_is_read(message):
    assert kad_wire.decode(kad_wire.encode(message)) == message


@given(messages, st.data())
def test_damaged_messages_are_read_or_refused(message, data):
    raw = bytearray(kad_wire.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw)))
        raw[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    check(bytes(raw))


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(raw):
    check(raw)


def check(raw):
    try:
        read = kad_wire.decode(raw)
    except PeerError:
        return
    assert kad_wire.decode(kad_wire.encode(read)) == read
    server = Server(ME, Table(ME), Providers(), lambda _peer: None)
    try:
        answer = server.answer(ASKER, read, ManualClock().now())
    except PeerError:
        return
    if answer is not None:
        kad_wire.decode(kad_wire.encode(answer))


@given(st.binary(max_size=64))
def test_any_bytes_are_an_address_or_none(raw):
    endpoint = multiaddr.endpoint_of(raw)
    if endpoint is not None:
        assert multiaddr.split(raw)
        assert multiaddr.endpoint_of(multiaddr.encode_endpoint(endpoint)) == endpoint
    assert isinstance(multiaddr.is_relayed(raw), bool)


@given(st.one_of(st.text(max_size=60), st.from_regex(r"(/(ip4|ip6|dns4|dnsaddr|tcp|udp|p2p)(/[^/]{0,9})?){1,4}")))
def test_any_text_is_a_bootstrap_address_or_refused_with_a_reason(text):
    with suppress(ConfigError):
        assert parse_bootstrap(text).peer


@pytest.mark.parametrize("kind", Kind)
@given(st.binary(max_size=200), st.lists(peers, max_size=3).map(tuple))
def test_the_server_answers_or_refuses_any_request(kind, key, providers):
    server = Server(ME, Table(ME), Providers(), lambda _peer: None)
    with suppress(PeerError):
        server.answer(ASKER, KadMessage(kind, key, (), providers), ManualClock().now())
