"""Which server is asked when, with a clock that jumps: no socket, no waiting."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio
import trio.testing

from provider_kairos.dns import forward
from provider_kairos.dns.address import Endpoint
from provider_kairos.dns.answer import Reply
from provider_kairos.dns.cache import Cache
from provider_kairos.dns.forward import Forwarder
from provider_kairos.dns.question import Edns, Question, Rcode, read_message
from provider_kairos.dns.upstream import Answer

ONE, TWO, THREE = (Endpoint(f"192.0.2.{number}", 53) for number in (1, 2, 3))
SILENT, REFUSES, BROKEN, GARBAGE, NX, EMPTY = "silent", "refuses", "broken", "garbage", "nx", "empty"


def run(main):
    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def asked(name="www.example.", rdtype="A", **options):
    question = read_message(dns.message.make_query(name, rdtype, **options).to_wire())
    assert isinstance(question, Question)
    return question


class Servers:
    """What each server does; ``log`` is who was asked."""

    def __init__(self, **words):
        self.words = {ONE: "", TWO: "", THREE: "", **{globals()[name]: word for name, word in words.items()}}
        self.log = []
        self.probes = []
        self.ttl = 60
        self.soa = True

    async def put(self, server, question, _counters):
        self.log.append(server)
        await trio.lowlevel.checkpoint()
        match self.words[server]:
            case "silent":
                await trio.sleep_forever()
            case "broken":
                raise ConnectionRefusedError(111, "Connection refused")
            case "garbage":
                return Answer(b"\x12\x34\x81\x80\0\1\0\1\0\0\0\0" + question.raw + b"\xff", 0)
            case word if isinstance(word, trio.Event):
                await word.wait()
        made = dns.message.make_response(dns.message.make_query(question.name, question.rdtype))
        match self.words[server]:
            case "refuses":
                made.set_rcode(dns.rcode.REFUSED)
            case "nx" | "empty" as word:
                made.set_rcode(dns.rcode.NXDOMAIN if word == "nx" else dns.rcode.NOERROR)
                if self.soa:
                    soa = "a.example. b.example. 1 2 3 4 30"
                    made.authority.append(dns.rrset.from_text("example.", 900, "IN", "SOA", soa))
            case _:
                address = server.host
                made.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", "A", address))
        return Answer(made.to_wire(), int(made.rcode()))

    async def send(self, server, question):
        self.probes.append((server, question))

    def forwarder(self, *servers, size=10):
        self.counters: Counter[str] = Counter()
        return Forwarder(servers, Cache(size), self.counters, put=self.put, send=self.send)


def addresses(reply):
    return [rdata.to_text() for rrset in reply.answers for rdata in rrset]


def test_the_first_that_answers_is_enough():
    async def main():
        servers = Servers()
        reply = await servers.forwarder(ONE, TWO).ask(asked())
        assert addresses(reply) == ["192.0.2.1"]
        assert servers.log == [ONE]

    run(main)


@pytest.mark.parametrize("word", [SILENT, REFUSES, BROKEN, GARBAGE])
def test_the_next_is_asked_when_one_has_nothing_to_say(word):
    async def main():
        servers = Servers(ONE=word)
        forwarder = servers.forwarder(ONE, TWO)
        assert addresses(await forwarder.ask(asked())) == ["192.0.2.2"]
        assert servers.log == [ONE, TWO]
        # and one that did not answer is not waited for again at once
        assert addresses(await forwarder.ask(asked("other.example."))) == ["192.0.2.2"]
        assert servers.log[2:] == ([ONE, TWO] if word == REFUSES else [TWO])
        await trio.sleep(forward.SHUNNED)
        servers.words[ONE] = ""
        assert addresses(await forwarder.ask(asked("third.example."))) == ["192.0.2.1"]

    run(main)


def test_a_silent_server_is_waited_for_ever_more_rarely():
    async def main():
        servers = Servers(ONE=EMPTY, TWO=SILENT)
        servers.soa = False
        forwarder = servers.forwarder(ONE, TWO)
        asked_at = []
        for _ in range(600):
            servers.log.clear()
            await forwarder.ask(asked())
            if TWO in servers.log:
                asked_at.append(trio.current_time())
            await trio.sleep(1)
        gaps = [round(two - one) for one, two in pairwise(asked_at)]
        assert gaps[:4] == [16, 31, 61, 121]  # with the second that was waited
        assert max(gaps) <= forward.MOST_SHUNNED + 2

    run(main)


@pytest.mark.parametrize("word", [SILENT, REFUSES, BROKEN, GARBAGE])
def test_servfail_when_nobody_has_anything_to_say(word):
    async def main():
        servers = Servers(ONE=word, TWO=word)
        began = trio.current_time()
        assert await servers.forwarder(ONE, TWO).ask(asked()) == Reply(Rcode.SERVFAIL)
        assert trio.current_time() - began <= forward.TOTAL_SECONDS
        assert servers.log == [ONE, TWO, ONE, TWO]
        assert servers.counters["dns_forward_failed"] == 1

    run(main)


def test_no_servers():
    async def main():
        assert await Servers().forwarder().ask(asked()) == Reply(Rcode.SERVFAIL)

    run(main)


@pytest.mark.parametrize(("word", "rcode"), [(NX, Rcode.NXDOMAIN), (EMPTY, Rcode.NOERROR)])
@pytest.mark.parametrize("others", [NX, EMPTY, SILENT, REFUSES, BROKEN])
def test_the_first_no_is_passed_on_with_its_soa_when_no_other_says_yes(word, rcode, others):
    async def main():
        servers = Servers(ONE=word, TWO=others, THREE=others)
        reply = await servers.forwarder(ONE, TWO, THREE).ask(asked())
        assert (reply.rcode, reply.answers) == (rcode, ())
        assert [rrset.to_text().split()[3] for rrset in reply.authority] == ["SOA"]
        assert servers.log[0] == ONE
        assert set(servers.log) == {ONE, TWO, THREE}

    run(main)


@pytest.mark.parametrize("word", [NX, EMPTY])
def test_a_yes_of_another_counts_more_than_a_no(word):
    async def main():
        servers = Servers(ONE=word, TWO=SILENT)
        reply = await servers.forwarder(ONE, TWO, THREE).ask(asked())
        assert addresses(reply) == ["192.0.2.3"]
        assert reply.rcode == 0

    run(main)


def test_answers_are_kept_for_as_long_as_they_say():
    async def main():
        servers = Servers()
        forwarder = servers.forwarder(ONE)
        await forwarder.ask(asked())
        await trio.sleep(20)
        reply = await forwarder.ask(asked("WWW.example."))
        assert reply.answers[0].ttl == 40
        assert servers.log == [ONE]
        assert servers.counters["dns_cache_hits"] == 1
        await trio.sleep(40)
        assert (await forwarder.ask(asked())).answers[0].ttl == 60
        assert servers.log == [ONE, ONE]

    run(main)


@pytest.mark.parametrize("word", [NX, EMPTY])
@pytest.mark.parametrize("soa", [True, False])
def test_a_no_is_kept_for_the_soas_minimum(word, soa):
    async def main():
        servers = Servers(ONE=word)
        servers.soa = soa
        forwarder = servers.forwarder(ONE)
        await forwarder.ask(asked())
        await trio.sleep(29)
        again = await forwarder.ask(asked())
        assert again.rcode == (Rcode.NXDOMAIN if word == NX else 0)
        assert len(servers.log) == (1 if soa else 2)
        await trio.sleep(1)
        await forwarder.ask(asked())
        assert len(servers.log) == (2 if soa else 3)

    run(main)


@pytest.mark.parametrize(
    "other",
    [
        asked("other.example."),
        asked(rdtype="AAAA"),
        replace(asked(), flags=0x0110),
        replace(asked(), flags=0),
        replace(asked(), edns=Edns(1232, dnssec=True)),
    ],
)
def test_another_question_has_another_answer(other):
    async def main():
        servers = Servers()
        forwarder = servers.forwarder(ONE)
        await forwarder.ask(asked())
        await forwarder.ask(other)
        assert len(servers.log) == 2

    run(main)


def test_failures_are_not_kept():
    async def main():
        servers = Servers(ONE=BROKEN)
        forwarder = servers.forwarder(ONE)
        await forwarder.ask(asked())
        servers.words[ONE] = ""
        assert addresses(await forwarder.ask(asked())) == ["192.0.2.1"]

    run(main)


def test_a_question_under_way_is_not_asked_again():
    async def main():
        go_on = trio.Event()
        servers = Servers(ONE=go_on)
        forwarder = servers.forwarder(ONE)
        replies = []

        async def ask():
            replies.append(await forwarder.ask(asked()))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert [addresses(reply) for reply in replies] == [["192.0.2.1"]] * 50
        assert servers.log == [ONE]

    run(main)


def test_questions_under_way_are_bounded():
    async def main():
        servers = Servers(ONE=SILENT)
        forwarder = servers.forwarder(ONE)
        async with trio.open_nursery() as nursery:
            for number in range(forward.MAX_FLIGHTS):
                nursery.start_soon(forwarder.ask, asked(f"n{number}.example."))
            await trio.testing.wait_all_tasks_blocked()
            assert await forwarder.ask(asked()) == Reply(Rcode.SERVFAIL)
            assert servers.counters["dns_forward_overload"] == 1
        assert forwarder._flights == {}

    run(main)


def test_a_question_that_is_cut_off_leaves_nothing_behind():
    async def main():
        servers = Servers(ONE=SILENT)
        forwarder = servers.forwarder(ONE)
        replies = []

        async def wait():
            replies.append(await forwarder.ask(asked()))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(1):
                nursery.start_soon(wait)
                await forwarder.ask(asked())
            nursery.cancel_scope.cancel()
        assert forwarder._flights == {}

    run(main)


# --- loops ------------------------------------------------------------------------------------------------------------


def test_a_server_from_which_the_question_comes_back_is_named_and_left_alone():
    async def main():
        servers = Servers(ONE=SILENT)
        forwarder = servers.forwarder(ONE, TWO)
        await forwarder.ask(asked())
        ((server, probe),) = servers.probes
        assert server == ONE
        assert not forwarder.came_back(asked())
        assert forwarder.waiting() == []
        assert forwarder.came_back(replace(probe, wire=probe.wire.upper(), id=5))
        (reason,) = forwarder.waiting()
        assert "192.0.2.1:53" in reason.text()
        servers.log.clear()
        await trio.sleep(forward.SHUNNED)
        await forwarder.ask(asked("a.example."))
        assert servers.log == [TWO]
        # later it is tried again, and forgiven when it answers
        await trio.sleep(forward.LOOP_SECONDS)
        servers.words[ONE] = ""
        assert addresses(await forwarder.ask(asked("b.example."))) == ["192.0.2.1"]
        assert forwarder.waiting() == []

    run(main)


def test_with_nothing_but_loops_the_answer_comes_at_once():
    async def main():
        servers = Servers(ONE=SILENT)
        forwarder = servers.forwarder(ONE)
        await forwarder.ask(asked())
        assert forwarder.came_back(servers.probes[0][1])
        began = trio.current_time()
        assert await forwarder.ask(asked("a.example.")) == Reply(Rcode.SERVFAIL)
        assert trio.current_time() == began

    run(main)


def test_servers_that_answer_are_never_probed():
    async def main():
        servers = Servers(ONE=NX, TWO=REFUSES)
        forwarder = servers.forwarder(ONE, TWO)
        await forwarder.ask(asked())
        assert servers.probes == []

    run(main)


def test_probes_are_few_and_forgotten():
    async def main():
        servers = Servers(ONE=SILENT, TWO=SILENT)
        forwarder = servers.forwarder(ONE, TWO)
        for number in range(30):
            await forwarder.ask(asked(f"n{number}.example."))
        assert len(forwarder._probes) <= 8
        assert len({probe.wire for _, probe in servers.probes}) == len(servers.probes)
        assert len(servers.probes) <= 2 * trio.current_time() / forward.PROBE_EVERY + 2

    run(main)
