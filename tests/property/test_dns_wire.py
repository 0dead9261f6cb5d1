"""Nothing that comes over the wire or out of the ledger ends the name server, and nothing is answered twice."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path
from random import Random

import dns.exception
from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.dns.address import Endpoint
from provider_kairos.dns.pattern import MAX_PROGRAM, compile_pattern
from provider_kairos.dns.pattern_syntax import PatternError
from provider_kairos.dns.question import Ignored, Question, Refused, presentation, read_message
from provider_kairos.dns.records import Row, Zone, build
from provider_kairos.dns.server import NameServer
from provider_kairos.dns.upstream import keep_seconds, read_reply

RECORDING = Path(__file__).parents[1] / "interop" / "recordings" / "dns-035.jsonl"
RECORDS = [json.loads(line) for line in RECORDING.read_text(encoding="utf-8").splitlines()]
QUERIES = [bytes.fromhex(each["query"]) for each in RECORDS if each["record"] == "query"]
ANSWERS = [bytes.fromhex(each["answer"]) for each in RECORDS if each.get("answer")]
LEDGER = next(each["dns"] for each in RECORDS if each["record"] == "ledger")

changes = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=6)


def zone() -> Zone:
    *_, made = build([Row(key, text) for key, text in LEDGER.items()], Zone())
    assert made is not None
    return made


SERVER = NameServer(Endpoint("127.0.0.1", 53), None, zone())


def bent(packet: bytes, places: list[tuple[int, int]], cut: int) -> list[bytes]:
    data = bytearray(packet)
    for place, value in places:
        data[place % len(data)] = value
    return [bytes(data), bytes(data[: cut % (len(data) + 1)]), bytes(data) * 2]


def feed(data: bytes) -> None:
    message = read_message(data)
    assert isinstance(message, Question | Refused | Ignored)
    for udp in (True, False):
        answer = SERVER._at_once(data, udp=udp)
        assert isinstance(answer, bytes | None)
        if isinstance(message, Ignored):
            assert answer is None
        else:
            assert answer is not None
            assert answer[:2] == data[:2]
            assert len(answer) <= (1232 if udp else 65535)
            # sent back to its sender, or to ourselves, it is no question
            assert isinstance(read_message(answer), Ignored)
    assert SERVER.counters["dns_crashed"] == 0


@given(st.binary(max_size=600))
def test_random_bytes(data: bytes) -> None:
    feed(data)


@given(st.sampled_from([b"\0\0\0\0\0\1\0\0\0\0", b"\0\0\1\0\0\1\0\1\0\1"]), st.integers(0, 2), st.binary(max_size=300))
def test_random_bytes_behind_a_header(head: bytes, additionals: int, data: bytes) -> None:
    feed(head + bytes([0, additionals]) + data)


@given(st.sampled_from(QUERIES + ANSWERS), changes, st.integers(0, 600))
def test_bent_recordings(packet: bytes, places: list[tuple[int, int]], cut: int) -> None:
    for data in bent(packet, places, cut):
        feed(data)


def test_many_bent_recordings() -> None:
    """The same without hypothesis' bookkeeping, so that it can be run long (KAIROS_P2P_FUZZ=10000)."""
    rng = Random(53)
    for _ in range(int(os.environ.get("KAIROS_P2P_FUZZ", "1000"))):
        places = [(rng.randrange(600), rng.randrange(256)) for _ in range(rng.randrange(6))]
        for data in bent(rng.choice(QUERIES + ANSWERS), places, rng.randrange(600)):
            feed(data)
            read_whole(data)


def read_whole(data: bytes) -> None:
    """What a forward server sent either is a message or is refused in one way."""
    try:
        reply = read_reply(data, 10)
    except dns.exception.DNSException:
        return
    assert keep_seconds(reply) >= 0
    assert all(rrset.ttl >= 0 for rrset in reply.answers)


@given(st.binary(max_size=600))
def test_random_bytes_of_a_forward_server(data: bytes) -> None:
    read_whole(data)


@given(st.sampled_from(ANSWERS), changes, st.integers(0, 600))
def test_bent_answers_of_a_forward_server(packet: bytes, places: list[tuple[int, int]], cut: int) -> None:
    for data in bent(packet, places, cut):
        read_whole(data)


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=3))
def test_every_name_has_a_text_of_printable_ascii(labels: list[bytes]) -> None:
    text = presentation(b"".join(bytes([len(label)]) + label for label in labels) + b"\0")
    assert text.endswith(".")
    assert all(" " <= character <= "~" for character in text)


# --- what peers write -------------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [*"ab.*+?()[]{}|^$\\-", "(?i)", "(?:", "{2}", "{0,3}", "{1,}", r"\d", r"\pL", "[^a]", r"\b", r"\Q", r"\E", "é", ":"]
)
patterns = st.one_of(st.text(max_size=60), st.lists(pieces, max_size=25).map("".join))
names = st.text(alphabet=string.ascii_letters + string.digits + ".-\\", max_size=80)


@given(patterns, names)
def test_any_pattern_is_refused_or_ends_in_linear_time(text: str, name: str) -> None:
    try:
        pattern = compile_pattern(text)
    except PatternError:
        return
    matches, steps = pattern.search(name, 10**9)
    assert steps <= (len(name) + 1) * (len(pattern._masks) + 1)
    assert len(pattern._masks) <= MAX_PROGRAM
    if matches:
        assert pattern.needs in name
        assert len(name) >= pattern.literal


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(max_size=6) | st.sampled_from(["1", "28", "16", "5", "65536"]), inner)
    ),
)


@given(
    st.dictionaries(patterns, json_values.map(json.dumps) | st.text(max_size=30), max_size=5), st.sampled_from(QUERIES)
)
def test_any_records_leave_a_server_that_answers(records: dict[str, str], query: bytes) -> None:
    *_, made = build([Row(key, text) for key, text in records.items()], Zone())
    assert made is not None
    server = NameServer(Endpoint("127.0.0.1", 53), None, made)
    server._at_once(query, udp=True)
    assert made.counters["dns_crashed"] == 0
