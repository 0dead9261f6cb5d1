"""How a local write becomes an entry (spec/edgevpn.md 5.7, 5.10, 15.3).

Signs in ``observe`` and ``enforce``, in open buckets too. In ``enforce`` a write that every other node would refuse is
refused here already: EdgeVPN stores it and silently diverges from everybody else. Committing and telling is the engine's.
"""

from __future__ import annotations

from provider_kairos.clock import Now
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.merge import Graveyard
from provider_kairos.ledger.model import Rejection
from provider_kairos.ledger.policy import Outcome, OwnershipMode, Surroundings, is_absurd_version, judge
from provider_kairos.ledger.records import Records
from provider_kairos.ledger.signing import Signer

__all__ = ["Writer"]


class Writer:
    """Writes into ``records`` in the name of ``signer``; unsigned without one and in mode ``off``."""

    def __init__(self, records: Records, graveyard: Graveyard, signer: Signer | None, mode: OwnershipMode) -> None:
        self._records = records
        self._graveyard = graveyard
        self._signer = signer if mode is not OwnershipMode.OFF else None
        self._mode = mode

    def write(self, bucket: str, key: str, text: str, now: Now, around: Surroundings) -> bool | Rejection:
        """Store a text. True when something changed; a Rejection when others would refuse it."""
        stored = self._records.entry(bucket, key)
        if self._signer is None:
            if stored == Entry(text):
                return False
            self._records.put(bucket, key, Entry(text))
            return True
        ours = stored is not None and stored.owner == self._signer.peer_id and bool(stored.sig)
        if ours and stored is not None and not stored.deleted and stored.value == text:
            return False  # neither version nor time are bumped
        return self._sign(self._signer, bucket, key, self._draft(bucket, key, stored, text, now), around)

    def erase(self, bucket: str, key: str, now: Now, around: Surroundings) -> bool | Rejection:
        """Delete a live record: a tombstone, or without signing its removal."""
        stored = self._records.entry(bucket, key)
        if stored is None or stored.deleted:
            return False
        if self._signer is None:
            self._records.remove(bucket, key)
            return True
        return self._sign(self._signer, bucket, key, self._draft(bucket, key, stored, None, now), around)

    def _draft(self, bucket: str, key: str, stored: Entry | None, text: str | None, now: Now) -> Entry:
        """The entry before it is signed; without a text a tombstone."""
        version = self._next_version(bucket, key, stored, now)
        return Entry(text or "", "", version, now.unix, deleted=text is None)

    def _next_version(self, bucket: str, key: str, stored: Entry | None, now: Now) -> int:
        """One more than what is known, or the time in nanoseconds; what cannot be right does not count."""
        known = [self._graveyard.version(bucket, key)]
        if stored is not None:
            known.append(stored.version)
        honest = [version for version in known if not is_absurd_version(version, now.unix_ns)]
        return max(now.unix_ns, *(version + 1 for version in honest), 1)

    def _sign(self, signer: Signer, bucket: str, key: str, draft: Entry, around: Surroundings) -> bool | Rejection:
        entry = signer.sign(bucket, key, draft.value, draft.version, draft.updated_at, deleted=draft.deleted)
        if self._mode is OwnershipMode.ENFORCE:
            judgement = judge(bucket, key, entry, self._records.entry(bucket, key), around)
            if judgement.outcome is not Outcome.ACCEPT:
                return Rejection(bucket, key, entry.owner, judgement.reason)
        self._records.put(bucket, key, entry)
        return True
