"""The peer guard at work: feeds the trust engine with the ledger, the room and what is said there (spec/edgevpn.md 13).

Its gate is the mesh's from the first message on, filled with the zone that the disk kept. Decisions are
:mod:`provider_kairos.trustzone.engine`'s.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import trio

from provider_kairos.daemon.logs import OncePer
from provider_kairos.daemon.parts import Parts
from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh.views import Message
from provider_kairos.trustzone.challenge import TEXT
from provider_kairos.trustzone.engine import TrustEngine
from provider_kairos.trustzone.gate import PeerGate
from provider_kairos.trustzone.keys import load_private
from provider_kairos.trustzone.model import (
    AUTH_BUCKET,
    NOTES_BUCKET,
    ZONE_BUCKET,
    ZONE_TEXT,
    Admit,
    Effect,
    Expel,
    Say,
    TrustRules,
    TrustView,
    note_text,
    read_keys,
    read_notes,
)

__all__ = ["TrustService"]

log = logging.getLogger(__name__)

LOOK = 2.0
"""Seconds after which the room is looked at again; changes of the ledger are seen at once."""

_BUCKETS = frozenset({ZONE_BUCKET, AUTH_BUCKET, NOTES_BUCKET})
_SAID = frozenset({"accepted", "refused", "replayed", "unbound", "stale", "without_keys", "over_limit", "malformed"})
"""Verdicts that are worth a line in the log."""


class TrustService:
    """The service; :attr:`gate` is what ``/api/peergate`` switches."""

    name = "trust"

    def __init__(self, parts: Parts) -> None:
        rules = parts.settings.trust
        self.gate = PeerGate(enabled=rules.gate, relaxed=rules.relaxed)
        self._ledger = parts.ledger
        self._mesh = parts.mesh
        self._clock = parts.clock
        self._offline_after = parts.settings.offline_after
        self._once_per = OncePer()
        self._wake = trio.Event()
        self.engine = TrustEngine(
            parts.mesh.peer_id,
            TrustRules(
                interval=rules.interval,
                strict=rules.strict,
                autoclean=rules.autoclean,
                offline_after=self._offline_after,
            ),
            self.gate,
            load_private(rules.private_key) if rules.private_key else None,
            parts.rng,
        )
        self.engine.look(self._view(), self._clock.now())
        parts.mesh.admission.gate = self.gate

    def waiting(self) -> Sequence[Waiting]:
        """Why others do not hear us."""
        return self.engine.explain()

    @property
    def counters(self) -> Counter[str]:
        """Challenges by what became of them; peers let in and taken off."""
        return Counter({f"trust_{name}": count for name, count in self.engine.counters.items()})

    async def run(self) -> None:
        """Guard until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            while True:
                self._wake = trio.Event()
                seen = self._ledger.revision
                now = self._clock.now()
                self.engine.look(self._view(), now)
                await self._carry_out(self.engine.tick(now))
                wait = min(self.engine.next_wakeup() - self._clock.now().mono, LOOK)
                async with trio.open_nursery() as waiting:
                    waiting.cancel_scope.deadline = trio.current_time() + max(wait, 0.0)
                    waiting.start_soon(self._wait_ledger, seen, waiting.cancel_scope)
                    await self._wake.wait()
                    waiting.cancel_scope.cancel()

    def _view(self) -> TrustView:
        ledger = self._ledger.ledger
        return TrustView(
            zone=frozenset(map(PeerId, ledger.bucket(ZONE_BUCKET) or {})),
            keys=read_keys(ledger.bucket(AUTH_BUCKET) or {}),
            notes=read_notes(ledger.bucket(NOTES_BUCKET) or {}),
            room=frozenset(self._mesh.on_chain()),
            live=frozenset(ledger.live_peers(self._clock.now(), self._offline_after)),
        )

    async def _wait_ledger(self, seen: int, scope: trio.CancelScope) -> None:
        await self._ledger.wait_revision(seen, _BUCKETS)
        scope.cancel()

    async def _listen(self) -> None:
        async for message in self._mesh.public_messages.clone():
            now = self._clock.now()
            verdict = self.engine.heard(message.author, message.via, message.data, message.annotations, now)
            self._log(message, verdict)
            self._wake.set()

    def _log(self, message: Message, verdict: str) -> None:
        if verdict in _SAID and self._once_per.allow((message.author, verdict), self._clock.now()) is not None:
            log.info("%s asks to be trusted (by way of %s): %s", message.author, message.via, verdict.replace("_", " "))

    async def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Say(annotations):
                    heard_by = await self._mesh.publish_public(TEXT, annotations)
                    log.debug("asked %d peers to be trusted", heard_by)
                case Admit(peer, key):
                    log.info("%s is trusted: it has shown key %s", peer, key or "of ours")
                    self._ledger.persist(ZONE_BUCKET, peer, ZONE_TEXT)
                    if key:
                        self._ledger.add(NOTES_BUCKET, {peer: note_text(key)})
                case Expel(peer, why):
                    log.warning("%s is trusted no longer: %s", peer, why)
                    self._ledger.persist_delete(ZONE_BUCKET, peer)
                    self._ledger.delete(NOTES_BUCKET, peer)
