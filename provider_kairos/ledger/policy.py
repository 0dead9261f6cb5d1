"""Who may write what: the ownership table and the judgement of one incoming entry (spec/edgevpn.md 5.9, 15.3).

The tables below are the specification's: :data:`OWNERSHIP` says who owns a record of a bucket and when it expires,
:data:`OWNED_STEPS` decides in the order of the lettered steps, :data:`OPEN_STEPS` for buckets that nobody owns. The
first step that applies decides. Applying the verdict is :mod:`provider_kairos.ledger.merge`'s job.

Three things go beyond EdgeVPN, none of them visible to it: versions far in the future are refused, equal versions in an
open bucket are decided (both sides the same way), and verdicts that every healthy network produces (an older copy, a
lost tie) are ``STALE`` and stay silent instead of being reported as violations.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from provider_kairos.errors import ConfigError
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.signing import verify

__all__ = [
    "OPEN_STEPS",
    "OWNED_STEPS",
    "OWNERSHIP",
    "Case",
    "Expiry",
    "Judgement",
    "Outcome",
    "OwnershipMode",
    "Surroundings",
    "derived_owner",
    "is_absurd_version",
    "is_expired",
    "judge",
    "parse_mode",
]

NANO = 1_000_000_000
CLOCK_IS_SET = 1_735_689_600
"""2025-01-01: a machine whose clock shows less has none, and must not judge others' versions by it."""

FUTURE_BOUND = 366 * 86_400 * NANO
"""How far ahead of our clock a version may be. Writers count up from the version they find, so a wrong clock is healed
by the next write; only a version close to the end of its 64 bits freezes a record for good (spec 15.2, 12)."""


class OwnershipMode(Enum):
    """How ownership is treated: not at all, reported, or enforced."""

    OFF = "off"
    OBSERVE = "observe"
    ENFORCE = "enforce"


_MODE_NAMES = {
    "": OwnershipMode.OFF,
    "off": OwnershipMode.OFF,
    "observe": OwnershipMode.OBSERVE,
    "log": OwnershipMode.OBSERVE,
    "log-only": OwnershipMode.OBSERVE,
    "enforce": OwnershipMode.ENFORCE,
    "on": OwnershipMode.ENFORCE,
}


def parse_mode(text: str) -> OwnershipMode:
    """EdgeVPN's mode names, in any case. Raises ConfigError: a typo must not switch protection off."""
    mode = _MODE_NAMES.get(text.strip().lower())
    if mode is None:
        known = ", ".join(name for name in _MODE_NAMES if name)
        raise ConfigError(f"ownership mode {text!r} is unknown", hint=f"one of: {known}")
    return mode


# --- the ownership table ---------------------------------------------------------------------------------------------


class Expiry(Enum):
    """When a record may be taken over."""

    OWNER_NOT_LIVE = "the owner has no fresh heartbeat"
    ABSOLUTE = "its own time plus the ownership window has passed"
    NEVER = "never: the record is its owner's for good"


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns a record of a bucket: ``owner(key, value)`` is empty when neither names anybody."""

    owner: Callable[[str, str], str]
    expiry: Expiry


def _peer_id_in_value(key: str, value: str) -> str:  # noqa: ARG001 - one shape for all rows
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError):
        return ""
    peer_id = fields.get("PeerID") if isinstance(fields, dict) else None
    return peer_id if isinstance(peer_id, str) else ""


def _key(key: str, value: str) -> str:  # noqa: ARG001 - one shape for all rows
    return key


def _first_signer(key: str, value: str) -> str:  # noqa: ARG001 - one shape for all rows
    return ""


OWNERSHIP: dict[str, Ownership] = {
    # bucket                  owner derived from  expiry
    "machines": Ownership(_peer_id_in_value, Expiry.OWNER_NOT_LIVE),
    "services": Ownership(_peer_id_in_value, Expiry.OWNER_NOT_LIVE),
    "files": Ownership(_peer_id_in_value, Expiry.OWNER_NOT_LIVE),
    "users": Ownership(_key, Expiry.OWNER_NOT_LIVE),
    "egress": Ownership(_key, Expiry.OWNER_NOT_LIVE),
    "dns": Ownership(_first_signer, Expiry.OWNER_NOT_LIVE),
    "healthcheck": Ownership(_key, Expiry.ABSOLUTE),
    # Ours, not EdgeVPN's (open for its nodes): who leases which virtual IP. Never taken over, because the address of a
    # control-plane node is for life, also while it is off.
    "kairos-p2p.lease": Ownership(_key, Expiry.NEVER),
    # everything else is open: dhcp, trustzone, trustzoneAuth, a cluster's network id, ...
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a judgement depends on besides the two entries. ``unix_ns`` now; ``ttl`` the ownership window in seconds."""

    unix_ns: int
    ttl: float
    is_live: Callable[[str], bool]


def derived_owner(bucket: str, key: str, entry: Entry) -> str:
    """The owner of a stored entry: its author, or for a legacy entry whom the policy can name."""
    if entry.owner or bucket not in OWNERSHIP:
        return entry.owner
    return OWNERSHIP[bucket].owner(key, entry.value)


def is_expired(bucket: str, key: str, entry: Entry, around: Surroundings) -> bool:
    """Whether somebody else may take the stored record over. Records of open buckets never expire."""
    ownership = OWNERSHIP.get(bucket)
    if ownership is None or ownership.expiry is Expiry.NEVER:
        return False
    if ownership.expiry is Expiry.ABSOLUTE:
        owner = derived_owner(bucket, key, entry)
        return entry.updated_at + around.ttl < around.unix_ns / NANO and not around.is_live(owner)
    return not around.is_live(derived_owner(bucket, key, entry))


