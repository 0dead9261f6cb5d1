"""Text for systemd and for OpenRC that means exactly the given values (spec/provider.md 3.8, defect 26).

The only place where an env file or a command line of a unit is written or read; files and units are others' affair.

Env files are read by systemd and sourced by shells. Inside double quotes both take a backslash away before the same
four characters and leave everything else alone, so one form serves both; values are always quoted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from enum import Enum, auto

from provider_kairos.errors import ConfigError, LocalError

__all__ = ["openrc_command_args", "parse_env_file", "systemd_env_file", "systemd_exec"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# systemd ignores an assignment with any other control character, without a word
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_BINARY = re.compile(r"/[A-Za-z0-9/._+-]+")
_SAFE = re.compile(r"[A-Za-z0-9@:=,./_+^~!#*?()\[\]{}<>|&%$-]+")
_WHITE = " \t\n\r"
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
        LocalError: nothing to start, no plain absolute path of a binary, or a NUL or lone surrogate in an argument.
    """
    binary, *arguments = list(argv) or [""]
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

    Raises:
        LocalError: an argument with a control character other than tab and newline, or with a lone surrogate.
    """
    command = " ".join([*map(shlex.quote, arguments), f">>{shlex.quote(log_path)}", "2>&1"])
    if _CONTROL.search(command):
        raise LocalError("an argument contains a character that no command line can hold")
    return f"command_args={_double_quoted(command)}\n"


def parse_env_file(text: str) -> dict[str, str]:
    """The variables of an env file as systemd reads them; names that it would refuse are left out.

    The states are systemd's own: quotes count at the beginning of a value and right after another quoted part, from
    the first bare character on they are characters. A value that ends nowhere ends with the file.
    """
    reader = _EnvReader()
    for c in text:
        reader.feed(c)
    if reader.state not in {_State.KEY_FIRST, _State.KEY, _State.COMMENT, _State.COMMENT_ESCAPE}:
        reader.finish()
    return {name: value for name, value in reader.found.items() if _NAME.fullmatch(name)}


class _State(Enum):
    KEY_FIRST = auto()
    KEY = auto()
    COMMENT = auto()
    COMMENT_ESCAPE = auto()
    VALUE_FIRST = auto()
    VALUE = auto()
    VALUE_ESCAPE = auto()
    SINGLE = auto()
    DOUBLE = auto()
    DOUBLE_ESCAPE = auto()


class _EnvReader:
    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.state = _State.KEY_FIRST
        self.key = ""
        self.value: list[str] = []
        self.kept = 0  # white space at the end of a bare value does not count

    def finish(self) -> None:
        self.found[self.key.strip(_WHITE)] = "".join(
            self.value[: self.kept] if self.state is _State.VALUE else self.value
        )
        self.key, self.value, self.kept = "", [], 0
        self.state = _State.KEY_FIRST

    def put(self, *characters: str) -> None:
        self.value += characters
        self.kept = len(self.value)

    def feed(self, c: str) -> None:
        match self.state:
            case _State.KEY_FIRST:
                if c in "#;":
                    self.state = _State.COMMENT
                elif c not in _WHITE:
                    self.key, self.state = c, _State.KEY
            case _State.KEY:
                if c in "\n\r":
                    self.key, self.state = "", _State.KEY_FIRST
                elif c == "=":
                    self.state = _State.VALUE_FIRST
                else:
                    self.key += c
            case _State.COMMENT:
                self.state = _State.COMMENT_ESCAPE if c == "\\" else _State.KEY_FIRST if c in "\n\r" else _State.COMMENT
            case _State.COMMENT_ESCAPE:
                self.state = _State.COMMENT
            case _State.VALUE_FIRST | _State.VALUE:
                self._bare(c)
            case _State.VALUE_ESCAPE:
                self.state = _State.VALUE
                if c not in "\n\r":
                    self.put(c)
            case _State.SINGLE:
                if c == "'":
                    self.state = _State.VALUE_FIRST
                else:
                    self.put(c)
            case _State.DOUBLE:
                if c == '"':
                    self.state = _State.VALUE_FIRST
                elif c == "\\":
                    self.state = _State.DOUBLE_ESCAPE
                else:
                    self.put(c)
            case _State.DOUBLE_ESCAPE:
                self.state = _State.DOUBLE
                if c in '"\\`$':
                    self.put(c)
                elif c != "\n":
                    self.put("\\", c)

    def _bare(self, c: str) -> None:
        first = self.state is _State.VALUE_FIRST
        if c in "\n\r":
            self.finish()
        elif c == "\\":
            self.state = _State.VALUE_ESCAPE
            self.kept = len(self.value)
        elif first and c in "'\"":
            self.state = _State.SINGLE if c == "'" else _State.DOUBLE
        elif c not in _WHITE:
            self.state = _State.VALUE
            self.put(c)
        elif not first:
            self.value.append(c)
