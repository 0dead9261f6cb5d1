"""Unit files: text and drop-ins in, one typed service out (systemd.unit(5), systemd.service(5)).

What the lab's service manager understands is what Kairos, k3s and our own units use; a key that it does not
know is reported and passed over, as systemd does. Reading directories is :mod:`.unitfiles`' job, running
:mod:`.services`'. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from provider_kairos.lab.unitwords import (
    UnitSyntaxError,
    expand_specifiers,
    parse_duration,
    split_words,
    valid_variable,
)

__all__ = ["Command", "EnvironmentFileRef", "Service", "UnitName", "parse_service", "parse_unit_text"]

_COMMENT: Final = ("#", ";")
_LIMITS: Final = {
    "LimitNOFILE",
    "LimitNPROC",
    "LimitCORE",
    "LimitMEMLOCK",
    "LimitSTACK",
    "LimitFSIZE",
    "LimitAS",
    "LimitDATA",
    "LimitCPU",
}
_EXEC_KEYS: Final = ("ExecStartPre", "ExecStart", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost")
# Understood and deliberately without effect: cgroup accounting, journal, identity of one user, ordering of sockets.
_WITHOUT_EFFECT: Final = {
    "Delegate",
    "TasksMax",
    "User",
    "Group",
    "OOMScoreAdjust",
    "SyslogIdentifier",
    "Documentation",
    "Description",
    "Alias",
    "Also",
    "DefaultInstance",
    "DefaultDependencies",
    "WantedBy",
    "RequiredBy",
    "Slice",
    "AmbientCapabilities",
    "CapabilityBoundingSet",
    "NotifyAccess",
    "TimeoutAbortSec",
    "TTYPath",
    "StandardInput",
    "Nice",
    "PartOf",
    "Conflicts",
    "Before",
    "CPUAccounting",
    "MemoryAccounting",
    "LogLevelMax",
}


@dataclass(frozen=True, slots=True)
class UnitName:
    """A unit's name in its parts: ``edgevpn@kairos.service`` is prefix, instance and type."""

    prefix: str
    instance: str | None
    kind: str

    @classmethod
    def parse(cls, text: str) -> UnitName:
        """Read a name as ``systemctl`` takes it: without a suffix it is a service. Raises UnitSyntaxError."""
        base, dot, kind = text.rpartition(".")
        if not dot or kind not in {"service", "target", "socket", "timer", "mount", "path", "slice", "scope"}:
            base, kind = text, "service"
        if not base or not re.fullmatch(r"[A-Za-z0-9:_.\\@-]+", base):
            raise UnitSyntaxError(f"invalid unit name {text!r}")
        prefix, at, instance = base.partition("@")
        return cls(prefix, instance if at else None, kind)

    @property
    def text(self) -> str:
        """The whole name."""
        return f"{self.prefix}{'' if self.instance is None else '@' + self.instance}.{self.kind}"

    @property
    def template(self) -> str | None:
        """The name of the template file of an instance; None for others."""
        return f"{self.prefix}@.{self.kind}" if self.instance else None

    def specifiers(self, *, host: str, machine_id: str) -> dict[str, str]:
        """What ``%x`` means in this unit's file."""
        instance = self.instance or ""
        name = self.text.removesuffix(f".{self.kind}")
        return {
            "i": instance,
            "I": _unescape(instance),
            "n": self.text,
            "N": name,
            "p": self.prefix,
            "P": _unescape(self.prefix),
            "H": host,
            "l": host.partition(".")[0],
            "m": machine_id,
            "t": "/run",
            "S": "/var/lib",
            "C": "/var/cache",
            "L": "/var/log",
            "E": "/etc",
            "T": "/tmp",
            "V": "/var/tmp",
            "h": "/root",
            "u": "root",
            "U": "0",
        }


def _unescape(text: str) -> str:
    """Undo systemd-escape: a dash is a slash, ``x2d`` behind a backslash a byte."""
    return re.sub(r"\\x([0-9a-fA-F]{2})", lambda m: chr(int(m[1], 16)), text.replace("-", "/"))


