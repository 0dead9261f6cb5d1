"""Framing, queues and the choice among paths."""

from __future__ import annotations

import struct

import pytest

from provider_kairos.vpn.queues import PacketQueue
from provider_kairos.vpn.session import PathKind, PathState, PeerPaths
from provider_kairos.vpn.streams import KEEPALIVE, FrameDecoder, FrameError, encode


def ip4(size=100, mark=0):
    return struct.pack("!BBHHHBBH", 0x45, 0, size, mark, 0, 64, 17, 0) + bytes(size - 12)


def test_frames_as_they_are_on_the_wire():
    assert encode([ip4(20)]) == b"\x00\x00\x00\x14" + ip4(20)
    assert encode([]) == b""
    assert KEEPALIVE == b"\x01\x00\x00\x00"


def test_packets_come_out_whole_whatever_the_reads():
    packets = [ip4(20 + number * 7, number) for number in range(100)]
    stream = encode(packets) + KEEPALIVE + encode(packets[:1])
    for step in (1, 3, 1000, len(stream)):
        decoder = FrameDecoder()
        found = []
        for start in range(0, len(stream), step):
            found += decoder.feed(stream[start : start + step])
        assert found == packets + packets[:1]


def test_frames_stay_within_64_kib_unless_one_packet_is_larger():
    stream = encode([ip4(1400)] * 100 + [ip4(65535)])
    position, sizes = 0, []
    while position < len(stream):
        length = int.from_bytes(stream[position + 1 : position + 4], "big")
        sizes.append(length)
        position += 4 + length
    assert len(sizes) == 4
    assert max(sizes) <= 65536


def test_unknown_kinds_are_passed_over():
    decoder = FrameDecoder()
    assert decoder.feed(b"\x09\x00\x00\x03abc" + encode([ip4()])) == [ip4()]
    assert decoder.skipped == 1


@pytest.mark.parametrize(
    "data", [b"\x00\xff\xff\xff", b"\x00\x00\x00\x05hello", b"\x00\x00\x00\x13" + ip4(20)[:19], b"\x07\x04\x00\x01"]
)
def test_what_breaks_the_framing(data):
    with pytest.raises(FrameError):
        FrameDecoder().feed(data)


def test_queue_keeps_order_and_bounds():
    queue = PacketQueue(most_packets=3, most_bytes=1000, longest_wait=2)
    assert all(queue.put(ip4(100, number), 0.0) for number in range(4))
    assert (len(queue), queue.size, queue.dropped_full) == (3, 300, 1)
    assert queue.take(1.0) == [ip4(100, 1), ip4(100, 2), ip4(100, 3)], "the oldest made room"
    assert queue.put(ip4(900), 1.0)
    assert queue.put(ip4(200), 1.0)
    assert (len(queue), queue.dropped_full) == (1, 2)
    assert queue.put(ip4(1001), 1.0) is False
    assert queue.clear() == 1
    assert queue.take(1.0) == []


def test_queue_drops_what_waited_too_long():
    queue = PacketQueue(longest_wait=2)
    queue.put(ip4(mark=1), 0.0)
    queue.put(ip4(mark=2), 1.5)
    assert queue.take(3.0) == [ip4(mark=2)]
    assert queue.dropped_old == 1


def test_queue_takes_in_batches_and_takes_back():
    queue = PacketQueue()
    packets = [ip4(1000, number) for number in range(10)]
    for packet in packets:
        queue.put(packet, 0.0)
    first = queue.take(0.0, most_packets=4)
    assert first == packets[:4]
    assert queue.take(0.0, most_bytes=2500) == packets[4:6]
    queue.put_back(first, 0.0)
    assert queue.take(0.0) == packets[:4] + packets[6:]
    assert queue.take(0.0, most_bytes=10) == []
    queue.put(packets[0], 0.0)
    assert queue.take(0.0, most_bytes=10) == [packets[0]], "one at least"


def test_ours_is_asked_for_first_and_edgevpn_only_when_refused():
    paths = PeerPaths()
    assert paths.to_try(0.0) is PathKind.STREAM
    paths.opening(PathKind.STREAM)
    assert paths.to_try(0.0) is None
    paths.refused(PathKind.STREAM)
    assert paths.to_try(0.0) is PathKind.EDGEVPN
    paths.opened(PathKind.EDGEVPN)
    assert paths.best() is PathKind.EDGEVPN
    assert paths.to_try(1e9) is None, "a refusal holds as long as the connection"
    paths.disconnected()
    assert paths.best() is None
    assert paths.to_try(1e9) is PathKind.STREAM, "it may come back as another version"


def test_failures_are_retried_ever_less_often():
    paths = PeerPaths(kinds=(PathKind.STREAM,))
    times = []
    now = 0.0
    for _ in range(9):
        assert paths.to_try(now) is PathKind.STREAM
        paths.opening(PathKind.STREAM)
        paths.failed(PathKind.STREAM, now)
        assert paths.to_try(now) is None
        due = paths.next_retry()
        assert due is not None
        times.append(due - now)
        now = due
    assert times == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    paths.opened(PathKind.STREAM)
    paths.failed(PathKind.STREAM, now)
    assert paths.next_retry() == now + 0.5, "a success starts over"


def test_a_failed_better_way_leaves_the_next_best():
    paths = PeerPaths(kinds=(PathKind.DIRECT, PathKind.STREAM))
    paths.failed(PathKind.DIRECT, 0.0)
    assert paths.to_try(0.1) is PathKind.STREAM
    paths.opened(PathKind.STREAM)
    assert paths.best() is PathKind.STREAM
    assert paths.to_try(0.1) is None
    assert paths.to_try(1.0) is PathKind.DIRECT, "and is tried again beside it"
    paths.opened(PathKind.DIRECT)
    assert paths.best() is PathKind.DIRECT
    assert paths.state(PathKind.STREAM) is PathState.UP
