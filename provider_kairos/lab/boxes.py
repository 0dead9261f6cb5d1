"""One box as the supervisor holds it: boot, cable, what it is seen to do, power cut, reboot.

Facts come from three places, all seen from outside the box: its first process tells of services and of the
VPN's address (:mod:`.init`), the provider's status file tells of role and reasons, and the node list tells who
is Ready (:mod:`.nodes`). Times are of the machine's monotonic clock; seconds count from the box's boot.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from provider_kairos.lab import net
from provider_kairos.lab.init import EXIT_REBOOT
from provider_kairos.lab.model import INIT_SOCKET, STATUS_FILE, BoxSpec, LabError

__all__ = ["Box", "Observed"]

log = logging.getLogger(__name__)

_ROLE_FILE = "/usr/local/.kairos/state/role.json"
_DAEMON_SOCKET = "/run/edgevpn-kairos.sock"
_K3S_UNITS = ("k3s.service", "k3s-agent.service")


@dataclass(slots=True)
class Observed:
    """What one boot of a box has shown so far; moments are None until they have come."""

    booted: float | None = None
    daemon: float | None = None
    address: str = ""
    addressed: float | None = None
    role: str = ""
    roled: float | None = None
    k3s: float | None = None
    ready: float | None = None
    node: str = ""
    uuid: str = ""
    host: str = ""
    waiting: list[dict[str, Any]] = field(default_factory=list)
    units: dict[str, dict[str, Any]] = field(default_factory=dict)


class Box:
    """A box and its processes. ``changed`` is called whenever something new is seen."""

    def __init__(self, spec: BoxSpec, *, changed: Callable[[], None]) -> None:
        self.spec = spec
        self.state = "off"
        self.pid = 0
        self.boots = 0
        self.began = 0.0
        self._began_unix = 0.0
        self.seen = Observed()
        self.off = trio.Event()
        self.off.set()
        self._changed = changed
        self._shim: subprocess.Popen[bytes] | None = None
        self._go = -1
        self._stamps: dict[str, int] = {}

    # --- power -----------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Make the namespaces, plug the cable in and let the first process go; raises LabError.

        Blocks for some hundredths of a second. Always runs in the supervisor's main thread: the kernel ties a
        parent-death signal to the thread that forked.
        """
        self.boots += 1
        self.state = "booting"
        self.seen = Observed(host=self.spec.name)
        self._stamps.clear()
        self.began, self._began_unix = time.monotonic(), time.time()
        status_r, status_w = os.pipe()
        go_r, self._go = os.pipe()
        try:
            self._shim = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "provider_kairos.lab.shim",
                    *(str(number) for number in (os.getpid(), status_w, go_r)),
                    f"{self.spec.lab}/{self.spec.name}",
                ],
                stdin=subprocess.PIPE,
                pass_fds=(status_w, go_r),
                cwd="/",
            )
            assert self._shim.stdin is not None
            self._shim.stdin.write(self.spec.to_json().encode())
            self._shim.stdin.close()
        finally:
            os.close(status_w)
            os.close(go_r)
        with os.fdopen(status_r, "rb") as answers:
            line = answers.readline().decode("utf-8", errors="replace").strip()
            if not line.isdigit():
                self.state = "dead"
                raise LabError(f"{self.spec.name}: {line or 'its namespaces could not be made'}")
            self.pid = int(line)
            self.off = trio.Event()
            trouble: Exception | None = None
            try:
                net.plug_in(self.spec, self.pid)
                os.write(self._go, b"g")
            except (OSError, LabError) as error:  # perhaps only because the box is dead already: it says why
                trouble = error
                self._signal(signal.SIGKILL)
            reason = answers.read().decode("utf-8", errors="replace").strip()
            if reason or trouble:
                raise LabError(f"{self.spec.name}: {reason or trouble}")
        log.info("%s: boot %d, pid %d", self.spec.name, self.boots, self.pid)
        self._changed()

    async def wait_off(self) -> int:
        """Wait until the box is off and return its exit status; the caller decides what follows."""
        shim = self._shim
        if shim is None:
            return 0
        handle = os.pidfd_open(shim.pid)
        try:
            await trio.lowlevel.wait_readable(handle)
        finally:
            os.close(handle)
        code = shim.wait()
        if self._go >= 0:
            os.close(self._go)
            self._go = -1
        self._shim, self.pid = None, 0
        if self.state != "killed":
            self.state = "off"
        self.seen.units = {}
        log.info("%s: off, status %d", self.spec.name, code)
        self.off.set()
        self._changed()
        return code

    def kill(self) -> None:
        """A power cut: first the cable, so that peers hear nothing, then everything at once."""
        if not self.pid:
            return
        self.state = "killed"
        net.unplug(self.spec)
        self._signal(signal.SIGKILL)

    def shut_down(self) -> None:
        """Ask the box to stop its services and power off."""
        if self.pid:
            self.state = "stopping"
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            log.debug("%s is gone already", self.spec.name)

    # --- looking in ------------------------------------------------------------------------------------------

    def inside(self, path: str) -> Path:
        """A path of the box as this process reaches it."""
        return Path(f"/proc/{self.pid}/root{path}")

    async def watch(self) -> None:
        """Follow the box's first process until it goes; returns when the box is off."""
        while self.pid:
            try:
                await self._follow()
            except (OSError, trio.BrokenResourceError):
                await trio.sleep(0.02)  # the socket is not there yet, or not any more

    async def _follow(self) -> None:
        stream = await trio.open_unix_socket(str(self.inside(INIT_SOCKET)))
        async with stream:
            await stream.send_all(b'{"verb": "watch"}\n')
            buffer = b""
            async for chunk in stream:
                buffer += chunk
                *lines, buffer = buffer.split(b"\n")
                if lines:
                    self._take_facts(json.loads(lines[-1]))

    def _take_facts(self, facts: dict[str, Any]) -> None:
        seen = self.seen
        if self.state == "booting" and facts["booted"]:
            self.state = "running"
        seen.booted = facts["booted"] or None
        seen.address = facts["address"]
        seen.addressed = facts["addressed"] or None
        seen.units = facts["units"]
        started = [u["since"] for name in _K3S_UNITS if (u := seen.units.get(name)) and u["state"] == "active"]
        if started and seen.k3s is None:
            seen.k3s = started[0]
        self._changed()

    def look(self) -> None:
        """Read the files that the product writes; cheap enough for ten times a second."""
        if not self.pid:
            return
        seen = self.seen
        if seen.daemon is None and self._daemon_answers():
            seen.daemon = time.monotonic()
            self._changed()
        for path, take in ((STATUS_FILE, self._take_status), (_ROLE_FILE, self._take_role)):
            document = self._read_if_new(path)
            if document is not None:
                take(document)
                self._changed()
        if not seen.uuid or not seen.role:
            self._read_names()

    def _daemon_answers(self) -> bool:
        unit = next((u for name, u in self.seen.units.items() if name.startswith("edgevpn")), None)
        if unit is None or unit["state"] != "active":
            return False
        # On TCP nothing shows on disk; then the daemon's own unit is what there is to see.
        listens = self.inside("/etc/systemd/system.conf.d/edgevpn-kairos.env")
        try:
            on_socket = "unix://" in listens.read_text("utf-8", errors="replace")
        except OSError:
            return False
        return not on_socket or self.inside(_DAEMON_SOCKET).exists()

    def _read_if_new(self, path: str) -> dict[str, Any] | None:
        place = self.inside(path)
        try:
            stamp = place.stat().st_mtime_ns
            if self._stamps.get(path) == stamp:
                return None
            document = json.loads(place.read_bytes())
        except (OSError, ValueError):  # not there yet, or the box went away while we looked
            return None
        self._stamps[path] = stamp
        return document if isinstance(document, dict) else None

    def _take_status(self, document: dict[str, Any]) -> None:
        waiting = document.get("waiting")
        self.seen.waiting = [w for w in waiting if isinstance(w, dict)] if isinstance(waiting, list) else []
        if isinstance(document.get("uuid"), str) and document["uuid"]:
            self.seen.uuid = document["uuid"]
        self._set_role(document.get("role"))

    def _take_role(self, document: dict[str, Any]) -> None:
        self._set_role(document.get("role"))

    def _set_role(self, role: object) -> None:
        if isinstance(role, str) and role not in {"", "auto", "none"}:
            self.seen.role = role
            if self.seen.roled is None:
                self.seen.roled = time.monotonic()

    def _read_names(self) -> None:
        try:
            self.seen.host = self.inside("/etc/hostname").read_text("utf-8").strip() or self.spec.name
        except OSError:
            return
        if not self.seen.uuid:
            self.seen.uuid = f"{self.spec.machine_id}-{self.seen.host}"

    def take_nodes(self, nodes: list[dict[str, Any]], heartbeats: dict[str, float]) -> None:
        """Find this box in a node list: by its VPN address, else by its host name.

        Ready counts only when the node has reported since this boot: for some time after a power cut the cluster
        still thinks well of it. Kubernetes' times are whole seconds, hence the one more.
        """
        seen = self.seen
        mine = [n for n in nodes if n["address"] and n["address"] == seen.address]
        mine = mine or [n for n in nodes if n["name"] == seen.host]
        if not mine or not mine[0]["ready"] or seen.ready is not None:
            return
        if self.runs_k3s() and heartbeats.get(mine[0]["name"], 0.0) > self._began_unix + 1:
            seen.node = mine[0]["name"]
            seen.ready = time.monotonic()
            self._changed()

    def runs_k3s(self) -> bool:
        """Whether a k3s of this boot runs."""
        return any(self.seen.units.get(name, {}).get("state") == "active" for name in _K3S_UNITS)

    def serves(self) -> bool:
        """Whether it runs a k3s server."""
        return self.seen.units.get("k3s.service", {}).get("state") in {"active", "activating"}

    def status(self) -> dict[str, Any]:
        """What ``lab status`` shows of it."""
        seen = self.seen

        def since(moment: float | None) -> float | None:
            return None if moment is None else round(moment - self.began, 2)

        return {
            "name": self.spec.name,
            "state": self.state,
            "role": seen.role,
            "address": seen.address,
            "uuid": seen.uuid,
            "seconds_to_address": since(seen.addressed),
            "seconds_to_role": since(seen.roled),
            "seconds_to_ready": since(seen.ready),
            "lan_address": self.spec.address.partition("/")[0],
            "hostname": seen.host,
            "node": seen.node,
            "boots": self.boots,
            "pid": self.pid,
            "phases": {
                "booted": since(seen.booted),
                "daemon": since(seen.daemon),
                "address": since(seen.addressed),
                "role": since(seen.roled),
                "k3s": since(seen.k3s),
                "ready": since(seen.ready),
            },
            "services": {name: f"{u['state']} ({u['sub']})" for name, u in sorted(seen.units.items())},
            "waiting": seen.waiting,
        }

    def restarts_itself(self, code: int) -> bool:
        """Whether a box that went off with ``code`` asked to be booted again."""
        return code == EXIT_REBOOT and self.state == "off"
