"""The process that owns a lab: switch, boxes, store; takes orders on a socket; leaves nothing behind.

Started detached by ``lab up``. It has network and mount namespaces of its own (the switch and the store live
in them), as an ordinary user also a user namespace in which it is root. It holds a lock in the lab's folder
for as long as it lives. Orders are one JSON object a line: ``status``, ``kill``, ``reboot``, ``down``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import trio

from provider_kairos.errors import ProviderError
from provider_kairos.lab import net
from provider_kairos.lab.boxes import Box
from provider_kairos.lab.model import BoxSpec, LabError, LabSettings, box_name, box_number
from provider_kairos.lab.place import Place, cgroup_name, cgroup_roots, save_sysctls
from provider_kairos.lab.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MNT_DETACH,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    mount,
    umount,
    unshare,
)

__all__ = ["main"]

log = logging.getLogger(__name__)

STAND_IN = "k3s stand-in"
_LOOK_EVERY = 0.1
_SHUTDOWN_SECONDS = 25.0


class Supervisor:
    """One lab."""

    def __init__(self, settings: LabSettings, place: Place, *, rootless: bool) -> None:
        self.settings = settings
        self.place = place
        self.rootless = rootless
        self.nodes: list[dict[str, Any]] = []
        self.began = time.monotonic()
        self.completed: float | None = None
        self._over = trio.Event()
        self._heartbeats: dict[str, float] = {}
        store = place.disk_store if settings.k3s else place.store
        self.boxes = [
            Box(
                BoxSpec(
                    lab=place.name,
                    name=box_name(number),
                    number=number,
                    machine_id=secrets.token_hex(16),
                    store=str(store / box_name(number)),
                    files=settings.files,
                    assembled=rootless,
                    k3s=settings.k3s,
                    provider=settings.provider,
                    edgevpn=settings.edgevpn.get(box_name(number), ""),
                    cgroup=self._make_cgroup(box_name(number)) if settings.k3s else "",
                    agent_api=settings.agent_api,
                    product=settings.product,
                ),
                changed=self._look_complete,
            )
            for number in range(1, settings.boxes + 1)
        ]

    # --- cgroups for a real k3s (spec/k3s.md 10) ----------------------------------------------------------------

    def _make_cgroup(self, box: str) -> str:
        places = []
        for root in cgroup_roots():
            place = root / cgroup_name(self.place.name, box)
            place.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                # A fresh version 1 cpuset is empty and takes no process; version 2 inherits.
                if (place / name).exists() and (root / name).exists():
                    (place / name).write_text((root / name).read_text("ascii"), "ascii")
            places.append(str(place))
        if not places:
            raise LabError("no cgroups are mounted", hint="a real k3s needs them under /sys/fs/cgroup")
        return ":".join(places)

    # --- state -----------------------------------------------------------------------------------------------

    def _look_complete(self) -> None:
        if self.completed is None and all(box.seen.ready is not None for box in self.boxes):
            self.completed = time.monotonic()

    def status(self) -> dict[str, Any]:
        """Everything, as one document."""
        version = self.nodes[0]["version"] if self.nodes else ""
        distribution = "k3s" if self.settings.k3s else STAND_IN
        ready = [box.seen.ready for box in self.boxes]
        return {
            "name": self.place.name,
            "rootless": self.rootless,
            "complete": all(moment is not None for moment in ready),
            "seconds": None if self.completed is None else round(self.completed - self.began, 2),
            "boxes": [box.status() for box in self.boxes],
            "cluster": {"distribution": distribution, "version": version, "nodes": self.nodes},
        }

    def _box(self, request: dict[str, Any]) -> Box:
        number = box_number(str(request.get("box", "")), len(self.boxes))
        return self.boxes[number - 1]

    # --- orders ----------------------------------------------------------------------------------------------

    async def _answer(self, request: dict[str, Any], nursery: trio.Nursery) -> dict[str, Any]:
        match request.get("verb"):
            case "status":
                return self.status()
            case "box":
                return self._box(request).status()
            case "kill":
                box = self._box(request)
                box.kill()
                await box.off.wait()
                return box.status()
            case "reboot":
                return await self._reboot(self._box(request), nursery)
            case "down":
                self._over.set()
                return {}
            case verb:
                raise LabError(f"unknown order {verb!r}")

    async def _reboot(self, box: Box, nursery: trio.Nursery) -> dict[str, Any]:
        if box.pid:
            box.shut_down()
            with trio.move_on_after(_SHUTDOWN_SECONDS) as scope:
                await box.off.wait()
            if scope.cancelled_caught:
                box.kill()
                await box.off.wait()
        await nursery.start(self._run_box, box)
        return box.status()

    async def _serve(self, stream: trio.SocketStream, nursery: trio.Nursery) -> None:
        async with stream:
            buffer = b""
            with contextlib.suppress(trio.BrokenResourceError):
                while b"\n" not in buffer:
                    chunk = await stream.receive_some(65536)
                    if not chunk:
                        return
                    buffer += chunk
                try:
                    answer = {"ok": await self._answer(json.loads(buffer), nursery)}
                except ProviderError as error:
                    answer = {"error": {"message": error.message, "hint": error.hint, "code": int(error.exit_code)}}
                except ValueError as error:
                    answer = {"error": {"message": f"bad order: {error}", "hint": "", "code": 70}}
                await stream.send_all(json.dumps(answer).encode() + b"\n")

    async def _listen(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        async def handle(stream: trio.SocketStream) -> None:
            await self._serve(stream, nursery)

        await trio.serve_listeners(handle, [listener])

    # --- tasks -----------------------------------------------------------------------------------------------

    async def _run_box(self, box: Box, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """One box from its boot until it is off for good."""
        started = False
        while True:
            box.boot()
            if not started:
                started = True
                task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(box.watch)
                code = await box.wait_off()
                nursery.cancel_scope.cancel()
            if not box.restarts_itself(code):
                return

    async def _look(self) -> None:
        while True:
            for box in self.boxes:
                box.look()
            await trio.sleep(_LOOK_EVERY)

    async def _follow_nodes(self) -> None:
        """Keep one node-list follower in some box that serves the cluster."""
        while True:
            servers = [box for box in self.boxes if box.pid and box.serves()]
            if not servers:
                await trio.sleep(_LOOK_EVERY)
                continue
            # The first master first: the others come up later.
            servers.sort(key=lambda box: (box.seen.role not in {"master", "master/clusterinit"}, box.spec.number))
            await self._follow_nodes_in(servers[0])

    async def _follow_nodes_in(self, box: Box) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        # Forked here and not in a thread: the kernel ties a parent-death signal to the thread that forked.
        follower = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "provider_kairos.lab.nodes", str(os.getpid()), str(box.pid)],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            cwd="/",
        )
        os.close(writer)
        buffer = b""
        try:
            async with trio.lowlevel.FdStream(reader) as lines:
                async for chunk in lines:
                    *whole, buffer = (buffer + chunk).split(b"\n")
                    if whole:
                        told = json.loads(whole[-1])
                        self.nodes, self._heartbeats = told["nodes"], told["heartbeats"]
                    for each in self.boxes:
                        each.take_nodes(self.nodes, self._heartbeats)
        finally:
            follower.kill()
            follower.wait()
        await trio.sleep(_LOOK_EVERY)

    async def _retake_nodes(self) -> None:
        """Look the boxes up again: a list that did not change may still hold a box that has just caught up."""
        while True:
            await trio.sleep(_LOOK_EVERY)
            for box in self.boxes:
                if box.seen.ready is None and self.nodes:
                    box.take_nodes(self.nodes, self._heartbeats)

    async def _leash(self, handle: int) -> None:
        """End the lab when whoever started it goes away."""
        async with trio.lowlevel.FdStream(handle) as stream:
            async for _ in stream:
                pass
        log.info("the one who started this lab is gone")
        self._over.set()

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                log.info("signal %d", number)
                self._over.set()

    async def run(self, ready: int, leash: int) -> None:
        """Boot every box, report on ``ready``, serve until told to end, then take everything down."""
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(self.place.socket))
        os.chmod(self.place.socket, 0o600)  # noqa: PTH101
        sock.listen(16)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._signals)
                nursery.start_soon(self._listen, trio.SocketListener(sock), nursery)
                nursery.start_soon(self._look)
                nursery.start_soon(self._follow_nodes)
                nursery.start_soon(self._retake_nodes)
                if leash >= 0:
                    nursery.start_soon(self._leash, leash)
                for box in self.boxes:
                    await nursery.start(self._run_box, box)
                os.write(ready, b"{}\n")
                os.close(ready)
                await self._over.wait()
                for box in self.boxes:
                    box.kill()
                for box in self.boxes:
                    await box.off.wait()
                nursery.cancel_scope.cancel()
        finally:
            for box in self.boxes:
                box.kill()


def _become_root_of_own() -> None:
    """Enter a user namespace in which this user is root; the only user there is."""
    uid, gid = os.getuid(), os.getgid()
    try:
        unshare(CLONE_NEWUSER)
    except OSError as error:
        raise LabError(
            "the kernel gives this user no user namespace: "
            + ("user.max_user_namespaces is used up" if error.errno == errno.ENOSPC else str(error.strerror)),
            hint="run the lab as root, or as root allow it: sysctl -w user.max_user_namespaces=10000, and where these "
            "exist kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0",
        ) from error
    try:
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", "ascii")
    except OSError as error:
        raise LabError(
            f"the kernel does not let this user be root in a user namespace: {error.strerror}",
            hint="run the lab as root, or set kernel.apparmor_restrict_unprivileged_userns=0",
        ) from error


def _first_reason(error: BaseException) -> str:
    """The innermost first exception of a group, in words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def _prepare(settings: LabSettings, place: Place) -> None:
    """Namespaces, store and switch; raises LabError."""
    try:
        unshare(CLONE_NEWNS | CLONE_NEWNET)
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
    except OSError as error:
        raise LabError(
            f"namespaces are refused: {error}", hint="run the lab as root with CAP_SYS_ADMIN and CAP_NET_ADMIN"
        ) from error
    store = place.disk_store if settings.k3s else place.store
    store.mkdir(parents=True, exist_ok=True)
    if not settings.k3s:
        mount("tmpfs", store, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for number in range(1, settings.boxes + 1):
        (store / box_name(number)).mkdir()
    net.make_switch()


def main() -> int:
    """``python -m provider_kairos.lab.supervisor READY LEASH`` with the :class:`LabSettings` on stdin."""
    ready, leash = int(sys.argv[1]), int(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = LabSettings.from_json(sys.stdin.read())
    place = Place(settings.name)
    lock = None
    try:
        place.make()
        lock = place.lock()
        if lock is None:
            raise LabError(f"the lab {settings.name!r} is up already", hint="`kairos-p2p lab down` ends it")
        rootless = os.geteuid() != 0
        if settings.k3s and not rootless:
            (place.folder / "sysctls.json").write_text(json.dumps(save_sysctls()), "ascii")
        if rootless:
            _become_root_of_own()
        _prepare(settings, place)
        trio.run(Supervisor(settings, place, rootless=rootless).run, ready, leash)
    except BaseExceptionGroup as group:
        log.exception("the lab ended")
        text = _first_reason(group)
        with contextlib.suppress(OSError):
            os.write(ready, json.dumps({"error": text}).encode() + b"\n")
        return 1
    except (ProviderError, OSError) as error:
        log.exception("the lab could not be made")
        with contextlib.suppress(OSError):
            os.write(ready, json.dumps({"error": str(error)}).encode() + b"\n")
        return 1
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                umount(place.store, MNT_DETACH)
            place.clean()
            os.close(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
