"""A node of ours with everything that the recorded EdgeVPN nodes had behind them, to hold their conversations again."""

from __future__ import annotations

import ipaddress
import random
import struct
from contextlib import asynccontextmanager
from typing import Any

import h11
import trio
import trio.testing

from provider_kairos.clock import ManualClock, SystemClock
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.packet_pump import PacketPump
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.testing import FakeTun
from provider_kairos.ledger.block import Block, pack
from provider_kairos.ledger.engine import Ledger
from provider_kairos.ledger.liveness import heartbeat_text
from provider_kairos.ledger.model import LedgerSettings
from provider_kairos.ledger.signing import Signer
from provider_kairos.services import egress, egress_policy
from provider_kairos.services.endpoints import Endpoint, bind
from provider_kairos.services.expose import ServiceExposer
from provider_kairos.services.records import USERS_BUCKET
from provider_kairos.services.send import FileSender
from provider_kairos.services.testing import MemoryLedger, tcp_server
from provider_kairos.token.codec import generate
from provider_kairos.vpn.records import machine_record
from tests.interop.stream_recordings import FILE_1, Node, hold

STILL_OPEN = "open"


def run(main):
    async def in_time():
        with trio.fail_after(60):
            return await main()

    return trio.run(in_time)


@asynccontextmanager
async def running(*services):
    async with trio.open_nursery() as nursery:
        for service in services:
            nursery.start_soon(service.run)
        await trio.testing.wait_all_tasks_blocked()
        yield nursery
        nursery.cancel_scope.cancel()


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
    request: Any = None
    body = b""
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

    async def hold(self, conversation, end):
        """Returns our payload and end, when the conversation is as far as it gets; ``end`` is the expected one."""
        async with trio.open_nursery() as nursery:
            node, services = await self._serving(conversation, nursery)
            async with running(*services) as inner:
                answer = await hold(conversation, node, self.peer.peer_id, inner)
                if end == STILL_OPEN:
                    wanted = len(conversation.payload(of_edgevpn=not conversation.opened_by_edgevpn))
                    await answer.until(lambda: len(answer.payload) >= wanted)
                    await trio.testing.wait_all_tasks_blocked(0.02)
                else:
                    await answer.until(lambda: answer.end != STILL_OPEN)
                result = (answer.payload, answer.end)
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return result

    async def _serving(self, conversation, nursery):
        node: Any = Node(self.us.peer_id)
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
            storage: dict[str, Any] = {"healthcheck": {self.peer.peer_id: beat}, "machines": {theirs: machine}}
            service.receive(pack(Block(1, "", storage, "f" * 64, "")), self.peer.peer_id, self.peer.peer_id)

        tun = self.tun

        class Running:
            async def run(self):
                await pump.run(tun)

        return Running()


def egress_networks(text):
    return [ipaddress.ip_network(text)]
