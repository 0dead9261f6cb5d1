"""Small files that are whole or absent, with their modes from the first moment on.

A stand-in may be killed at any instruction, so a file appears by rename. There is no fsync: the lab's power cut
kills processes, and what the kernel has taken stays.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["folder", "link", "read", "write"]


def folder(path: Path, mode: int = 0o700) -> Path:
    """Make ``path`` and what is missing above it; ``mode`` is for folders that are made here."""
    if not path.is_dir():
        folder(path.parent, mode)
        path.mkdir(mode=mode, exist_ok=True)
    return path


def write(path: Path, data: str | bytes, mode: int = 0o600) -> None:
    """Put ``data`` in ``path`` at once."""
    folder(path.parent)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.fchmod(descriptor, mode)
        with os.fdopen(descriptor, "wb", closefd=False) as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
    finally:
        os.close(descriptor)
    new.replace(path)


def link(path: Path, target: Path) -> None:
    """Make ``path`` a symbolic link to the absolute ``target``."""
    if path.is_symlink() and path.readlink() == target:
        return
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)


def read(path: Path) -> str:
    """The text of ``path``; empty when it does not exist."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
