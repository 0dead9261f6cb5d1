"""What the daemon itself waits for; the ledger, the lease and the mesh bring reasons of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from provider_kairos.errors import Waiting

__all__ = ["AddressTaken", "InterfaceNotReady", "LeaseNotSaved", "NotConfigured", "StateNotSaved"]


@dataclass(frozen=True, slots=True)
class InterfaceNotReady(Waiting):
    """The VPN interface could not be set up; it is tried again."""

    interface: str
    problem: str

    code: ClassVar[str] = "interface-not-ready"

    def text(self) -> str:
        """One sentence for people."""
        return f"interface {self.interface} is not ready: {self.problem}"


@dataclass(frozen=True, slots=True)
class AddressTaken(Waiting):
    """Another interface of this machine is in the VPN's network: its packets and ours go the wrong way."""

    interface: str
    address: str
    network: str

    code: ClassVar[str] = "address-taken"

    def text(self) -> str:
        """One sentence for people."""
        return (
            f"interface {self.interface} has {self.address}, which lies in the VPN's network {self.network}: "
            f"take it off (ip addr del {self.address} dev {self.interface}) or give the VPN another network (ADDRESS)"
        )


@dataclass(frozen=True, slots=True)
class LeaseNotSaved(Waiting):
    """The address is in use, but would be another one after a restart."""

    problem: str

    code: ClassVar[str] = "lease-not-saved"

    def text(self) -> str:
        """One sentence for people."""
        return f"the virtual IP is in use, but not saved: {self.problem}"


@dataclass(frozen=True, slots=True)
class StateNotSaved(Waiting):
    """The ledger runs, but the disk refuses it."""

    problem: str

    code: ClassVar[str] = "state-not-saved"

    def text(self) -> str:
        """One sentence for people."""
        return f"the ledger is not being saved: {self.problem}"


@dataclass(frozen=True, slots=True)
class NotConfigured(Waiting):
    """A variable that this version reads and does not act on."""

    variable: str
    why: str

    code: ClassVar[str] = "setting-without-effect"

    def text(self) -> str:
        """One sentence for people."""
        return f"{self.variable} has no effect: {self.why}"
