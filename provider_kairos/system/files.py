"""Atomic files: written whole or not at all, private unless told otherwise (spec/provider.md 3.8.1).

What an environment file or a unit says is written by ``provider_kairos.quoting``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from provider_kairos.errors import HostError, PermissionHostError

__all__ = ["host_error", "read_text", "remove", "write_atomic"]

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
