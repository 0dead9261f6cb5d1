"""``lab logs``: the files that the services of a box write, read through the box's own root."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from provider_kairos.errors import NotFoundError
from provider_kairos.lab.enter import enter
from provider_kairos.lab.model import LabError

__all__ = ["log_files", "show_logs"]

_FOLDERS: Final = ("/var/log/lab", "/var/log/kairos")
_PAUSE: Final = 0.2


def log_files(unit: str, root: str = "/") -> list[Path]:
    """The files of one unit (by name, with or without its suffix), or all of them; raises NotFoundError."""
    files = [p for f in _FOLDERS for p in sorted(Path(root, f.lstrip("/")).glob("*.log"))]
    if not unit:
        return files
    wanted = unit.removesuffix(".service").removesuffix(".log")
    chosen = [path for path in files if path.stem == wanted]
    if not chosen:
        known = ", ".join(path.stem for path in files)
        raise NotFoundError(f"no log of {unit!r} in this box", hint=f"there are: {known}")
    return chosen


def _tail(text: str, lines: int) -> str:
    return "".join(text.splitlines(keepends=True)[-lines:]) if lines else text


def show_logs(pid: int, unit: str, *, lines: int, follow: bool) -> int:
    """Print the logs of the box whose first process is ``pid``; raises LabError and NotFoundError."""
    try:
        enter(pid)
    except OSError as error:
        raise LabError(f"cannot enter the box: {error}") from error
    files = log_files(unit)
    places: dict[Path, int] = {}
    for path in files:
        data = path.read_bytes()
        places[path] = len(data)
        text = _tail(data.decode("utf-8", errors="replace"), lines)
        if len(files) > 1 and text:
            print(f"==> {path.stem} <==")
        sys.stdout.write(text)
        if text and not text.endswith("\n"):
            print()
    sys.stdout.flush()
    last: Path | None = None
    while follow:
        for path in log_files(unit):
            with path.open("rb") as file:
                file.seek(places.get(path, 0))
                data = file.read()
            places[path] = places.get(path, 0) + len(data)
            if data:
                if len(files) > 1 and path != last:
                    print(f"==> {path.stem} <==")
                last = path
                sys.stdout.write(data.decode("utf-8", errors="replace"))
                sys.stdout.flush()
        time.sleep(_PAUSE)
    return 0
