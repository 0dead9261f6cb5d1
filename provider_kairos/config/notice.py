"""What is said about a user's file: places, notices, and the error that carries all errors.

A notice is a value: the provider logs it, ``validate`` prints it. It never holds the value of a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from provider_kairos.errors import ConfigError

__all__ = ["InvalidConfigError", "Mark", "Notice", "Severity"]

Severity = Literal["warning", "error"]


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in a text; both numbers count from 1, 0 means unknown."""

    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """One remark about a file.

    ``severity`` is ``error`` for what cannot work as written although every type is right: the provider still
    goes as far as it can, ``validate`` fails.
    """

    path: str
    line: int
    column: int
    key: str
    message: str
    hint: str = ""
    severity: Severity = "warning"

    def __str__(self) -> str:
        place = (
            f"{self.path or 'line'}:{self.line}:{self.column}: " if self.line else f"{self.path}: " if self.path else ""
        )
        subject = f"{self.key}: " if self.key else ""
        return f"{place}{subject}{self.message}" + (f" ({self.hint})" if self.hint else "")


class InvalidConfigError(ConfigError):
    """The first of all errors in a file; ``others`` holds the rest, in the order of the file."""

    def __init__(  # the place and the words of the first error, as ConfigError takes them
        self,
        message: str,
        *,
        path: str = "",
        line: int = 0,
        column: int = 0,
        hint: str = "",
        key: str = "",
        others: Sequence[ConfigError] = (),
    ) -> None:
        super().__init__(message, path=path, line=line, column=column, hint=hint)
        self.key = key
        self.others = tuple(others)
