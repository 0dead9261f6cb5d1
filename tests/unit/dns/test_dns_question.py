"""What comes over the wire, read without trust."""

from __future__ import annotations

import struct

import dns.message
import pytest

from provider_kairos.dns.question import Edns, Ignored, Question, Rcode, Refused, presentation, read_message

FOO = bytes.fromhex("12340100000100000000000003666f6f04746573740000010001")


def test_a_question():
    assert read_message(FOO) == Question(0x1234, 0x0100, b"\x03foo\x04test\0", "foo.test.", 1, 1)
    assert read_message(FOO + b"anything") == read_message(FOO)


@pytest.mark.parametrize(("payload", "dnssec"), [(1232, False), (4096, True), (0, False)])
def test_edns(payload, dnssec):
    made = dns.message.make_query("foo.test.", "A", use_edns=0, payload=payload, want_dnssec=dnssec)
    question = read_message(made.to_wire())
    assert isinstance(question, Question)
    assert question.edns == Edns(payload, dnssec)


def test_an_edns_version_of_the_future():
    made = dns.message.make_query("foo.test.", "A", use_edns=1)
    refused = read_message(made.to_wire())
    assert isinstance(refused, Refused)
    assert (refused.rcode, refused.edns) == (Rcode.BADVERS, True)


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (FOO[:20], Rcode.FORMERR),
        (FOO[:4] + b"\0\0" + FOO[6:], Rcode.FORMERR),
        (FOO[:4] + b"\0\2" + FOO[6:], Rcode.FORMERR),
        (FOO[:6] + b"\0\2" + FOO[8:], Rcode.FORMERR),
        (FOO[:10] + b"\0\1" + FOO[12:], Rcode.FORMERR),  # an OPT that is not there
        (FOO[:12] + b"\xc0\x0c\0\1\0\1", Rcode.FORMERR),  # a name that points to itself
        (FOO[:12] + b"\x40" + b"a" * 64 + b"\0\0\1\0\1", Rcode.FORMERR),
        (FOO[:12] + b"\x3f" + (b"a" * 63 + b"\x3f") * 4 + b"\0\0\1\0\1", Rcode.FORMERR),
        *((FOO[:2] + bytes([opcode << 3]) + FOO[3:], Rcode.NOTIMP) for opcode in range(1, 16)),
    ],
)
def test_refused(data, rcode):
    refused = read_message(data)
    assert isinstance(refused, Refused)
    assert (refused.id, refused.rcode) == (0x1234, rcode)


def test_two_opt_records():
    opt = struct.pack("!BHHIH", 0, 41, 1232, 0, 0)
    refused = read_message(FOO[:10] + b"\0\2" + FOO[12:] + opt + opt)
    assert isinstance(refused, Refused)


@pytest.mark.parametrize(
    ("data", "why"), [(b"", "malformed"), (FOO[:11], "malformed"), (b"\0\0\x80" + FOO[3:], "answers")]
)
def test_what_gets_no_answer(data, why):
    assert read_message(data) == Ignored(why)


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"\0", "."),
        (b"\x01a\x02bC\0", "a.bC."),
        (b"\x05a.b c\0", r"a\.b\ c."),
        (b"\x03\x00\x7f\xff\0", r"\000\127\255."),
        (b"\x04@'\"\\\0", r"\@\'\"\\."),
    ],
)
def test_names_as_text(wire, text):
    assert presentation(wire) == text