@dataclass(frozen=True, slots=True)
class Command:
    """One command line: ``argv`` before variables are replaced; the flags come from its prefix characters."""

    path: str
    argv: tuple[str, ...]
    may_fail: bool = False
    expands: bool = True


@dataclass(frozen=True, slots=True)
class EnvironmentFileRef:
    """One ``EnvironmentFile=``; ``optional`` when it began with a dash."""

    path: str
    optional: bool


@dataclass(slots=True)
class Service:
    """A service as its files say it should run; durations in seconds."""

    name: str
    description: str = ""
    kind: str = "simple"
    commands: dict[str, list[Command]] = field(default_factory=lambda: {key: [] for key in _EXEC_KEYS})
    environment: dict[str, str] = field(default_factory=dict)
    environment_files: list[EnvironmentFileRef] = field(default_factory=list)
    restart: str = "no"
    restart_sec: float = 0.1
    timeout_start: float = 90.0
    timeout_stop: float = 90.0
    remain_after_exit: bool = False
    kill_mode: str = "control-group"
    kill_signal: str = "SIGTERM"
    success_status: frozenset[int] = frozenset()
    start_limit_interval: float = 10.0
    start_limit_burst: int = 5
    limits: dict[str, str] = field(default_factory=dict)
    working_directory: str = "/"
    umask: int = 0o022
    folders: list[tuple[str, str]] = field(default_factory=list)
    output: str = ""
    conditions: list[tuple[str, str]] = field(default_factory=list)
    wants: list[str] = field(default_factory=list)
    requires: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def parse_unit_text(text: str) -> list[tuple[str, str, str]]:
    """The assignments of one file in order: (section, key, value). Comments and continuations are handled."""
    assignments: list[tuple[str, str, str]] = []
    section = ""
    pending = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(_COMMENT) or (not line and not pending):
            continue
        line = pending + line
        if line.endswith("\\") and not line.endswith("\\\\"):
            pending = line[:-1] + " "
            continue
        pending = ""
        if line.startswith("[") and line.rstrip().endswith("]"):
            section = line.strip()[1:-1]
        elif "=" in line:
            key, _, value = line.partition("=")
            assignments.append((section, key.strip(), value.strip()))
    if pending and "=" in pending:
        key, _, value = pending.partition("=")
        assignments.append((section, key.strip(), value.strip()))
    return assignments


def _boolean(value: str) -> bool:
    if value.lower() in {"1", "yes", "y", "true", "t", "on"}:
        return True
    if value.lower() in {"0", "no", "n", "false", "f", "off"}:
        return False
    raise UnitSyntaxError(f"{value!r} is neither yes nor no")


def _commands(value: str, specifiers: Mapping[str, str]) -> list[Command]:
    commands: list[Command] = []
    group: list[str] = []
    # A bare ";" separates commands; split first with a mark that no word can hold.
    for word in [*split_words(re.sub(r"(?<=\s);(?=\s|$)", "\x00", value)), "\x00"]:
        if word != "\x00":
            # The mark inside of a longer word was a semicolon between quotes; an escaped one stands for itself.
            group.append(";" if word == "\\;" else word.replace("\x00", ";"))
            continue
        if group:
            commands.append(_command(group, specifiers))
        group = []
    return commands


def _command(words: list[str], specifiers: Mapping[str, str]) -> Command:
    path = words[0]
    flags = ""
    while path and path[0] in "-@:+!|":
        flags += path[0]
        path = path[1:]
    arguments = [expand_specifiers(word, specifiers) for word in words[1:]]
    path = expand_specifiers(path, specifiers)
    if not path:
        raise UnitSyntaxError("empty path in a command line")
    first = path
    if "@" in flags:
        if not arguments:
            raise UnitSyntaxError("'@' wants a name for the program")
        first, *arguments = arguments
    return Command(path, (first, *arguments), "-" in flags, ":" not in flags)


