"""Every recorded conversation of EdgeVPN's stream protocols, held again with our handlers and our diallers.

Served: what the recorder said to an EdgeVPN node is said to ours; payload and end must be the recorded ones, but for
:data:`DIFFERENCES`. Dialled: what EdgeVPN nodes said when they dialled is said to ours, and what EdgeVPN servers answered is
answered to our diallers. Source: spec/edgevpn.md 8, 17; v0.35.4 and v0.30.2.
"""

from __future__ import annotations

import ipaddress
import random
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import h11
import pytest
import trio
import trio.testing

from provider_kairos.clock import ManualClock, SystemClock
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.packet_pump import PacketPump
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.testing import FakeTun
from provider_kairos.ids import PeerId
from provider_kairos.ledger.block import Block, pack
from provider_kairos.ledger.engine import Ledger
from provider_kairos.ledger.liveness import heartbeat_text
from provider_kairos.ledger.model import LedgerSettings
from provider_kairos.ledger.signing import Signer
from provider_kairos.mesh.multistream import HEADER, encode_line
from provider_kairos.services import dialing, egress, egress_policy, users
from provider_kairos.services.connect import ServiceConnector
from provider_kairos.services.endpoints import Endpoint, bind
from provider_kairos.services.expose import ServiceExposer
from provider_kairos.services.proxy import EgressProxy
from provider_kairos.services.receive import FileReceiver, TruncatedError
from provider_kairos.services.records import (
    EGRESS_BUCKET,
    FILES_BUCKET,
    SERVICES_BUCKET,
    USERS_BUCKET,
    named_value,
)
from provider_kairos.services.send import FileSender
from provider_kairos.services.testing import MemoryLedger, MemoryNetwork, read_all, tcp_server
from provider_kairos.token.codec import generate
from provider_kairos.vpn.records import machine_record
from tests.interop.stream_recordings import FILE_1, FILES, Conversation, Node, by_text, hold, load

RECORDED = {name: load(name) for name in FILES}
SERVED = [each for name in FILES for each in RECORDED[name] if not each.opened_by_edgevpn and each.text]
DIALLED = [each for name in FILES for each in RECORDED[name] if each.opened_by_edgevpn]
REPLIES = [each for name in FILES for each in RECORDED[name] if not each.opened_by_edgevpn and not each.text]
"""Echo replies that the recorder sent as it was pinged: /edgevpn/0.1, opened by it without a word of its own."""

STILL_OPEN = "open"


@dataclass(frozen=True)
class Difference:
    """Ours ends the conversation otherwise, or says something else; ``reason`` is why."""

    reason: str
    end: str | None = None
    status: int | None = None
    packets: int | None = None


DIFFERENCES = {
    "/edgevpn/0.1: one ICMP packet, we are not in machines": Difference(
        "packets are taken inside the connection's reader: one of a stranger is dropped and counted, without a reset",
        end=STILL_OPEN,
    ),
    "/edgevpn/0.1: two packets in one write (one yamux frame)": Difference(
        "both packets arrive; EdgeVPN loses the second", packets=2
    ),
    "/edgevpn/0.1: one packet split over two writes": Difference(
        "what is no whole packet is dropped and counted, no part of it reaches the device; no reset",
        end=STILL_OPEN,
        packets=0,
    ),
    "/edgevpn/0.1: source address of somebody else": Difference(
        "a packet with an address that is not its sender's is dropped", packets=0
    ),
    "/edgevpn/0.1: garbage that is no IP packet": Difference(
        "it is dropped and counted, without a reset", end=STILL_OPEN
    ),
    "/edgevpn/service/0.1: the server behind aborts (TCP reset) after 'abort'": Difference(
        "a reset travels as a reset, not as an orderly end", end="reset"
    ),
    "/edgevpn/egress/0.1: nothing listens": Difference("the reason is said instead of a reset", end="end", status=502),
    "/edgevpn/egress/0.1: not HTTP": Difference("the reason is said instead of a reset", end="end", status=400),
    "/edgevpn/egress/0.1: no Host": Difference("the reason is said instead of a reset", end="end", status=400),
    "/edgevpn/egress/0.1: CONNECT": Difference(
        "it is never passed on: any 2xx of the server would lie to the client", status=501
    ),
}
EGRESS_ADDS = {"accept-encoding", "user-agent"}
"""Headers that EdgeVPN's HTTP client adds to a request and ours does not."""


