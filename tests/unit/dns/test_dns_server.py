"""The server's sockets, on loopback; what is answered is the business of other tests."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import asynccontextmanager, suppress

import dns.flags
import dns.message
import dns.rcode
import pytest
import trio
import trio.testing

from provider_kairos.dns import server
from provider_kairos.dns.address import Endpoint
from provider_kairos.dns.answer import Reply
from provider_kairos.dns.question import Rcode
from provider_kairos.dns.rate import Allowance
from provider_kairos.dns.records import Row, Zone, build
from provider_kairos.dns.server import NameServer

PATIENCE = 60
HERE = Endpoint("127.0.0.1", 0)
FOO = dns.message.make_query("foo.test.", "A", id=0x1234).to_wire()
UNKNOWN = dns.message.make_query("unknown.test.", "A", id=0x4321).to_wire()
MARKER = bytes.fromhex("ffff10000000000000000000")


def zone():
    *_, made = build([Row(r"^foo\.test\.$", json.dumps({"1": "10.1.0.9"}))], Zone())
    assert made is not None
    return made


class FakeForwarder:
    """Answers SERVFAIL once ``go_on`` is set."""

    def __init__(self):
        self.go_on = trio.Event()
        self.asked = []
        self.break_with = None

    def waiting(self):
        return []

    def came_back(self, question):
        return question.name.startswith("probe.")

    def kept(self, question):
        if self.break_with is not None:
            raise self.break_with
        return Reply(Rcode.NXDOMAIN) if question.name.startswith("kept.") else None

    async def ask(self, question):
        self.asked.append(question.name)
        await self.go_on.wait()
        if question.name.startswith("crash."):
            raise RuntimeError("a bug")
        return Reply(Rcode.SERVFAIL)


@asynccontextmanager
async def running(listen=HERE, forwarder=None):
    made = NameServer(listen, forwarder, zone())
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            await made.listening.wait()
            yield made
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def asker(place, family=trio.socket.AF_INET):
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(place)
        yield sock


async def over_udp(made, data):
    async with asker(made.addresses["UDP"]) as sock:
        await sock.send(data)
        return dns.message.from_wire(await sock.recv(65535))


async def read_one(stream, rest=b""):
    data = bytearray(rest)
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        piece = await stream.receive_some(65536)
        if not piece:
            return None
        data += piece
    return bytes(data[2:])


def framed(*messages):
    return b"".join(struct.pack("!H", len(each)) + each for each in messages)


def test_both_transports_answer_the_same():
    async def main():
        async with running() as made:
            assert made.addresses["UDP"] == made.addresses["TCP"]
            answer = await over_udp(made, FOO)
            assert answer.answer[0].to_text() == "foo.test. 3600 IN A 10.1.0.9"
            async with await trio.open_tcp_stream(*made.addresses["TCP"]) as stream:
                await stream.send_all(framed(FOO))
                assert dns.message.from_wire(await read_one(stream)).to_text() == answer.to_text()
            assert made.waiting() == []

    trio.run(main)


def test_a_connection_takes_question_after_question_in_any_pieces():
    async def main():
        async with running() as made, await trio.open_tcp_stream(*made.addresses["TCP"]) as stream:
            for byte in framed(FOO):
                await stream.send_all(bytes([byte]))
            assert await read_one(stream) is not None
            await stream.send_all(framed(FOO, MARKER))
            data = b""
            while len(data) < 2 + 42 + 2 + 12:
                data += await stream.receive_some(65536)
            await stream.send_eof()
            assert await stream.receive_some() == b""
            assert made.counters["dns_questions"] == 2

    trio.run(main)


@pytest.mark.parametrize(
    "data", [framed(b""), framed(b"\0\1\2"), framed(FOO[:2] + b"\x81" + FOO[3:]), b"\0", b"\xff\xff" + FOO]
)
def test_a_connection_that_asks_nothing_is_closed(data):
    async def main():
        async with running() as made:
            async with await trio.open_tcp_stream(*made.addresses["TCP"]) as stream:
                await stream.send_all(data)
                await stream.send_eof()
                assert await stream.receive_some() == b""
            assert (await over_udp(made, FOO)).answer

    trio.run(main)


def test_a_connection_that_dawdles_is_closed(monkeypatch):
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.05)

    async def main():
        async with running() as made, await trio.open_tcp_stream(*made.addresses["TCP"]) as stream:
            await stream.send_all(framed(FOO)[:5])
            assert await stream.receive_some() == b""

    trio.run(main)


def test_an_asker_that_does_not_read_is_let_go(monkeypatch):
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)

    async def main():
        async with running() as made:
            stream = await trio.open_tcp_stream(*made.addresses["TCP"])
            with suppress(trio.BrokenResourceError):
                while True:  # until it is closed
                    await stream.send_all(framed(*[FOO] * 1000))
            await stream.aclose()
            while made._connections:
                await trio.lowlevel.checkpoint()

    trio.run(main)


def test_connections_are_bounded_and_come_back(monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)

    async def main():
        async with running() as made:
            first = [await trio.open_tcp_stream(*made.addresses["TCP"]) for _ in range(2)]
            for stream in first:
                await stream.send_all(framed(FOO))
                assert await read_one(stream) is not None
            third = await trio.open_tcp_stream(*made.addresses["TCP"])
            assert await third.receive_some() == b""
            await first[0].aclose()
            while made._connections == 2:
                await trio.lowlevel.checkpoint()
            async with await trio.open_tcp_stream(*made.addresses["TCP"]) as stream:
                await stream.send_all(framed(FOO))
                assert await read_one(stream) is not None
            for stream in (*first, third):
                await stream.aclose()
            assert made.counters["dns_connections_refused"] == 1

    trio.run(main)


def test_waiting_for_forward_servers_holds_up_nobody():
    async def main():
        forwarder = FakeForwarder()
        async with running(forwarder=forwarder) as made, asker(made.addresses["UDP"]) as sock:
            await sock.send(UNKNOWN)
            assert (await over_udp(made, FOO)).answer
            forwarder.go_on.set()
            answer = dns.message.from_wire(await sock.recv(65535))
            assert (answer.id, answer.rcode()) == (0x4321, dns.rcode.SERVFAIL)
            assert answer.flags & dns.flags.RA
            assert forwarder.asked == ["unknown.test."]
            async with await trio.open_tcp_stream(*made.addresses["TCP"]) as stream:
                await stream.send_all(framed(UNKNOWN))
                assert await read_one(stream) == answer.to_wire()

    trio.run(main)


def test_what_is_kept_is_answered_at_once_and_probes_not_at_all():
    async def main():
        forwarder = FakeForwarder()
        async with running(forwarder=forwarder) as made, asker(made.addresses["UDP"]) as sock:
            await sock.send(dns.message.make_query("probe.test.", "A").to_wire())
            await sock.send(dns.message.make_query("kept.test.", "A", id=7).to_wire())
            answer = dns.message.from_wire(await sock.recv(65535))
            assert (answer.id, answer.rcode()) == (7, dns.rcode.NXDOMAIN)
            assert forwarder.asked == []

    trio.run(main)


def test_questions_that_wait_are_bounded(monkeypatch):
    monkeypatch.setattr(server, "MAX_TASKS", 1)

    async def main():
        forwarder = FakeForwarder()
        async with running(forwarder=forwarder) as made, asker(made.addresses["UDP"]) as sock:
            for _ in range(3):
                await sock.send(UNKNOWN)
            await sock.send(MARKER)
            assert (await sock.recv(65535))[:2] == MARKER[:2]
            assert made.counters["dns_overload"] == 2
            forwarder.go_on.set()
            assert (await sock.recv(65535))[:2] == UNKNOWN[:2]
            await sock.send(UNKNOWN)
            assert (await sock.recv(65535))[:2] == UNKNOWN[:2]

    trio.run(main)


def test_a_bug_of_ours_costs_one_answer_and_no_more():
    async def main():
        forwarder = FakeForwarder()
        forwarder.go_on.set()
        async with running(forwarder=forwarder) as made:
            crash = dns.message.make_query("crash.test.", "A").to_wire()
            assert (await over_udp(made, crash)).rcode() == dns.rcode.SERVFAIL
            forwarder.break_with = RuntimeError("another bug")
            assert (await over_udp(made, UNKNOWN)).rcode() == dns.rcode.SERVFAIL
            assert (await over_udp(made, FOO)).answer
            assert made.counters["dns_crashed"] == 2

    trio.run(main)


def test_whoever_asks_too_much_is_sent_to_tcp():
    async def main():
        async with running() as made:
            made._allowance = Allowance(per_second=0, burst=2)
            made._allowance.allows = lambda host, now, real=made._allowance.allows: real("192.0.2.1", now)
            async with asker(made.addresses["UDP"]) as sock:
                for _ in range(5):
                    await sock.send(FOO)
                answers = [await sock.recv(65535) for _ in range(5)]
                assert [bool(dns.message.from_wire(each).answer) for each in answers] == [True] * 2 + [False] * 3
                assert all(len(each) <= len(FOO) and each[2] & 2 for each in answers[2:])
                await sock.send(MARKER[:5])
                await sock.send(MARKER)
                assert (await sock.recv(65535))[:2] == MARKER[:2]
            async with await trio.open_tcp_stream(*made.addresses["TCP"]) as stream:
                await stream.send_all(framed(FOO))
                assert dns.message.from_wire(await read_one(stream)).answer
            assert made.counters["dns_rate_limited"] == 5

    trio.run(main)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_an_answer_leaves_from_the_address_that_was_asked(host):
    """A connected socket takes answers from nowhere else."""

    async def main():
        async with running(Endpoint(host, 0)) as made:
            port = made.addresses["UDP"][1]
            for address in ("127.0.0.1", "127.0.0.2", "127.1.2.3"):
                async with asker((address, port)) as sock:
                    await sock.send(FOO)
                    assert dns.message.from_wire(await sock.recv(65535)).answer
                async with await trio.open_tcp_stream(address, port) as stream:
                    await stream.send_all(framed(FOO))
                    assert await read_one(stream)
            if host != "0.0.0.0" and socket.has_ipv6:
                async with asker(("::1", port), trio.socket.AF_INET6) as sock:
                    await sock.send(FOO)
                    assert dns.message.from_wire(await sock.recv(65535)).answer

    trio.run(main)


def test_a_name_to_listen_at():
    async def main():
        async with running(Endpoint("localhost", 0)) as made:
            assert made.addresses["UDP"][0] == "127.0.0.1"
            assert (await over_udp(made, FOO)).answer

    trio.run(main)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_taken_port_is_a_reason_for_one_transport_and_is_tried_again(monkeypatch, kind):
    monkeypatch.setattr(server, "RETRY", 0.01)

    async def main():
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                taken.listen()
            made = NameServer(Endpoint("127.0.0.1", taken.getsockname()[1]), None, zone())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.run)
                with trio.fail_after(PATIENCE):
                    while not (made.waiting() and made.addresses):
                        await trio.lowlevel.checkpoint()
                    (reason,) = made.waiting()
                    transport = "UDP" if kind == socket.SOCK_DGRAM else "TCP"
                    assert reason.as_dict()["transport"] == transport
                    assert "in use" in reason.text()
                    taken.close()
                    await made.listening.wait()
                    assert made.waiting() == []
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_name_that_nobody_knows(monkeypatch):
    monkeypatch.setattr(server, "RETRY", 0.01)

    async def unknown(*_args, **_options):
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", unknown)

    async def main():
        made = NameServer(Endpoint("nowhere.invalid", 5353), None, zone())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            with trio.fail_after(PATIENCE):
                while len(made.waiting()) < 2:
                    await trio.lowlevel.checkpoint()
            assert "Name or service not known" in made.waiting()[0].text()
            nursery.cancel_scope.cancel()

    trio.run(main)
