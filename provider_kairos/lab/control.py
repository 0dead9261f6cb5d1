"""What ``systemctl`` can ask of the lab's service manager, and the exact words and statuses of the answers.

Verbs, exit statuses and texts follow systemctl(1) of systemd 252. An order is a JSON object with ``verb``,
``units`` and options; the answer is ``{"code", "out", "err"}``.
"""

from __future__ import annotations

import asyncio
import fnmatch
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from provider_kairos.lab.services import Manager, StartError, Unit
from provider_kairos.lab.unitfiles import UnitNotFoundError
from provider_kairos.lab.units import UnitName
from provider_kairos.lab.unitwords import UnitSyntaxError

__all__ = ["Control"]

_NOT_RUNNING: Final = 3
_NO_SUCH_UNIT: Final = 4
_NOT_LOADED: Final = 5


def _last_lines(path: str, count: int) -> list[str]:
    try:
        text = Path(path).read_text("utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()[-count:] if count else []


class _Answer:
    def __init__(self) -> None:
        self.code = 0
        self.out: list[str] = []
        self.err: list[str] = []

    def fail(self, code: int, text: str = "") -> None:
        self.code = self.code or code
        if text:
            self.err.append(text)

    def as_dict(self) -> dict[str, Any]:
        out = "".join(f"{line}\n" for line in self.out)
        return {"code": self.code, "out": out, "err": "".join(f"{line}\n" for line in self.err)}


class Control:
    """Answers orders. ``end`` begins the shutdown of the box with an exit status."""

    def __init__(self, manager: Manager, *, end: Callable[[int], None]) -> None:
        self._manager = manager
        self._end = end
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order."""
        answer = _Answer()
        verb = str(order.get("verb", ""))
        method = getattr(self, "_do_" + verb.replace("-", "_"), None)
        if method is None:
            answer.fail(1, f"Unknown command verb {verb}.")
            return answer.as_dict()
        try:
            await method(answer, self._names(order), order)
        except UnitSyntaxError as error:
            answer.fail(1, str(error))
        return answer.as_dict()

    def _names(self, order: dict[str, Any]) -> list[UnitName]:
        names: list[UnitName] = []
        for text in order.get("units", []):
            if any(char in text for char in "*?["):
                pattern = text if text.endswith((".service", ".target")) else f"{text}.service"
                names += [u.name for key, u in self._manager.units.items() if fnmatch.fnmatch(key, pattern)]
            else:
                names.append(UnitName.parse(text))
        return names

    # --- start and stop --------------------------------------------------------------------------------------

    async def _job(self, answer: _Answer, order: dict[str, Any], name: UnitName, *, stop: bool, start: bool) -> None:
        manager = self._manager
        try:
            unit = manager.peek(name) if name.kind == "service" else None
        except UnitNotFoundError:
            answer.fail(_NOT_LOADED, f"Failed to {order['verb']} {name.text}: Unit {name.text} not found.")
            return
        if unit is not None and start and name.text in manager.units and manager.needs_reload(unit):
            answer.err.append(
                f"Warning: The unit file, source configuration file or drop-ins of {name.text} changed on disk. "
                "Run 'systemctl daemon-reload' to reload units."
            )

        async def work() -> None:
            if stop:
                await manager.stop(name)
            if start:
                await manager.start(name)

        if order.get("no_block"):
            # A masked unit is refused at once; everything else shows in the unit's state.
            if start and unit is not None and unit.source.masked:
                answer.fail(1, f"Failed to {order['verb']} {name.text}: Unit {name.text} is masked.")
                return
            if start and not stop:
                manager.start(name)
                return
            task = asyncio.ensure_future(work())
            self._tasks.add(task)
            task.add_done_callback(self._forget)
            return
        try:
            await work()
        except StartError as error:
            answer.fail(1, str(error))

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def _each(self, answer: _Answer, names: list[UnitName], order: dict[str, Any], **how: bool) -> None:
        if not names:
            answer.fail(1, "Too few arguments.")
        await asyncio.gather(*(self._job(answer, order, name, stop=how["stop"], start=how["start"]) for name in names))

    async def _do_start(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        await self._each(answer, names, order, stop=False, start=True)

    async def _do_stop(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        await self._each(answer, names, order, stop=True, start=False)

    async def _do_restart(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        await self._each(answer, names, order, stop=True, start=True)

    _do_reload_or_restart = _do_restart

    async def _do_try_restart(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        running = [n for n in names if n.text in self._manager.units and self._manager.units[n.text].state == "active"]
        if running:
            await self._each(answer, running, order, stop=True, start=True)

    async def _do_kill(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        text = str(order.get("signal") or "SIGTERM")
        number = int(text) if text.isdigit() else int(signal.Signals[text if text.startswith("SIG") else f"SIG{text}"])
        for name in names:
            unit = self._manager.units.get(name.text)
            if unit is None:
                answer.fail(1, f"Failed to kill unit {name.text}: Unit {name.text} not loaded.")
            else:
                self._manager.kill(unit, number, main_only=order.get("kill_whom") == "main")

    async def _do_reset_failed(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        del answer, order
        chosen = {name.text for name in names}
        for unit in list(self._manager.units.values()):
            if not chosen or unit.name.text in chosen:
                self._manager.reset_failed(unit)

    # --- files -----------------------------------------------------------------------------------------------

    async def _do_daemon_reload(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        del answer, names, order
        self._manager.reload()

    _do_daemon_reexec = _do_daemon_reload

    async def _files(
        self,
        answer: _Answer,
        names: list[UnitName],
        order: dict[str, Any],
        change: Callable[[UnitName], list[str]],
    ) -> bool:
        for name in names:
            try:
                answer.err += [] if order.get("quiet") else change(name)
            except UnitNotFoundError:
                answer.fail(1, f"Failed to {order['verb']} unit: Unit file {name.text} does not exist.")
            except FileExistsError as error:
                answer.fail(1, f"Failed to {order['verb']} unit: {error}")
        # enable, disable and mask reload the manager's configuration, as systemctl(1) says.
        self._manager.reload()
        return answer.code == 0

    async def _do_enable(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        runtime = bool(order.get("runtime"))
        if await self._files(answer, names, order, lambda n: self._manager.files.enable(n, runtime=runtime)):
            self._warn_static(answer, names, order)
            if order.get("now"):
                await self._each(answer, names, order, stop=False, start=True)

    def _warn_static(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        for name in names:
            if self._manager.files.state(name) == "static" and not order.get("quiet"):
                answer.err.append("The unit files have no installation config ([Install] section).")

    async def _do_disable(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        if await self._files(answer, names, order, self._manager.files.disable) and order.get("now"):
            await self._each(answer, names, order, stop=True, start=False)

    async def _do_mask(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        runtime = bool(order.get("runtime"))
        done = await self._files(answer, names, order, lambda n: self._manager.files.mask(n, runtime=runtime))
        if done and order.get("now"):
            await self._each(answer, names, order, stop=True, start=False)

    async def _do_unmask(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        await self._files(answer, names, order, self._manager.files.unmask)

    async def _do_cat(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        del order
        for name in names:
            try:
                for origin, text in self._manager.files.read(name).texts:
                    answer.out += [f"# {origin}", text]
            except UnitNotFoundError:
                answer.fail(1, f"No files found for {name.text}.")

    # --- questions -------------------------------------------------------------------------------------------

    def _peek(self, name: UnitName) -> Unit | None:
        try:
            return self._manager.peek(name)
        except UnitNotFoundError:
            return None

    async def _do_is_active(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        units = [self._peek(name) for name in names]
        answer.out += [] if order.get("quiet") else [unit.state if unit else "inactive" for unit in units]
        # One active unit is enough, as systemctl(1) says.
        if not any(unit is not None and unit.state == "active" for unit in units):
            answer.code = _NOT_RUNNING

    async def _do_is_failed(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        units = [self._peek(name) for name in names]
        answer.out += [] if order.get("quiet") else [unit.state if unit else "inactive" for unit in units]
        answer.code = 0 if any(unit is not None and unit.state == "failed" for unit in units) else 1

    async def _do_is_enabled(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        good = False
        for name in names:
            try:
                state = self._manager.files.state(name)
            except UnitNotFoundError:
                answer.err.append(
                    f"Failed to get unit file state for {name.text}: No such file or directory",
                )
                continue
            good = good or state in {"enabled", "enabled-runtime", "static"}
            answer.out += [] if order.get("quiet") else [state]
        if order.get("quiet"):
            answer.err = []
        answer.code = 0 if good else 1

    async def _do_is_system_running(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        del names
        failed = any(unit.state == "failed" for unit in self._manager.units.values())
        answer.out += [] if order.get("quiet") else ["degraded" if failed else "running"]
        answer.code = 1 if failed else 0

    def _properties(self, name: UnitName) -> dict[str, str]:
        unit = self._peek(name)
        if unit is None:
            return {"Id": name.text, "LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead"}
        try:
            file_state = self._manager.files.state(name)
        except UnitNotFoundError:
            file_state = ""
        service = unit.service
        command = service.commands["ExecStart"]
        return {
            "Id": name.text,
            "Names": name.text,
            "Description": service.description or name.text,
            "LoadState": "masked" if unit.source.masked else "loaded",
            "ActiveState": unit.state,
            "SubState": unit.sub,
            "Result": unit.result,
            "Type": service.kind,
            "Restart": service.restart,
            "RestartUSec": f"{service.restart_sec:g}s",
            "NRestarts": str(unit.restarts),
            "MainPID": str(unit.main_pid),
            "ExecMainStatus": str(unit.status),
            "ExecStart": " ".join(command[-1].argv) if command else "",
            "StatusText": unit.text,
            "FragmentPath": unit.source.fragment,
            "DropInPaths": " ".join(origin for origin, _ in unit.source.texts[1:]),
            "UnitFileState": file_state,
            "NeedDaemonReload": "yes" if self._manager.needs_reload(unit) else "no",
            "InvocationID": unit.invocation,
            "LimitNOFILE": service.limits.get("LimitNOFILE", ""),
        }

    async def _do_show(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        wanted = [word for text in order.get("properties", []) for word in text.split(",")]
        for index, name in enumerate(names):
            if index:
                answer.out.append("")
            properties = self._properties(name)
            for key in wanted or properties:
                if key in properties:
                    answer.out.append(properties[key] if order.get("value") else f"{key}={properties[key]}")

    async def _do_status(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        lines = int(order.get("lines") or 10)
        for name in names:
            unit = self._peek(name)
            if unit is None:
                answer.fail(_NO_SUCH_UNIT, f"Unit {name.text} could not be found.")
                continue
            shown = self._properties(name)
            loaded = f"loaded ({unit.source.fragment}; {shown['UnitFileState']})"
            mark = {"active": "●", "failed": "x", "activating": "●"}.get(unit.state, "○")
            answer.out += [
                f"{mark} {name.text} - {shown['Description']}",
                f"     Loaded: {loaded}",
                f"     Active: {unit.state} ({unit.sub}), result {unit.result}, restarts {unit.restarts}",
                f"   Main PID: {unit.main_pid}",
                f"        Log: {unit.log}",
                "",
            ]
            answer.out += _last_lines(unit.log, lines)
            if unit.state not in {"active", "activating"}:
                answer.fail(_NOT_RUNNING)

    async def _do_list_units(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        chosen = {name.text for name in names}
        show_all = bool(order.get("all"))
        for text, unit in sorted(self._manager.units.items()):
            if (not chosen or text in chosen) and (show_all or unit.state != "inactive"):
                described = unit.service.description
                answer.out.append(f"{text:<32} loaded {unit.state:<12} {unit.sub:<14} {described}".rstrip())

    async def _do_list_unit_files(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        del order
        chosen = {name.text for name in names}
        for text in self._manager.files.names():
            if not chosen or text in chosen:
                answer.out.append(f"{text:<32} {self._manager.files.state(UnitName.parse(text))}")

    # --- the machine -----------------------------------------------------------------------------------------

    async def _do_poweroff(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        del answer, names, order
        self._end(0)

    _do_halt = _do_poweroff

    async def _do_reboot(self, answer: _Answer, names: list[UnitName], order: dict[str, Any]) -> None:
        del answer, names, order
        self._end(64)
