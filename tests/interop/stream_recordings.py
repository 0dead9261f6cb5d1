"""Recorded conversations of EdgeVPN's stream protocols, and a way to hold them again with a node of ours.

A recording has the yamux frames of both directions. The recorder was a peer of EdgeVPN nodes: conversations that it
opened show EdgeVPN serving, the others EdgeVPN dialling. :func:`hold` plays one side of a conversation to our muxer,
frame by frame and in step with the recorded answers, and returns what ours answered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from provider_kairos.ids import PeerId
from provider_kairos.mesh.complaints import Complaints
from provider_kairos.mesh.multistream import HEADER, encode_line
from provider_kairos.mesh.muxer import Muxer
from provider_kairos.mesh.muxer_stream import PacketHandler, Stream
from provider_kairos.mesh.streams import MeshStream, StreamHandler, run_handler
from provider_kairos.mesh.testing import memory_channels
from provider_kairos.mesh.yamux_frames import Flag, FrameParser, Kind, encode_header

RECORDINGS = Path(__file__).with_name("recordings")
FILES = ("streams-035", "streams-030", "streams-035-late-answers")
FILE_1 = b"".join(b"line %d of file-1\n" % number for number in range(3000))[:38890]
PROTOCOLS = ("/edgevpn/0.1", "/edgevpn/service/0.1", "/edgevpn/file/0.1", "/edgevpn/egress/0.1", "/edgevpn/nosuch/0.1")

_FLAGS = {"": 0, "SYN": Flag.SYN, "ACK": Flag.ACK, "FIN": Flag.FIN, "RST": Flag.RST}


@dataclass(frozen=True)
class RecordedFrame:
    sent_by_edgevpn: bool
    data: bool
    flags: int
    payload: bytes = b""
    delta: int = 0


@dataclass
class Conversation:
    file: str
    number: int
    text: str
    protocol: str = ""
    opened_by_edgevpn: bool = False
    frames: list[RecordedFrame] = field(default_factory=list)
    packets: list[bytes] = field(default_factory=list)
    """What EdgeVPN wrote to its TUN device meanwhile."""

    @property
    def name(self) -> str:
        return f"{self.file}-{self.number}"

    def payload(self, *, of_edgevpn: bool) -> bytes:
        """What one side sent, negotiation included."""
        return b"".join(frame.payload for frame in self.frames if frame.sent_by_edgevpn == of_edgevpn)

    def application(self, *, of_edgevpn: bool) -> bytes:
        """What one side sent after the negotiation."""
        data = self.payload(of_edgevpn=of_edgevpn)
        for line in (HEADER, encode_line(self.protocol), encode_line("na")):
            data = data.removeprefix(line)
        return data

    @property
    def edgevpns_end(self) -> str:
        return _end(frame.flags for frame in self.frames if frame.sent_by_edgevpn)


def _end(flags) -> str:
    found = "open"
    for each in flags:
        if each & Flag.RST:
            return "reset"
        if each & Flag.FIN:
            found = "end"
    return found


def load(name: str) -> list[Conversation]:
    found: dict[int, Conversation] = {}
    text = ""
    opened: Conversation | None = None
    for line in (RECORDINGS / f"{name}.jsonl").read_text().splitlines():
        record = json.loads(line)
        match record["record"]:
            case "action" if record["text"].startswith("open /"):
                text = record["text"].partition(" ")[2]
                opened = None
            case "action" if record["text"].startswith(("result of", "open failed", "long-lived")):
                text = ""
            case "tun" if record["dir"] == "from-network" and opened is not None and text:
                opened.packets.append(bytes.fromhex(record["packet"]))
            case "frame":
                number = record["conversation"]
                if number not in found:
                    conversation = found[number] = Conversation(name, number, "")
                    conversation.opened_by_edgevpn = record["dir"] == "in"
                    if not conversation.opened_by_edgevpn and text:
                        conversation.text, opened = text, conversation
                _add(found[number], record)
    return list(found.values())


def _add(conversation: Conversation, record) -> None:
    payload = _payload(record)
    conversation.frames.append(
        RecordedFrame(
            record["dir"] == "in",
            record["kind"] == "data",
            int(_FLAGS[record["flags"]]),
            payload,
            record.get("delta", 0),
        )
    )
    for protocol in PROTOCOLS:
        if encode_line(protocol) in payload:
            conversation.protocol = conversation.protocol or protocol


def _payload(record) -> bytes:
    if "payload_length" not in record:
        return bytes.fromhex(record.get("payload", ""))
    size, start = record["payload_length"], bytes.fromhex(record["payload_start"])
    whole = b"z" * size if start.startswith(b"z") else FILE_1[FILE_1.index(start) :][:size]
    assert hashlib.sha256(whole).hexdigest() == record["payload_sha256"], "a long payload is not what it was taken for"
    return whole


# --- holding one again ----------------------------------------------------------------------------------------------


class Node:
    """What a service sees of the mesh: the protocols that it serves."""

    def __init__(self, peer_id: str) -> None:
        self.peer_id = PeerId(peer_id)
        self.complaints = Complaints()
        self.handlers: dict[str, StreamHandler] = {}
        self.packet_handlers: dict[str, PacketHandler] = {}

    def set_stream_handler(self, protocol: str, handler: StreamHandler) -> None:
        self.handlers[protocol] = handler

    def set_packet_handler(self, protocol: str, handler: PacketHandler) -> None:
        self.packet_handlers[protocol] = handler

    def remove_handler(self, protocol: str) -> None:
        self.handlers.pop(protocol, None)
        self.packet_handlers.pop(protocol, None)

    def serves(self, protocol: str) -> bool:
        return protocol in self.handlers or protocol in self.packet_handlers


@dataclass
class Answer:
    """What our node sent: all payload, and how it ended the stream."""

    payload: bytes = b""
    flags: list[int] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)

    @property
    def end(self) -> str:
        return _end(self.flags)

    async def until_said(self, amount: int) -> None:
        """Until so many bytes came, or no more can."""
        await self.until(lambda: len(self.payload) >= amount or self.end != "open")

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.changed.wait()


async def hold(conversation: Conversation, node: Node, peer: PeerId, nursery: trio.Nursery) -> Answer:
    """Say to ``node`` what the peer of the conversation's serving side said; returns what it answered.

    A reset with which the recorder put a conversation away is left out, so that our own end is seen.
    """
    theirs = conversation.opened_by_edgevpn
    ours_channel, script = memory_channels()
    muxer = Muxer(
        ours_channel,
        peer,
        initiator=False,
        serves=node.serves,
        on_stream=_starter(node, nursery),
        packet_handlers=node.packet_handlers,
    )
    nursery.start_soon(muxer.run)
    answer = Answer()
    nursery.start_soon(_listen, script, answer)
    expected, proposed = 0, False
    frames = list(conversation.frames)
    while frames and frames[-1].flags & Flag.RST and frames[-1].sent_by_edgevpn == theirs:
        frames.pop()
    for frame in frames:
        if frame.sent_by_edgevpn != theirs:
            expected += len(frame.payload)
            continue
        if frame.data:
            # in step: what was heard by then, ours must have said too; Go greets before it is greeted, ours afterwards
            if proposed:
                await answer.until_said(expected)
            proposed = proposed or encode_line(conversation.protocol) in frame.payload
            await script.send(encode_header(Kind.DATA, frame.flags, 1, len(frame.payload)) + frame.payload)
        else:
            await script.send(encode_header(Kind.WINDOW_UPDATE, frame.flags, 1, frame.delta))
    return answer


def _starter(node: Node, nursery: trio.Nursery) -> Callable[[Stream], None]:
    def start(stream: Stream) -> None:
        handler = node.handlers[stream.protocol]

        async def serve(stream: Stream) -> None:
            await handler(stream.peer, MeshStream(stream))

        nursery.start_soon(run_handler, stream, serve, node.complaints)

    return start


async def _listen(script, answer: Answer) -> None:
    parser = FrameParser()
    while data := await script.receive():
        for kind, flags, stream_id, length, body in parser.feed(data):
            if stream_id != 1:
                continue
            if kind == Kind.DATA:
                answer.payload += body[:length]
            answer.flags.append(flags)
            answer.changed.set()
            answer.changed = trio.Event()


def by_text(conversations: list[Conversation]) -> Mapping[str, Conversation]:
    return {each.text: each for each in conversations if each.text}
