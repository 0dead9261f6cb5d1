"""EdgeVPN's flags, for scripts that have them: each becomes the environment variable that the daemon reads.

The rows of the settings say which flags there are (spec/edgevpn.md 12.2, 12.3), the forms are those of Go's flag
library: ``--name value``, ``--name=value``, one dash as good as two, a boolean alone or with ``=``, lists repeated or
with commas, the last of the others wins, ``--`` ends them. Stricter than EdgeVPN: a flag that stands behind an argument
is refused (there it is ignored), and so is the token, because every user of a machine sees the arguments.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache

from provider_kairos.daemon.environment import Refused, Row, Variable, parse_bool
from provider_kairos.daemon.settings import all_refused, all_variables, all_without_effect
from provider_kairos.errors import UsageError

__all__ = ["MAIN_ONLY", "daemon_environ", "is_list", "split", "takes_value"]

MAIN_ONLY = frozenset(
    {
        "--address",
        "--api",
        "--api-listen",
        "--debug",
        "--dhcp",
        "--dns",
        "--dns-cache-size",
        "--dns-forward-server",
        "--dns-forwarder",
        "--egress",
        "--egress-announce-time",
        "--enable-healthchecks",
        "--interface",
        "--key-otp-interval",
        "--lease-dir",
        "--router",
        "--transient-conn",
        "-b",
        "-g",
    }
)
"""Flags of EdgeVPN's main command (and its ``api``) alone; all others are understood by every command of its."""

_CONFIG = Variable("EDGEVPNCONFIG", "", lambda _name, text: text, "a file with the network's YAML", "--config")

_ELSEWHERE = {
    "--listen": "--api-listen is the API's place, --dns the name server's",
    "--network-token": "set the variable EDGEVPNTOKEN",
    "--version": "kairos-p2p version",
    "-v": "kairos-p2p version",
}
"""Flags of other commands or programs that people try here."""


def takes_value(row: Row) -> bool:
    """Whether the flag is followed by a value; booleans are not."""
    return row.parse is not parse_bool


@cache
def _lists() -> frozenset[str]:
    """Flags of fields that hold several values."""
    return frozenset(
        row.flag
        for kind, row in all_variables()
        for each in fields(kind)
        if each.name == row.field and isinstance(each.default, tuple)
    )


def is_list(row: Row) -> bool:
    """Whether a repeated flag adds to what it said before."""
    return row.flag in _lists()


def daemon_environ(arguments: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of ``kairos-p2p daemon`` with these arguments; a flag wins over its variable.

    Raises UsageError and ConfigError as :func:`split` does, and for positional arguments.
    """
    variables, rest = split(arguments, main=True)
    if rest:
        raise UsageError("the daemon takes flags only, no other arguments", hint="kairos-p2p daemon --help")
    return {**environ, **variables}


def split(
    arguments: Sequence[str], *, own: Mapping[str, bool] | None = None, main: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Divide a command line into EdgeVPN's flags and the rest.

    Args:
        arguments: What follows the command's name.
        own: The command's own flags, with both dashes, and whether each is followed by a value; they win over flags of
            the same name here and stay in the rest, for the command to read.
        main: Understand the flags of EdgeVPN's main command too, not only those that all its commands have.

    Returns:
        The variables that the flags stand for (to be laid over the environment; a flag without a variable under its own
        name), and the rest: own flags with their values, then positional arguments.

    Raises:
        UsageError: An unknown or refused flag, one without its value, one behind a positional argument.
        ConfigError: A value that cannot be read; the flag is named.
    """
    rows = _rows(main=main)
    own = own or {}
    variables: dict[str, str] = {}
    kept: list[str] = []
    positionals: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument == "--":
            positionals += queue
            break
        if not argument.startswith("-") or argument == "-":
            positionals.append(argument)
            continue
        name, equals, value = _dashes(argument).partition("=")
        if name in own:
            kept.append(argument)
            if own[name] and not equals:
                kept.append(_next(name, queue))
            continue
        row = rows.get(name)
        if row is None:
            raise _unknown(argument.partition("=")[0], name, [*rows, *own])
        if positionals:
            raise UsageError(f"{name} stands behind an argument", hint="flags come first")
        if takes_value(row):
            value = value if equals else _next(name, queue)
        elif not equals:
            value = "true"
        _take(row, name, value, variables)
    return variables, [*kept, *positionals]


def _rows(*, main: bool) -> dict[str, Row]:
    rows: list[Row] = [_CONFIG, *(row for _, row in all_variables()), *all_without_effect(), *all_refused()]
    return {row.flag: row for row in rows if row.flag and (main or row.flag not in MAIN_ONLY)}


def _dashes(argument: str) -> str:
    """The argument with as many dashes as the tables write: one before a letter, else two."""
    bare = argument.removeprefix("-").removeprefix("-")
    return f"-{bare}" if len(bare.partition("=")[0]) == 1 else f"--{bare}"


def _next(name: str, queue: list[str]) -> str:
    if not queue:
        raise UsageError(f"{name} needs a value")
    return queue.pop(0)


def _take(row: Row, name: str, value: str, variables: dict[str, str]) -> None:
    if isinstance(row, Refused):
        if row.parse is not parse_bool or parse_bool(name, value):
            raise UsageError(f"{name} is refused: {row.why}", hint=row.instead)
        return
    if value:
        row.parse(name, value)
    key = row.name or row.flag
    if is_list(row) and variables.get(key):
        value = f"{variables[key]},{value}"
    variables[key] = value


def _unknown(written: str, name: str, known: Sequence[str]) -> UsageError:
    if name in _ELSEWHERE:
        return UsageError(f"there is no flag {written}", hint=_ELSEWHERE[name])
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return UsageError(f"there is no flag {written}", hint=f"the nearest is {near[0]}" if near else "")
