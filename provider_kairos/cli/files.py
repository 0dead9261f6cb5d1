"""Reading what a user names on the command line: a file, standard input, or a variable."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from provider_kairos.errors import ConfigError, HostError, NotFoundError, PermissionHostError

__all__ = ["read_bytes"]

LIMIT = 16 << 20


def read_bytes(name: str | None, *, variable: str = "", environ: Mapping[str, str] | None = None) -> tuple[bytes, str]:
    """Content and a name for messages. ``-`` is standard input; without a name the variable, then standard input.

    Raises NotFoundError, PermissionHostError, HostError, or ConfigError for what is far too large.
    """
    if name is None and variable and (text := (os.environ if environ is None else environ).get(variable)):
        return text.encode("utf-8", "surrogateescape"), f"${variable}"
    if name is None or name == "-":
        data, shown = sys.stdin.buffer.read(LIMIT + 1), "standard input"
    else:
        shown = name
        try:
            with Path(name).open("rb") as file:
                data = file.read(LIMIT + 1)
        except FileNotFoundError:
            raise NotFoundError(f"there is no file {name}") from None
        except PermissionError:
            raise PermissionHostError(f"{name} may not be read by this user", hint="run as root") from None
        except OSError as error:
            raise HostError(f"cannot read {name}: {error.strerror}") from error
    if len(data) > LIMIT:
        raise ConfigError(f"more than {LIMIT >> 20} MiB", path=shown)
    return data, shown
