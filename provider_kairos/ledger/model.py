"""The engine's vocabulary: settings in, effects and results out (spec/edgevpn.md 5, 8.7, 14.4).

Values only; :mod:`provider_kairos.ledger.engine` gives them meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId
from provider_kairos.ledger.block import MAX_BLOCK_BYTES
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.policy import OwnershipMode

__all__ = [
    "Broadcast",
    "Changed",
    "ClockSkew",
    "Effect",
    "Forgotten",
    "LedgerSettings",
    "MixedFormats",
    "Persist",
    "Received",
    "RecordKey",
    "Rejection",
    "Row",
    "Written",
]

RecordKey = tuple[str, str]
"""``(bucket, key)``."""


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """How the ledger behaves; all times in seconds.

    ``ownership_ttl`` is the liveness window, ``offline_after`` the age at which a peer leaves all lists, and three times
    that is how long tombstones are kept. ``sync_interval`` is the shortest gap of the periodic broadcast, which slows
    down to ``quiet_interval`` while nothing happens and everybody shows the same state.
    """

    mode: OwnershipMode = OwnershipMode.ENFORCE
    ownership_ttl: float = 480
    heartbeat_interval: float = 30
    sync_interval: float = 10
    announce_interval: float = 10
    offline_after: float = 900
    scrub_interval: float = 600
    quiet_interval: float = 60
    coalesce: float = 0.005
    burst_gap: float = 0.2
    max_block_bytes: int = MAX_BLOCK_BYTES
    max_records: int = 20_000
    max_ledger_bytes: int = MAX_BLOCK_BYTES // 2

    @property
    def retention(self) -> float:
        """How long a tombstone is kept."""
        return 3 * self.offline_after


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Publish these bytes (the whole block, gzip) in the ledger room."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Changed:
    """These records look different now; ``revision`` is the ledger's after the change."""

    keys: frozenset[RecordKey]
    revision: int


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it is kept on disk."""

    bucket: str
    key: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A pruned tombstone: copies up to this version must not come back."""

    bucket: str
    key: str
    version: int


@dataclass(frozen=True, slots=True)
class Persist:
    """Write these rows, remove those records, remember those pruned tombstones; in one transaction."""

    rows: tuple[Row, ...]
    removed: tuple[RecordKey, ...] = ()
    forgotten: tuple[Forgotten, ...] = ()


Effect = Broadcast | Changed | Persist


# --- results ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rejection:
    """An entry that broke the ownership rules. ``stored`` tells whether it was kept anyway (mode ``observe``)."""

    bucket: str
    key: str
    owner: str
    reason: str
    stored: bool = False

    def __str__(self) -> str:
        how = "observe, accepting" if self.stored else "rejected"
        return f"ownership violation ({how}): {self.bucket}/{self.key} from {self.owner or 'nobody'}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Received:
    """What a block did to the ledger. ``behind``: it lacked something that we have. ``signed``/``unsigned`` count entries."""

    changed: frozenset[RecordKey] = frozenset()
    rejected: tuple[Rejection, ...] = ()
    behind: bool = False
    signed: int = 0
    unsigned: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """What a local write did. ``refused``: records that belong to somebody else who is live (mode ``enforce``)."""

    changed: frozenset[RecordKey] = frozenset()
    refused: tuple[Rejection, ...] = ()


# --- reasons and notices ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MixedFormats(Waiting):
    """Signing and unsigned nodes share the network: one kind does not read the other."""

    mode: str
    signing: tuple[PeerId, ...]
    unsigned: tuple[PeerId, ...]

    code: ClassVar[str] = "mixed-ledger-formats"

    def text(self) -> str:
        """One sentence for people."""
        return (
            f"nodes of two ledger formats: {len(self.unsigned)} write unsigned records (EdgeVPN before v0.35, or "
            f"ownership off), {len(self.signing)} sign them, and signing nodes refuse what is unsigned: bring the old "
            f"ones up to date or put EDGEVPNOWNERSHIP=off everywhere (here it is {self.mode})"
        )


@dataclass(frozen=True, slots=True)
class ClockSkew(Waiting):
    """Clocks disagree. ``seconds`` is positive when the peer is ahead of us; an empty ``peer`` means it is our clock."""

    peer: str
    seconds: int

    code: ClassVar[str] = "clock-skew"

    def text(self) -> str:
        """One sentence for people."""
        direction = "ahead of" if self.seconds > 0 else "behind"
        if not self.peer:
            ours = "behind" if self.seconds > 0 else "ahead of"
            return f"the clock of this machine is {abs(self.seconds)} s {ours} everybody else's: set it (NTP)"
        return f"the clock of {self.peer} is {abs(self.seconds)} s {direction} ours"
