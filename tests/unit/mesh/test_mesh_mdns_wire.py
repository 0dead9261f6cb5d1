"""mDNS packets held against recordings of EdgeVPN v0.30.2 and v0.35.4."""

from __future__ import annotations

import ipaddress
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import dns.message
import pytest

from provider_kairos.errors import TokenError
from provider_kairos.mesh.mdns_wire import (
    MalformedPacketError,
    Query,
    Response,
    announceable,
    build_announcement,
    build_query,
    parse,
    service_name,
)

RECORDINGS = Path(__file__).parents[2] / "interop" / "recordings" / "mdns.jsonl"
RECORDS: list[dict[str, Any]] = [json.loads(line) for line in RECORDINGS.read_text(encoding="utf-8").splitlines()]
SERVICES = {r["version"]: service_name(r["tag"]) for r in RECORDS if r["record"] == "header"}
PEER = "12D3KooWRN4ZwYT8hnRMpZT365EpDF6SyvuUkjqKnBksHnKAZ6Bb"


def of(kind):
    return [
        pytest.param(r, id=f"{r['version']}-{i}-{r.get('label', '')}")
        for i, r in enumerate(RECORDS)
        if r["record"] == kind
    ]


@pytest.mark.parametrize("record", of("response"))
def test_recorded_announcements_give_the_recorded_addresses(record):
    message = parse(bytes.fromhex(record["dns"]), SERVICES[record["version"]])
    assert isinstance(message, Response)
    found = [f"{address}/p2p/{find.peer_id}" for find in message.finds for address in find.addresses]
    assert found == list(dict.fromkeys(record["addresses"]))


def test_the_recordings_hold_announcements_of_both_versions():
    seen: defaultdict[str, int] = defaultdict(int)
    for record in RECORDS:
        if record["record"] == "response" and record["addresses"]:
            seen[record["version"]] += 1
    assert set(seen) == {"v0.35.4", "v0.30.2"}


@pytest.mark.parametrize("version", SERVICES)
def test_our_question_is_the_one_that_nodes_answered(version):
    answered = next(r for r in RECORDS if r["version"] == version and r.get("label") == "PTR of the service")
    assert build_query(SERVICES[version]) == bytes.fromhex(answered["dns"])


@pytest.mark.parametrize("version", SERVICES)
def test_our_announcement_is_built_like_one_that_was_followed(version):
    """Same bytes as the recorded announcement that both nodes dialled at once, but for the TTLs."""
    recorded = next(r for r in RECORDS if r["version"] == version and r.get("label") == "announcement: complete")
    assert next(r for r in RECORDS if r["version"] == version and r["record"] == "result" and r["label"] == "complete")[
        "followed"
    ]
    theirs = bytes.fromhex(recorded["dns"])
    service = SERVICES[version]
    message = parse(theirs, service)
    assert isinstance(message, Response)
    (find,) = message.finds
    host = str(dns.message.from_wire(theirs).additional[-1][0])
    ours = build_announcement(service, find.instance, find.peer_id, find.addresses, [ipaddress.ip_address(host)])
    records = ("answer", "additional")
    a, b = dns.message.from_wire(ours), dns.message.from_wire(theirs)
    assert a.flags == b.flags
    for section in records:
        assert [(r.name, r.rdtype, list(r)) for r in getattr(a, section)] == [
            (r.name, r.rdtype, list(r)) for r in getattr(b, section)
        ]
    assert len(ours) == len(theirs)
    assert {r.ttl for r in [*a.answer, *a.additional]} == {3200, 120}


@pytest.mark.parametrize("record", of("our-announcement"))
def test_what_go_follows_we_follow(record):
    result = [r for r in RECORDS if r["version"] == record["version"] and r["record"] == "result"]
    variant = record["label"].removeprefix("announcement: ")
    followed = next(r["followed"] for r in result if r["label"] == variant)
    message = parse(bytes.fromhex(record["dns"]), SERVICES[record["version"]])
    assert isinstance(message, Response)
    if followed:
        assert message.finds
    if variant in {
        "TTL 0",
        "TXT key dnsaddr2=",
        "TXT key DNSADDR=",
        "multiaddr without /p2p",
        "service name with swapped case",
        "without TXT",
    }:
        assert not message.finds


def test_names_keep_their_case():
    service = service_name("AbC")
    assert service.labels == (b"AbC", b"local", b"")
    packet = build_announcement(service_name("aBc"), b"x", PEER, ["/ip4/10.0.0.1/tcp/1"], [])
    message = parse(packet, service)
    assert isinstance(message, Response)
    assert message.finds == ()


def test_an_empty_tag_is_libp2ps_own_name():
    assert service_name("").labels == (b"_p2p", b"_udp", b"local", b"")


def test_a_tag_that_is_no_name():
    with pytest.raises(TokenError, match="mdns"):
        service_name("x" * 64)


def test_round_trip_with_ipv6_and_many_addresses():
    service = service_name("tag")
    addresses = [f"/ip4/10.0.{i}.1/tcp/4001" for i in range(50)]
    packet = build_announcement(
        service, b"me", PEER, ["/dns4/" + "x" * 300 + ".local/tcp/1", *addresses], [ipaddress.ip_address("fe80::1")]
    )
    assert len(packet) < 1400, "one Ethernet frame"
    message = parse(packet, service)
    assert isinstance(message, Response)
    (find,) = message.finds
    assert find.peer_id == PEER
    assert list(find.addresses) == addresses[: len(find.addresses)]
    assert len(find.addresses) > 8


def test_questions():
    service = service_name("tag")
    query = parse(build_query(service, 7), service)
    assert isinstance(query, Query)
    assert (query.id, query.questions[0].labels, query.questions[0].unicast, query.authority) == (
        7,
        service.labels,
        False,
        False,
    )


@pytest.mark.parametrize("record", of("query"))
def test_recorded_questions_are_read(record):
    message = parse(bytes.fromhex(record["dns"]), SERVICES[record["version"]])
    assert isinstance(message, Query)
    assert message.questions


@pytest.mark.parametrize("data", [b"", b"\0" * 11, b"\xff" * 40, b"\0" * 4 + b"\0\x01" + b"\0" * 6 + b"\xc0\x0c"])
def test_malformed(data):
    with pytest.raises(MalformedPacketError):
        parse(data, service_name("tag"))


def test_what_is_worth_announcing():
    blocked = [ipaddress.ip_network("10.1.0.0/24")]
    addresses = [
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/0.0.0.0/tcp/1",
        "/ip4/10.1.0.5/tcp/1",
        "/ip4/192.168.1.5/tcp/1",
        "/ip4/192.168.1.5/tcp/1",
        "/ip6/::1/tcp/1",
        "/ip6/fe80::1/tcp/1",
        "/ip6/fd00::1/tcp/1",
        "/ip4/192.168.1.5/tcp/1/ws",
        "/ip4/1.2.3.4/tcp/1/p2p/12D3KooWRN4ZwYT8hnRMpZT365EpDF6SyvuUkjqKnBksHnKAZ6Bb/p2p-circuit",
        "/ip4/999.1.1.1/tcp/1",
        "/dns4/box.local/tcp/1",
        "/dns4/example.com/tcp/1",
        "nonsense",
    ]
    assert announceable(addresses, blocked) == ["/ip4/192.168.1.5/tcp/1", "/ip6/fd00::1/tcp/1", "/dns4/box.local/tcp/1"]
    assert announceable(["/ip4/127.0.0.1/tcp/1"]) == ["/ip4/127.0.0.1/tcp/1"]
