"""What the name server waits for, as typed reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from provider_kairos.errors import Waiting

__all__ = ["ForwardLoop", "NotListening"]


@dataclass(frozen=True, slots=True)
class NotListening(Waiting):
    """The machine does not let the name server listen; it is tried again."""

    listen: str
    transport: str
    problem: str

    code: ClassVar[str] = "dns-not-listening"

    def text(self) -> str:
        """One sentence for people."""
        return f"the name server cannot listen at {self.listen} over {self.transport}: {self.problem}"


@dataclass(frozen=True, slots=True)
class ForwardLoop(Waiting):
    """What is sent to a forward server comes back to this node."""

    server: str

    code: ClassVar[str] = "dns-forward-loop"

    def text(self) -> str:
        """One sentence for people."""
        return f"names outside the mesh are not asked at {self.server}: what is asked there comes back to this node"
