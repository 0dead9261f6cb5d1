"""Runs stand-ins on the loopback of one machine, for tests: own folders, own ports, lines of the log as events.

It makes no namespaces; machines inside some are started with a prefix that enters them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from provider_kairos.errors import TimeoutHostError

__all__ = ["Harness", "Standin", "free_port"]

PATIENCE = 60.0


def free_port() -> int:
    """A TCP port that nobody listens on, the next one free as well (6443 and 6444 go together)."""
    while True:
        with socket.create_server(("0.0.0.0", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                with socket.create_server(("0.0.0.0", port + 1)):
                    return port
            except OSError:
                continue


class Standin:
    """One machine: its folders survive its processes. Made by :meth:`Harness.machine`.

    ``prefix`` is put before every command (``nsenter ...``); such a machine has the real ports and gets no
    ``--node-ip``.
    """

    def __init__(self, root: Path, name: str, address: str, speed: float, prefix: Sequence[str] = ()) -> None:
        self.root = root
        self.name = name
        self.address = address
        self.prefix = list(prefix)
        self.port, self.balancer_port, self.kubelet_port = 6443, 6444, 10250
        if not prefix:
            self.port, self.balancer_port, self.kubelet_port = free_port(), free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: list[str] = []
        self._speed = speed
        self._news = threading.Condition()
        self._reader: threading.Thread | None = None
        root.mkdir(parents=True, exist_ok=True)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.root / "data"

    @property
    def url(self) -> str:
        """Where others reach this server."""
        return f"https://{self.address}:{self.port}"

    @property
    def token(self) -> str:
        """The server token as it was written."""
        return (self.data / "server" / "node-token").read_text().strip()

    @property
    def log(self) -> str:
        """Everything that this machine's processes logged."""
        with self._news:
            return "\n".join(self.lines)

    def environment(self) -> dict[str, str]:
        """The environment of this machine's processes."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("K3S_") and k != "KUBECONFIG"}
        return {
            **inherited,
            "K3S_STANDIN_SPEED": str(self._speed),
            "K3S_STANDIN_ETC": str(self.root / "etc"),
            "K3S_STANDIN_RUN": str(self.root / "run"),
        }

    def server(self, *arguments: str, environment: dict[str, str] | None = None) -> Standin:
        """Start ``k3s server``."""
        return self._start("server", f"--https-listen-port={self.port}", *arguments, environment=environment)

    def agent(self, *arguments: str, environment: dict[str, str] | None = None) -> Standin:
        """Start ``k3s agent``."""
        return self._start("agent", f"--lb-server-port={self.balancer_port}", *arguments, environment=environment)

    def _start(self, command: str, *arguments: str, environment: dict[str, str] | None) -> Standin:
        given = [f"--data-dir={self.data}", f"--node-name={self.name}", *arguments]
        if not self.prefix:
            given += [f"--node-ip={self.address}", f"--kubelet-arg=port={self.kubelet_port}"]
        self.process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "provider_kairos.lab.k3s", command, *given],
            env={**self.environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        return self

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with self._news:
                self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                self._news.notify_all()
        process.stderr.close()
        with self._news:
            self.lines.append("<end of log>")
            self._news.notify_all()

    def wait_log(self, text: str, *, times: int = 1) -> None:
        """Wait until ``text`` was logged so often.

        Raises:
            TimeoutHostError: it was not.
        """
        with self._news:
            if not self._news.wait_for(lambda: sum(text in line for line in self.lines) >= times, PATIENCE):
                raise TimeoutHostError(f"{self.name} never logged {text!r}:\n" + "\n".join(self.lines[-40:]))

    def wait_exit(self) -> int:
        """Wait for the process and return its status (negative: the signal that ended it)."""
        assert self.process is not None
        status = self.process.wait(PATIENCE)
        if self._reader is not None:
            self._reader.join(PATIENCE)
        return status

    def kill(self) -> int:
        """SIGKILL."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        return self.wait_exit()

    def stop(self) -> int:
        """SIGTERM."""
        assert self.process is not None
        self.process.terminate()
        return self.wait_exit()

    def kubectl(self, *arguments: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl with this machine's kubeconfig."""
        environment = self.environment()
        if kubeconfig is not None:
            environment["KUBECONFIG"] = str(kubeconfig)
        command = [*self.prefix, sys.executable, "-m", "provider_kairos.lab.k3s", "kubectl", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)

    def nodes(self) -> dict[str, str]:
        """Node names and whether they are Ready, as this server tells; empty when it does not."""
        answer = self.kubectl("get", "nodes", "--no-headers")
        fields = [line.split() for line in answer.stdout.splitlines()]
        return {words[0]: words[1] for words in fields if len(words) > 1}

    def wait_nodes(self, wanted: dict[str, str]) -> None:
        """Wait until the node list is exactly ``wanted``.

        Raises:
            TimeoutHostError: it never was.
        """
        deadline = time.monotonic() + PATIENCE
        found = self.nodes()
        while found != wanted:
            if time.monotonic() > deadline:
                raise TimeoutHostError(f"{self.name} lists {found}, not {wanted}; its log:\n" + self.log[-4000:])
            found = self.nodes()


class Harness:
    """Machines below one folder; leaving the block kills what still runs."""

    def __init__(self, root: Path, speed: float = 10.0) -> None:
        self.root = root
        self.speed = speed
        self.machines: list[Standin] = []

    def machine(self, name: str, address: str = "", prefix: Sequence[str] = ()) -> Standin:
        """One more machine: with an address of its own on the loopback, or wherever ``prefix`` enters."""
        number = len(self.machines) + 1
        made = Standin(self.root / f"{number}-{name}", name, address or f"127.0.7.{number}", self.speed, prefix)
        self.machines.append(made)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in self.machines:
            if machine.process is not None and machine.process.poll() is None:
                machine.kill()
