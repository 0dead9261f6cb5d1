"""The name server: UDP and TCP sockets around :mod:`provider_kairos.dns.answer` and the forwarder.

Specification: spec/edgevpn.md 10. EdgeVPN serves UDP alone and goes on in silence when it cannot listen; here each
transport is tried again until it can, and says why it does not. Whatever arrives, at most one answer goes back, to
where the question came from.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from provider_kairos.dns.address import Endpoint
from provider_kairos.dns.answer import Elsewhere, Reply, decide, encode, encode_cut, encode_refusal, udp_limit
from provider_kairos.dns.forward import Forwarder
from provider_kairos.dns.question import Ignored, Question, Rcode, Refused, read_message
from provider_kairos.dns.rate import Allowance
from provider_kairos.dns.reasons import NotListening
from provider_kairos.dns.records import Zone
from provider_kairos.errors import Waiting

__all__ = ["NameServer"]

log = logging.getLogger(__name__)

RETRY = 3.0
"""Seconds until it tries again to listen."""

MAX_TASKS = 512
"""Questions over UDP that wait for forward servers."""

MAX_CONNECTIONS = 64
IDLE_SECONDS = 10.0
"""A TCP connection without a whole question, or whose answer is not taken, is closed after this."""

_TCP_LIMIT: Final = 65535
_WILDCARDS: Final = frozenset({"", "0.0.0.0", "::"})
_IP_PKTINFO: Final = 8  # Linux' number; Python names it from 3.14 on


class NameServer:
    """Answers at ``listen`` from ``zone``, which may be replaced at any time, and by way of ``forwarder``."""

    def __init__(self, listen: Endpoint, forwarder: Forwarder | None, zone: Zone) -> None:
        self.listen = listen
        self.zone = zone
        self.counters = zone.counters
        self.addresses: dict[str, tuple[Any, ...]] = {}
        """Where it listens, by transport; for a port that the kernel chose."""
        self._forwarder = forwarder
        self._allowance = Allowance()
        self._trouble: dict[str, str] = {}
        self._waiting_tasks = 0
        self._connections = 0
        self._udp_bound = trio.Event()
        self.listening = trio.Event()
        """Set once both transports have listened."""

    def waiting(self) -> list[Waiting]:
        """Why it does not listen, and which servers lead back here."""
        reasons: list[Waiting] = [
            NotListening(str(self.listen), transport, problem) for transport, problem in sorted(self._trouble.items())
        ]
        return [*reasons, *(self._forwarder.waiting() if self._forwarder else ())]

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep, "UDP", socket.SOCK_DGRAM, self._serve_udp)
            nursery.start_soon(self._keep, "TCP", socket.SOCK_STREAM, self._serve_tcp)

    async def _keep(
        self, transport: str, kind: int, serve: Callable[[trio.socket.SocketType], Awaitable[None]]
    ) -> None:
        while True:
            try:
                with await self._bound(kind) as sock:
                    self.addresses[transport] = sock.getsockname()
                    self._trouble.pop(transport, None)
                    if kind == socket.SOCK_DGRAM:
                        self._udp_bound.set()
                    if len(self.addresses) == 2:
                        self.listening.set()
                    log.info("names are answered at %s over %s", self.listen, transport)
                    await serve(sock)
            except OSError as error:
                problem = error.strerror or str(error)
                if self._trouble.get(transport) != problem:
                    log.warning("%s", NotListening(str(self.listen), transport, problem).text())
                self._trouble[transport] = problem
            await trio.sleep(RETRY)

    async def _bound(self, kind: int) -> trio.socket.SocketType:
        """A socket at our address. Raises OSError."""
        host, port = self.listen.host, self.listen.port
        if not port and kind == socket.SOCK_STREAM:  # the kernel chose one for UDP
            await self._udp_bound.wait()
            port = self.addresses["UDP"][1]
        found = await trio.socket.getaddrinfo(host or "::", port, type=kind, flags=socket.AI_PASSIVE)
        # as Go does for a name: IPv4 where there is a choice
        family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        try:
            return self._bind(family, kind, address)
        except OSError:
            if host:
                raise
            return self._bind(socket.AF_INET, kind, ("0.0.0.0", port))  # a machine without IPv6

    def _bind(self, family: int, kind: int, address: Any) -> trio.socket.SocketType:
        made = socket.socket(family, kind | socket.SOCK_CLOEXEC)
        try:
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(self.listen.host not in {"", "::"}))
            if kind == socket.SOCK_STREAM:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            elif self.listen.host in _WILDCARDS:
                # an answer has to leave from the address that was asked
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                else:
                    made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            made.setblocking(False)  # noqa: FBT003 - its only parameter
            made.bind(address)
            if kind == socket.SOCK_STREAM:
                made.listen(MAX_CONNECTIONS)
        except BaseException:
            made.close()
            raise
        return trio.socket.from_stdlib_socket(made)

    # -- what is said

    def _at_once(self, data: bytes, *, udp: bool, over_tcp: bool = False) -> bytes | _Pending | None:
        """The answer, or what has to be asked elsewhere for it; None when there is to be no answer.

        ``over_tcp`` sends the asker there: its address over UDP may be somebody else's.
        """
        message = read_message(data)
        match message:
            case Ignored(why):
                self.counters[f"dns_{why}"] += 1
                return None
            case Refused():
                self.counters["dns_refused"] += 1
                return encode_refusal(message)
        self.counters["dns_questions"] += 1
        if self._forwarder is not None and self._forwarder.came_back(message):
            return None
        if over_tcp:
            return encode_cut(message, forwarding=self._forwarder is not None)
        pending = _Pending(message, udp_limit(message) if udp else _TCP_LIMIT)
        try:
            decided = decide(message, self.zone, forwarding=self._forwarder is not None)
            if isinstance(decided, Elsewhere) and self._forwarder is not None:
                kept = self._forwarder.kept(decided.question)
                if kept is None:
                    return replace(pending, elsewhere=decided)
                decided = decided.complete(kept)
            return self._encode(pending, decided if isinstance(decided, Reply) else Reply(Rcode.SERVFAIL))
        except Exception as error:  # noqa: BLE001 - see there
            return self._crashed(pending, error)

    async def _later(self, pending: _Pending) -> bytes:
        """The answer with the help of the forward servers."""
        elsewhere, forwarder = pending.elsewhere, self._forwarder
        if elsewhere is None or forwarder is None:
            return self._encode(pending, Reply(Rcode.SERVFAIL))
        try:
            return self._encode(pending, elsewhere.complete(await forwarder.ask(elsewhere.question)))
        except Exception as error:  # noqa: BLE001 - see there
            return self._crashed(pending, error)

    def _encode(self, pending: _Pending, reply: Reply) -> bytes:
        return encode(pending.question, reply, forwarding=self._forwarder is not None, limit=pending.limit)

    def _crashed(self, pending: _Pending, error: Exception) -> bytes:
        """A bug of ours that one question brings out must not cost the others their answers."""
        self.counters["dns_crashed"] += 1
        if self.counters["dns_crashed"] == 1:
            log.error("a question could not be answered because of an error of ours", exc_info=error)
        return self._encode(pending, Reply(Rcode.SERVFAIL))

    # -- UDP

    async def _serve_udp(self, sock: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                client: Any
                try:
                    data, ancillary, _, client = await sock.recvmsg(4096, 128)
                except OSError as error:
                    await self._pause(error)
                    continue
                if not client[1]:
                    continue
                over_tcp = not self._allowance.allows(client[0], trio.current_time())
                if over_tcp:
                    self.counters["dns_rate_limited"] += 1
                back = _Back(sock, client, _source(ancillary), self.counters)
                answer = self._at_once(data, udp=True, over_tcp=over_tcp)
                if isinstance(answer, bytes):
                    await back.send(answer)
                elif answer is not None and self._waiting_tasks < MAX_TASKS:
                    self._waiting_tasks += 1
                    nursery.start_soon(self._answer_later, answer, back)
                elif answer is not None:
                    self.counters["dns_overload"] += 1

    async def _answer_later(self, pending: _Pending, back: _Back) -> None:
        try:
            answer = await self._later(pending)
        finally:
            self._waiting_tasks -= 1
        await back.send(answer)

    async def _pause(self, error: OSError) -> None:
        """What the machine lacks for a moment (descriptors, memory) does not end the listening."""
        self.counters["dns_socket_errors"] += 1
        log.debug("name server: %s", error)
        await trio.sleep(0.1)

    # -- TCP

    async def _serve_tcp(self, sock: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, _ = await sock.accept()
                except OSError as error:
                    await self._pause(error)
                    continue
                if self._connections >= MAX_CONNECTIONS:
                    self.counters["dns_connections_refused"] += 1
                    connection.close()
                    continue
                self._connections += 1
                nursery.start_soon(self._serve_connection, trio.SocketStream(connection))

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        """One question after the other, until the asker closes or dawdles."""
        try:
            async with stream:
                data = bytearray()
                while await self._serve_one(stream, data):
                    pass
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.counters["dns_connections_broken"] += 1
        finally:
            self._connections -= 1

    async def _serve_one(self, stream: trio.SocketStream, data: bytearray) -> bool:
        """Whether there may be another question. ``data`` is what was read and not looked at."""
        with trio.move_on_after(IDLE_SECONDS) as patience:
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
                piece = await stream.receive_some(65536)
                if not piece:
                    return False
                data += piece
        end = 2 + int.from_bytes(data[:2], "big")
        if patience.cancelled_caught:
            return False
        answer = self._at_once(bytes(data[2:end]), udp=False)
        del data[:end]
        if isinstance(answer, _Pending):
            answer = await self._later(answer)
        if answer is None:
            return False
        with trio.move_on_after(IDLE_SECONDS) as patience:
            await stream.send_all(struct.pack("!H", len(answer)) + answer)
        return not patience.cancelled_caught


@dataclass(frozen=True, slots=True)
class _Pending:
    """A question, the bytes that its answer may have, and what is asked elsewhere for it."""

    question: Question
    limit: int
    elsewhere: Elsewhere | None = None


class _Back:
    """The way back to who asked over UDP."""

    def __init__(
        self, sock: trio.socket.SocketType, client: Any, source: list[tuple[int, int, bytes]], counters: Counter[str]
    ) -> None:
        self._sock = sock
        self._client = client
        self._source = source
        self._counters = counters

    async def send(self, answer: bytes) -> None:
        try:
            await self._sock.sendmsg([answer], self._source, 0, self._client)
        except OSError:
            self._counters["dns_answers_not_sent"] += 1


def _source(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Makes an answer leave from the address that was asked: what the kernel said of the question, turned round."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= 12:
            return [(level, kind, struct.pack("=i4s4s", 0, data[4:8], bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= 20:
            # only a link-local address needs its interface
            interface = data[16:20] if data[:2] == b"\xfe\x80" else bytes(4)
            return [(level, kind, data[:16] + interface)]
    return []
