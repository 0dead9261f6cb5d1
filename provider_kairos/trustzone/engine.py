"""Who asks to be trusted, who lets in, and who is taken off: the peer guard as one sans-IO engine.

Specification: spec/edgevpn.md 13.3, 15.2 no. 48 to 51. Give it views (:meth:`TrustEngine.look`), what was said in the
public room (:meth:`TrustEngine.heard`) and the time; carry its effects out. Where it differs from EdgeVPN:

* the *author* of a challenge is admitted, whom gossip's signature names, not the neighbour that passed it on;
* a signature counts for the author that it was first heard of; a challenge that is bound to its author has to be his;
* a node that is trusted asks all the same (bound, so that nobody else can use it) while there are peers in the room
  that it does not trust, and when one that it trusts asks it: two halves that lost sight of each other, or a node that
  forgot everything, would otherwise stay deaf for ever;
* while the ledger has not had a trusted key yet, and the gate is on and not relaxed, the holder of *our own* private key
  is trusted: a node that starts with an empty ledger would otherwise never hear of anybody;
* clean-up takes off who has been gone for long, never ourselves, and nobody while we are alone;
* who was admitted by a key that has been removed is taken off, unless no key is left at all.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from provider_kairos.clock import Now
from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId
from provider_kairos.trustzone.challenge import Challenge, ChallengeError, annotated, read
from provider_kairos.trustzone.gate import PeerGate
from provider_kairos.trustzone.keys import KeyTextError, fingerprint, load_public
from provider_kairos.trustzone.limits import MAX_KEYS, Attention, UsedSignatures
from provider_kairos.trustzone.model import (
    Admit,
    Effect,
    Expel,
    NoKeyToAskWith,
    NotAdmitted,
    NoTrustedKey,
    Say,
    TrustRules,
    TrustView,
)

__all__ = ["TrustEngine"]

ASK_FIRST = 5.0
"""Seconds between the first two challenges; they double up to the interval, as EdgeVPN's do."""

REVOKE_AFTER = 30.0
"""Seconds that a key must be missing before those whom it let in are taken off: it may be on its way back."""

FOR_EVER = float("inf")


