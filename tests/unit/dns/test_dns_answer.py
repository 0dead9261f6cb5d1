"""What the mesh says, and the bytes of it."""

from __future__ import annotations

import json
from dataclasses import replace

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from provider_kairos.dns.answer import Elsewhere, Reply, decide, encode, encode_refusal, udp_limit
from provider_kairos.dns.question import Edns, Ignored, Question, Rcode, Refused, read_message
from provider_kairos.dns.records import Row, Zone, build

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, HTTPS, AXFR, ANY, CAA = 1, 2, 5, 6, 12, 15, 16, 28, 33, 65, 252, 255, 257


def zone_of(**records):
    rows = [Row(f"^{name}\\.", json.dumps(values), "author") for name, values in records.items()]
    *_, zone = build(rows, Zone())
    assert zone is not None
    return zone


def ask(name, rdtype=A, rdclass="IN", **options):
    question = read_message(dns.message.make_query(name, rdtype, rdclass, **options).to_wire())
    assert isinstance(question, Question)
    return question


def refusal(data):
    refused = read_message(data)
    assert isinstance(refused, Refused)
    return refused


def texts(reply):
    assert isinstance(reply, Reply)
    return [rrset.to_text() for rrset in reply.answers]


ZONE = zone_of(
    foo={"1": "10.1.0.9", "16": '"hello world"'},
    six={"28": "fd00::9"},
    alias={"5": "foo.test."},
    far={"5": "www.example."},
    first={"5": "second.x."},
    second={"5": "alias.y."},
    loop={"5": "loop.x."},
    bad={"1": "no address", "16": '"unbalanced'},
    twolines={"1": "10.1.0.1\n10.1.0.2"},
    only={"16": "text"},
    generic={"1000": r"\# 4 0a000001", "257": '0 issue "ca.example"', "33": "1 2 3 host.test"},
)


@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        ("foo.test.", A, "foo.test. 3600 IN A 10.1.0.9"),
        ("foo.test.", TXT, 'foo.test. 3600 IN TXT "hello world"'),
        ("six.test.", AAAA, "six.test. 3600 IN AAAA fd00::9"),
        ("alias.test.", CNAME, "alias.test. 3600 IN CNAME foo.test."),
        ("twolines.", A, "twolines. 3600 IN A 10.1.0.1"),
        ("generic.", 1000, "generic. 3600 IN TYPE1000 \\# 4 0a000001"),
        ("generic.", CAA, 'generic. 3600 IN CAA 0 issue "ca.example"'),
        ("generic.", SRV, "generic. 3600 IN SRV 1 2 3 host.test."),
    ],
)
@pytest.mark.parametrize("forwarding", [True, False])
def test_records_of_the_mesh(name, rdtype, expected, forwarding):
    assert texts(decide(ask(name, rdtype), ZONE, forwarding=forwarding)) == [expected]


@pytest.mark.parametrize("forwarding", [True, False])
def test_an_alias_leads_to_the_address(forwarding):
    assert texts(decide(ask("first.x."), ZONE, forwarding=forwarding)) == [
        "first.x. 3600 IN CNAME second.x.",
        "second.x. 3600 IN CNAME alias.y.",
        "alias.y. 3600 IN CNAME foo.test.",
        "foo.test. 3600 IN A 10.1.0.9",
    ]


def test_an_alias_of_a_name_outside():
    elsewhere = decide(ask("far.x."), ZONE, forwarding=True)
    assert isinstance(elsewhere, Elsewhere)
    assert elsewhere.question.name == "www.example."
    assert not elsewhere.exists
    outside = dns.rrset.from_text("www.example.", 60, "IN", "A", "192.0.2.1")
    assert texts(elsewhere.complete(Reply(answers=(outside,)))) == [
        "far.x. 3600 IN CNAME www.example.",
        "www.example. 60 IN A 192.0.2.1",
    ]
    assert elsewhere.complete(Reply(Rcode.SERVFAIL)) == Reply(Rcode.SERVFAIL)
    assert texts(decide(ask("far.x."), ZONE, forwarding=False)) == ["far.x. 3600 IN CNAME www.example."]


def test_aliases_in_a_circle_end():
    reply = decide(ask("loop.x."), ZONE, forwarding=True)
    assert isinstance(reply, Reply)
    assert len(reply.answers) == 8


@pytest.mark.parametrize("rdtype", [AAAA, HTTPS, 64])
def test_a_name_with_an_address_of_the_mesh_has_none_of_another_kind_outside(rdtype):
    assert decide(ask("foo.test.", rdtype), ZONE, forwarding=True) == Reply()
    assert decide(ask("alias.test.", rdtype), ZONE, forwarding=True) != Reply()  # with the alias


@pytest.mark.parametrize("rdtype", [MX, ANY, NS, SOA, PTR])
def test_what_else_is_asked_of_a_name_of_the_mesh_is_asked_elsewhere_and_the_name_exists(rdtype):
    elsewhere = decide(ask("foo.test.", rdtype), ZONE, forwarding=True)
    assert isinstance(elsewhere, Elsewhere)
    assert elsewhere.exists
    assert elsewhere.complete(Reply(Rcode.NXDOMAIN)) == Reply()
    assert elsewhere.complete(Reply(Rcode.SERVFAIL)).rcode == Rcode.SERVFAIL
    assert decide(ask("foo.test.", rdtype), ZONE, forwarding=False) == Reply()


def test_a_name_that_the_mesh_does_not_know():
    elsewhere = decide(ask("unknown."), ZONE, forwarding=True)
    assert isinstance(elsewhere, Elsewhere)
    assert elsewhere.complete(Reply(Rcode.NXDOMAIN)).rcode == Rcode.NXDOMAIN
    assert decide(ask("unknown."), ZONE, forwarding=False) == Reply()


