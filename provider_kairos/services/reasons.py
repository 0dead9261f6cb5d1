"""What a service, a file or the egress proxy waits for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from provider_kairos.errors import Waiting

__all__ = ["FileNotOffered", "NameTaken", "NoEgress", "PeerNotReached", "ServiceNotExposed"]


@dataclass(frozen=True, slots=True)
class NameTaken(Waiting):
    """Somebody else's record stands under the name that we want to give."""

    kind: str
    name: str
    peer: str

    code: ClassVar[str] = "name-taken"

    def text(self) -> str:
        """One sentence for people."""
        return f"the {self.kind} {self.name!r} belongs to {self.peer} in the ledger, as long as that node is alive"


@dataclass(frozen=True, slots=True)
class ServiceNotExposed(Waiting):
    """No node says in the ledger that it exposes the service."""

    name: str

    code: ClassVar[str] = "service-not-exposed"

    def text(self) -> str:
        """One sentence for people."""
        return f"no node exposes a service {self.name!r} yet"


@dataclass(frozen=True, slots=True)
class FileNotOffered(Waiting):
    """No node says in the ledger that it offers the file."""

    name: str

    code: ClassVar[str] = "file-not-offered"

    def text(self) -> str:
        """One sentence for people."""
        return f"no node offers a file {self.name!r} yet"


@dataclass(frozen=True, slots=True)
class NoEgress(Waiting):
    """No node with a heartbeat lets others out."""

    code: ClassVar[str] = "no-egress"

    def text(self) -> str:
        """One sentence for people."""
        return "no node that is alive serves egress"


@dataclass(frozen=True, slots=True)
class PeerNotReached(Waiting):
    """The node that has what we want did not answer the last time."""

    what: str
    peer: str
    problem: str

    code: ClassVar[str] = "peer-not-reached"

    def text(self) -> str:
        """One sentence for people."""
        return f"{self.what}: node {self.peer}: {self.problem}"
