"""The state of a cluster: rows of JSON with versions, on disk in one SQLite file, mergeable between servers.

Stands where k3s has kine (sqlite) or etcd. A row with the greater version wins wherever it came from, deleted rows
stay as tombstones, so that merging is idempotent and needs no order. Rows under ``local/`` are never handed out.
SQLite's journal makes a kill at any moment harmless; there is no fsync (see ``files``).
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provider_kairos.lab.k3s import files
from provider_kairos.lab.k3s.life import Fatal

__all__ = ["LOCAL", "Row", "Store"]

LOCAL = "local/"


@dataclass(frozen=True, slots=True)
class Row:
    """One record; ``version`` grows with time (nanoseconds), ``value`` is None when it was deleted."""

    key: str
    value: Any
    version: int

    def as_json(self) -> list[Any]:
        """``[key, value, version]``."""
        return [self.key, self.value, self.version]

    @classmethod
    def from_json(cls, data: Any) -> Row:
        """Read ``[key, value, version]``.

        Raises:
            ValueError: it is something else.
        """
        if not (isinstance(data, list) and len(data) == 3 and isinstance(data[0], str) and isinstance(data[2], int)):
            raise ValueError("not a row")
        if isinstance(data[2], bool) or not 0 <= data[2] < 2**63 - 2**32:
            raise ValueError("row version out of range")
        return cls(data[0], data[1], data[2])


class Store:
    """All rows, in memory and in ``path``. Safe to use from several threads.

    Opening and writing raise :class:`~.life.Fatal` when the file is damaged or the disk full.
    """

    def __init__(self, path: Path) -> None:
        files.folder(path.parent)
        self.path = path
        self.on_change: Callable[[list[Row]], None] | None = None
        self._lock = threading.RLock()
        try:
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            path.chmod(0o644 if path.name == "state.db" else 0o600)
            self._database.execute("PRAGMA synchronous=OFF")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, value TEXT, version INTEGER)"
            )
            self._rows = {
                key: Row(key, json.loads(value), version)
                for key, value, version in self._database.execute("SELECT key, value, version FROM rows")
            }
        except sqlite3.Error as error:
            raise Fatal(f"Error: starting kubernetes: preparing server: creating storage endpoint: {error}") from error

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def get(self, key: str) -> Any:
        """The value of ``key``, None when there is none. Not to be changed in place."""
        with self._lock:
            row = self._rows.get(key)
            return row.value if row else None

    def items(self, prefix: str) -> dict[str, Any]:
        """What stands under ``prefix``, by the rest of the key, in order."""
        with self._lock:
            return {
                key[len(prefix) :]: row.value
                for key, row in sorted(self._rows.items())
                if key.startswith(prefix) and row.value is not None
            }

    def put(self, key: str, value: Any) -> None:
        """Write one row."""
        with self._lock:
            known = self._rows.get(key)
            version = max(time.time_ns(), known.version + 1 if known else 0)
            self._save([Row(key, value, version)], announce=True)

    def create(self, key: str, value: Any) -> bool:
        """Write one row unless it exists; whether it was written."""
        with self._lock:
            if self.get(key) is not None:
                return False
            self.put(key, value)
            return True

    def delete(self, *keys: str) -> None:
        """Remove rows together; unknown ones are none of our business."""
        with self._lock:
            gone = [
                Row(key, None, max(time.time_ns(), self._rows[key].version + 1))
                for key in keys
                if key in self._rows and self._rows[key].value is not None
            ]
            self._save(gone, announce=True)

    def rows(self) -> list[Row]:
        """Everything that other servers may see, tombstones included."""
        with self._lock:
            return [row for row in self._rows.values() if not row.key.startswith(LOCAL)]

    def merge(self, rows: Iterable[Row]) -> int:
        """Take over what is newer; how many rows that were. Not announced, so that servers do not echo."""
        with self._lock:
            newer = [
                row
                for row in rows
                if not row.key.startswith(LOCAL)
                and (row.key not in self._rows or self._rows[row.key].version < row.version)
            ]
            self._save(newer, announce=False)
            return len(newer)

    def _save(self, rows: list[Row], *, announce: bool) -> None:
        if not rows:
            return
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany(
                    "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)",
                    [(row.key, json.dumps(row.value), row.version) for row in rows],
                )
        except sqlite3.Error as error:
            raise Fatal(f"Error: datastore: {error}") from error
        for row in rows:
            self._rows[row.key] = row
        public = [row for row in rows if not row.key.startswith(LOCAL)]
        if announce and public and self.on_change is not None:
            self.on_change(public)

    @staticmethod
    def move(old: Path, new: Path) -> None:
        """Carry a store's file over to another place (sqlite to etcd); the old one is kept as ``*.migrated``."""
        files.folder(new.parent)
        copy = new.with_name(f"{new.name}.{os.getpid()}.new")
        copy.write_bytes(old.read_bytes())
        copy.replace(new)
        old.rename(old.with_name(f"{old.name}.migrated"))
