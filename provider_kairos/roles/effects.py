"""What the role engine asks for: values, carried out by others (spec/provider.md 4.3, 4.8, 4.9)."""

from __future__ import annotations

from dataclasses import dataclass, field

from provider_kairos.errors import Waiting
from provider_kairos.roles.model import Role

__all__ = ["Configure", "DeleteKey", "Effect", "PutKey", "Step"]


@dataclass(frozen=True, slots=True)
class PutKey:
    """Write ``value`` (a plain value, not yet encoded) under ``key`` of the cluster's bucket."""

    key: str
    value: object = field(repr=False)


@dataclass(frozen=True, slots=True)
class DeleteKey:
    """Remove ``key`` from the cluster's bucket."""

    key: str


@dataclass(frozen=True, slots=True)
class Configure:
    """Take this role on this machine, for good. ``server_ip`` and ``join_token`` are empty for a first master."""

    role: Role
    generation: str
    server_ip: str = ""
    join_token: str = field(default="", repr=False)


Effect = PutKey | DeleteKey | Configure


@dataclass(frozen=True, slots=True)
class Step:
    """Outcome of one step: effects in order, reasons, when to step again at the latest (monotonic seconds)."""

    effects: tuple[Effect, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    wake: float | None = None
    role: Role | None = None
    leader: str = ""
    first: str = ""
