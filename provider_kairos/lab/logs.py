"""``lab logs``, and ``journalctl`` in a box: the files that its services write, read through the box's own root."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Final

from provider_kairos.errors import NotFoundError
from provider_kairos.lab.enter import enter
from provider_kairos.lab.model import LabError

__all__ = ["log_files", "main", "show_box_logs", "show_logs"]

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


def show_box_logs(pid: int, unit: str, *, lines: int, follow: bool) -> None:
    """Print the logs of the box whose first process is ``pid``; raises LabError and NotFoundError."""
    try:
        enter(pid)
    except OSError as error:
        raise LabError(f"cannot enter the box: {error}") from error
    show_logs(unit, lines=lines, follow=follow)


def show_logs(unit: str, *, lines: int, follow: bool) -> None:
    """Print the logs of the box that this process is in; raises NotFoundError."""
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


def main() -> int:
    """``journalctl`` in a box, which has files in the journal's place: ``-u UNIT``, ``-f``, ``-n LINES``."""
    parser = argparse.ArgumentParser(prog="journalctl", description="the lab's journalctl: prints log files")
    parser.add_argument("-u", "--unit", default="")
    parser.add_argument("-t", "--identifier", default="")
    parser.add_argument("-f", "--follow", action="store_true")
    parser.add_argument("-n", "--lines", type=int, default=0)
    options, _ = parser.parse_known_args()
    # The provider logs under an identifier of its own; its file has the last part of that name.
    unit = options.unit or options.identifier.removeprefix("kairos-")
    try:
        show_logs(unit, lines=options.lines or (10 if options.follow else 0), follow=options.follow)
    except NotFoundError:
        print("-- No entries --")
    except KeyboardInterrupt:
        return 130
    return 0
