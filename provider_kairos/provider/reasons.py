"""Typed reasons that come from this machine, beside those of the roles (spec/provider.md 4, spec/k3s.md 0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from provider_kairos.errors import Waiting

__all__ = ["DaemonSilent", "OverlayLost", "Refused", "ServiceDown"]


@dataclass(frozen=True, slots=True)
class DaemonSilent(Waiting):
    """The daemon's API does not answer."""

    code: ClassVar[str] = "daemon-silent"
    detail: str
    ended: str = ""
    """What the daemon said when it ended, if it did."""

    def text(self) -> str:
        """One sentence for people."""
        if self.ended:
            return f"the mesh daemon ends again and again: {self.ended}"
        return f"the mesh daemon does not answer yet: {self.detail}"


@dataclass(frozen=True, slots=True)
class Refused(Waiting):
    """The machine refused something; it is tried again."""

    code: ClassVar[str] = "refused"
    what: str
    detail: str

    def text(self) -> str:
        """One sentence for people."""
        return f"{self.what}: {self.detail}"


@dataclass(frozen=True, slots=True)
class ServiceDown(Waiting):
    """Kubernetes was asked to start and is not up; ``was_up`` when it has been in this life of the provider."""

    code: ClassVar[str] = "service-down"
    service: str
    was_up: bool

    def text(self) -> str:
        """One sentence for people."""
        state = "has stopped" if self.was_up else "is not up yet"
        return f"{self.service} {state}; its own log says why (journalctl -u {self.service})"


@dataclass(frozen=True, slots=True)
class OverlayLost(Waiting):
    """The interface under Kubernetes' overlay was made anew."""

    code: ClassVar[str] = "overlay-lost"
    service: str
    interface: str

    def text(self) -> str:
        """One sentence for people."""
        return f"{self.interface} was made anew, so {self.service}, whose overlay went with the old one, is restarted"