def names(conversations: list[Conversation]) -> list[Any]:
    return [pytest.param(each, id=each.name) for each in conversations]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(users, "PATIENCE", 0.0)
    monkeypatch.setattr(dialing, "SETTLE", 0.1)


@asynccontextmanager
async def running(*services):
    async with trio.open_nursery() as nursery:
        for service in services:
            nursery.start_soon(service.run)
        await trio.testing.wait_all_tasks_blocked()
        yield nursery
        nursery.cancel_scope.cancel()


# --- a node with everything that the recorded ones had ---------------------------------------------------------------


async def behind_the_service(stream):
    """The recorded server: echoes, closes on ``quit``, aborts on ``abort``; and the recorder's own, ``reply to:``."""
    while data := await stream.receive_some(65536):
        if data == b"quit\n":
            await stream.send_all(b"bye\n")
            return
        if data == b"abort\n":
            stream.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER of no time
            return
        await stream.send_all(b"reply to: " + data if data.startswith(b"req ") else data)


async def behind_the_egress(stream):
    """The recorded server: answers with what it was asked, or as the recorder did for ``example.test``."""
    http = h11.Connection(h11.SERVER)
    request, body = None, b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            break
    headers = request.headers.raw_items()
    if dict(request.headers)[b"host"] == b"example.test":
        await stream.send_all(
            b"HTTP/1.1 201 Created\r\nX-Py: yes\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nfrompy"
        )
        return
    lines = [b"%s %s" % (request.method, request.target), *(b"%s: %s" % pair for pair in headers), b"", b"", body]
    text = b"\n".join(lines)
    status = b"404 Not Found" if b"missing" in request.target else b"200 OK"
    await stream.send_all(
        b"HTTP/1.0 %s\r\nServer: BaseHTTP/0.6 Python/3.11.7\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
        b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text)
    )


