r"""Atomic files, and environment files that systemd and a shell read back as they were written.

Follows spec/provider.md 3.8.1, without its defects: an environment file is written whole (a key that left the
configuration leaves the file), nothing is world-readable, and only what a reader unescapes is escaped.

A reader of an environment file is one of two: systemd's ``EnvironmentFile=`` or a POSIX shell that sources it
(OpenRC). Inside double quotes both undo a backslash before exactly ``"``, ``\``, ``$`` and the back-tick, and both
keep a line break; neither touches ``!`` or ``%``. So there is one spelling for both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from provider_kairos.errors import ConfigError, HostError, PermissionHostError

__all__ = ["host_error", "parse_env", "read_text", "remove", "render_env", "write_atomic", "write_env"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ESCAPED = re.compile(r'([\\"`$])')

_REMEDIES = {
    errno.EACCES: "run as root, or give this user the right to write there",
    errno.EPERM: "run as root",
    errno.ENOSPC: "the disk is full: free some space, nothing was changed",
    errno.EDQUOT: "the quota is used up: nothing was changed",
    errno.EROFS: "the file system is read-only: mount it writable",
    errno.ENOTDIR: "a file stands where a directory should be: move it away",
    errno.EISDIR: "a directory stands where the file should be: move it away",
}


def host_error(action: str, path: Path | str, error: OSError) -> HostError:
    """The typed error for a failed file operation, with a remedy where there is a known one."""
    kind = PermissionHostError if error.errno in {errno.EACCES, errno.EPERM} else HostError
    return kind(f"cannot {action} {path}: {error.strerror}", hint=_REMEDIES.get(error.errno or 0, ""))


def write_atomic(path: Path | str, data: bytes | str, mode: int = 0o600, *, directory_mode: int = 0o755) -> None:
    """Replace ``path`` by ``data``: whole or not at all, also across a power cut.

    The bytes are on disk before the name points to them, and the directory entry is on disk before this returns.
    Missing directories are made with ``directory_mode``. A symbolic link at ``path`` is followed, so that files
    that an image keeps elsewhere stay where they are.

    Raises:
        HostError: Full disk, read-only file system, missing right; ``path`` is then unchanged.
    """
    target = Path(os.path.realpath(path))
    raw = data.encode("utf-8") if isinstance(data, str) else data
    temporary = ""
    try:
        target.parent.mkdir(mode=directory_mode, parents=True, exist_ok=True)
        # mkstemp: a name that nobody can foresee, mode 0600 from the first byte on.
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(temporary, target)  # noqa: PTH105  # the temporary name is text from mkstemp
            temporary = ""
        finally:
            if temporary:
                with contextlib.suppress(OSError):  # the first error is the one to report
                    os.unlink(temporary)  # noqa: PTH108  # likewise
        sync_directory(target.parent)
    except OSError as error:
        raise host_error("write", path, error) from error


def sync_directory(path: Path | str) -> None:
    """Put a directory's entries on disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems (overlay upper on old kernels, FUSE) cannot sync a directory; the rename is still atomic.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


def read_text(path: Path | str, *, limit: int = 16 * 1024 * 1024) -> str | None:
    """The text of a file, or None when there is none.

    Bytes that are not UTF-8 become U+FFFD: what is read here is compared and parsed, never written back.

    Raises:
        HostError: It exists but cannot be read, or is larger than ``limit`` bytes.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise host_error("read", path, error) from error
    if len(raw) > limit:
        raise HostError(f"{path} is larger than {limit} bytes", hint="move it away")
    return raw.decode("utf-8", "replace")


def remove(path: Path | str) -> bool:
    """Delete a file and put that on disk; False when there was none. Raises HostError."""
    target = Path(path)
    try:
        target.unlink()
        sync_directory(target.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise host_error("delete", path, error) from error
    return True


def render_env(values: Mapping[str, str]) -> str:
    """An environment file's text: sorted, one ``NAME="value"`` each.

    Raises:
        ConfigError: A name that no shell and no systemd accepts, or a value with a NUL or a lone surrogate; the
            message names the variable, never its value.
    """
    lines = []
    for name in sorted(values):
        value = values[name]
        if not _NAME.match(name):
            raise ConfigError(
                f"environment variable {name!r} is not a name", hint="use letters, digits and underscores"
            )
        if "\0" in value:
            raise ConfigError(f"environment variable {name} contains a NUL byte")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(f"environment variable {name} is not valid text") from error
        escaped = _ESCAPED.sub(r"\\\1", value)
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)


def write_env(path: Path | str, values: Mapping[str, str], mode: int = 0o600) -> None:
    """Write an environment file, whole: what is not in ``values`` is not in the file afterwards."""
    write_atomic(path, render_env(values), mode)


def parse_env(text: str) -> dict[str, str]:
    """Read an environment file by systemd's rules (systemd.exec, ``EnvironmentFile=``).

    Comments start with ``#`` or ``;``; a value may be bare, in single or in double quotes, or several of these in a
    row; a backslash at a line's end joins lines. Lines without ``=`` or with a bad name are passed over, as systemd
    does. The last of two equal names wins.
    """
    found: dict[str, str] = {}
    position, end = 0, len(text)
    while position < end:
        while position < end and text[position] in " \t\r\n":
            position += 1
        if position < end and text[position] in "#;":
            position = _skip_comment(text, position)
            continue
        start = position
        while position < end and text[position] not in "=\r\n":
            position += 1
        name = text[start:position].rstrip()
        if position >= end or text[position] != "=":
            continue
        value, position = _env_value(text, position + 1)
        if _NAME.match(name):
            found[name] = value
    return found


def _skip_comment(text: str, position: int) -> int:
    end = len(text)
    while position < end and text[position] not in "\r\n":
        position += 2 if text[position] == "\\" else 1
    return position


def _env_value(text: str, position: int) -> tuple[str, int]:
    """The value from just after ``=``, and where the next line starts."""
    parts: list[str] = []
    end = len(text)
    while position < end and text[position] not in "\r\n":
        char = text[position]
        if char == "'":
            close = text.find("'", position + 1)
            close = end if close < 0 else close
            parts.append(text[position + 1 : close])
            position = close + 1
        elif char == '"':
            part, position = _double_quoted(text, position + 1)
            parts.append(part)
        elif char in " \t":  # before, between and after quoted parts
            position += 1
        else:
            part, position = _bare(text, position)
            parts.append(part)
    return "".join(parts), position + 1


def _double_quoted(text: str, position: int) -> tuple[str, int]:
    parts: list[str] = []
    end = len(text)
    while position < end and text[position] != '"':
        if text[position] == "\\" and position + 1 < end:
            position += 1
            follower = text[position]
            parts.append("" if follower == "\n" else follower if follower in '"\\`$' else "\\" + follower)
        else:
            parts.append(text[position])
        position += 1
    return "".join(parts), position + 1


def _bare(text: str, position: int) -> tuple[str, int]:
    """From the first bare character on, quotes are characters and the value runs to the end of the line."""
    parts: list[str] = []
    end, keep = len(text), 0
    while position < end and text[position] not in "\r\n":
        char = text[position]
        if char == "\\":
            position += 1
            if position < end and text[position] not in "\r\n":
                parts.append(text[position])
            keep = len(parts)
        else:
            parts.append(char)
            if char not in " \t":
                keep = len(parts)
        position += 1
    return "".join(parts[:keep]), position
