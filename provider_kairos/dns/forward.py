"""Names outside the mesh: which forward server is asked, when another one is, and what is done about loops.

Specification: spec/edgevpn.md 10, ``--dns-forward-server``. As in EdgeVPN an answer without records moves on to the next
server, so that a list "inside, outside" works; unlike there the first server's *no* is passed on when no other says
yes. A question that is under way already is not asked again, which also keeps a loop from turning faster and faster.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import dns.exception
import trio

from provider_kairos.dns.address import Endpoint
from provider_kairos.dns.answer import Reply
from provider_kairos.dns.cache import Cache, Key
from provider_kairos.dns.question import CD, RD, Question, Rcode, presentation
from provider_kairos.dns.reasons import ForwardLoop
from provider_kairos.dns.upstream import Answer, exchange, keep_seconds, read_reply, send_only

__all__ = ["Forwarder"]

log = logging.getLogger(__name__)

TRY_SECONDS = 2.0
"""For one server; then the next is asked."""

TOTAL_SECONDS = 9.0
"""For all of them, twice round. Askers give up after some five; EdgeVPN waits 30 s for each server."""

OTHERS_SECONDS = 1.0
"""For the others to have what the first says does not exist."""

MAX_FLIGHTS = 128
"""Different questions under way."""

SHUNNED: Final = 15.0
MOST_SHUNNED: Final = 240.0
"""Seconds for which a silent server is asked after the others only; doubled each time, up to the second."""

LOOP_SECONDS: Final = 60.0
"""Seconds until a server from which questions came back is tried again."""

PROBE_EVERY: Final = 5.0
"""Seconds between two probes of one server."""

SAY_EVERY: Final = 60.0
"""Seconds between two lines of the log about one server."""


@dataclass(slots=True)
class _Flight:
    done: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None


class Forwarder:
    """Asks ``servers`` in their order and keeps answers in ``cache``. Runs inside the caller's tasks.

    ``put`` asks one server, ``send`` sends it a question without waiting.
    """

    def __init__(
        self,
        servers: Sequence[Endpoint],
        cache: Cache,
        counters: Counter[str],
        *,
        put: Callable[[Endpoint, Question, Counter[str]], Awaitable[Answer]] = exchange,
        send: Callable[[Endpoint, Question], Awaitable[None]] = send_only,
    ) -> None:
        self._put = put
        self._send = send
        self._servers = tuple(dict.fromkeys(servers))
        self._cache = cache
        self._counters = counters
        self._flights: dict[Key, _Flight] = {}
        self._shunned: dict[Endpoint, tuple[float, float]] = {}  # until when, and for how long
        self._loops: dict[Endpoint, float] = {}  # until when the server is not asked
        self._probes: OrderedDict[bytes, Endpoint] = OrderedDict()
        self._probed: dict[Endpoint, float] = {}
        self._said: dict[object, float] = {}

    def waiting(self) -> list[ForwardLoop]:
        """Servers that lead back here."""
        return [ForwardLoop(str(server)) for server in self._loops]

    # -- asking

    def kept(self, question: Question) -> Reply | None:
        """The answer, when it is in the cache."""
        now = trio.current_time()
        kept = self._cache.get(_key(question), now)
        if kept is None:
            return None
        self._counters["dns_cache_hits"] += 1
        return read_reply(kept.message, int(now - kept.since))

    async def ask(self, question: Question) -> Reply:
        """The servers' answer; SERVFAIL when there is none."""
        if (kept := self.kept(question)) is not None:
            return kept
        key = _key(question)
        flight = self._flights.get(key)
        if flight is not None:
            await flight.done.wait()
            return flight.reply or Reply(Rcode.SERVFAIL)
        if len(self._flights) >= MAX_FLIGHTS:
            self._counters["dns_forward_overload"] += 1
            return Reply(Rcode.SERVFAIL)
        flight = self._flights[key] = _Flight()
        try:
            flight.reply = await self._look_up(question, key)
        finally:
            del self._flights[key]
            flight.done.set()
        return flight.reply or Reply(Rcode.SERVFAIL)

    async def _look_up(self, question: Question, key: Key) -> Reply | None:
        self._counters["dns_forwarded"] += 1
        answer: Answer | None = None
        with trio.move_on_after(TOTAL_SECONDS):
            answer = await self._first(question)
        if answer is None:
            self._counters["dns_forward_failed"] += 1
            self._say("all", f"no forward server answers: {', '.join(map(str, self._servers)) or 'there is none'}")
            return None
        reply = read_reply(answer.message)
        self._cache.put(key, answer.message, keep_seconds(reply), trio.current_time())
        return reply

    async def _first(self, question: Question) -> Answer | None:
        for _ in range(2):
            for server in self._order():
                answer = await self._try(server, question, TRY_SECONDS)
                if answer is None:
                    continue
                if answer.empty:
                    others = [other for other in self._order() if other != server and not self._shuns(other)]
                    return await self._others(others, question) or answer
                return answer
        return None

    async def _others(self, servers: Sequence[Endpoint], question: Question) -> Answer | None:
        """The first answer with records in it."""
        found: Answer | None = None

        async def one(server: Endpoint) -> None:
            nonlocal found
            answer = await self._try(server, question, OTHERS_SECONDS)
            if answer is not None and not answer.empty and found is None:
                found = answer
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(one, server)
        return found

    def _order(self) -> list[Endpoint]:
        now = trio.current_time()
        usable = [server for server in self._servers if self._loops.get(server, 0) <= now]
        return sorted(usable, key=self._shuns)

    def _shuns(self, server: Endpoint) -> bool:
        until, _ = self._shunned.get(server, (0.0, 0.0))
        return until > trio.current_time()

    async def _try(self, server: Endpoint, question: Question, seconds: float) -> Answer | None:
        """One server's answer about the name; None when it has nothing to say."""
        trouble = "it is silent"
        with trio.move_on_after(seconds):
            try:
                answer = await self._put(server, question, self._counters)
                if answer.usable:
                    read_reply(answer.message)
            except OSError as error:
                trouble = error.strerror or str(error)
            except dns.exception.DNSException as error:
                self._counters["dns_forward_malformed"] += 1
                trouble = f"its answer cannot be read: {error}"
            else:
                self._shunned.pop(server, None)
                self._loops.pop(server, None)
                if answer.usable:
                    return answer
                self._counters["dns_forward_refused"] += 1
                return None
        self._counters["dns_forward_errors"] += 1
        if not self._shuns(server):
            _, before = self._shunned.get(server, (0.0, 0.0))
            span = min(2 * before, MOST_SHUNNED) or SHUNNED
            self._shunned[server] = (trio.current_time() + span, span)
        self._say(server, f"forward server {server}: {trouble}")
        await self._probe(server)
        return None

    def _say(self, about: object, text: str) -> None:
        now = trio.current_time()
        if now >= self._said.get(about, now):
            self._said[about] = now + SAY_EVERY
            log.warning("%s", text)

    # -- loops

    async def _probe(self, server: Endpoint) -> None:
        """Ask a silent server for a name that nobody else can know: when the question arrives here, it is a loop."""
        now = trio.current_time()
        if now < self._probed.get(server, now):
            return
        self._probed[server] = now + PROBE_EVERY
        wire = b"".join(
            bytes([len(label)]) + label for label in (secrets.token_hex(16).encode(), b"loop-check", b"kairos-p2p")
        )
        wire += b"\0"
        self._probes[wire] = server
        if len(self._probes) > 4 * len(self._servers):
            self._probes.popitem(last=False)
        with suppress(OSError), trio.move_on_after(TRY_SECONDS):
            await self._send(server, Question(0, RD, wire, presentation(wire), 16, 1))

    def came_back(self, question: Question) -> bool:
        """Whether a question that arrived is one of our probes; then its server is left alone for a while."""
        server = self._probes.get(question.wire.lower())
        if server is None:
            return False
        self._counters["dns_forward_loops"] += 1
        self._loops[server] = trio.current_time() + LOOP_SECONDS
        self._say(("loop", server), ForwardLoop(str(server)).text())
        return True


def _key(question: Question) -> Key:
    dnssec = question.edns is not None and question.edns.dnssec
    return question.wire.lower(), question.rdtype, question.rdclass, question.flags & (RD | CD), dnssec