class TrustEngine:
    """The guard of one node. ``private`` is the key that it asks with; without one it only lets others in."""

    def __init__(
        self,
        me: PeerId,
        rules: TrustRules,
        gate: PeerGate,
        private: ec.EllipticCurvePrivateKey | None,
        rng: random.Random,
    ) -> None:
        self.gate = gate
        self.counters: Counter[str] = Counter()
        self._me = me
        self._rules = rules
        self._private = private
        self._own = private.public_key() if private is not None else None
        self._own_print = fingerprint(self._own) if self._own is not None else ""
        self._rng = rng
        self._view = TrustView()
        self._keys: dict[str, tuple[str, ec.EllipticCurvePublicKey]] = {}  # text to fingerprint and key
        self._had_keys = False
        self._bad_texts: frozenset[str] = frozenset()
        self._attention = Attention()
        self._used = UsedSignatures()
        self._ask_at = FOR_EVER
        self._asked_at = -FOR_EVER
        self._pause = ASK_FIRST
        self._asked = 0
        self._answering = False
        self._admitting: dict[PeerId, tuple[float, str]] = {}
        self._gone_since: dict[PeerId, float] = {}
        self._keyless_since: dict[PeerId, float] = {}

    # --- what is seen -----------------------------------------------------------------------------------------------

    def look(self, view: TrustView, now: Now) -> None:
        """Take the present view: the gate follows it at once."""
        before, self._view = self._view, view
        self.gate.trusted = view.zone
        if view.keys != before.keys:
            self._read_keys(view.keys)
        # A note names a key of the ledger: who finds the one without the other sees a key that was removed.
        self._had_keys = self._had_keys or bool(view.keys or view.notes)
        for peer in [peer for peer in self._admitting if peer in view.zone]:
            del self._admitting[peer]
        self._note_absences(now.mono)
        newcomers = view.room - before.room
        if not self._wants_to_ask():
            self._ask_at, self._pause = FOR_EVER, ASK_FIRST
        elif self._ask_at == FOR_EVER or (newcomers and not newcomers <= view.zone):
            self._pause = ASK_FIRST
            self._ask_soon(now.mono)

    def _read_keys(self, texts: Mapping[str, str]) -> None:
        known, self._keys = self._keys, {}
        bad = set()
        for text in texts.values():
            if len(self._keys) >= MAX_KEYS and text not in self._keys:
                self.counters["keys_over_limit"] += 1
                continue
            try:
                self._keys[text] = known.get(text) or _parsed(text)
            except KeyTextError:
                bad.add(text)
        if new := len(bad - self._bad_texts):
            self.counters["keys_malformed"] += new
        self._bad_texts = frozenset(bad)

    def _note_absences(self, mono: float) -> None:
        view = self._view
        present = view.room | view.live | {self._me}
        self._gone_since = {peer: self._gone_since.get(peer, mono) for peer in view.zone - present}
        trusted = {name for name, _ in self._keys.values()}
        self._keyless_since = {
            peer: self._keyless_since.get(peer, mono)
            for peer in view.zone - {self._me}
            if trusted and peer in view.notes and view.notes[peer] not in trusted
        }

    # --- asking -----------------------------------------------------------------------------------------------------

    def _wants_to_ask(self) -> bool:
        view = self._view
        if self._private is None or not view.room:
            return False
        return self._answering or not (self._me in view.zone and view.room <= view.zone)

    def _ask_soon(self, mono: float) -> None:
        soon = max(mono + self._rng.uniform(0.1, 0.5), self._asked_at + ASK_FIRST)
        self._ask_at = min(self._ask_at, soon)

    def _ask(self, now: Now) -> list[Effect]:
        if self._private is None or now.mono < self._ask_at:
            return []
        inside = self._me in self._view.zone
        self._asked_at = now.mono
        self._answering = False
        self._ask_at = now.mono + self._pause * self._rng.uniform(0.75, 1.25) if self._wants_to_ask() else FOR_EVER
        self._pause = min(self._pause * 2, self._rules.interval)
        self._asked += not inside
        self.counters["asked"] += 1
        # Whoever is inside asks nodes like us only: an EdgeVPN challenge lying about would let anybody in.
        plain = not inside and not self._rules.strict
        return [Say(annotated(self._private, self._me, now, inside=inside, for_edgevpn=plain))]

    # --- being asked ------------------------------------------------------------------------------------------------

    def heard(self, author: PeerId, via: PeerId, text: bytes, notes: Mapping[str, Any] | None, now: Now) -> str:
        """Somebody spoke in the public room; the word says what became of it (as counted), for the log.

        ``author`` signed the message, ``via`` delivered it. Who is let in is an effect of a later :meth:`tick`.
        """
        verdict = self._judge(author, via, text, notes, now) if author != self._me else "own"
        self.counters[f"heard_{verdict}"] += 1
        return verdict

    def _judge(self, author: PeerId, via: PeerId, text: bytes, notes: Mapping[str, Any] | None, now: Now) -> str:
        try:
            challenge = read(author, text, notes)
        except ChallengeError:
            return "malformed"
        inside = author in self._view.zone
        if challenge.edgevpn:
            first = self._used.first(challenge.edgevpn, author, good=inside)
            if first != author and not challenge.is_native:
                return "replayed"
        if inside and challenge.is_native and not challenge.inside and self._private is not None:
            self._answering = True  # it has forgotten what we know: our own challenge is all that it would believe
            self._ask_soon(now.mono)
            return "answered"
        if inside or author in self._admitting:
            return "needless"
        if not challenge.is_native and self._rules.strict:
            return "unbound"
        if challenge.is_native and not challenge.is_fresh(now):
            return "stale"
        keys = self._trusted_keys(challenge)
        if not keys:
            return "without_keys"
        if not self._attention.spend(author, via, len(keys), now.mono):
            return "over_limit"
        proven = next((name for name, key in keys if challenge.proves(key)), None)
        if proven is None:
            return "refused"
        if challenge.edgevpn:
            self._used.belongs(challenge.edgevpn, author)
        # Not all at once: the first one's record spares the others theirs.
        delay = self._rng.uniform(0, min(2.0, 0.1 * len(self._view.room)))
        self._admitting[author] = (now.mono + delay, proven)
        return "accepted"

    def _trusted_keys(self, challenge: Challenge) -> list[tuple[str, ec.EllipticCurvePublicKey]]:
        if self._keys:
            return list(self._keys.values())
        # Where the gate lets everybody speak to begin with, a zone of two would shut the others out too early.
        shut = self.gate.enabled and not self.gate.relaxed
        if shut and not self._had_keys and self._own is not None and challenge.is_native:
            return [("", self._own)]
        return []

    def _admit(self, mono: float) -> list[Effect]:
        due = [peer for peer, (at, _) in self._admitting.items() if at <= mono]
        effects: list[Effect] = [Admit(peer, self._admitting.pop(peer)[1]) for peer in sorted(due)]
        self.counters["admitted"] += len(effects)
        return effects

    # --- taking off -------------------------------------------------------------------------------------------------

    def _expel(self, mono: float) -> list[Effect]:
        effects: list[Effect] = [
            Expel(peer, "the key that it was admitted by has been removed")
            for peer, since in sorted(self._keyless_since.items())
            if mono - since >= REVOKE_AFTER
        ]
        # With nobody in sight we are the one that is gone.
        if self._rules.autoclean and self._view.room & self._view.zone:
            after = self._rules.offline_after
            effects += [
                Expel(peer, f"gone for {after:g} s")
                for peer, since in sorted(self._gone_since.items())
                if mono - since >= after
            ]
        for effect in effects:
            assert isinstance(effect, Expel)
            self._keyless_since.pop(effect.peer, None)
            self._gone_since.pop(effect.peer, None)
        self.counters["expelled"] += len(effects)
        return effects

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self, now: Now) -> list[Effect]:
        """Do what is due. Cheap when nothing is."""
        return [*self._ask(now), *self._admit(now.mono), *self._expel(now.mono)]

    def next_wakeup(self) -> float:
        """Monotonic time of the next thing to do; infinity when only a new view or a challenge brings something."""
        moments = [self._ask_at, *(at for at, _ in self._admitting.values())]
        moments += [since + REVOKE_AFTER for since in self._keyless_since.values()]
        if self._rules.autoclean and self._view.room & self._view.zone:
            moments += [since + self._rules.offline_after for since in self._gone_since.values()]
        return min(moments)

    # --- reasons ----------------------------------------------------------------------------------------------------

    def explain(self) -> list[Waiting]:
        """Why we are not heard, or nobody can be let in. Nothing while nobody is there to say it to."""
        view = self._view
        if not view.room:
            return []
        reasons: list[Waiting] = []
        if not self._keys and not view.room | {self._me} <= view.zone:
            reasons.append(NoTrustedKey())
        if self._me not in view.zone:
            if self._own is None:
                reasons.append(NoKeyToAskWith())
            elif self._keys:
                known = self._own_print in {name for name, _ in self._keys.values()}
                reasons.append(NotAdmitted(self._own_print, known, self._asked))
        return reasons


def _parsed(text: str) -> tuple[str, ec.EllipticCurvePublicKey]:
    key = load_public(text)
    return fingerprint(key), key
