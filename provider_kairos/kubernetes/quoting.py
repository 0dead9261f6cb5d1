"""Text for systemd and for OpenRC that means exactly the given values (spec/provider.md 3.8, defect 26).

Env files are read by systemd and sourced by shells. Inside double quotes both take a backslash away before the same
four characters and leave everything else alone, so one form serves both; values are always quoted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

from provider_kairos.errors import ConfigError, LocalError

__all__ = ["openrc_command_args", "parse_env_file", "systemd_env_file", "systemd_exec"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# systemd ignores an assignment with any other control character, without a word
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_BINARY = re.compile(r"/[A-Za-z0-9/._+-]+")
_SAFE = re.compile(r"[A-Za-z0-9@:=,./_+^~!#*?()\[\]{}<>|&%$-]+")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def systemd_env_file(environment: Mapping[str, str]) -> str:
    """``NAME="value"`` lines sorted by name, for EnvironmentFile= and for a shell's dot command.

    Raises:
        ConfigError: a name that is no variable name, or a value with a control character other than tab and newline
            (the value is not shown).
    """
    lines = []
    for name in sorted(environment):
        value = environment[name]
        if not _NAME.fullmatch(name):
            raise ConfigError(f"env: {name!r} is no name of an environment variable", hint="letters, digits and _ only")
        if _CONTROL.search(value):
            raise ConfigError(
                f"env: the value of {name} contains a control character", hint="tab and newline are allowed"
            )
        lines.append(f"{name}={_double_quoted(value)}\n")
    return "".join(lines)


def _double_quoted(value: str) -> str:
    return '"' + re.sub(r'(["\\`$])', r"\\\1", value) + '"'


def systemd_exec(argv: Iterable[str]) -> str:
    """The text after ``ExecStart=`` that starts exactly ``argv``.

    Raises:
        LocalError: no absolute path of a binary, or a NUL or lone surrogate in an argument.
    """
    binary, *arguments = argv
    if not _BINARY.fullmatch(binary):
        raise LocalError(f"{binary!r} is no absolute path that a unit can start")
    return " ".join([binary, *map(_exec_word, arguments)])


def _exec_word(word: str) -> str:
    if re.search(r"[\x00\ud800-\udfff]", word):
        raise LocalError("an argument contains a character that no command line can hold")
    # specifiers and variables are expanded inside quotes too
    doubled = word.replace("%", "%%").replace("$", "$$")
    if _SAFE.fullmatch(word):
        return doubled
    return (
        '"' + "".join(_ESCAPES.get(c) or (f"\\x{ord(c):02x}" if c < " " or c == "\x7f" else c) for c in doubled) + '"'
    )


def openrc_command_args(arguments: Iterable[str], log_path: str) -> str:
    """``command_args=...`` for an env file that an OpenRC script sources.

    OpenRC evaluates the variable once more as shell text, so every argument is quoted for a shell first. A newline in
    an argument survives; output goes to ``log_path`` as the original has it.
    """
    command = " ".join([*map(shlex.quote, arguments), f">>{shlex.quote(log_path)}", "2>&1"])
    if _CONTROL.search(command):
        raise LocalError("an argument contains a character that no command line can hold")
    return f"command_args={_double_quoted(command)}\n"


def parse_env_file(text: str) -> dict[str, str]:
    """The variables of an env file as systemd reads them; lines that it would ignore are ignored."""
    found: dict[str, str] = {}
    at, end = 0, len(text)
    while at < end:
        line_end = text.find("\n", at)
        line_end = end if line_end < 0 else line_end
        head = text[at:line_end].lstrip(" \t\r")
        if not head or head[0] in "#;" or "=" not in head:
            at = line_end + 1
            continue
        equals = text.index("=", at)
        name = text[at:equals].strip()
        value, at = _env_value(text, equals + 1)
        if _NAME.fullmatch(name):
            found[name] = value
    return found


def _env_value(text: str, at: int) -> tuple[str, int]:
    """The value from ``at`` on and where the next line starts."""
    out: list[str] = []
    kept = 0  # trailing white space counts only inside quotes
    quote = ""
    while at < len(text) and text[at] in " \t":
        at += 1
    while at < len(text):
        c = text[at]
        at += 1
        if quote == "'":
            if c == quote:
                quote = ""
            else:
                out.append(c)
            kept = len(out)
        elif c == "\\" and at < len(text):
            following = text[at]
            at += 1
            if following != "\n":
                out.append(following if not quote or following in '"\\`$' else c + following)
            kept = len(out)
        elif quote:
            if c == quote:
                quote = ""
            else:
                out.append(c)
            kept = len(out)
        elif c == "\n":
            break
        elif c in "'\"":
            quote = c
            kept = len(out)
        else:
            out.append(c)
            kept = len(out) if c not in " \t\r" else kept
    return "".join(out[:kept]), at
