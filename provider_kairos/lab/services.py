"""The life of services: start, readiness, restart, stop, as systemd.service(5) says; runs in pid 1 of a box.

One :class:`Unit` per loaded unit, one task per running life. A unit that nothing refers to is dropped when it
comes to rest, so the next start reads its files anew; a loaded one keeps what it has read until a
``daemon-reload`` (that is what makes a forgotten reload visible here as on a real machine).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from provider_kairos.lab.processes import DEFAULT_PATH, EXIT_EXEC, Launch, members_of, program_exists, spawn
from provider_kairos.lab.readiness import NotifySocket, condition_met, make_folders, read_or_empty
from provider_kairos.lab.unitfiles import UnitFiles, UnitNotFoundError, UnitSource
from provider_kairos.lab.units import Command, Service, UnitName, parse_service
from provider_kairos.lab.unitwords import expand_arguments, parse_environment_file

__all__ = ["Manager", "StartError", "Unit"]

LOG_FOLDER: Final = "/var/log/lab"
_CLEAN_SIGNALS: Final = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE}


class StartError(Exception):
    """A start job failed; ``result`` is systemd's word for why."""

    def __init__(self, result: str, message: str = "") -> None:
        super().__init__(message or result)
        self.result = result


@dataclass(slots=True, eq=False)
class Unit:
    """One loaded unit and how it is doing."""

    name: UnitName
    source: UnitSource
    service: Service
    state: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    main_pid: int = 0
    status: int = 0
    invocation: str = ""
    restarts: int = 0
    started: list[float] = field(default_factory=list)
    roots: set[int] = field(default_factory=set)
    job: asyncio.Future[None] | None = None
    life: asyncio.Task[None] | None = None
    waits_for: set[str] = field(default_factory=set)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    active_since: float = 0.0
    text: str = ""

    @property
    def log(self) -> str:
        """Where its output goes."""
        return self.service.output or f"{LOG_FOLDER}/{self.name.text.removesuffix('.service')}.log"


