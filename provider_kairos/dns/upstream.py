"""One question put to one forward server: over UDP, and over TCP when the answer was cut (RFC 7766).

Each question has a socket, and so a port, of its own, and an id drawn at random; what comes from elsewhere, or answers
something else, is counted and not listened to. Only the question goes out: none of the asker's EDNS options.
"""

from __future__ import annotations

import secrets
import struct
from collections import Counter
from dataclasses import dataclass
from typing import Final

import dns.exception
import dns.message
import dns.rdatatype
import trio

from provider_kairos.dns.address import Endpoint
from provider_kairos.dns.answer import Reply
from provider_kairos.dns.question import CD, MAX_UDP, QR, RD, TC, Question, Rcode

__all__ = ["Answer", "exchange", "keep_seconds", "query", "read_reply", "send_only"]

_HEADER: Final = struct.Struct("!6H")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said: its message, and how it ends."""

    message: bytes
    rcode: int

    @property
    def usable(self) -> bool:
        """Whether it says something about the name rather than about the server."""
        return self.rcode in {Rcode.NOERROR, Rcode.NXDOMAIN}

    @property
    def empty(self) -> bool:
        """Whether it holds no answer."""
        return not _HEADER.unpack_from(self.message)[3]


def query(question: Question, id_: int) -> bytes:
    """The message that asks ``question``, in the case in which it came."""
    opt = b""
    if question.edns:
        opt = struct.pack("!BHHIH", 0, 41, MAX_UDP, 0x8000 if question.edns.dnssec else 0, 0)
    return _HEADER.pack(id_, question.flags & (RD | CD), 1, 0, 0, int(bool(opt))) + question.raw + opt


async def exchange(server: Endpoint, question: Question, counters: Counter[str]) -> Answer:
    """Ask. Raises OSError when the server cannot be reached; waits for ever when it is silent."""
    message = query(question, secrets.randbelow(65536))
    with await _socket(server, trio.socket.SOCK_DGRAM) as udp:
        await udp.send(message)
        while True:
            data = await udp.recv(65535)
            if _answers(data, message, question):
                break
            counters["dns_forward_unasked"] += 1
    if not _HEADER.unpack_from(data)[1] & TC:
        return _answer(data)
    counters["dns_forward_tcp"] += 1
    return _answer(await _over_tcp(server, message, question))


async def send_only(server: Endpoint, question: Question) -> None:
    """Send a question and do not wait for an answer. Raises OSError."""
    with await _socket(server, trio.socket.SOCK_DGRAM) as udp:
        await udp.send(query(question, secrets.randbelow(65536)))


async def _socket(server: Endpoint, kind: int) -> trio.socket.SocketType:
    # numeric, so that no resolver is asked; it also reads a zone (fe80::1%eth0)
    ((family, _, _, _, address), *_) = await trio.socket.getaddrinfo(
        server.host, server.port, type=kind, flags=trio.socket.AI_NUMERICHOST
    )
    made = trio.socket.socket(family, kind)
    try:
        await made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


async def _over_tcp(server: Endpoint, message: bytes, question: Question) -> bytes:
    with await _socket(server, trio.socket.SOCK_STREAM) as tcp:
        stream = trio.SocketStream(tcp)
        try:
            await stream.send_all(struct.pack("!H", len(message)) + message)
            data = bytearray()
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
                piece = await stream.receive_some(65536)
                if not piece:
                    raise ConnectionResetError("the server closed the connection")
                data += piece
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionResetError("the connection broke") from error
    answer = bytes(data[2 : 2 + int.from_bytes(data[:2], "big")])
    if not _answers(answer, message, question):
        raise ConnectionResetError("the server answers something else")
    return answer


def _answers(data: bytes, message: bytes, question: Question) -> bool:
    """Whether ``data`` is an answer to ``message``. Names compare in any case: some servers do not keep it."""
    if len(data) < 12 or data[:2] != message[:2]:
        return False
    flags, questions = struct.unpack_from("!HH", data, 2)
    if not flags & QR or flags & 0x7800:
        return False
    if not questions:
        return bool(flags & 15)  # an old server's error
    return questions == 1 and data[12 : 12 + len(question.raw)].lower() == question.raw.lower()


def _answer(data: bytes) -> Answer:
    return Answer(data, _HEADER.unpack_from(data)[1] & 15)


# --- reading the answer -----------------------------------------------------------------------------------------------


def read_reply(message: bytes, age: int = 0) -> Reply:
    """The answer section, ``age`` seconds old; with an SOA, which says for how long, also the authority of a negative one.

    Raises dns.exception.DNSException for what is no message.
    """
    read = dns.message.from_wire(message, ignore_trailing=True)
    for rrset in (*read.answer, *read.authority):
        rrset.ttl = max(0, rrset.ttl - age)
    negative = any(rrset.rdtype == dns.rdatatype.SOA for rrset in read.authority)
    return Reply(int(read.rcode()), tuple(read.answer), tuple(read.authority) if negative else ())


def keep_seconds(reply: Reply) -> int:
    """How long an answer may be kept."""
    seconds = [rrset.ttl for rrset in reply.answers]
    if not reply.answers or reply.rcode == Rcode.NXDOMAIN:
        soas = [rrset for rrset in reply.authority if rrset.rdtype == dns.rdatatype.SOA]
        if not soas:
            return 0
        seconds += [min(soas[0].ttl, soas[0][0].minimum)]
    return min(seconds)
