"""The file that is being received: ``PATH.part`` beside its place, hashed, and renamed when it is whole.

What an earlier attempt left is gone on with; whether it is the beginning of the right file is for the sender to say,
who gets its digest. Nothing outside ``PATH`` and ``PATH.part`` is touched, and neither is followed when it is a link.
All calls block; the receiver makes them in a worker thread.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from pathlib import Path

from provider_kairos.errors import HostError, NotFoundError, PermissionHostError, UsageError

__all__ = ["PartFile", "destination"]

_PIECE = 1 << 20
_DEFAULT_MODE = 0o755
"""EdgeVPN's for received files, whose mode it does not tell; the umask counts in any case."""


def destination(path: str, name: str) -> Path:
    """Where the file ``name`` goes when the user says ``path``: that file, or below that directory.

    Raises UsageError when a name, which another node chose, is no plain file name, NotFoundError without directory.
    """
    wanted = Path(path)
    if wanted.is_dir():
        if name in {".", ".."} or "/" in name or "\0" in name:
            raise UsageError(f"{name!r} is no file name", hint="name the file to write, not only its directory")
        wanted /= name
    if not wanted.parent.is_dir():
        raise NotFoundError(f"there is no directory {wanted.parent}")
    if wanted.exists() and not wanted.is_file():
        raise UsageError(f"{wanted} is no ordinary file")
    return wanted


class PartFile:
    """An open ``PATH.part``. Raises HostError, PermissionHostError: the machine says no."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self.size = 0
        self._digest = hashlib.sha256()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._fd = os.open(self.part, flags, 0o600)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise HostError(f"{self.part} is a link", hint="move it away") from error
            raise _told(error, self.part) from error
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise HostError(f"{self.part} is no ordinary file", hint="move it away")
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while piece := os.read(self._fd, _PIECE):
                self._digest.update(piece)
                self.size += len(piece)
        except BlockingIOError as error:
            self.close()
            raise HostError(f"another command is receiving {path}", hint="wait for it, or name another file") from error
        except OSError as error:
            self.close()
            raise _told(error, self.part) from error
        except BaseException:
            self.close()
            raise

    @property
    def sha256(self) -> str:
        """Of what is there now, in hex."""
        return self._digest.hexdigest()

    def start_over(self) -> None:
        """Forget what is there."""
        try:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        except OSError as error:
            raise _told(error, self.part) from error
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append."""
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._fd, view)
                self._digest.update(view[:written])
                self.size += written
                view = view[written:]
        except OSError as error:
            raise _told(error, self.part) from error

    def finish(self, mode: int | None) -> None:
        """Give the file its mode and its name, safe on disk. Never more rights than reading, writing and running."""
        umask = _umask()
        wanted = (_DEFAULT_MODE if mode is None else (mode & 0o777) | 0o600) & ~umask
        try:
            os.fchmod(self._fd, wanted)
            os.fsync(self._fd)
            self.part.rename(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise _told(error, self.path) from error

    def discard(self) -> None:
        """Remove what is there: it is not what it should be."""
        self.part.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; it stays as it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _told(error: OSError, path: Path) -> HostError:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return PermissionHostError(f"{path} may not be written by this user", hint="name another place")
    hint = "make room" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "check the disk and the mount"
    return HostError(f"cannot write {path}: {error.strerror}", hint=hint)
