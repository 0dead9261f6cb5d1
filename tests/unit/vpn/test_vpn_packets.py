from __future__ import annotations

import socket
import struct

import pytest

from provider_kairos.vpn.packets import PacketError, RateLimit, checksum, parse, split, unreachable


def ip4(source="10.1.0.5", destination="10.1.0.6", payload=b"payload!", protocol=17, fragment=0):
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, fragment, 64, protocol, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(destination) + payload


def ip6(source="fd00::5", destination="fd00::6", payload=b"payload!", following=17):
    head = struct.pack("!IHBB", 0x60000000, len(payload), following, 64)
    return head + socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination) + payload


def test_parse():
    four, six = parse(ip4()), parse(memoryview(ip6()))
    assert four is not None
    assert six is not None
    assert (four.version, four.source, four.destination, four.length) == (
        4,
        bytes([10, 1, 0, 5]),
        bytes([10, 1, 0, 6]),
        28,
    )
    assert (six.version, six.destination[-1], six.length) == (6, 6, 48)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        ip4()[:-1],
        ip4() + b"x",
        b"\x44" + ip4()[1:],
        b"\x4f" + ip4()[1:],
        b"\x55" + ip4()[1:],
        ip6()[:-1],
        ip6()[:39],
        bytes(64),
    ],
)
def test_no_packets(packet):
    assert parse(packet) is None


def test_split_is_by_length_whatever_the_reads():
    stream = ip4() + ip6() + ip4(payload=b"x" * 1400)
    packets, rest = split(stream)
    assert (packets, rest) == ([ip4(), ip6(), ip4(payload=b"x" * 1400)], b"")
    for cut in range(len(stream)):
        first, rest = split(stream[:cut])
        second, end = split(rest + stream[cut:])
        assert first + second == packets
        assert end == b""


@pytest.mark.parametrize("stream", [b"\x00" * 40, b"SSH-2.0-x", b"\x45\x00\x00\x05" + bytes(20), ip4() + b"\x10"])
def test_split_refuses_what_is_no_packet(stream):
    with pytest.raises(PacketError):
        split(stream)


def test_checksum():
    assert checksum(bytes.fromhex("45000073000040004011b861c0a80001c0a800c7")) == 0, (
        "RFC 1071 over a header with its sum"
    )
    assert checksum(b"") == 0xFFFF
    assert checksum(b"\x01") == 0xFEFF


def test_unreachable_answers_an_ipv4_packet():
    answer = unreachable(ip4(), socket.inet_aton("10.1.0.5"))
    assert answer is not None
    header = parse(answer)
    assert header is not None
    assert (header.source, header.destination) == (socket.inet_aton("10.1.0.5"), socket.inet_aton("10.1.0.5"))
    assert answer[9] == 1
    assert checksum(answer[:20]) == 0
    assert answer[20:22] == b"\x03\x01"
    assert checksum(answer[20:]) == 0
    assert answer[28:] == ip4()[:28]


def test_unreachable_answers_an_ipv6_packet():
    source = socket.inet_pton(socket.AF_INET6, "fd00::5")
    answer = unreachable(ip6(payload=b"x" * 3000), source)
    assert answer is not None
    header = parse(answer)
    assert header is not None
    assert len(answer) <= 1280
    assert answer[40:42] == b"\x01\x03"
    pseudo = header.source + header.destination + struct.pack("!IHBB", len(answer) - 40, 0, 0, 58)
    assert checksum(pseudo + answer[40:]) == 0


@pytest.mark.parametrize(
    "packet",
    [
        ip4(protocol=1, payload=b"\x03" + bytes(7)),
        ip4(protocol=1, payload=b""),
        ip4(fragment=100),
        ip4(destination="224.0.0.251"),
        ip4(destination="255.255.255.255"),
        ip4(source="0.0.0.0"),
        ip6(),
        b"garbage",
    ],
)
def test_no_answer_is_given(packet):
    assert unreachable(packet, socket.inet_aton("10.1.0.5")) is None


def test_no_answer_is_given_ipv6():
    source = socket.inet_pton(socket.AF_INET6, "fd00::5")
    assert unreachable(ip6(following=58, payload=b"\x01" + bytes(7)), source) is None
    assert unreachable(ip6(destination="ff02::1"), source) is None
    assert unreachable(ip6(following=58, payload=b"\x80" + bytes(7)), source) is not None, "a ping is answered"


def test_a_ping_is_answered():
    assert unreachable(ip4(protocol=1, payload=b"\x08" + bytes(7)), socket.inet_aton("10.1.0.5")) is not None


def test_rate_limit():
    limit = RateLimit(rate=2, burst=3)
    assert [limit.allow(10.0) for _ in range(4)] == [True, True, True, False]
    assert [limit.allow(10.5), limit.allow(10.5)] == [True, False]
    assert [limit.allow(100.0) for _ in range(4)] == [True, True, True, False]
    assert limit.allow(50.0) is False, "a clock that steps back gives nothing"
