"""A real ``kairos-p2p daemon`` as a process: started with an environment, asked over its socket, killed."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

PROGRAM = str(Path(sys.executable).parent / "kairos-p2p")
PATIENCE = 60.0
"""Seconds after which a test gives up; nothing is measured."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class DaemonProcess:
    """One daemon with everything of its own below ``folder``. ``prefix`` is put before the command (nsenter, unshare)."""

    def __init__(self, folder: Path, token: str, prefix: Sequence[str] = (), **environ: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.state = folder / "state"
        self.socket = folder / "api.sock"
        self.log = folder / "log"
        self.prefix = list(prefix)
        self.environ = {
            "PATH": os.environ["PATH"],
            "EDGEVPNTOKEN": token,
            "KAIROS_P2P_STATE_DIR": str(self.state),
            "DHCPLEASEDIR": str(self.state / "lease"),
            "APILISTEN": f"unix://{self.socket}",
            "API": "true",
            "DHCP": "true",
            "EDGEVPNDHT": "false",  # no test looks into the public DHT
            **environ,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> DaemonProcess:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, PROGRAM, "daemon"],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait(PATIENCE)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    # -- what it says

    def ask(self, path: str, method: str = "GET", timeout: float = 20) -> Any:
        connection = _Connection(str(self.socket), timeout)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise AssertionError(f"{method} {path}: {answer.status} {body[:300]!r}")
        return json.loads(body)

    def put(self, bucket: str, key: str, value: object, timeout: float = 20) -> None:
        """Write one record; returns when it is acknowledged."""
        text = base64.urlsafe_b64encode(json.dumps(value).encode()).decode()
        self.ask(f"/api/ledger/{quote(bucket)}/{quote(key)}/{text}", "PUT", timeout)

    def bucket(self, name: str) -> dict[str, Any]:
        found = self.ask(f"/api/ledger/{quote(name)}")
        return found or {}

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = self.ask("/api/v1/status")
        return document

    def codes(self) -> dict[str, str]:
        """What it waits for: code to text."""
        return {reason["code"]: reason["text"] for reason in self.status()["waiting"]}

    def until(self, true: Callable[[], Any], what: str = "") -> Any:
        """What ``true()`` returns, once that is truthy; unanswered questions count as not yet."""
        ends = time.monotonic() + PATIENCE
        last: object = None
        while time.monotonic() < ends:
            try:
                if found := true():
                    return found
                last = found
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                last = error
            if not self.alive:
                break
            time.sleep(0.05)
        raise AssertionError(f"{what or 'it'} did not happen (last: {last!r}, alive: {self.alive})\n{self.tail()}")

    def answers(self) -> DaemonProcess:
        self.until(lambda: self.ask("/api/v1/status"), "the API's answer")
        return self

    def address(self) -> str:
        """The virtual IP, once the interface has it."""
        found: str = self.until(lambda: self.status()["vpn"]["address"], "an address")
        return found

    def tail(self, size: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def lines(self, word: str) -> list[str]:
        """Messages of the log that have the word."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                message = json.loads(line)["message"]
            except (ValueError, KeyError, TypeError):
                message = line
            if word in message:
                found.append(message)
        return found

    # -- what it costs

    @property
    def rss_mb(self) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    @property
    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())