class EdgevpnsPlace:
    """Ours in the place of the recorded nodes: services in memory, real TCP behind them."""

    def __init__(self, monkeypatch, tmp_path):
        self.monkeypatch = monkeypatch
        self.tmp_path = tmp_path
        self.peer = Signer(b"\x02" * 32)
        self.us = Signer(b"\x01" * 32)
        self.tun: Any = FakeTun()

    async def hold(self, conversation):
        """Returns the answer, when the conversation is as far as it gets."""
        async with trio.open_nursery() as nursery:
            node, services = await self._serving(conversation, nursery)
            async with running(*services) as inner:
                answer = await hold(conversation, node, self.peer.peer_id, inner)
                if self._expected_end(conversation) == STILL_OPEN:
                    wanted = len(conversation.payload(of_edgevpn=not conversation.opened_by_edgevpn))
                    await answer.until(lambda: len(answer.payload) >= wanted)
                    await trio.testing.wait_all_tasks_blocked(0.02)
                else:
                    await answer.until(lambda: answer.end != STILL_OPEN)
                result = (answer.payload, answer.end)
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return result

    @staticmethod
    def _expected_end(conversation):
        if conversation.opened_by_edgevpn:
            # the recorder served as it liked; ours ends a packet stream with its sender, files and answers by itself
            return STILL_OPEN if "service" in conversation.protocol else "end"
        difference = DIFFERENCES.get(conversation.text)
        return difference.end if difference and difference.end else conversation.edgevpns_end

    async def _serving(self, conversation, nursery):
        node = Node(self.us.peer_id)
        stranger = "we are not in" in conversation.text
        ledger = MemoryLedger()
        if not stranger:
            ledger.announce(USERS_BUCKET, self.peer.peer_id, "{}")
        clock = ManualClock()
        match conversation.protocol:
            case "/edgevpn/service/0.1" if "serves no service" not in conversation.text:
                target = await tcp_server(nursery, behind_the_service)
                if "nothing listens" in conversation.text:
                    (unused,) = bind(Endpoint("127.0.0.1", 0))
                    target = Endpoint(*unused.getsockname())
                    unused.close()
                return node, [ServiceExposer(ledger, node, clock, {"echo": target})]
            case "/edgevpn/file/0.1":
                path = self.tmp_path / "file-1"
                path.write_bytes(FILE_1)
                return node, [FileSender(ledger, node, clock, {"file-1": path})]
            case "/edgevpn/egress/0.1":
                await self._web(nursery)
                policy = egress_policy.EgressPolicy(tuple, allowed=[*egress_networks("127.0.0.0/8")])
                return node, [egress.EgressServer(ledger, node, clock, policy)]
            case "/edgevpn/0.1":
                return node, [self._pump(node, conversation, stranger=stranger)]
        return node, []

    async def _web(self, nursery):
        """The addresses of the recordings lead to our server: 127.0.0.1:8000 and example.test."""
        server = await tcp_server(nursery, behind_the_egress)
        original = egress._connect_any

        async def look_up(_endpoint):
            await trio.lowlevel.checkpoint()
            return [egress_networks("127.0.0.1/32")[0].network_address]

        async def connect_any(addresses, endpoint):
            known = endpoint.port in {8000, 80}
            return await original(addresses, Endpoint("127.0.0.1", server.port if known else endpoint.port))

        self.monkeypatch.setattr(egress, "_look_up", look_up)
        self.monkeypatch.setattr(egress, "_connect_any", connect_any)

    def _pump(self, node, conversation, *, stranger):
        ours, theirs = "10.1.0.1", "10.1.0.66"
        if conversation.opened_by_edgevpn:  # then we are in the recorder's place
            ours, theirs = theirs, ours
        clock: Any = SystemClock()

        async def publish(_data):
            await trio.lowlevel.checkpoint()

        service = LedgerService(
            Ledger(LedgerSettings(), self.us, rng=random.Random(1)), clock, lambda _rows: None, publish
        )
        node.on_chain = set
        pump = PacketPump(DaemonSettings(generate()), service, node, clock)
        service.announce("machines", ours, machine_record(self.us.peer_id, "us", "x", ours, "v1"))
        if not stranger:
            now = clock.now()
            beat = self.peer.sign("healthcheck", self.peer.peer_id, heartbeat_text(now.unix), now.unix_ns, now.unix)
            text = machine_record(self.peer.peer_id, "they", "x", theirs, "")
            machine = self.peer.sign("machines", theirs, text, now.unix_ns, now.unix)
            storage = {"healthcheck": {self.peer.peer_id: beat}, "machines": {theirs: machine}}
            service.receive(pack(Block(1, "", storage, "f" * 64, "")), self.peer.peer_id, self.peer.peer_id)

        tun = self.tun

        class Running:
            async def run(self):
                await pump.run(tun)

        return Running()


def egress_networks(text):
    return [ipaddress.ip_network(text)]


@pytest.fixture
def place(monkeypatch, tmp_path):
    return EdgevpnsPlace(monkeypatch, tmp_path)


def run(main):
    async def in_time():
        with trio.fail_after(60):
            return await main()

    return trio.run(in_time)


