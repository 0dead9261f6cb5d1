"""The agent's load balancer on 127.0.0.1:6444 and its file (k3s notes, section 5): a real TCP forwarder.

It knows the addresses that the servers advertise; the address of ``K3S_URL`` is used only as long as there are none.
The saved list counts only under the same URL, and a URL at 127.0.0.1 never has one.
"""

from __future__ import annotations

import json
import logging
import select
import socket
import threading
from pathlib import Path

from provider_kairos.lab.k3s import files
from provider_kairos.lab.k3s.life import Fatal

__all__ = ["Balancer"]

log = logging.getLogger(__name__)

NAME = "k3s-agent-load-balancer"
DIAL_TIMEOUT = 5.0
IDLE_TIMEOUT = 300.0
LOOPBACK = ("127.0.0.1", "[::1]")


def _dial(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=DIAL_TIMEOUT)


def _pump(left: socket.socket, right: socket.socket) -> None:
    """Carry bytes both ways until both sides are done or nothing was said for long."""
    other = {left: right, right: left}
    open_for_reading = {left, right}
    while open_for_reading:
        readable, _, _ = select.select(list(open_for_reading), [], [], IDLE_TIMEOUT)
        if not readable:
            return
        for source in readable:
            data = source.recv(65536)
            if data:
                other[source].sendall(data)
                continue
            open_for_reading.discard(source)
            other[source].shutdown(socket.SHUT_WR)


class Balancer:
    """Forwards connections to the first server that answers, the one that answered last being asked first."""

    def __init__(self, path: Path, url: str, default: str, port: int) -> None:
        self.path = path
        self.url = url
        self.default = default
        self.port = port
        self._lock = threading.Lock()
        self._servers: list[str] = []
        self._states: dict[str, str] = {}
        self._load()

    @property
    def servers(self) -> list[str]:
        """The servers' addresses, as the file shows them."""
        with self._lock:
            return sorted(self._servers)

    def _on_loopback(self, address: str) -> bool:
        return address.rpartition(":")[0] in LOOPBACK

    def _load(self) -> None:
        try:
            saved = json.loads(files.read(self.path) or "{}")
        except ValueError:
            saved = {}
        if saved.get("ServerURL") == self.url and not self._on_loopback(self.default):
            self._servers = [str(address) for address in saved.get("ServerAddresses") or []]
        self._save()

    def _save(self) -> None:
        text = json.dumps({"ServerURL": self.url, "ServerAddresses": self.servers}, indent=2)
        files.write(self.path, text, 0o644)

    def update(self, servers: list[str]) -> bool:
        """Take over what the servers say of themselves; whether it was news."""
        if not servers or sorted(servers) == self.servers:
            return False
        for address in servers:
            if address not in self.servers:
                log.info("Adding server to load balancer %s: %s", NAME, address)
        with self._lock:
            self._servers = [a for a in self._servers if a in servers] + [a for a in servers if a not in self._servers]
            if self._on_loopback(self.default):
                self.default = servers[0]
                self.url = f"https://{servers[0]}"
        log.info(
            "Updated load balancer %s server addresses -> [%s] [default: %s]", NAME, " ".join(servers), self.default
        )
        self._save()
        return True

    def start(self) -> None:
        """Listen on the loopback.

        Raises:
            Fatal: the port is taken.
        """
        try:
            listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise Fatal(f"Error: listen tcp 127.0.0.1:{self.port}: bind: {reason}") from error
        log.info(
            "Running load balancer %s 127.0.0.1:%d -> [%s] [default: %s]",
            NAME,
            self.port,
            " ".join(self.servers),
            self.default,
        )
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        try:
            second = socket.create_server(("::1", self.port), family=socket.AF_INET6, backlog=64)
        except OSError:
            return  # a machine without IPv6
        threading.Thread(target=self._accept, args=(second,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:  # out of descriptors, or aborted by the peer
                log.warning("load balancer: %s", error)
                threading.Event().wait(0.1)
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            server = self._reach()
            if server is None:
                return
            with server:
                server.settimeout(DIAL_TIMEOUT * 4)
                connection.settimeout(DIAL_TIMEOUT * 4)
                try:
                    _pump(connection, server)
                except OSError as error:
                    log.debug("load balancer: %s", error)

    def _reach(self) -> socket.socket | None:
        with self._lock:
            candidates = list(self._servers) or [self.default]
        for address in candidates:
            try:
                server = _dial(address)
            except (OSError, ValueError) as error:
                self._mark(address, "FAILED", f"failed dial ({error})")
                with self._lock:
                    if address in self._servers:
                        self._servers.remove(address)
                        self._servers.append(address)
                continue
            self._mark(address, "ACTIVE", "successful dial")
            return server
        return None

    def _mark(self, address: str, state: str, why: str) -> None:
        star = "*" if address == self.default else ""
        before = self._states.get(address, "UNCHECKED")
        if before != state:
            self._states[address] = state
            log.info("Server %s@%s%s->%s from %s", address, before, star, state, why)
