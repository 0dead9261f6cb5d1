"""pid 1 of a box: boots it, reaps, takes orders over a socket, watches the VPN's address, shuts down.

Orders come as one JSON object a line on :data:`INIT_SOCKET`, from ``systemctl`` in the box and from the
supervisor outside, which reaches the same socket through ``/proc/<pid>/root``. Standard library only: this
process stays small and starts in a few hundredths of a second. Services themselves are :mod:`.services`' work.

Ends with 0 for power-off and :data:`EXIT_REBOOT` for ``systemctl reboot``; the supervisor acts on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

from provider_kairos.lab.control import Control
from provider_kairos.lab.model import DAEMON_INTERFACE, INIT_SOCKET
from provider_kairos.lab.services import Manager
from provider_kairos.lab.unitfiles import UnitFiles, UnitNotFoundError
from provider_kairos.lab.units import UnitName
from provider_kairos.lab.unitwords import UnitSyntaxError

__all__ = ["EXIT_REBOOT", "interface_address", "main"]

EXIT_REBOOT: Final = 64
_BOOT_TARGETS: Final = ("multi-user.target", "default.target")
_SIOCGIFADDR: Final = 0x8915
_RTMGRP_LINK_AND_ADDRESSES: Final = 0x1 | 0x10


def interface_address(name: str) -> str:
    """The first IPv4 address of an interface of this namespace; empty when there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def _has_stages() -> bool:
    files = [*Path("/oem").glob("*.y*ml"), *Path("/usr/local/cloud-config").rglob("*.y*ml")]
    agent = Path("/usr/bin/kairos-agent").exists()
    return agent and any(b"stages:" in path.read_bytes() for path in files if path.is_file())


class Init:
    """The first process."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.booted = 0.0
        self.addressed = 0.0
        self.address = ""
        self._watchers: set[asyncio.StreamWriter] = set()
        self.manager = Manager(UnitFiles(), changed=self.announce, note=self.note)
        self._control = Control(self.manager, end=self.end)
        self._over: asyncio.Future[int] | None = None
        self._ending = False

    def note(self, text: str) -> None:
        """One line in the box's boot log."""
        print(f"{time.monotonic() - self.started:9.3f} {text}", flush=True)

    # --- what others see -------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What the supervisor wants to know; times are of the machine's monotonic clock, 0 for not yet."""
        units = {
            text: {
                "state": unit.state,
                "sub": unit.sub,
                "restarts": unit.restarts,
                "pid": unit.main_pid,
                "since": unit.active_since,
            }
            for text, unit in self.manager.units.items()
        }
        return {
            "started": self.started,
            "booted": self.booted,
            "address": self.address,
            "addressed": self.addressed,
            "units": units,
        }

    def announce(self) -> None:
        """Tell every watcher what has changed."""
        if not self._watchers:
            return
        line = json.dumps(self.facts()).encode() + b"\n"
        for writer in list(self._watchers):
            if writer.is_closing():
                self._watchers.discard(writer)
            else:
                writer.write(line)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline() or b"{}")
            if request.get("verb") == "watch":
                self._watchers.add(writer)
                writer.write(json.dumps(self.facts()).encode() + b"\n")
                await reader.read()
                return
            answer = await self._control.answer(request)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (ValueError, ConnectionError) as error:
            self.note(f"bad order: {error}")
        finally:
            self._watchers.discard(writer)
            writer.close()

    # --- the VPN's address -----------------------------------------------------------------------------------

    def _watch_addresses(self) -> None:
        monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        monitor.bind((0, _RTMGRP_LINK_AND_ADDRESSES))
        asyncio.get_running_loop().add_reader(monitor, self._address_changed, monitor)

    def _address_changed(self, monitor: socket.socket) -> None:
        with contextlib.suppress(OSError):  # an overrun queue: the look below is what counts
            while monitor.recv(65536):
                pass
        address = interface_address(DAEMON_INTERFACE)
        if address != self.address:
            self.address = address
            if address and not self.addressed:
                self.addressed = time.monotonic()
            self.note(f"{DAEMON_INTERFACE}: {address or 'no address'}")
            self.announce()

    # --- boot and end ----------------------------------------------------------------------------------------

    async def _stages(self, *names: str) -> None:
        """Run the user's boot stages, when there are any: starting Python for nothing takes time."""
        if _has_stages():
            child = await self.manager.run_plain(["/usr/bin/kairos-agent", "run-stage", *names])
            self.note(f"stages {' '.join(names)}: status {child}")

    async def _boot(self) -> None:
        await self._stages("rootfs", "initramfs", "boot", "network")
        wanted = {name for target in _BOOT_TARGETS for name in self.manager.files.wanted_by(target)}
        self.manager.pinned |= wanted
        for text in sorted(wanted):
            try:
                # Loaded first and started after, so that After= between them is seen.
                self.manager.load(UnitName.parse(text))
            except (UnitNotFoundError, UnitSyntaxError) as error:
                self.note(f"{text}: {error}")
        for text in sorted(wanted & self.manager.units.keys()):
            self.manager.start(UnitName.parse(text))
        self.booted = time.monotonic()
        self.note("booted")
        self.announce()

    def end(self, code: int) -> None:
        """Begin the shutdown: stop every service, then leave."""
        if not self._ending:
            self._ending = True
            asyncio.ensure_future(self._shutdown(code)).add_done_callback(lambda task: task.exception())

    async def _shutdown(self, code: int) -> None:
        self.note("shutting down")
        try:
            await asyncio.wait_for(self.manager.stop_all(), 20)
        except TimeoutError:
            self.note("services did not stop in time")
        if self._over is not None and not self._over.done():
            self._over.set_result(code)

    async def run(self) -> int:
        """Everything, from the first order to the last."""
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        loop.add_signal_handler(signal.SIGCHLD, self.manager.reap)
        loop.add_signal_handler(signal.SIGTERM, self.end, 0)
        loop.add_signal_handler(signal.SIGINT, self.end, EXIT_REBOOT)
        server = await asyncio.start_unix_server(self._serve, INIT_SOCKET, limit=1 << 20)
        self._watch_addresses()
        boot = asyncio.ensure_future(self._boot())
        code = await self._over
        boot.cancel()
        server.close()
        return code


def main() -> int:
    """Be the first process of a box."""
    if os.getpid() != 1:
        print("kairos-lab-init: only as the first process of a box", file=sys.stderr)
        return 2
    return asyncio.run(Init().run())
