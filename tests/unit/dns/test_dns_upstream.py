"""One question to one server, over real sockets on loopback."""

from __future__ import annotations

import struct
from collections import Counter
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio

from provider_kairos.dns.address import Endpoint
from provider_kairos.dns.question import Edns, Question, read_message
from provider_kairos.dns.upstream import exchange, keep_seconds, query, read_reply, send_only

PATIENCE = 60


def asked(**options):
    question = read_message(dns.message.make_query("Www.Example.", "A", **options).to_wire())
    assert isinstance(question, Question)
    return question


def answer_to(data, *, cut=False, addresses=("192.0.2.1",)):
    made = dns.message.make_response(dns.message.from_wire(data))
    if cut:
        made.flags |= dns.flags.TC
    else:
        made.answer.append(dns.rrset.from_text_list("Www.Example.", 60, "IN", "A", list(addresses)))
    return made.to_wire()


class Server:
    """``udp`` and ``tcp`` make the answers to a question: any number over UDP, bytes over TCP."""

    def __init__(self, udp, tcp=None):
        self.udp = udp
        self.tcp = tcp
        self.questions = []
        self.ports = set()

    @asynccontextmanager
    async def running(self):
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            place = sock.getsockname()
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._serve_udp, sock)
                    if self.tcp is not None:
                        listeners = await trio.open_tcp_listeners(place[1], host="127.0.0.1")
                        nursery.start_soon(trio.serve_listeners, self._serve_tcp, listeners)
                    yield Endpoint(*place)
                    nursery.cancel_scope.cancel()

    async def _serve_udp(self, sock):
        while True:
            data, client = await sock.recvfrom(65535)
            self.questions.append(data)
            self.ports.add(client[1])
            for answer in self.udp(data):
                await sock.sendto(answer, client)

    async def _serve_tcp(self, stream):
        length = int.from_bytes(await stream.receive_some(2), "big")
        data = await stream.receive_some(length)
        self.questions.append(data)
        await stream.send_all(self.tcp(data))
        await stream.aclose()


def framed(data):
    return struct.pack("!H", len(data)) + data


def test_a_question_and_its_answer():
    async def main():
        server = Server(lambda data: [answer_to(data)])
        async with server.running() as place:
            answer = await exchange(place, asked(), Counter())
        assert (answer.rcode, answer.usable, answer.empty) == (0, True, False)
        assert read_reply(answer.message).answers[0].to_text() == "Www.Example. 60 IN A 192.0.2.1"

    trio.run(main)


def test_ids_and_ports_cannot_be_guessed():
    async def main():
        server = Server(lambda data: [answer_to(data)])
        async with server.running() as place:
            for _ in range(40):
                await exchange(place, asked(), Counter())
        assert len({data[:2] for data in server.questions}) > 30
        assert len(server.ports) > 20

    trio.run(main)


def test_what_answers_something_else_is_not_listened_to():
    async def main():
        def udp(data):
            good = answer_to(data)
            yield b""
            yield b"\xff"
            yield bytes([data[0] ^ 1]) + good[1:]  # another id
            yield data  # a question
            yield good[:2] + b"\xa1" + good[3:]  # another opcode
            yield good[:13] + b"X" + good[14:]  # another name
            yield good[:12]  # no error, and no question
            yield good

        server = Server(udp)
        counters: Counter[str] = Counter()
        async with server.running() as place:
            answer = await exchange(place, asked(), counters)
        assert read_reply(answer.message).answers
        assert counters == {"dns_forward_unasked": 7}

    trio.run(main)


def test_a_name_may_come_back_in_another_case_and_an_error_without_its_question():
    async def main():
        lower = Server(lambda data: [answer_to(data)[:12] + answer_to(data)[12:].lower()])
        async with lower.running() as place:
            assert (await exchange(place, asked(), Counter())).usable
        bare = Server(lambda data: [data[:2] + b"\x80\x01" + bytes(8)])
        async with bare.running() as place:
            answer = await exchange(place, asked(), Counter())
            assert (answer.rcode, answer.usable) == (1, False)

    trio.run(main)


@pytest.mark.parametrize("count", [1, 3000])
def test_an_answer_that_was_cut_is_fetched_over_tcp(count):
    async def main():
        addresses = [f"10.0.{n >> 8}.{n & 255}" for n in range(count)]
        server = Server(
            lambda data: [answer_to(data, cut=True)], lambda data: framed(answer_to(data, addresses=addresses))
        )
        counters: Counter[str] = Counter()
        async with server.running() as place:
            answer = await exchange(place, asked(), counters)
        assert len(read_reply(answer.message).answers[0]) == count
        assert counters == {"dns_forward_tcp": 1}
        assert server.questions[0] == server.questions[1]

    trio.run(main)


@pytest.mark.parametrize(
    "tcp", [None, lambda _: b"", lambda _: b"\0", lambda _: b"\0\7cut", lambda data: framed(b"\0" * 20 + data)]
)
def test_a_server_without_proper_tcp(tcp):
    async def main():
        server = Server(lambda data: [answer_to(data, cut=True)], tcp)
        async with server.running() as place:
            with pytest.raises(OSError):
                await exchange(place, asked(), Counter())

    trio.run(main)


def test_nobody_there():
    async def main():
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            place = Endpoint(*sock.getsockname())
        with trio.fail_after(PATIENCE), pytest.raises(OSError, match="refused"):
            await exchange(place, asked(), Counter())

    trio.run(main)


def test_what_goes_out_holds_the_question_and_nothing_of_the_asker():
    plain = query(asked(), 1)
    assert plain == bytes.fromhex("000101000001000000000000") + asked().raw
    cookie = dns.message.make_query("www.example.", "A", use_edns=0, payload=4096)
    question = asked(use_edns=0, want_dnssec=True)
    assert question.edns == Edns(1232, dnssec=True)
    read = dns.message.from_wire(query(question, 1))
    assert (read.payload, read.options, bool(read.ednsflags & dns.flags.DO)) == (1232, (), True)
    assert cookie.payload == 4096


def test_a_question_without_waiting():
    async def main():
        seen = trio.Event()
        server = Server(lambda _: seen.set() or [])
        async with server.running() as place:
            await send_only(place, asked())
            await seen.wait()

    trio.run(main)


def test_how_long_an_answer_may_be_kept():
    made = dns.message.make_response(dns.message.make_query("www.example.", "A"))
    made.answer.append(dns.rrset.from_text("www.example.", 300, "IN", "CNAME", "real.example."))
    made.answer.append(dns.rrset.from_text("real.example.", 60, "IN", "A", "192.0.2.1"))
    made.authority.append(dns.rrset.from_text("example.", 5, "IN", "NS", "ns.example."))
    reply = read_reply(made.to_wire())
    assert keep_seconds(reply) == 60
    assert reply.authority == ()
    assert [rrset.ttl for rrset in read_reply(made.to_wire(), 100).answers] == [200, 0]
    made.set_rcode(dns.rcode.NXDOMAIN)
    assert keep_seconds(read_reply(made.to_wire())) == 0
    made.authority.append(dns.rrset.from_text("example.", 900, "IN", "SOA", "a. b. 1 2 3 4 30"))
    assert keep_seconds(read_reply(made.to_wire())) == 30
