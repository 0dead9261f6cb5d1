"""How the daemon's variables are read: one row per variable, and the forms that their values take.

A row names the environment variable, EdgeVPN's flag for the same thing, the field that it fills, how its text is read
and what it is for; ``settings`` reads the environment by these rows, the flags and the reference are made from them.
Specification: spec/edgevpn.md 12 (names and forms of Go's flag library).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provider_kairos.errors import ConfigError

__all__ = [
    "Refused",
    "Row",
    "Variable",
    "WithoutEffect",
    "parse_bool",
    "parse_duration",
    "parse_interface",
    "parse_list",
    "parse_number",
    "parse_path",
    "parse_text",
    "read_fields",
]

Parser = Callable[[str, str], object]


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable. ``field`` is an attribute of the group's settings; ``flag`` is EdgeVPN's, empty when it has none.

    A field whose default is a tuple is read from a list with commas, and its flag may be repeated.
    """

    name: str
    field: str
    parse: Parser
    words: str
    flag: str = ""


@dataclass(frozen=True, slots=True)
class WithoutEffect:
    """A variable of EdgeVPN's that is read and named in log, status and reference, and does nothing; ``why``.

    ``anyway`` is the value that asks for what is done in any case, which nobody needs to hear of. ``parse`` says what
    form a value has: one that cannot be read is refused all the same. ``name`` is empty where EdgeVPN has a flag only.
    """

    name: str
    why: str
    flag: str = ""
    parse: Parser = field(default=lambda _name, text: text)
    anyway: object = None

    def told(self, text: str) -> bool:
        """Whether a value is worth a word. Raises ConfigError for one that cannot be read."""
        return bool(text) and self.parse(self.name or self.flag, text) != self.anyway


@dataclass(frozen=True, slots=True)
class Refused:
    """A variable or flag of EdgeVPN's that must not be passed over: to do without it would be wrong.

    ``why`` it is refused, ``instead`` what to write; either of ``name`` and ``flag`` may be empty. ``parse`` and
    ``anyway`` as in :class:`WithoutEffect`: a value that asks for what is done in any case passes.
    """

    name: str
    why: str
    instead: str
    flag: str = ""
    parse: Parser = field(default=lambda _name, text: text)
    anyway: object = None

    def check(self, name: str, text: str) -> None:
        """Raises ConfigError for a value; ``name`` is what the user wrote, variable or flag."""
        if text and self.parse(name, text) != self.anyway:
            raise ConfigError(f"{name} is refused: {self.why}", hint=self.instead)


Row = Variable | WithoutEffect | Refused


def read_fields(variables: Iterable[Variable], environ: Mapping[str, str]) -> dict[str, Any]:
    """Field to value for every variable that is set. An empty one counts as unset, as Go's flag library has it.

    Raises ConfigError that names the variable.
    """
    return {row.field: row.parse(row.name, text) for row in variables if (text := environ.get(row.name, ""))}


_TRUE = {"1", "t", "true"}
_FALSE = {"0", "f", "false"}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_bool(name: str, text: str) -> bool:
    """A boolean as Go's flag parser reads it: 1, t, true, 0, f, false in any of its capitalisations."""
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ConfigError(f"{name}={text!r} is neither true nor false", hint="write true or false")


def parse_number(name: str, text: str) -> int:
    """A whole number that is not negative."""
    try:
        number = int(text.strip())
    except ValueError:
        raise ConfigError(f"{name}={text!r} is not a whole number") from None
    if number < 0:
        raise ConfigError(f"{name}={text!r} is negative")
    return number


def parse_duration(name: str, text: str) -> float:
    """Seconds of a Go duration (``15s``, ``1m30s``); a bare number counts as seconds."""
    stripped = text.strip()
    if stripped.isdigit():
        return float(stripped)
    position, total = 0, 0.0
    for match in _DURATION.finditer(stripped):
        if match.start() != position:
            break
        total += float(match[1]) * _UNITS[match[2]]
        position = match.end()
    if not stripped or position != len(stripped):
        raise ConfigError(f"{name}={text!r} is not a duration", hint="for example 30s or 1m30s")
    return total


def parse_list(_name: str, text: str) -> tuple[str, ...]:
    """Comma-separated items; empty ones fall away."""
    return tuple(item for part in text.split(",") if (item := part.strip()))


def parse_text(_name: str, text: str) -> str:
    """The text without surrounding blanks."""
    return text.strip()


def parse_path(_name: str, text: str) -> Path:
    """A path; ``~`` is the home."""
    return Path(text.strip()).expanduser()


def parse_interface(name: str, text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    """An address that a node can have, with its prefix length."""
    try:
        interface = ipaddress.ip_interface(text.strip())
    except ValueError:
        raise ConfigError(f"{name}={text!r} is not an address with a prefix", hint="for example 10.1.0.30/24") from None
    if "/" not in text:
        # EdgeVPN refuses it; a single address without a network reaches nobody
        prefix = 24 if interface.version == 4 else 64
        raise ConfigError(f"{name}={text!r} has no prefix length", hint=f"write {text.strip()}/{prefix}")
    if interface.is_multicast or interface.is_unspecified or interface.is_loopback or interface.is_link_local:
        raise ConfigError(f"{name}={text!r} is no address that others could reach", hint="for example 10.1.0.30/24")
    return interface
