"""Unit files on disk: where they are searched, drop-ins, ``enable`` and ``disable`` (systemd.unit(5)).

The machine's own units under ``/usr/lib/systemd/system`` do not exist in a box: they belong to the
machine that the lab runs on. Functions here read and link files, they run nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from provider_kairos.lab.units import UnitName, parse_unit_text

__all__ = ["SEARCH_PATH", "UnitFiles", "UnitNotFoundError", "UnitSource"]

SEARCH_PATH: Final = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system")


class UnitNotFoundError(LookupError):
    """No file for a unit."""


@dataclass(frozen=True, slots=True)
class UnitSource:
    """The files of one unit: the fragment, its drop-ins in order, and when they were last changed."""

    fragment: str
    masked: bool
    texts: tuple[tuple[str, str], ...]
    stamp: tuple[tuple[str, int], ...]


class UnitFiles:
    """The unit files of a box; ``root`` is "/" but in tests."""

    def __init__(self, root: str = "/") -> None:
        self._root = Path(root)

    def _folders(self) -> list[Path]:
        return [self._root / path.lstrip("/") for path in SEARCH_PATH]

    def _shown(self, path: Path) -> str:
        return "/" + str(path.relative_to(self._root))

    def _fragment(self, name: UnitName) -> Path | None:
        for candidate in (name.text, name.template):
            for folder in self._folders():
                if candidate and os.path.lexists(folder / candidate):
                    return folder / candidate
        return None

    def _drop_ins(self, name: UnitName) -> list[Path]:
        found: dict[str, Path] = {}
        for owner in (f"{name.kind}", name.template, name.text):
            # Within one owner the first folder of the search path wins; a more specific owner beats both.
            here: dict[str, Path] = {}
            for folder in self._folders():
                for path in sorted((folder / f"{owner}.d").glob("*.conf")) if owner else ():
                    here.setdefault(path.name, path)
            found.update(here)
        return [found[key] for key in sorted(found)]

    def read(self, name: UnitName) -> UnitSource:
        """Read a unit as it is on disk now; raises UnitNotFoundError."""
        fragment = self._fragment(name)
        if fragment is None:
            raise UnitNotFoundError(f"Unit {name.text} not found.")
        if fragment.is_symlink() and os.fspath(fragment.readlink()) == "/dev/null":
            return UnitSource(self._shown(fragment), masked=True, texts=(), stamp=())
        files = [fragment, *self._drop_ins(name)]
        texts: list[tuple[str, str]] = []
        stamp: list[tuple[str, int]] = []
        for path in files:
            try:
                texts.append((self._shown(path), path.read_text("utf-8", errors="replace")))
                stamp.append((str(path), path.stat().st_mtime_ns))
            except OSError:  # a link to nowhere or a file that went away between listing and reading
                if path == fragment:
                    raise UnitNotFoundError(f"Unit {name.text} not found.") from None
        return UnitSource(self._shown(fragment), masked=False, texts=tuple(texts), stamp=tuple(stamp))

    def wanted_by(self, target: str) -> list[str]:
        """The names of the units that are enabled for a target, by their links."""
        names: set[str] = set()
        for folder in self._folders():
            for suffix in ("wants", "requires"):
                wants = folder / f"{target}.{suffix}"
                if wants.is_dir():
                    names.update(path.name for path in wants.iterdir())
        return sorted(names)

    def _links(self, name: UnitName, *, runtime: bool) -> list[tuple[Path, str]]:
        """The links that ``enable`` makes: (place, target)."""
        source = self.read(name)
        base = self._root / ("run/systemd/system" if runtime else "etc/systemd/system")
        links: list[tuple[Path, str]] = []
        for _, text in source.texts:
            for section, key, value in parse_unit_text(text):
                if section != "Install":
                    continue
                for word in value.split():
                    if key in {"WantedBy", "RequiredBy"}:
                        suffix = "wants" if key == "WantedBy" else "requires"
                        links.append((base / f"{word}.{suffix}" / name.text, source.fragment))
                    elif key == "Alias":
                        links.append((base / word, source.fragment))
        return links

    def enable(self, name: UnitName, *, runtime: bool = False) -> list[str]:
        """Make the links of the unit's [Install] section; returns what was done, one line each."""
        lines = []
        for place, target in self._links(name, runtime=runtime):
            if place.is_symlink() and os.fspath(place.readlink()) == target:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(target)
            lines.append(f"Created symlink {self._shown(place)} → {target}.")
        return lines

    def disable(self, name: UnitName) -> list[str]:
        """Remove every link to the unit below the search path."""
        lines = []
        for folder in self._folders():
            for wants in sorted((*folder.glob("*.wants"), *folder.glob("*.requires"))):
                place = wants / name.text
                if place.is_symlink():
                    place.unlink()
                    lines.append(f"Removed {self._shown(place)}.")
        return lines

    def mask(self, name: UnitName, *, runtime: bool = False) -> list[str]:
        """Make the unit a link to nothing; raises FileExistsError when a unit file of that name is in the place."""
        place = self._root / ("run/systemd/system" if runtime else "etc/systemd/system") / name.text
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists() and not place.is_symlink():
            raise FileExistsError(f"File {self._shown(place)} already exists.")
        place.unlink(missing_ok=True)
        place.symlink_to("/dev/null")
        return [f"Created symlink {self._shown(place)} → /dev/null."]

    def unmask(self, name: UnitName) -> list[str]:
        """Undo :meth:`mask`."""
        lines = []
        for folder in self._folders():
            place = folder / name.text
            if place.is_symlink() and os.fspath(place.readlink()) == "/dev/null":
                place.unlink()
                lines.append(f"Removed {self._shown(place)}.")
        return lines

    def state(self, name: UnitName) -> str:
        """``enabled``, ``enabled-runtime``, ``disabled``, ``static`` or ``masked``; raises UnitNotFoundError."""
        source = self.read(name)
        if source.masked:
            return "masked"
        for folder in self._folders():
            for wants in (*folder.glob("*.wants"), *folder.glob("*.requires")):
                if (wants / name.text).is_symlink():
                    return "enabled-runtime" if folder == self._folders()[1] else "enabled"
        sections = {section for _, text in source.texts for section, _, _ in parse_unit_text(text)}
        return "disabled" if "Install" in sections else "static"

    def names(self) -> list[str]:
        """Every unit file there is, templates included."""
        found = {
            path.name
            for folder in self._folders()
            for path in (folder.iterdir() if folder.is_dir() else ())
            if path.suffix in {".service", ".target"} and not path.is_dir()
        }
        return sorted(found)