def test_a_value_that_cannot_be_read_is_as_if_it_were_not_there():
    before = ZONE.counters["dns_values_malformed"]
    assert isinstance(decide(ask("bad."), ZONE, forwarding=True), Elsewhere)
    assert decide(ask("bad.", TXT), ZONE, forwarding=False) == Reply()
    assert ZONE.counters["dns_values_malformed"] > before


@pytest.mark.parametrize(
    ("rdtype", "rdclass"), [(A, "CH"), (A, "ANY"), (AXFR, "IN"), (251, "IN"), (250, "IN"), (41, "IN")]
)
def test_what_is_no_question_for_a_name_is_refused(rdtype, rdclass):
    assert decide(ask("foo.test.", rdtype, rdclass), ZONE, forwarding=True) == Reply(Rcode.REFUSED)


def test_every_author_may_lead_where_another_has_no_such_type():
    *_, zone = build([Row(r"^x\.test\.$", '{"16":"t"}'), Row("test", '{"1":"10.1.0.1"}')], Zone())
    assert zone is not None
    assert texts(decide(ask("x.test."), zone, forwarding=True)) == ["x.test. 3600 IN A 10.1.0.1"]


# --- bytes ------------------------------------------------------------------------------------------------------------


def reply_of(count, length=100):
    text = [f'"{number:03}{"x" * (length - 3)}"' for number in range(count)]
    return Reply(answers=(dns.rrset.from_text_list("foo.test.", 60, "IN", "TXT", text),))


def test_a_large_answer_is_cut_over_udp_and_whole_over_tcp():
    question, reply = ask("foo.test.", TXT), reply_of(100)
    cut = encode(question, reply, forwarding=True, limit=udp_limit(question))
    read = dns.message.from_wire(cut)
    assert len(cut) <= 512
    assert read.flags & dns.flags.TC
    assert read.answer == []
    whole = dns.message.from_wire(encode(question, reply, forwarding=True, limit=65535))
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 100


def test_owners_are_compressed_before_anything_is_cut():
    question, reply = ask("foo.test.", TXT), reply_of(4)
    limit = 12 + 14 + 4 * (12 + 101)
    read = dns.message.from_wire(encode(question, reply, forwarding=True, limit=limit))
    assert len(read.answer[0]) == 4
    assert dns.message.from_wire(encode(question, reply, forwarding=True, limit=limit - 1)).flags & dns.flags.TC


def test_compression_through_an_alias():
    alias = dns.rrset.from_text("foo.test.", 60, "IN", "CNAME", "a.long.name.of.another.place.")
    address = dns.rrset.from_text_list(
        "a.long.name.of.another.place.", 60, "IN", "A", [f"192.0.2.{n}" for n in range(20)]
    )
    read = dns.message.from_wire(encode(ask("foo.test."), Reply(answers=(alias, address)), forwarding=True, limit=512))
    assert read.answer == [alias, address]


@pytest.mark.parametrize(("payload", "limit"), [(None, 512), (0, 512), (600, 600), (1232, 1232), (65535, 1232)])
def test_udp_limit(payload, limit):
    question = ask("foo.test.")
    assert udp_limit(question if payload is None else replace(question, edns=Edns(payload, dnssec=False))) == limit


@pytest.mark.parametrize("dnssec", [True, False])
@pytest.mark.parametrize("count", [1, 50])
def test_edns_is_answered_with_edns(dnssec, count):
    question = ask("foo.test.", TXT, use_edns=0, want_dnssec=dnssec)
    read = dns.message.from_wire(encode(question, reply_of(count), forwarding=True, limit=udp_limit(question)))
    assert (read.edns, read.payload, bool(read.ednsflags & dns.flags.DO)) == (0, 1232, dnssec)
    assert read.options == ()


def test_bits_of_the_header():
    question = replace(ask("foo.test."), flags=0xFFFF & ~0xF800)
    forwarding = dns.message.from_wire(encode(question, Reply(), forwarding=True, limit=512))
    assert dns.flags.to_text(forwarding.flags) == "QR RD RA CD"
    alone = dns.message.from_wire(encode(replace(question, flags=0), Reply(), forwarding=False, limit=512))
    assert dns.flags.to_text(alone.flags) == "QR AA"


def test_an_answer_has_the_case_of_the_question():
    upper = replace(ask("FOO.test."), rdtype=TXT)
    read = dns.message.from_wire(encode(upper, reply_of(1), forwarding=True, limit=512))
    assert read.answer[0].name.to_text() == "FOO.test."


def test_a_future_edns_version_is_told_which_one_we_know():
    made = dns.message.make_query("foo.test.", "A", use_edns=3)
    read = dns.message.from_wire(encode_refusal(refusal(made.to_wire())))
    assert (read.rcode(), read.edns, read.id) == (16, 0, made.id)


def test_an_answer_is_never_taken_for_a_question():
    refused = refusal(bytes(2) + b"\x10" + bytes(9))
    for answer in (encode(ask("foo."), Reply(), forwarding=True, limit=512), encode_refusal(refused)):
        assert read_message(answer) == Ignored("answers")


def test_dnssec_records_of_others_pass():
    signature = dns.rrset.from_text("foo.", 60, "IN", "RRSIG", "A 8 1 60 20300101000000 20200101000000 1 . " + "A" * 40)
    question = ask("foo.", dns.rdatatype.A, want_dnssec=True)
    read = dns.message.from_wire(encode(question, Reply(answers=(signature,)), forwarding=True, limit=1232))
    assert read.answer == [signature]
