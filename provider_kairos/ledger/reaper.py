"""What no longer belongs in the ledger (spec/edgevpn.md 5.12, 8.7, 15.2 points 9 and 11, 15.3).

Every node prunes tombstones past their time by itself; only the leader takes away what expired, as in EdgeVPN. In mode
``off`` EdgeVPN's leader empties the whole heartbeat bucket, and for a moment nobody is alive; here the dead go alone.
"""

from __future__ import annotations

from collections.abc import Callable

from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import RecordKey
from provider_kairos.ledger.policy import OWNERSHIP, OwnershipMode, Surroundings, is_expired
from provider_kairos.ledger.records import Records

__all__ = ["HEARTBEATS", "expired", "old_tombstones"]

HEARTBEATS = "healthcheck"


def old_tombstones(records: Records, horizon: float) -> list[tuple[str, str, Entry]]:
    """Tombstones written before ``horizon`` (Unix seconds), in every bucket."""
    return [(b, k, entry) for b, k, entry in records if entry.deleted and entry.updated_at < horizon]


def expired(
    records: Records, mode: OwnershipMode, around: Surroundings, is_present: Callable[[str], bool]
) -> list[RecordKey]:
    """Records that the leader should delete. ``is_present``: not yet offline (15 minutes), which is what ``off`` asks."""
    if mode is OwnershipMode.OFF:
        return [(HEARTBEATS, peer) for peer in records.storage.get(HEARTBEATS, {}) if not is_present(peer)]
    owned = ((b, k, entry) for b, k, entry in records if b in OWNERSHIP and not entry.deleted)
    return [(b, k) for b, k, entry in owned if is_expired(b, k, entry, around)]
