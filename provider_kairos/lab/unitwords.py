"""systemd's little languages: words with quotes and escapes, specifiers, ``$VAR``, environment files, durations.

Follows systemd.syntax(7), systemd.unit(5) "Specifiers", systemd.service(5) "Command lines" and systemd.exec(5)
``EnvironmentFile=`` as systemd 252 behaves. Text in, values out; standard library only, since the first
process of every box is built from this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = [
    "UnitSyntaxError",
    "expand_arguments",
    "expand_specifiers",
    "parse_duration",
    "parse_environment_file",
    "split_words",
    "valid_variable",
]

_SPACE: Final = " \t\n\r"
_SIMPLE_ESCAPES: Final = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    '"': '"',
    "'": "'",
    "s": " ",
}
_CODE_ESCAPES: Final = {"x": 2, "u": 4, "U": 8}
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACED: Final = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_UNITS: Final = {
    "us": 1e-6,
    "usec": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "": 1.0,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "seconds": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "minutes": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
    "hours": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
    "days": 86400.0,
}


class UnitSyntaxError(ValueError):
    """A value that systemd would refuse; the setting is then ignored with this text in the log."""


def _escape(text: str, at: int) -> tuple[str, int]:
    """The character for the escape whose letter is at ``at``, and the index after it.

    An unknown escape stays as it is, backslash included, as in systemd's relaxed mode.
    """
    letter = text[at]
    if letter in _SIMPLE_ESCAPES:
        return _SIMPLE_ESCAPES[letter], at + 1
    if letter in _CODE_ESCAPES:
        digits = text[at + 1 : at + 1 + _CODE_ESCAPES[letter]]
        if len(digits) == _CODE_ESCAPES[letter] and all(c in "0123456789abcdefABCDEF" for c in digits):
            return chr(int(digits, 16)), at + 1 + len(digits)
    octal = text[at : at + 3]
    if len(octal) == 3 and all(c in "01234567" for c in octal):
        return chr(int(octal, 8)), at + 3
    return "\\" + letter, at + 1


def split_words(text: str) -> list[str]:
    """Split a value into words; quotes group, C escapes are undone inside and outside of quotes.

    Raises UnitSyntaxError for a quote that is never closed or a backslash at the very end.
    """
    words: list[str] = []
    word: list[str] | None = None
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            if at + 1 >= len(text):
                raise UnitSyntaxError("the line ends in a backslash")
            piece, at = _escape(text, at + 1)
            word = [*(word or []), piece]
            continue
        at += 1
        if quote:
            assert word is not None
            if char == quote:
                quote = ""
            else:
                word.append(char)
        elif char in "\"'":
            quote = char
            word = word or []
        elif char in _SPACE:
            if word is not None:
                words.append("".join(word))
            word = None
        else:
            word = [*(word or []), char]
    if quote:
        raise UnitSyntaxError("unbalanced quoting")
    if word is not None:
        words.append("".join(word))
    return words


def expand_specifiers(text: str, specifiers: Mapping[str, str]) -> str:
    """Replace ``%i`` and its like; ``%%`` is a percent sign, an unknown letter stays as it is."""
    if "%" not in text:
        return text
    out: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "%" and at + 1 < len(text):
            letter = text[at + 1]
            out.append("%" if letter == "%" else specifiers.get(letter, char + letter))
            at += 2
        else:
            out.append(char)
            at += 1
    return "".join(out)


def expand_arguments(words: list[str], environment: Mapping[str, str]) -> list[str]:
    """Replace variables as systemd does when it starts a command (never in the path of the program).

    ``$NAME`` as a word of its own becomes zero or more words; ``${NAME}`` anywhere is replaced in place;
    ``$$`` is a dollar sign; ``$NAME`` inside a word stays. Unset variables are empty.
    """
    out: list[str] = []
    for word in words:
        if len(word) > 1 and word[0] == "$" and word[1] not in "{$":
            value = environment.get(word[1:], "")
            try:
                out.extend(split_words(value))
            except UnitSyntaxError:
                out.extend(value.split())
        else:
            out.append(_BRACED.sub(lambda m: environment.get(m[1], "") if m[1] else "$", word))
    return out


def valid_variable(name: str) -> bool:
    """Whether ``name`` may be the name of an environment variable."""
    return _VARIABLE.fullmatch(name) is not None


def _quoted(text: str, at: int, quote: str) -> tuple[str, int]:
    """The inside of a quoted piece that starts at ``at``, and the index after its closing quote."""
    out: list[str] = []
    while at < len(text) and text[at] != quote:
        if text[at] == "\\" and quote == '"' and at + 1 < len(text):
            at += 1
            if text[at] in '"\\`$':
                out.append(text[at])
            elif text[at] != "\n":
                out.append("\\" + text[at])
        else:
            out.append(text[at])
        at += 1
    return "".join(out), at + 1


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that starts at ``at`` (after the equals sign) and the index of the next line."""
    out: list[str] = []
    bare = 0  # how many trailing pieces are unquoted white space, which is dropped
    while at < len(text) and text[at] not in "\n\r":
        char = text[at]
        if char in "\"'" and (not out or bare == 0 or bare == len(out)):
            piece, at = _quoted(text, at + 1, char)
            out.append(piece)
            bare = 0
            continue
        at += 1
        if char == "\\" and at < len(text):
            if text[at] not in "\n\r":
                out.append(text[at])
            bare = 0
            at += 1
        elif char in " \t":
            if out:
                out.append(char)
                bare += 1
        else:
            out.append(char)
            bare = 0
    return "".join(out[: len(out) - bare]), at + 1


def parse_environment_file(text: str) -> dict[str, str]:
    """The variables of an ``EnvironmentFile``: shell-like assignments, quotes, backslashes, comments.

    No variable is expanded. Lines without ``=`` and names that are no names are passed over.
    """
    variables: dict[str, str] = {}
    at = 0
    while at < len(text):
        if text[at] in _SPACE:
            at += 1
            continue
        if text[at] in "#;":
            while at < len(text) and text[at] != "\n":
                at += 2 if text[at] == "\\" else 1
            continue
        end = at
        while end < len(text) and text[end] not in "=\n":
            end += 1
        name = text[at:end].strip()
        if end >= len(text) or text[end] == "\n":
            at = end + 1
            continue
        value, at = _value(text, end + 1)
        if valid_variable(name):
            variables[name] = value
    return variables


def parse_duration(text: str) -> float:
    """Seconds of a systemd time span: ``5``, ``100ms``, ``1min 20s``, ``infinity``; raises UnitSyntaxError."""
    text = text.strip()
    if text == "infinity":
        return float("inf")
    total = 0.0
    rest = text
    while rest:
        match = re.match(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", rest)
        if match is None or match[2] not in _UNITS:
            raise UnitSyntaxError(f"{text!r} is no time span")
        total += float(match[1]) * _UNITS[match[2]]
        rest = rest[match.end() :]
    if not text:
        raise UnitSyntaxError("an empty time span")
    return total