def is_absurd_version(version: int, unix_ns: int) -> bool:
    """Whether no honest writer can have reached this version (spec 15.3)."""
    if version >= 2**63:
        return True
    return unix_ns >= CLOCK_IS_SET * NANO and version > unix_ns + FUTURE_BOUND


# --- the judgement ---------------------------------------------------------------------------------------------------


class Outcome(Enum):
    """What to do with an incoming entry."""

    SAME = "identical to the stored one"
    ACCEPT = "store it"
    STALE = "an older copy: drop it silently"
    REJECT = "a violation: report it, and in enforce drop it"


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome, the lettered step that decided and its reason in EdgeVPN's words."""

    outcome: Outcome
    step: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One incoming entry before the judge. ``stored`` is None when the key is absent."""

    bucket: str
    key: str
    incoming: Entry
    stored: Entry | None
    around: Surroundings

    @property
    def absent(self) -> bool:
        """Nothing is stored under the key."""
        return self.stored is None

    @property
    def ex(self) -> Entry:
        """The stored entry; only after a step that excludes an absent key."""
        assert self.stored is not None
        return self.stored

    @property
    def forged(self) -> bool:
        """The signature is missing or not the named owner's."""
        return not verify(self.bucket, self.key, self.incoming)

    @property
    def absurd(self) -> bool:
        """The version is one that no honest writer can have reached."""
        return is_absurd_version(self.incoming.version, self.around.unix_ns)

    @property
    def names_another_owner(self) -> bool:
        """Key or value name somebody else than the signer."""
        named = OWNERSHIP[self.bucket].owner(self.key, self.incoming.value)
        return bool(named) and named != self.incoming.owner

    @property
    def by_stranger(self) -> bool:
        """The author is not the owner of the stored entry, and that one has not expired."""
        return self.incoming.owner != derived_owner(self.bucket, self.key, self.ex) and not is_expired(
            self.bucket, self.key, self.ex, self.around
        )

    @property
    def not_newer(self) -> bool:
        """The stored entry has the same or a later version."""
        return self.incoming.version <= self.ex.version

    @property
    def older(self) -> bool:
        """The stored entry has a later version."""
        return self.incoming.version < self.ex.version

    @property
    def loses_tie(self) -> bool:
        """Same version: the greater (owner, signature) stays, on every node the same."""
        return self.incoming.version == self.ex.version and (self.incoming.owner, self.incoming.sig) <= (
            self.ex.owner,
            self.ex.sig,
        )

    @property
    def stored_is_absurd(self) -> bool:
        """What is stored cannot be right (it came from disk or from the days of ``off``)."""
        return is_absurd_version(self.ex.version, self.around.unix_ns)


@dataclass(frozen=True, slots=True)
class Step:
    """One row: when it applies, the outcome; rows are tried in order."""

    name: str
    applies: Callable[[Case], bool]
    outcome: Outcome
    reason: str = ""


def _deleted(case: Case) -> bool:
    return case.incoming.deleted


_ACCEPT, _STALE, _REJECT = Outcome.ACCEPT, Outcome.STALE, Outcome.REJECT

OWNED_STEPS: tuple[Step, ...] = (
    Step("a", lambda c: c.forged, _REJECT, "invalid signature"),
    Step("a'", lambda c: c.absurd, _REJECT, "version far in the future"),
    Step("b1", lambda c: _deleted(c) and c.absent, _STALE, "tombstone for unknown key"),
    Step("b2", lambda c: _deleted(c) and c.by_stranger, _REJECT, "tombstone by non-owner of a live entry"),
    Step("b3", lambda c: _deleted(c) and c.not_newer, _STALE, "stale tombstone"),
    Step("b4", _deleted, _ACCEPT),
    Step("c", lambda c: c.names_another_owner, _REJECT, "value owner does not match signer"),
    Step("d", lambda c: c.absent, _ACCEPT),
    Step("d'", lambda c: c.stored_is_absurd and not c.by_stranger, _ACCEPT),
    Step("e1", lambda c: c.ex.deleted and c.not_newer, _STALE, "stale re-claim over tombstone"),
    Step("e2", lambda c: c.ex.deleted, _ACCEPT),
    Step("f", lambda c: c.by_stranger, _REJECT, "overwrite of a live entry owned by another peer"),
    Step("g", lambda c: c.older, _STALE, "rollback to an older version"),
    Step("h", lambda c: c.loses_tie, _STALE, "lost deterministic tie-break"),
    Step("i", lambda c: True, _ACCEPT),  # noqa: ARG005 - the row that always applies
)

OPEN_STEPS: tuple[Step, ...] = (
    Step("1a", lambda c: c.absurd, _REJECT, "version far in the future"),
    Step("1b", lambda c: c.absent, _ACCEPT),
    Step("1c", lambda c: c.stored_is_absurd, _ACCEPT),
    Step("1d", lambda c: c.older, _STALE, "older version"),
    Step("1e", lambda c: c.incoming.version == 0, _STALE, "an unsigned entry creates, and never changes"),
    Step("1f", lambda c: c.loses_tie, _STALE, "lost deterministic tie-break"),
    Step("1g", lambda c: True, _ACCEPT),  # noqa: ARG005 - the row that always applies
)


def judge(bucket: str, key: str, incoming: Entry, stored: Entry | None, around: Surroundings) -> Judgement:
    """Judge one incoming entry against the stored one; the first step that applies decides."""
    if incoming == stored:
        return Judgement(Outcome.SAME, "0")
    case = Case(bucket, key, incoming, stored, around)
    for step in OWNED_STEPS if bucket in OWNERSHIP else OPEN_STEPS:
        if step.applies(case):
            return Judgement(step.outcome, step.name, step.reason)
    raise AssertionError("the last step always applies")
