"""Labs for benchmarks: boxes up and down, commands in them, figures of their processes seen from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).parent / "kairos-p2p")
TICKS = os.sysconf("SC_CLK_TCK")


def run(*arguments: str, check: bool = True, timeout: float = 300) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def token(interval: int = 9000) -> str:
    return run(PROGRAM, "generate-token", str(interval)).strip()


@dataclass(frozen=True)
class Process:
    """A process of a box as the host sees it."""

    pid: int

    @property
    def rss_mb(self) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


class Lab:
    """A lab that is up."""

    def __init__(self, name: str) -> None:
        self.name = name

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(run(PROGRAM, "lab", "status", "--name", self.name, "--json"))
        return document

    def boxes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.status()["boxes"]
        return found

    def exec(self, box: str, *command: str, check: bool = True, timeout: float = 300) -> str:
        return run(PROGRAM, "lab", "exec", "--name", self.name, box, "--", *command, check=check, timeout=timeout)

    def lan_address(self, box: str) -> str:
        """The box's own address on the lab's switch."""
        code = (
            "import fcntl,socket,struct;s=socket.socket();"
            "print(socket.inet_ntoa(fcntl.ioctl(s,0x8915,struct.pack('256s',b'eth0'))[20:24]))"
        )
        return self.exec(box, sys.executable, "-c", code).strip()

    def popen(self, box: str, *command: str) -> subprocess.Popen[str]:
        words = [PROGRAM, "lab", "exec", "--name", self.name, box, "--", *command]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def pid_of_box(self, box: str) -> int:
        from provider_kairos.lab import client
        from provider_kairos.lab.place import Place

        return int(client.order(Place(self.name), "box", box=box)["pid"])

    def root(self, box: str) -> Path:
        return Path(f"/proc/{self.pid_of_box(box)}/root")

    def processes(self, box: str, *words: str) -> list[Process]:
        """Processes of a box whose command line has all the words."""
        space = Path(f"/proc/{self.pid_of_box(box)}/ns/pid").readlink()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if (path / "ns/pid").readlink() != space:
                    continue
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if all(word in line for word in words):
                found.append(Process(int(path.name)))
        return found

    def daemon(self, box: str) -> Process:
        (found,) = self.processes(box, "kairos-p2p", " daemon")
        return found

    def link_bytes(self, box: str, interface: str = "eth0") -> int:
        """Bytes received and sent on an interface of the box since it came up."""
        for line in Path(f"/proc/{self.pid_of_box(box)}/net/dev").read_text().splitlines():
            name, _, rest = line.strip().partition(":")
            if name == interface:
                fields = rest.split()
                return int(fields[0]) + int(fields[8])
        return 0


@contextmanager
def lab(name: str, boxes: int, config: str | None = None, *, wait: bool = True) -> Iterator[tuple[Lab, dict[str, Any]]]:
    """A lab for the time of the block; with ``wait`` also the document of ``lab up --json``."""
    words = [PROGRAM, "lab", "up", "--boxes", str(boxes), "--name", name, "--timeout", "120"]
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if config is not None:
            path = Path(folder) / "config.yaml"
            path.write_text(config)
            words += ["--config", str(path)]
        try:
            if wait:
                document = json.loads(run(*words, "--json"))
            else:
                run(*words, "--no-wait")
            yield Lab(name), document
        finally:
            run(PROGRAM, "lab", "down", "--name", name, check=False)