class Manager:
    """All services of a box. ``changed`` is called after every change of a unit's state."""

    def __init__(self, files: UnitFiles, *, changed: Callable[[], None], note: Callable[[str], None]) -> None:
        self.files = files
        self.units: dict[str, Unit] = {}
        self.pinned: set[str] = set()
        self._changed = changed
        self._note = note
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._order: list[str] = []
        self._background: set[asyncio.Task[None]] = set()

    # --- loading ---------------------------------------------------------------------------------------------

    def peek(self, name: UnitName) -> Unit:
        """The unit as it is loaded, or as its files are now without keeping it; raises UnitNotFoundError."""
        if name.text in self.units:
            return self.units[name.text]
        source = self.files.read(name)
        service = parse_service(
            name,
            list(source.texts),
            host=socket.gethostname(),
            machine_id=read_or_empty("/etc/machine-id").strip(),
        )
        return Unit(name, source, service)

    def load(self, name: UnitName) -> Unit:
        """The unit, kept from now on."""
        unit = self.peek(name)
        if name.text not in self.units:
            self.units[name.text] = unit
            for problem in unit.service.problems:
                self._note(problem)
        return unit

    def reload(self) -> None:
        """``daemon-reload``: read the files of every loaded unit again; running processes are not touched."""
        for text, unit in list(self.units.items()):
            del self.units[text]
            try:
                fresh = self.peek(unit.name)
                unit.source, unit.service = fresh.source, fresh.service
                for problem in unit.service.problems:
                    self._note(problem)
            except UnitNotFoundError:
                self._note(f"{text}: its file is gone")
            self.units[text] = unit
            self._collect(unit)

    def needs_reload(self, unit: Unit) -> bool:
        """Whether its files have changed since they were read."""
        try:
            return self.files.read(unit.name).stamp != unit.source.stamp
        except UnitNotFoundError:
            return True

    def _collect(self, unit: Unit) -> None:
        if unit.state == "inactive" and unit.job is None and unit.name.text not in self.pinned:
            self.units.pop(unit.name.text, None)

    # --- jobs ------------------------------------------------------------------------------------------------

    def start(self, name: UnitName) -> asyncio.Future[None]:
        """Ask for a start; the future ends when the unit is up, with StartError when it does not come up."""
        if name.kind != "service":
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        unit = self.load(name)
        if unit.source.masked:
            raise StartError("masked", f"Unit {name.text} is masked.")
        if unit.job is not None:
            return unit.job
        job: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting for it (--no-block); the failure is in the unit's state all the same.
        job.add_done_callback(lambda f: f.cancelled() or f.exception())
        if unit.state == "active":
            job.set_result(None)
            return job
        unit.job = job
        if unit.life is not None and unit.sub == "auto-restart":  # do it now
            unit.life.cancel()
        elif unit.life is not None:  # its old processes are being ended; the life goes on with this job
            return job
        for wanted in (*unit.service.wants, *unit.service.requires):
            with contextlib.suppress(UnitNotFoundError, StartError, ValueError):
                if UnitName.parse(wanted).kind == "service":
                    self.start(UnitName.parse(wanted))
        unit.life = asyncio.get_running_loop().create_task(self._life(unit))
        return job

    async def stop(self, name: UnitName) -> None:
        """Stop a unit and wait until its processes are gone."""
        unit = self.units.get(name.text)
        if unit is None:
            self.files.read(name)
            return
        await self._stop_unit(unit)

    async def _stop_unit(self, unit: Unit) -> None:
        life, unit.life = unit.life, None
        if life is not None:
            life.cancel()
            await asyncio.wait([life])
        self._finish_job(unit, StartError("canceled", f"Job for {unit.name.text} canceled."))
        if unit.state in {"active", "activating", "deactivating"} and unit.invocation:
            self._set(unit, "deactivating", "stop-sigterm")
            if unit.main_pid in self._exits:
                for command in unit.service.commands["ExecStop"]:
                    await self._run(unit, command, unit.service.timeout_stop)
            await self._kill_all(unit)
            await self._stop_post(unit)
        self._set(unit, "inactive", "dead")
        self._collect(unit)

    async def stop_all(self) -> None:
        """Stop every unit, the last started first."""
        for text in reversed(list(dict.fromkeys(self._order))):
            unit = self.units.get(text)
            if unit is not None:
                await self._stop_unit(unit)

    def reset_failed(self, unit: Unit) -> None:
        """Forget a failure and the start counter."""
        unit.started.clear()
        unit.restarts = 0
        if unit.state == "failed":
            self._set(unit, "inactive", "dead")
            self._collect(unit)

    def kill(self, unit: Unit, number: int, *, main_only: bool) -> None:
        """Send a signal to a unit's processes."""
        pids = {unit.main_pid} if main_only else members_of(unit.invocation, unit.roots)
        for pid in pids - {0}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    # --- children --------------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Collect every dead child, ours or inherited."""
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            future = self._exits.pop(pid, None)
            if future is not None and not future.done():
                future.set_result(os.waitstatus_to_exitcode(raw))

    def _spawn(self, unit: Unit, command: Command, extra: dict[str, str]) -> tuple[int, asyncio.Future[int]]:
        environment = self._environment(unit) | extra
        argv = list(command.argv)
        if command.expands:
            argv = [argv[0], *expand_arguments(argv[1:], environment)]
        service = unit.service
        argv[0] = command.path
        pid = spawn(
            Launch(tuple(argv), environment, unit.log, service.working_directory or "/", service.umask, service.limits)
        )
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exits[pid] = future
        unit.roots.add(pid)
        return pid, future

    def _environment(self, unit: Unit) -> dict[str, str]:
        """The environment of its processes; raises StartError when a file that must be there is not."""
        environment = {"LANG": "C.UTF-8", "PATH": DEFAULT_PATH, **unit.service.environment}
        for reference in unit.service.environment_files:
            try:
                environment |= parse_environment_file(Path(reference.path).read_text("utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                if not reference.optional:
                    raise StartError("resources", f"{unit.name.text}: EnvironmentFile: {error}") from error
        environment["INVOCATION_ID"] = unit.invocation
        return environment

    async def run_plain(self, argv: list[str]) -> int:
        """Run a program that is no service (a boot stage) to its end and return its status."""
        pid = spawn(
            Launch(
                tuple(argv),
                {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8", "HOME": "/root"},
                f"{LOG_FOLDER}/stages-output.log",
            )
        )
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exits[pid] = future
        return await future

    async def _run(self, unit: Unit, command: Command, timeout: float) -> int:
        """Run one helper command to its end and return its status; a time-out kills it."""
        if command.may_fail and not program_exists(command.path):
            self._note(f"{unit.name.text}: {command.path} is not on this machine, passed over")
            return EXIT_EXEC
        pid, future = self._spawn(unit, command, {})
        try:
            code = await asyncio.wait_for(asyncio.shield(future), None if timeout == float("inf") else timeout)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return -signal.SIGKILL
        return code

    # --- one life --------------------------------------------------------------------------------------------

    def _set(self, unit: Unit, state: str, sub: str) -> None:
        if (unit.state, unit.sub) != (state, sub):
            if state == "active" and unit.state != "active":
                unit.active_since = time.monotonic()
            unit.state, unit.sub = state, sub
            self._note(f"{unit.name.text}: {state} ({sub})")
            self._changed()

    def _finish_job(self, unit: Unit, error: StartError | None = None) -> None:
        job, unit.job = unit.job, None
        if job is not None and not job.done():
            if error is None:
                job.set_result(None)
            else:
                job.set_exception(error)

    async def _await_order(self, unit: Unit) -> None:
        """Wait for the pending starts of the units that come first; a circle is not waited for."""
        for text in unit.service.after:
            before = self.units.get(text)
            if before is None or before.job is None or self._leads_to(before, unit.name.text):
                continue
            unit.waits_for.add(text)
            await asyncio.wait([before.job])
            unit.waits_for.discard(text)

    def _leads_to(self, unit: Unit, goal: str) -> bool:
        return goal in unit.waits_for or any(
            self._leads_to(self.units[text], goal) for text in unit.waits_for if text in self.units
        )

    def _check_start_limit(self, unit: Unit) -> None:
        now = time.monotonic()
        interval, burst = unit.service.start_limit_interval, unit.service.start_limit_burst
        unit.started = [at for at in unit.started if now - at < interval]
        if interval > 0 and burst > 0 and len(unit.started) >= burst:
            raise StartError("start-limit-hit", f"{unit.name.text}: Start request repeated too quickly.")
        unit.started.append(now)

    async def _life(self, unit: Unit) -> None:
        """Start, stay, and start again as ``Restart=`` says, until it is over."""
        await self._await_order(unit)
        while True:
            try:
                self._check_start_limit(unit)
                main = await self._start_once(unit)
            except StartError as error:
                self._note(str(error))
                if error.result == "skipped":
                    self._rest(unit)
                    return
                unit.result = error.result
                # `start` without --no-block ends with the first attempt, also when more will follow.
                self._finish_job(unit, StartError(error.result, f"Job for {unit.name.text} failed: {error.result}."))
                self._set(unit, "deactivating", "stop-sigterm")
                await self._kill_all(unit)
            else:
                self._finish_job(unit)
                if main is None:
                    return
                code = await asyncio.shield(main)
                self._ended(unit, code)
                self._set(unit, "deactivating", "stop-sigterm")
                await self._kill_all(unit)
            await self._stop_post(unit)
            if unit.job is not None:
                continue
            if not self._restarts(unit):
                self._rest(unit)
                return
            self._set(unit, "activating", "auto-restart")
            await asyncio.sleep(unit.service.restart_sec)
            unit.restarts += 1

    def _rest(self, unit: Unit) -> None:
        unit.life = None
        unit.main_pid = 0
        if unit.result == "success":
            self._set(unit, "inactive", "dead")
            self._finish_job(unit)
        else:
            self._set(unit, "failed", "failed")
        self._collect(unit)

    def _ended(self, unit: Unit, code: int) -> None:
        unit.status = code if code >= 0 else -code
        clean = code == 0 or code in unit.service.success_status or (code < 0 and -code in _CLEAN_SIGNALS)
        unit.result = "success" if clean else ("exit-code" if code > 0 else "signal")
        shown = f"status={code}" if code >= 0 else f"signal={signal.Signals(-code).name}"
        self._note(f"{unit.name.text}: main process {unit.main_pid} ended, {shown}")
        unit.main_pid = 0

    def _restarts(self, unit: Unit) -> bool:
        if unit.result == "start-limit-hit":
            return False
        match unit.service.restart:
            case "always":
                return unit.service.kind != "oneshot" or unit.result != "success"
            case "on-success":
                return unit.result == "success"
            case "on-failure":
                return unit.result != "success"
            case "on-abnormal":
                return unit.result in {"signal", "timeout"}
            case "on-abort":
                return unit.result == "signal"
            case _:
                return False

    async def _start_once(self, unit: Unit) -> asyncio.Future[int] | None:
        """One attempt; returns the exit of the main process, None for a oneshot that is done."""
        service = unit.service
        if not all(condition_met(key, value) for key, value in service.conditions):
            raise StartError("skipped", f"{unit.name.text}: a condition is not met, not started")
        if not service.commands["ExecStart"]:
            raise StartError("resources", f"{unit.name.text}: no ExecStart= setting, refusing")
        unit.invocation = uuid.uuid4().hex
        unit.roots = set()
        unit.ready = asyncio.Event()
        unit.result, unit.text = "success", ""
        self._order.append(unit.name.text)
        self._set(unit, "activating", "start-pre" if service.commands["ExecStartPre"] else "start")
        make_folders(service)
        for command in service.commands["ExecStartPre"]:
            code = await self._run(unit, command, service.timeout_start)
            if code != 0 and not command.may_fail:
                raise StartError("exit-code", f"{unit.name.text}: {command.path} ended with status {code}")
        self._set(unit, "activating", "start")
        if service.kind == "oneshot":
            return await self._oneshot(unit)
        main = await self._main(unit)
        for command in service.commands["ExecStartPost"]:
            await self._run(unit, command, service.timeout_start)
        self._set(unit, "active", "running")
        return main

    async def _oneshot(self, unit: Unit) -> asyncio.Future[int] | None:
        for command in unit.service.commands["ExecStart"]:
            code = await self._run(unit, command, float("inf"))
            unit.status = code
            if code != 0 and not command.may_fail:
                raise StartError("exit-code", f"{unit.name.text}: {command.path} ended with status {code}")
        if unit.service.remain_after_exit:
            self._set(unit, "active", "exited")
            return None
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        done.set_result(0)
        return done

    async def _main(self, unit: Unit) -> asyncio.Future[int]:
        """Start the main process and wait until it counts as up."""
        command = unit.service.commands["ExecStart"][-1]
        if unit.service.kind != "notify":
            unit.main_pid, main = self._spawn(unit, command, {})
            if unit.service.kind == "exec":
                # Up once the program runs; a failed exec ends at once with its own status.
                await asyncio.wait([main], timeout=0.05)
                if main.done() and main.result() == EXIT_EXEC:
                    self._ended(unit, EXIT_EXEC)
                    raise StartError("exit-code", f"{unit.name.text}: {command.path} could not be started")
            return main
        with NotifySocket(unit.name.text, unit, self._changed) as path:
            unit.main_pid, main = self._spawn(unit, command, {"NOTIFY_SOCKET": path})
            self._changed()
            ready: asyncio.Future[Any] = asyncio.ensure_future(unit.ready.wait())
            limit = unit.service.timeout_start
            try:
                either: list[asyncio.Future[Any]] = [main, ready]
                await asyncio.wait(
                    either,
                    timeout=None if limit == float("inf") else limit,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                ready.cancel()
        if main.done():
            self._ended(unit, main.result())
            # Ending with 0 before being ready is a failure of protocol for the job, and no success to restart on.
            raise StartError("protocol" if unit.result == "success" else unit.result)
        if not unit.ready.is_set():
            raise StartError("timeout", f"{unit.name.text}: start operation timed out")
        return main

    async def _kill_all(self, unit: Unit) -> None:
        """End what is left of an invocation, as ``KillMode`` says, and wait for it."""
        mode = unit.service.kill_mode
        if not unit.invocation or mode == "none":
            return
        whole = mode in {"control-group", "mixed"}
        first = int(getattr(signal, unit.service.kill_signal, signal.SIGTERM))

        def targets() -> set[int]:
            if whole:
                return members_of(unit.invocation, unit.roots)
            return {unit.main_pid} if unit.main_pid in self._exits else set()

        def send(pids: set[int], number: int) -> None:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

        alive = targets()
        main = {unit.main_pid} & alive
        send(main if mode == "mixed" and main else alive, first)
        deadline = time.monotonic() + unit.service.timeout_stop
        pause = 0.005
        while alive and time.monotonic() < deadline:
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.1)
            alive = targets()
        send(alive, signal.SIGKILL)
        while alive:
            await asyncio.sleep(0.01)
            alive = targets()
        unit.main_pid = 0

    async def _stop_post(self, unit: Unit) -> None:
        with contextlib.suppress(StartError):
            for command in unit.service.commands["ExecStopPost"]:
                await self._run(unit, command, unit.service.timeout_stop)
