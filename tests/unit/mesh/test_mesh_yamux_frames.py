"""Yamux frames on the wire."""

from __future__ import annotations

import pytest

from provider_kairos.mesh.yamux_frames import MAX_BODY, Flag, Frame, FrameParser, Kind, YamuxError


@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (Frame(Kind.DATA, Flag.SYN, 1, 3, b"abc"), "00 00 0001 00000001 00000003 616263"),
        (Frame(Kind.WINDOW_UPDATE, Flag.ACK, 2, 262144), "00 01 0002 00000002 00040000"),
        (Frame(Kind.WINDOW_UPDATE, Flag.FIN, 5, 0), "00 01 0004 00000005 00000000"),
        (Frame(Kind.DATA, Flag.RST, 7, 0), "00 00 0008 00000007 00000000"),
        (Frame(Kind.PING, Flag.SYN, 0, 0xDEADBEEF), "00 02 0001 00000000 deadbeef"),
        (Frame(Kind.GO_AWAY, Flag.NONE, 0, 1), "00 03 0000 00000000 00000001"),
    ],
)
def test_a_frame_is_what_the_specification_draws(frame, wire):
    assert frame.encode() == bytes.fromhex(wire)
    assert list(FrameParser().feed(frame.encode())) == [frame]


def test_a_frame_that_comes_byte_by_byte_is_whole():
    parser = FrameParser()
    frame = Frame(Kind.DATA, Flag.NONE, 3, 5, b"hello")
    found = [each for byte in frame.encode() for each in parser.feed(bytes([byte]))]
    assert found == [frame]
    assert parser.pending == 0


@pytest.mark.parametrize(
    "wire",
    [
        "01 00 0000 00000001 00000000",  # version 1
        "00 04 0000 00000001 00000000",  # type 4
        f"00 00 0000 00000001 {MAX_BODY + 1:08x}",  # a body that no window allows
    ],
)
def test_what_is_no_yamux_is_refused(wire):
    good = Frame(Kind.PING, Flag.SYN, 0, 1)
    frames = FrameParser().feed(good.encode() + bytes.fromhex(wire))
    assert next(frames) == good
    with pytest.raises(YamuxError):
        next(frames)


def test_an_announced_body_is_not_held_before_it_comes():
    parser = FrameParser()
    assert list(parser.feed(bytes.fromhex(f"00 00 0000 00000001 {MAX_BODY:08x}"))) == []
    assert parser.pending == 12
