"""What a node says in the public room to be admitted (spec/edgevpn.md 13.3, 15.2 no. 48).

EdgeVPN's challenge is the word ``challenge`` with the annotation ``sigs``, a signature of that word: whoever has heard
one can say it too. Ours carries a second annotation, :data:`NATIVE`: a signature over the word, *our* peer ID and the
time. Gossip proves who the author is, so it is worth nothing in anybody else's mouth, nor later. EdgeVPN ignores the
annotation; a node that is told that there are only nodes like us leaves ``sigs`` away and wants :data:`NATIVE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from provider_kairos.clock import Now
from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.trustzone.sign import MAX_SIGNATURE_TEXT, sign, sign_native, verify, verify_native

__all__ = ["FRESH", "NATIVE", "TEXT", "Challenge", "ChallengeError", "annotated", "read"]

TEXT = b"challenge"
EDGEVPN = "sigs"
NATIVE = "kairos-p2p"

FRESH = 600.0
"""Seconds that a challenge of ours may be old or early: clocks differ, and the ledger bears no more either."""


class ChallengeError(PeerError):
    """Something in the public room that is no challenge."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge. ``author`` signed the message that it came in; empty signatures are absent ones.

    ``inside``: the author knows itself in the trust zone, and asks because there are others that it does not trust.
    """

    author: PeerId
    edgevpn: str = field(default="", repr=False)
    native: str = field(default="", repr=False)
    at: int = 0
    inside: bool = False

    @property
    def is_native(self) -> bool:
        """Whether it is bound to its author and time."""
        return bool(self.native)

    def is_fresh(self, now: Now) -> bool:
        """Whether a native one was made about now."""
        return abs(now.unix_float - self.at) <= FRESH

    def proves(self, key: ec.EllipticCurvePublicKey) -> bool:
        """Whether the holder of ``key`` made it; a native one is judged by its native signature alone."""
        if self.is_native:
            return verify_native(key, self.native, _bound(self.author, self.at, inside=self.inside))
        return bool(self.edgevpn) and verify(key, self.edgevpn, TEXT)


def annotated(
    key: ec.EllipticCurvePrivateKey, me: PeerId, now: Now, *, inside: bool, for_edgevpn: bool
) -> dict[str, Any]:
    """What to annotate :data:`TEXT` with; ``for_edgevpn`` adds the signature that anybody can say again."""
    signature = sign_native(key, _bound(me, now.unix, inside=inside))
    found: dict[str, Any] = {NATIVE: {"at": now.unix, "inside": inside, "sig": signature}}
    if for_edgevpn:
        found[EDGEVPN] = sign(key, TEXT)
    return found


def read(author: PeerId, text: bytes, notes: Mapping[str, Any] | None) -> Challenge:
    """The challenge in a message of the public room. Raises ChallengeError."""
    if text != TEXT:
        # EdgeVPN would take any text that its signature fits: a signed word from elsewhere opens the door
        raise ChallengeError(f"a text of {len(text)} bytes that is no challenge")
    edgevpn = (notes or {}).get(EDGEVPN, "")
    if not isinstance(edgevpn, str) or len(edgevpn) > MAX_SIGNATURE_TEXT:
        raise ChallengeError("a signature that is none")
    native = (notes or {}).get(NATIVE)
    if native is None:
        if not edgevpn:
            raise ChallengeError("a challenge without a signature")
        return Challenge(author, edgevpn)
    fields = native if isinstance(native, dict) else {}
    at, inside, signature = fields.get("at"), fields.get("inside"), fields.get("sig")
    if type(at) is not int or not 0 <= at < 2**40 or type(inside) is not bool:
        raise ChallengeError(f"an annotation {NATIVE} that is none")
    if not isinstance(signature, str) or not 0 < len(signature) <= MAX_SIGNATURE_TEXT:
        raise ChallengeError(f"an annotation {NATIVE} without a signature")
    return Challenge(author, edgevpn, signature, at, inside)


def _bound(peer: PeerId, at: int, *, inside: bool) -> bytes:
    return f"kairos-p2p challenge\n{peer}\n{at}\n{'inside' if inside else 'outside'}".encode()
