"""Commands that are nodes of their own (``service``, ``file``, ``egress``), of either program, in namespaces.

Both programs take the same words: ours are EdgeVPN's names for them. Used by tests of services and by ``bench``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.interop.network import GO_FLAGS, OLD, PROGRAMS, until

PROGRAM = str(Path(sys.executable).parent / "kairos-p2p")


@dataclass
class Command:
    """One running command. ``go`` is a version of EdgeVPN, empty for ours; ``log`` is what it said on both channels."""

    space: Any
    home: Path
    token: str
    words: tuple[str, ...]
    go: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[Any] | None = None

    def start(self) -> Command:
        self.home.mkdir(parents=True, exist_ok=True)
        ownership = "off" if self.go == OLD else self.environment.get("EDGEVPNOWNERSHIP", "enforce")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            "EDGEVPNTOKEN": self.token,
            "EDGEVPNOWNERSHIP": ownership,
            "EDGEVPNDHT": "false",
            **self.environment,
        }
        with self.log_path.open("ab") as out:
            self.process = self.space.popen(
                *self._argv(), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment
            )
        return self

    def _argv(self) -> list[str]:
        if not self.go:
            return [PROGRAM, *self.words]
        # v0.30.2 ends at once with its own default addresses: its QUIC does not run on today's Go
        tcp = ("--listen-maddrs", "/ip4/0.0.0.0/tcp/0") if self.go == OLD else ()
        first, rest = (self.words[:1], self.words[1:]) if self.words and self.words[0][0] != "-" else ((), self.words)
        return [os.environ[PROGRAMS[self.go]], *first, *GO_FLAGS, *tcp, *rest]

    @property
    def log_path(self) -> Path:
        return self.home / "log"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def says(self, words: str) -> None:
        """Wait until the log has it."""
        until(lambda: words in self.log, f"{self.words} says {words!r}: {self.log[-800:]}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return int(self.process.wait(60))

    def wait(self, patience: float = 60) -> int:
        """Wait for the end; returns the exit code."""
        assert self.process is not None
        return int(self.process.wait(patience))


def service(
    space: Any, home: Path, token: str, name: str, address: str, *, go: str = "", connect: bool = False
) -> Command:
    """``service-add`` or ``service-connect`` of either program, started."""
    words = ("service-connect" if connect else "service-add", "--name", name, "--address", address)
    return Command(space, home, token, words, go).start()
