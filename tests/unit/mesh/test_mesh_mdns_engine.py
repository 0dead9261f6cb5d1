"""When mDNS speaks: virtual time, no sockets."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from random import Random

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.mesh.mdns_engine import Arrival, Engine, Send
from provider_kairos.mesh.mdns_wire import Response, build_announcement, build_query, parse, service_name
from provider_kairos.system.links import MulticastInterface

TAG = "Raq7rHlFwjuybfftIYj5hH5yCjZ3cIek1IRtoHNRNdf"
SERVICE = service_name(TAG)
ETH0 = MulticastInterface(2, "eth0", (IPv4Address("192.168.1.5"),), (IPv6Address("fe80::5"),))
ETH1 = MulticastInterface(3, "eth1", (IPv4Address("172.16.0.5"),), ())
OTHER = build_announcement(
    SERVICE, b"other", "12D3KooWCHufrTxcMXvoic9xvD9q2dbDSZ7xzQHDHULRy6oEoDYi", ["/ip4/192.168.1.6/tcp/1"], []
)


def peer(number):
    return f"12D3KooW{'123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghij'[number]}ufrTxcMXvoic9xvD9q2dbDSZ7xzQHDHULRy6oEoDYi"


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def engine(clock):
    engine = Engine(TAG, peer(0), Random(1))
    engine.set_addresses(["/ip4/192.168.1.5/tcp/4001"], clock.now())
    engine.set_interfaces([ETH0], clock.now())
    return engine


def kinds(sends: list[Send]) -> list[str]:
    return ["announcement" if isinstance(parse(send.data, SERVICE), Response) else "question" for send in sends]


def run(engine: Engine, clock: ManualClock, seconds: float) -> list[tuple[float, Send]]:
    """Let time pass, waking only when the engine wants it."""
    start = clock.now().mono
    end = start + seconds
    out: list[tuple[float, Send]] = []
    while True:
        out += [(clock.now().mono - start, send) for send in engine.poll(clock.now())]
        due = engine.next_wakeup()
        if due is None or due > end:
            clock.advance(end - clock.now().mono)
            return out
        clock.advance(max(due - clock.now().mono, 0.0))


def arrive(data: bytes, interface: int = 2, **more: object) -> Arrival:
    return dataclasses.replace(Arrival(data, interface, "192.168.1.6", 5353), **more)  # type: ignore[arg-type]


def test_speaks_at_once(engine, clock):
    assert kinds(engine.poll(clock.now())) == ["announcement", "question"]
    assert engine.poll(clock.now()) == []


def test_questions_thin_out_to_one_a_minute(engine, clock):
    out = run(engine, clock, 600)
    times = [at for at, send in out if kinds([send]) == ["question"]]
    gaps = [b - a for a, b in pairwise(times)]
    assert [round(gap) for gap in gaps[:6]] == pytest.approx([1, 2, 4, 8, 16, 32], abs=2)
    assert all(55 < gap < 65 for gap in gaps[6:])
    announcements = [at for at, send in out if kinds([send]) == ["announcement"]]
    assert announcements == pytest.approx([0, 1]), "twice, then only when asked"


def test_answers_a_question_soon_and_once_for_many(engine, clock):
    run(engine, clock, 10)
    for number in range(20):
        engine.receive(arrive(build_query(SERVICE, 100 + number)), clock.now())
    out = [(at, send) for at, send in run(engine, clock, 2) if kinds([send]) == ["announcement"]]
    assert len(out) == 1
    assert out[0][0] < 0.05
    assert out[0][1].to is None


def test_its_own_questions_are_not_answered(engine, clock):
    run(engine, clock, 10)
    engine.ask_again(clock.now())
    (question,) = engine.poll(clock.now())
    engine.receive(arrive(question.data), clock.now())
    assert [k for _, s in run(engine, clock, 0.9) for k in kinds([s])] == []


def question(kind: str, name=None, *, unicast: bool = False) -> bytes:
    message = dns.message.make_query(name or SERVICE, kind, rdclass="CLASS32769" if unicast else "IN")
    message.flags = dns.flags.Flag(0)
    return message.to_wire()


def answers(engine, clock, data, **more) -> list[Send]:
    engine.receive(arrive(data, **more), clock.now())
    return [send for _, send in run(engine, clock, 0.5) if kinds([send]) == ["announcement"]]


@pytest.mark.parametrize("kind", ["PTR", "ANY"])
def test_service_questions(engine, clock, kind):
    run(engine, clock, 100)
    assert len(answers(engine, clock, question(kind))) == 1


@pytest.mark.parametrize("kind", ["SRV", "TXT", "ANY"])
def test_instance_questions(engine, clock, kind):
    run(engine, clock, 100)
    name = dns.name.Name((engine.instance, *SERVICE.labels))
    assert len(answers(engine, clock, question(kind, name))) == 1


@pytest.mark.parametrize(
    ("data", "more"),
    [
        (question("A"), {}),
        (question("PTR", service_name(TAG.swapcase())), {}),
        (question("PTR", service_name("other")), {}),
        (question("PTR"), {"port": 40000}),
        (question("PTR"), {"to_group": False}),
        (question("PTR"), {"interface": 9}),
        (b"garbage", {}),
    ],
    ids=["type", "case", "other name", "port", "unicast", "interface", "garbage"],  # question() is random
)
def test_not_answered(engine, clock, data, more):
    run(engine, clock, 100)
    assert answers(engine, clock, data, **more) == []


def test_unicast_answers_go_to_who_asked(engine, clock):
    run(engine, clock, 100)
    (send,) = answers(engine, clock, question("PTR", unicast=True))
    assert send.to == ("192.168.1.6", 5353)


def test_a_unicast_question_long_after_the_last_multicast_is_answered_to_all(engine, clock):
    run(engine, clock, 1000)
    (send,) = answers(engine, clock, question("PTR", unicast=True))
    assert send.to is None


@pytest.mark.parametrize(("ttl", "suppressed"), [(3200, True), (1601, True), (1600, True), (1500, False), (10, False)])
def test_known_answers(engine, clock, ttl, suppressed):
    run(engine, clock, 100)
    message = dns.message.from_wire(question("PTR"))
    name = dns.name.Name((engine.instance, *SERVICE.labels))
    message.answer.append(dns.rrset.from_text(SERVICE, ttl, "IN", "PTR", name.to_text()))
    assert (answers(engine, clock, message.to_wire()) == []) is suppressed


def test_a_new_peer_is_reported_and_greeted_an_old_one_reported_again(engine, clock):
    run(engine, clock, 100)
    (find,) = engine.receive(arrive(OTHER), clock.now())
    assert find.addresses == ("/ip4/192.168.1.6/tcp/1",)
    assert kinds([send for _, send in run(engine, clock, 0.1)]) == ["announcement"]
    assert len(engine.receive(arrive(OTHER), clock.now())) == 1
    assert kinds([send for _, send in run(engine, clock, 0.5)]) == []


def test_itself_is_not_reported(engine, clock):
    announcement, _question = engine.poll(clock.now())
    assert engine.receive(arrive(announcement.data), clock.now()) == ()


def test_a_new_interface_is_spoken_on_at_once(engine, clock):
    run(engine, clock, 100)
    assert engine.set_interfaces([ETH0, ETH1], clock.now()) is True
    sends = engine.poll(clock.now())
    assert [(send.interface, kind) for send, kind in zip(sends, kinds(sends), strict=True)] == [
        (3, "announcement"),
        (3, "question"),
    ]
    assert engine.set_interfaces([ETH0, ETH1], clock.now()) is False
    engine.set_interfaces([ETH1], clock.now())
    assert {send.interface for _, send in run(engine, clock, 200)} == {3}


def test_a_changed_address_of_an_interface_starts_it_over(engine, clock):
    run(engine, clock, 100)
    engine.set_interfaces([dataclasses.replace(ETH0, ipv4=(IPv4Address("192.168.1.99"),))], clock.now())
    sends = engine.poll(clock.now())
    assert kinds(sends) == ["announcement", "question"]
    assert b"\xc0\xa8\x01\x63" in sends[0].data


def test_changed_listen_addresses_are_announced(engine, clock):
    run(engine, clock, 100)
    assert engine.set_addresses(["/ip4/192.168.1.5/tcp/4001"], clock.now()) is False
    assert engine.set_addresses(["/ip4/192.168.1.5/tcp/4002"], clock.now()) is True
    (send,) = engine.poll(clock.now())
    assert b"tcp/4002" in send.data


def test_without_addresses_it_asks_but_does_not_announce(clock):
    engine = Engine(TAG, peer(0), Random(1))
    engine.set_interfaces([ETH0], clock.now())
    assert kinds(engine.poll(clock.now())) == ["question"]


def test_without_interfaces_it_sleeps(clock):
    assert Engine(TAG, peer(0), Random(1)).next_wakeup() is None


def test_others_questions_stand_for_ours(engine, clock):
    run(engine, clock, 300)
    asked = 0
    for _ in range(20):
        engine.receive(arrive(question("PTR")), clock.now())
        asked += sum(kinds([send]) == ["question"] for _, send in run(engine, clock, 30))
    assert asked == 0


@pytest.mark.parametrize("seed", range(5))
def test_all_find_all_despite_loss(seed):
    """Twelve nodes start within a second; one packet in five is lost; ten seconds later everybody knows everybody."""
    rng = Random(seed)
    clock = ManualClock()
    engines = [Engine(TAG, peer(number), Random(seed * 100 + number)) for number in range(12)]
    starts = [clock.now().mono + rng.random() for _ in engines]
    known: list[set[str]] = [set() for _ in engines]
    packets = 0
    for _step in range(1000):
        now = clock.advance(0.01)
        for number, engine in enumerate(engines):
            if starts[number] > now.mono:
                continue
            engine.set_addresses([f"/ip4/192.168.1.{number + 1}/tcp/4001"], now)
            engine.set_interfaces([ETH0], now)
            for send in engine.poll(now):
                packets += 1
                for other, target in enumerate(engines):
                    if starts[other] <= now.mono and (other == number or rng.random() > 0.2):
                        known[other] |= {find.peer_id for find in target.receive(arrive(send.data), now)}
    assert [len(found) for found in known] == [11] * 12, f"seed {seed}"
    assert packets < 12 * 45, "no storm"
