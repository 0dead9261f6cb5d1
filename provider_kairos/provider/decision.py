"""What ``agent.bootstrap`` does, as a table, and the answer texts (spec/provider.md 3.2, 1.8.4, 13 #28)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from provider_kairos.config.schema import Settings

__all__ = [
    "FAILED_SETUP",
    "FAILED_SETUP_VPN",
    "NOTHING_TO_DO",
    "NO_TOKEN",
    "TABLE",
    "WRONG_INPUT",
    "Outcome",
    "Row",
    "decide",
    "outcome_for",
]

NOTHING_TO_DO = "no P2P or kubernetes configured"
NO_TOKEN = "No network token provided, or kubernetes distribution (k3s, k0s) block configured. Exiting"  # noqa: S105  # a message
WRONG_INPUT = "Failed reading JSON input: "
FAILED_SETUP = "Failed setup: "
FAILED_SETUP_VPN = "Failed setup VPN: "


class Outcome(Enum):
    """Where the tree ends."""

    NOTHING = "nothing"
    """Neither a p2p block nor a distribution."""
    ONE_TIME = "one-time"
    """Bootstrap once, no VPN."""
    ONE_TIME_VPN = "one-time, VPN"
    """VPN first (when it is to be created), then bootstrap once."""
    ONE_TIME_NO_TOKEN = "one-time, VPN skipped"  # noqa: S105  # a word of the table
    """Bootstrap once; a VPN that is wanted cannot run without a token, so it is skipped with a warning."""
    NO_TOKEN = "no token"  # noqa: S105  # a word of the table
    """A p2p block that neither coordinates nor bootstraps anything: a wrong configuration."""
    LOOP = "loop"
    """VPN or API, then the loop."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row; None means that it does not matter. ``auto_off`` is ``auto.enable: false``."""

    p2p: bool
    token: bool | None
    auto_off: bool | None
    distribution: bool | None
    outcome: Outcome


TABLE: tuple[Row, ...] = (
    Row(p2p=False, token=None, auto_off=None, distribution=False, outcome=Outcome.NOTHING),
    Row(p2p=False, token=None, auto_off=None, distribution=True, outcome=Outcome.ONE_TIME),
    Row(p2p=True, token=False, auto_off=False, distribution=False, outcome=Outcome.NO_TOKEN),
    Row(p2p=True, token=False, auto_off=False, distribution=True, outcome=Outcome.ONE_TIME_NO_TOKEN),
    Row(p2p=True, token=True, auto_off=False, distribution=None, outcome=Outcome.LOOP),
    Row(p2p=True, token=True, auto_off=True, distribution=None, outcome=Outcome.ONE_TIME_VPN),
    # Without a distribution this bootstraps `p2p.role`, or fails when choosing one.
    Row(p2p=True, token=False, auto_off=True, distribution=None, outcome=Outcome.ONE_TIME_NO_TOKEN),
)


def decide(*, p2p: bool, token: bool, auto_off: bool, distribution: bool) -> Outcome:
    """The outcome of the one row that fits."""
    facts = (token, auto_off, distribution)
    for row in TABLE:
        wanted = (row.token, row.auto_off, row.distribution)
        if row.p2p is p2p and all(want in {None, have} for want, have in zip(wanted, facts, strict=True)):
            return row.outcome
    raise AssertionError(f"no row for {facts}")  # the table is total; a test walks through all combinations


def outcome_for(settings: Settings) -> Outcome:
    """The outcome for a configuration."""
    return decide(
        p2p=settings.p2p_configured(),
        token=bool(settings.token_text()),
        auto_off=settings.p2p is not None and settings.p2p.auto.enable is False,
        distribution=settings.kubernetes_configured(),
    )