_DURATIONS: Final = {
    "RestartSec": "restart_sec",
    "TimeoutStartSec": "timeout_start",
    "TimeoutStopSec": "timeout_stop",
    "StartLimitIntervalSec": "start_limit_interval",
    "StartLimitInterval": "start_limit_interval",
}
_CHOICES: Final = {
    "Type": ("kind", {"simple", "exec", "notify", "oneshot", "idle", "forking"}),
    "Restart": ("restart", {"no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog"}),
    "KillMode": ("kill_mode", {"control-group", "process", "mixed", "none"}),
}
_TEXTS: Final = {"Description": "description", "KillSignal": "kill_signal", "WorkingDirectory": "working_directory"}
_LISTS: Final = {"Wants": "wants", "Requires": "requires", "BindsTo": "requires", "After": "after"}
_FOLDERS: Final = {
    "RuntimeDirectory": "/run",
    "StateDirectory": "/var/lib",
    "LogsDirectory": "/var/log",
    "CacheDirectory": "/var/cache",
}


def _assign(service: Service, key: str, value: str, specifiers: Mapping[str, str]) -> None:
    """Apply one assignment; raises UnitSyntaxError when the value is wrong, KeyError when the key is unknown."""
    if key in _EXEC_KEYS:
        if value:
            service.commands[key] += _commands(value, specifiers)
        else:
            service.commands[key] = []
    elif key == "Environment":
        if not value:
            service.environment = {}
        for word in split_words(value):
            name, equals, content = expand_specifiers(word, specifiers).partition("=")
            if not equals or not valid_variable(name):
                raise UnitSyntaxError(f"{word!r} is no assignment")
            service.environment[name] = content
    elif key == "EnvironmentFile":
        if not value:
            service.environment_files = []
        else:
            path = expand_specifiers(value.removeprefix("-"), specifiers)
            service.environment_files.append(EnvironmentFileRef(path, value.startswith("-")))
    elif key in _DURATIONS:
        seconds = parse_duration(value)
        if key.startswith("Timeout") and seconds == 0:
            seconds = float("inf")
        setattr(service, _DURATIONS[key], seconds)
    elif key == "TimeoutSec":
        service.timeout_start = service.timeout_stop = parse_duration(value) or float("inf")
    elif key in _CHOICES:
        name, allowed = _CHOICES[key]
        if value not in allowed:
            raise UnitSyntaxError(f"{value!r} is not known here")
        setattr(service, name, value)
    elif key in _TEXTS:
        setattr(service, _TEXTS[key], expand_specifiers(value.removeprefix("-"), specifiers))
    elif key in _LISTS:
        names = getattr(service, _LISTS[key])
        names.extend(expand_specifiers(word, specifiers) for word in value.split())
    elif key in _FOLDERS:
        service.folders += [(_FOLDERS[key], expand_specifiers(word, specifiers)) for word in value.split()]
    elif key in _LIMITS:
        service.limits[key] = value
    elif key == "RemainAfterExit":
        service.remain_after_exit = _boolean(value)
    elif key == "StartLimitBurst":
        service.start_limit_burst = int(value) if value.isdigit() else service.start_limit_burst
    elif key == "SuccessExitStatus":
        service.success_status |= {int(word) for word in value.split() if word.isdigit()}
    elif key == "UMask":
        service.umask = int(value, 8)
    elif key in {"StandardOutput", "StandardError"}:
        if key == "StandardOutput" and value.startswith(("append:", "file:", "truncate:")):
            service.output = expand_specifiers(value.partition(":")[2], specifiers)
    elif key.startswith("Condition"):
        service.conditions.append((key, expand_specifiers(value, specifiers)))
    elif key not in _WITHOUT_EFFECT:
        raise KeyError(key)


def parse_service(name: UnitName, texts: list[tuple[str, str]], *, host: str, machine_id: str) -> Service:
    """Read a unit file and its drop-ins, in that order, as (origin, text); never raises for what users wrote.

    What is wrong is collected in ``problems``, one sentence each, with the origin.
    """
    service = Service(name.text)
    specifiers = name.specifiers(host=host, machine_id=machine_id)
    for origin, text in texts:
        for section, key, value in parse_unit_text(text):
            try:
                _assign(service, key, value, specifiers)
            except KeyError:
                service.problems.append(f"{origin}: unknown key {key!r} in section [{section}], passed over")
            except (UnitSyntaxError, ValueError) as error:
                service.problems.append(f"{origin}: {key}: {error}, passed over")
    return service