# --- served ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conversation", names(SERVED))
def test_served_as_recorded(conversation: Conversation, place: EdgevpnsPlace):
    payload, end = run(lambda: place.hold(conversation))
    difference = DIFFERENCES.get(conversation.text)
    assert end == (difference.end if difference and difference.end else conversation.edgevpns_end)
    if conversation.protocol == "/edgevpn/egress/0.1" and end == "end":
        head = HEADER + encode_line(conversation.protocol)
        assert payload.startswith(head)
        compare_http(payload.removeprefix(head), conversation.application(of_edgevpn=True), difference)
    else:
        assert payload == conversation.payload(of_edgevpn=True)
    if conversation.protocol == "/edgevpn/0.1":
        expected = conversation.packets
        if difference is not None and difference.packets == 2:
            ((both,),) = (expected,)  # EdgeVPN handed its kernel both as one
            expected = [both[: len(both) // 2], both[len(both) // 2 :]]
        elif difference is not None and difference.packets == 0:
            expected = []
        assert list(place.tun.written) == expected


def compare_http(ours: bytes, recorded: bytes, difference: Difference | None) -> None:
    status, headers, body = answer_of(ours)
    if difference is not None:
        assert status == difference.status
        assert body
        return
    recorded_status, recorded_headers, recorded_body = answer_of(recorded)
    assert status == recorded_status
    same = {"content-type", "date", "server"}
    assert {name: headers[name] for name in same} == {name: recorded_headers[name] for name in same}
    # the body says which request the server got
    asked, recorded_asked = body.decode().split("\n"), recorded_body.decode().split("\n")
    assert asked[0] == recorded_asked[0]
    assert asked[-1] == recorded_asked[-1]
    added = [line for line in recorded_asked if line not in asked]
    assert {line.partition(":")[0].lower() for line in added} <= EGRESS_ADDS
    assert [line for line in asked if line not in recorded_asked] == ["Connection: close"]


def answer_of(data: bytes):
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    http.receive_data(data)
    http.receive_data(b"")
    head, body = http.next_event(), b""
    assert isinstance(head, h11.Response)
    while isinstance(event := http.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    return head.status_code, {name.decode(): value.decode() for name, value in head.headers}, body


def test_every_difference_is_one_of_a_recording():
    assert set(DIFFERENCES) <= {conversation.text for conversation in SERVED}


def test_no_conversation_is_left_out():
    for name in FILES:
        for conversation in RECORDED[name]:
            assert conversation.protocol, conversation.name
            assert (conversation in SERVED) + (conversation in DIALLED) + (conversation in REPLIES) == 1
    assert all(each.protocol == "/edgevpn/0.1" for each in REPLIES)
    assert len({each.text for each in SERVED if each.file == "streams-035"}) == 31


# --- dialled by EdgeVPN ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conversation", names(DIALLED))
def test_an_edgevpn_that_dials_us_is_served(conversation: Conversation, place: EdgevpnsPlace):
    payload, end = run(lambda: place.hold(conversation))
    answer = payload.removeprefix(HEADER + encode_line(conversation.protocol))
    assert len(answer) == len(payload) - len(HEADER) - len(encode_line(conversation.protocol))
    said = conversation.application(of_edgevpn=True)
    match conversation.protocol:
        case "/edgevpn/0.1":
            assert list(place.tun.written) == [said]
            assert (answer, end) == (b"", "end")
        case "/edgevpn/service/0.1":
            assert answer == conversation.application(of_edgevpn=False)
        case "/edgevpn/file/0.1":
            assert (answer, end) == (FILE_1, "end")
        case "/edgevpn/egress/0.1":
            status, _, body = answer_of(answer)
            expected = (501, None) if said.startswith(b"CONNECT") else (201, b"frompy")
            assert status == expected[0]
            assert expected[1] is None or body == expected[1]


# --- our diallers before EdgeVPN's answers -----------------------------------------------------------------------------


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
    return [pytest.param(by_text(RECORDED[name])[text], id=name) for name in FILES[:2]]


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
@pytest.mark.parametrize("name", FILES[:2])
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
