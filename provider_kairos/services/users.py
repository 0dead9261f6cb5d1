"""The ``users`` bucket: who is about to dial somebody (spec/edgevpn.md 8.3).

Servers take streams of such peers only; EdgeVPN resets all others at once. A record needs a moment to get around, so
both ends of ours are patient: the server waits for the record of a peer that it does not know yet, the dialler tries
again (:mod:`provider_kairos.services.dialing`).
"""

from __future__ import annotations

import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.services.records import USERS_BUCKET, user_value
from provider_kairos.services.seams import LedgerAccess

__all__ = ["PATIENCE", "NotAUserError", "Users"]

PATIENCE = 10.0
"""Seconds that a stream of a peer waits for the peer's record."""


class NotAUserError(PeerError):
    """A peer dials us that the ledger does not name in ``users``."""


class Users:
    """Our own record and those of others."""

    def __init__(self, ledger: LedgerAccess, peer_id: PeerId, clock: Clock) -> None:
        self._ledger = ledger
        self._peer_id = peer_id
        self._clock = clock

    def announce(self) -> None:
        """Say that we are about to dial."""
        self._ledger.announce(USERS_BUCKET, self._peer_id, user_value(self._peer_id, self._clock.now().unix_float))

    def knows(self, peer: PeerId) -> bool:
        """Whether a peer has said so."""
        return peer in (self._ledger.ledger.bucket(USERS_BUCKET) or {})

    async def admit(self, peer: PeerId) -> None:
        """Return when the peer is known. Raises NotAUserError when it is not, for :data:`PATIENCE` seconds."""
        with trio.move_on_after(PATIENCE):
            seen = self._ledger.revision
            while not self.knows(peer):
                seen = await self._ledger.wait_revision(seen, frozenset({USERS_BUCKET}))
            return
        raise NotAUserError("it is not in the ledger's users")
