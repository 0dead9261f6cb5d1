"""What goes into and comes out of the lease engine: the view, the effects, the reasons for waiting.

The rules are :mod:`provider_kairos.vpn.lease`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId
from provider_kairos.vpn.records import DHCP_BUCKET, LEASE_BUCKET

__all__ = [
    "AddressConflict",
    "Assigned",
    "ConfirmingAddress",
    "Effect",
    "LeaseView",
    "ListeningForPeers",
    "PoolExhausted",
    "PublishNote",
    "RefreshMachine",
    "Released",
    "TakeLead",
    "WaitingForTurn",
    "WithdrawMachine",
]


@dataclass(frozen=True, slots=True)
class LeaseView:
    """The ledger's buckets as they are (key → JSON text), who is live by heartbeat, who is connected now."""

    machines: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    dhcp: Mapping[str, str] = field(default_factory=dict)
    live: frozenset[PeerId] = frozenset()
    connected: frozenset[PeerId] = frozenset()


# ---------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class PublishNote:
    """Announce ``text`` as ``bucket``/``key`` and keep it so."""

    text: str
    key: str
    bucket: str = LEASE_BUCKET


@dataclass(frozen=True, slots=True)
class TakeLead:
    """Persist ``text`` as ``dhcp``/``leader`` (EdgeVPN's "Persist")."""

    text: str
    bucket: str = DHCP_BUCKET
    key: str = "leader"


@dataclass(frozen=True, slots=True)
class Assigned:
    """Use ``address`` with ``prefix`` bits: save it, configure the interface, announce ``machines``/``address``."""

    address: str
    prefix: int


@dataclass(frozen=True, slots=True)
class Released:
    """Stop using ``address``: take it from the interface, forget the saved lease. ``reason`` is for the log."""

    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class WithdrawMachine:
    """No longer announce ``machines``/``address`` and delete the record: it names us and we do not use it."""

    address: str


@dataclass(frozen=True, slots=True)
class RefreshMachine:
    """Delete and announce ``machines``/``address`` once more, so that it gets a newer version than a loser's tombstone."""

    address: str


Effect = PublishNote | TakeLead | Assigned | Released | WithdrawMachine | RefreshMachine

# ---------------------------------------------------------------------- waiting


@dataclass(frozen=True, slots=True)
class ListeningForPeers(Waiting):
    """Nobody is heard yet."""

    code: ClassVar[str] = "lease-listening"
    seconds: float

    def text(self) -> str:
        """One sentence for people."""
        return f"listening for other nodes for {self.seconds:.1f} s before taking an address"


@dataclass(frozen=True, slots=True)
class ConfirmingAddress(Waiting):
    """An address is claimed."""

    code: ClassVar[str] = "lease-confirming"
    address: str

    def text(self) -> str:
        """One sentence for people."""
        return f"address {self.address} is claimed; waiting whether another node objects"


@dataclass(frozen=True, slots=True)
class WaitingForTurn(Waiting):
    """An EdgeVPN node takes its address first."""

    code: ClassVar[str] = "lease-turn"
    peers: tuple[str, ...]

    def text(self) -> str:
        """One sentence for people."""
        return f"waiting for the turn to take an address: {len(self.peers)} EdgeVPN node(s) before us (about 10 s each)"


@dataclass(frozen=True, slots=True)
class PoolExhausted(Waiting):
    """Every address is taken."""

    code: ClassVar[str] = "lease-exhausted"
    network: str
    size: int

    def text(self) -> str:
        """One sentence for people."""
        return f"all {self.size} addresses of {self.network} are taken: choose a larger subnet (ADDRESS)"


@dataclass(frozen=True, slots=True)
class AddressConflict(Waiting):
    """Another live node uses our address and neither of us may move."""

    code: ClassVar[str] = "lease-conflict"
    address: str
    peer: str

    def text(self) -> str:
        """One sentence for people."""
        return f"address {self.address} is also used by peer {self.peer}, which does not give way: give one of them another address"
