"""Every recorded conversation of EdgeVPN's stream protocols, held again with our handlers.

Served: what the recorder said to an EdgeVPN node is said to ours; payload and end must be the recorded ones, but for
:data:`DIFFERENCES`. Dialled: what EdgeVPN nodes said when they dialled is said to ours. Our own diallers are in
``test_stream_recordings_clients.py``. Source: spec/edgevpn.md 8, 17; v0.35.4 and v0.30.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from provider_kairos.mesh.multistream import HEADER, encode_line
from provider_kairos.services import users
from tests.interop.stream_place import STILL_OPEN, EdgevpnsPlace, answer_of, run
from tests.interop.stream_recordings import FILE_1, FILES, Conversation, load

RECORDED = {name: load(name) for name in FILES}
SERVED = [each for name in FILES for each in RECORDED[name] if not each.opened_by_edgevpn and each.text]
DIALLED = [each for name in FILES for each in RECORDED[name] if each.opened_by_edgevpn]
REPLIES = [each for name in FILES for each in RECORDED[name] if not each.opened_by_edgevpn and not each.text]
"""Echo replies that the recorder sent as it was pinged: /edgevpn/0.1, opened by it without a word of its own."""


@dataclass(frozen=True)
class Difference:
    """Ours ends the conversation otherwise, or says something else; ``reason`` is why."""

    reason: str
    end: str | None = None
    status: int | None = None
    packets: int | None = None


DIFFERENCES = {
    "/edgevpn/0.1: one ICMP packet, we are not in machines": Difference(
        "packets are taken inside the connection's reader: one of a stranger is dropped and counted, without a reset",
        end=STILL_OPEN,
    ),
    "/edgevpn/0.1: two packets in one write (one yamux frame)": Difference(
        "both packets arrive; EdgeVPN loses the second", packets=2
    ),
    "/edgevpn/0.1: one packet split over two writes": Difference(
        "what is no whole packet is dropped and counted, no part of it reaches the device; no reset",
        end=STILL_OPEN,
        packets=0,
    ),
    "/edgevpn/0.1: source address of somebody else": Difference(
        "a packet with an address that is not its sender's is dropped", packets=0
    ),
    "/edgevpn/0.1: garbage that is no IP packet": Difference(
        "it is dropped and counted, without a reset", end=STILL_OPEN
    ),
    "/edgevpn/service/0.1: the server behind aborts (TCP reset) after 'abort'": Difference(
        "a reset travels as a reset, not as an orderly end", end="reset"
    ),
    "/edgevpn/egress/0.1: nothing listens": Difference("the reason is said instead of a reset", end="end", status=502),
    "/edgevpn/egress/0.1: not HTTP": Difference("the reason is said instead of a reset", end="end", status=400),
    "/edgevpn/egress/0.1: no Host": Difference("the reason is said instead of a reset", end="end", status=400),
    "/edgevpn/egress/0.1: CONNECT": Difference(
        "it is never passed on: any 2xx of the server would lie to the client", status=501
    ),
}
EGRESS_ADDS = {"accept-encoding", "user-agent"}
"""Headers that EdgeVPN's HTTP client adds to a request and ours does not."""


def names(conversations: list[Conversation]) -> list[Any]:
    return [pytest.param(each, id=each.name) for each in conversations]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(users, "PATIENCE", 0.0)


@pytest.fixture
def place(monkeypatch, tmp_path):
    return EdgevpnsPlace(monkeypatch, tmp_path)


# --- served ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conversation", names(SERVED))
def test_served_as_recorded(conversation: Conversation, place: EdgevpnsPlace):
    difference = DIFFERENCES.get(conversation.text)
    expected_end = difference.end if difference and difference.end else conversation.edgevpns_end
    payload, end = run(lambda: place.hold(conversation, expected_end))
    assert end == expected_end
    if conversation.protocol == "/edgevpn/egress/0.1" and end == "end":
        head = HEADER + encode_line(conversation.protocol)
        assert payload.startswith(head)
        compare_http(payload.removeprefix(head), conversation.application(of_edgevpn=True), difference)
    else:
        assert payload == conversation.payload(of_edgevpn=True)
    if conversation.protocol == "/edgevpn/0.1":
        expected = conversation.packets
        if difference is not None and difference.packets == 2:
            ((both,),) = (expected,)  # EdgeVPN handed its kernel both as one
            expected = [both[: len(both) // 2], both[len(both) // 2 :]]
        elif difference is not None and difference.packets == 0:
            expected = []
        assert list(place.tun.written) == expected


def compare_http(ours: bytes, recorded: bytes, difference: Difference | None) -> None:
    status, headers, body = answer_of(ours)
    if difference is not None:
        assert status == difference.status
        assert body
        return
    recorded_status, recorded_headers, recorded_body = answer_of(recorded)
    assert status == recorded_status
    same = {"content-type", "date", "server"}
    assert {name: headers[name] for name in same} == {name: recorded_headers[name] for name in same}
    # the body says which request the server got
    asked, recorded_asked = body.decode().split("\n"), recorded_body.decode().split("\n")
    assert asked[0] == recorded_asked[0]
    assert asked[-1] == recorded_asked[-1]
    added = [line for line in recorded_asked if line not in asked]
    assert {line.partition(":")[0].lower() for line in added} <= EGRESS_ADDS
    assert [line for line in asked if line not in recorded_asked] == ["Connection: close"]


def test_every_difference_is_one_of_a_recording():
    assert set(DIFFERENCES) <= {conversation.text for conversation in SERVED}


def test_no_conversation_is_left_out():
    for name in FILES:
        for conversation in RECORDED[name]:
            assert conversation.protocol, conversation.name
            assert (conversation in SERVED) + (conversation in DIALLED) + (conversation in REPLIES) == 1
    assert all(each.protocol == "/edgevpn/0.1" for each in REPLIES)
    assert len({each.text for each in SERVED if each.file == "streams-035"}) == 31


# --- dialled by EdgeVPN ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conversation", names(DIALLED))
def test_an_edgevpn_that_dials_us_is_served(conversation: Conversation, place: EdgevpnsPlace):
    # the recorder served as it liked; ours ends a packet stream with its sender, files and answers by itself
    expected_end = STILL_OPEN if "service" in conversation.protocol else "end"
    payload, end = run(lambda: place.hold(conversation, expected_end))
    answer = payload.removeprefix(HEADER + encode_line(conversation.protocol))
    assert len(answer) == len(payload) - len(HEADER) - len(encode_line(conversation.protocol))
    said = conversation.application(of_edgevpn=True)
    match conversation.protocol:
        case "/edgevpn/0.1":
            assert list(place.tun.written) == [said]
            assert (answer, end) == (b"", "end")
        case "/edgevpn/service/0.1":
            assert answer == conversation.application(of_edgevpn=False)
        case "/edgevpn/file/0.1":
            assert (answer, end) == (FILE_1, "end")
        case "/edgevpn/egress/0.1":
            status, _, body = answer_of(answer)
            expected = (501, None) if said.startswith(b"CONNECT") else (201, b"frompy")
            assert status == expected[0]
            assert expected[1] is None or body == expected[1]
