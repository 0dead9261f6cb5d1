"""Our diallers before what EdgeVPN servers answered: services, files and egress, from the recordings of both versions."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from provider_kairos.clock import ManualClock
from provider_kairos.ids import PeerId
from provider_kairos.mesh.multistream import HEADER, encode_line
from provider_kairos.services import dialing
from provider_kairos.services.connect import ServiceConnector
from provider_kairos.services.endpoints import Endpoint
from provider_kairos.services.proxy import EgressProxy
from provider_kairos.services.receive import FileReceiver, TruncatedError
from provider_kairos.services.records import EGRESS_BUCKET, FILES_BUCKET, SERVICES_BUCKET, named_value
from provider_kairos.services.testing import MemoryNetwork, read_all
from tests.interop.stream_place import answer_of, run, running
from tests.interop.stream_recordings import FILE_1, Conversation, by_text, load

RECORDED = {name: load(name) for name in ("streams-035", "streams-030")}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(dialing, "SETTLE", 0.1)


class RecordedServer:
    """A node that answers as an EdgeVPN node did: the recorded frames, one by one, and the recorded end."""

    def __init__(self, network: MemoryNetwork, conversation: Conversation, first_read: int = 0):
        self.node = network.node("edgevpn")
        self.conversation = conversation
        self.heard = b""
        self._first_read = first_read
        self.node.set_stream_handler(conversation.protocol, self._serve)

    async def _serve(self, _peer: PeerId, stream: Any) -> None:
        skip = len(HEADER) + len(encode_line(self.conversation.protocol))
        while len(self.heard) < self._first_read and (data := await stream.read()):
            self.heard += data
        for frame in self.conversation.frames:
            if not frame.sent_by_edgevpn:
                continue
            payload, skip = frame.payload[skip:], max(0, skip - len(frame.payload))
            if payload:
                await stream.write(payload)
        match self.conversation.edgevpns_end:
            case "reset":
                await stream.reset()
            case "open":
                await stream.read()


@asynccontextmanager
async def dialling(conversation, first_read=0):
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork(nursery, ManualClock())
        server = RecordedServer(network, conversation, first_read)
        yield network, server
        nursery.cancel_scope.cancel()


def recorded(text):
    return [pytest.param(by_text(RECORDED[name])[text], id=name) for name in RECORDED]


@pytest.mark.parametrize(
    "conversation", recorded("/edgevpn/service/0.1: the server behind closes at once after 'quit'")
)
def test_our_client_reads_what_an_edgevpn_service_answered(conversation):
    async def main():
        async with dialling(conversation, first_read=5) as (network, server):
            network.ledger.announce(SERVICES_BUCKET, "echo", named_value(server.node.peer_id, "echo"))
            connector = ServiceConnector(
                network.ledger, network.node("us"), network.clock, {"echo": Endpoint("127.0.0.1", 0)}
            )
            async with running(connector):
                endpoint = connector.addresses[0][1]
                async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
                    await stream.send_all(b"quit\n")
                    assert await read_all(stream) == b"bye\n"
            connector.close()
            assert server.heard == b"quit\n"

    run(main)


@pytest.mark.parametrize("conversation", recorded("/edgevpn/service/0.1: nothing listens behind the service"))
def test_our_client_is_reset_when_an_edgevpn_service_is(conversation, monkeypatch):
    monkeypatch.setattr(dialing.Dialer.open, "__kwdefaults__", {"patience": 0.5})

    async def main():
        async with dialling(conversation) as (network, server):
            network.ledger.announce(SERVICES_BUCKET, "echo", named_value(server.node.peer_id, "echo"))
            connector = ServiceConnector(
                network.ledger, network.node("us"), network.clock, {"echo": Endpoint("127.0.0.1", 0)}
            )
            async with running(connector):
                endpoint = connector.addresses[0][1]
                async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
                    with pytest.raises(trio.BrokenResourceError):
                        await read_all(stream)
            connector.close()

    run(main)


def receiver(network, server, tmp_path):
    network.ledger.announce(FILES_BUCKET, "file-1", named_value(server.node.peer_id, "file-1"))
    return FileReceiver(network.ledger, network.node("us"), network.clock, "file-1", tmp_path / "got")


@pytest.mark.parametrize("conversation", recorded("/edgevpn/file/0.1: fetch file-1"))
def test_our_receiver_takes_the_file_that_an_edgevpn_node_sent(conversation, tmp_path):
    async def main():
        async with dialling(conversation) as (network, server):
            service = receiver(network, server, tmp_path)
            async with running(service):
                await service.done.wait()
            assert service.received is not None
            assert not service.received.verified
            assert service.received.sha256 == "1bd3551ea8461d37fc4a7e0d1d9aefeedca8ebb371b3b82faa611f2b11ff85b6"

    run(main)
    assert (tmp_path / "got").read_bytes() == FILE_1


@pytest.mark.parametrize("conversation", recorded("/edgevpn/file/0.1: fetch file-1"))
def test_where_edgevpns_receiver_calls_half_a_file_a_success_ours_fails(conversation, tmp_path):
    """The recorder reset a transfer in the middle, and EdgeVPN's file-receive ended with 0 (spec/edgevpn.md 17)."""
    half = Conversation(conversation.file, 0, "", conversation.protocol, frames=conversation.frames[:-3])

    async def main():
        async with dialling(half) as (network, server):
            original = server._serve

            async def serve(peer, stream):
                server.node.set_stream_handler(conversation.protocol, original)
                for frame in [each for each in conversation.frames if len(each.payload) > 1000][:1]:
                    await stream.write(frame.payload)
                await trio.sleep(0.2)
                await stream.reset()

            server.node.set_stream_handler(conversation.protocol, serve)
            service = receiver(network, server, tmp_path)
            async with running(service):
                await service.done.wait()
            assert isinstance(service.failure, TruncatedError)

    run(main)
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("plain GET", b"200 OK"),
        ("POST with body", b"200 OK"),
        ("status 404", b"404 Not Found"),
        ("nothing listens", b"502 Bad Gateway"),
        ("CONNECT", b"501 "),
    ],
)
@pytest.mark.parametrize("name", list(RECORDED))
def test_our_proxy_passes_on_what_an_edgevpn_egress_answered(text, status, name):
    conversation = by_text(RECORDED[name])[f"/edgevpn/egress/0.1: {text}"]

    async def main():
        async with dialling(conversation, first_read=1) as (network, server):
            network.ledger.announce(EGRESS_BUCKET, server.node.peer_id, '"ok"')
            proxy = EgressProxy(
                network.ledger, network.node("us"), network.clock, random.Random(1), Endpoint("127.0.0.1", 0)
            )
            async with running(proxy):
                endpoint = proxy.addresses[0]
                async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
                    method = b"CONNECT 127.0.0.1:8000" if text == "CONNECT" else b"GET http://127.0.0.1:8000/x"
                    await stream.send_all(method + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    got = await read_all(stream)
            for listener in proxy._listeners:
                listener.close()
            assert got.startswith(b"HTTP/1.1 " + status)
            if status[:1] in b"24":
                assert got.endswith(answer_of(conversation.application(of_edgevpn=True))[2])
            # a CONNECT never reaches an egress that would take it for a request
            assert bool(server.heard) == (text != "CONNECT")

    run(main)
