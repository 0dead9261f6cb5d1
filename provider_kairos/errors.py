"""The error tree and the typed reasons of waiting.

::

    ProviderError
      ConfigError      the user's file: path, line, column, hint
        TokenError     the network token: which field and why
      PeerError        what a peer did: counted and logged, never ends the process
      HostError        the machine: which command, file or capability, and what to do
        PermissionHostError   a missing right
        UnreachableError      a daemon, socket or address that does not answer
        TimeoutHostError      something did not happen in the time that was given
      NotFoundError    something that was asked for by name does not exist (yet)
      UsageError       the command line: an unknown flag, one without its value
      LocalError       our own misuse: a bug
    Waiting            not an error: a typed reason, printed, never raised

Each class names the exit code that the command line uses for it (docs/reference/exit-codes.md).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

__all__ = [
    "ConfigError",
    "ExitCode",
    "HostError",
    "LocalError",
    "NotFoundError",
    "PeerError",
    "PermissionHostError",
    "ProviderError",
    "TimeoutHostError",
    "TokenError",
    "UnreachableError",
    "UsageError",
    "Waiting",
]


class ExitCode(IntEnum):
    """Exit codes of the command line; distinct and documented."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CONFIG = 3
    NOT_FOUND = 4
    TIMEOUT = 5
    PERMISSION = 6
    UNREACHABLE = 7
    HOST = 8
    WAITING = 9
    BUG = 70


class ProviderError(Exception):
    """Base of everything that this program raises on purpose.

    ``message`` names the thing and what is wrong with it; ``hint`` says what to do about it.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILURE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(ProviderError):
    """The user's file is wrong. ``line`` and ``column`` count from 1; 0 means unknown."""

    exit_code = ExitCode.CONFIG

    def __init__(self, message: str, *, path: str = "", line: int = 0, column: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.line = line
        self.column = column

    def __str__(self) -> str:
        place = self.path
        if self.line:
            place = f"{place or 'line'}:{self.line}:{self.column}"
        text = super().__str__()
        return f"{place}: {text}" if place else text


class TokenError(ConfigError):
    """The network token is wrong. ``field`` is the key path, as in ``otp.crypto.interval``; may be empty."""

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(f"network token: {field}: {message}" if field else f"network token: {message}", hint=hint)
        self.field = field


class PeerError(ProviderError):
    """A peer sent something that it should not have sent. Never ends the process."""


class HostError(ProviderError):
    """The machine lacks or refuses something: the message names it, the hint is the remedy."""

    exit_code = ExitCode.HOST


class PermissionHostError(HostError):
    """A right is missing (root, CAP_NET_ADMIN, a file mode)."""

    exit_code = ExitCode.PERMISSION


class UnreachableError(HostError):
    """A daemon, socket or address does not answer."""

    exit_code = ExitCode.UNREACHABLE


class TimeoutHostError(HostError):
    """Something did not happen in the time that was given."""

    exit_code = ExitCode.TIMEOUT


class NotFoundError(ProviderError):
    """Something that was asked for by name does not exist, or not yet."""

    exit_code = ExitCode.NOT_FOUND


class UsageError(ProviderError):
    """The command line is wrong; the hint says what to write."""

    exit_code = ExitCode.USAGE


class LocalError(ProviderError):
    """Our own misuse of our own parts: a bug."""

    exit_code = ExitCode.BUG


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a node does not go on yet; a value, never raised.

    Subclasses are frozen dataclasses whose fields hold the facts; ``code`` is a stable word for
    programs, :meth:`text` the sentence that status, log and API all print.
    """

    code: ClassVar[str] = "waiting"

    def text(self) -> str:
        """One sentence for people."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, object]:
        """``{"code": ..., "text": ..., <fields>}``, as the API and ``--json`` print it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"code": self.code, "text": self.text(), **fields}
