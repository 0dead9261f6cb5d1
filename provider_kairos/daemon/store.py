"""State on disk: identity, ledger, lease and a few facts, in one SQLite file (docs: WAL, every commit synced).

What is acknowledged survives a power cut at any byte: SQLite's write-ahead log is synced before a commit returns, and a
torn end of it is dropped when the file is opened. A file that is damaged all the same is set aside under
``<name>.damaged``, what can still be read of it (identity, lease, records whose checksum is right) moves to a fresh
file, and the identity has a copy of its own beside the database: a box that loses its peer ID is a stranger to its
cluster.

All calls block; the daemon makes them in a worker thread. Any thread may call, one at a time. Everything is mode 0600.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from provider_kairos.errors import HostError, PermissionHostError
from provider_kairos.ledger.block import Block, Storage
from provider_kairos.ledger.entry import Entry, canonical_bytes
from provider_kairos.ledger.model import Forgotten, Persist, Row
from provider_kairos.ledger.signing import SEED_LENGTH

__all__ = ["LoadedLedger", "Store"]

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1

# Versions are unsigned 64-bit and SQLite's integers are signed: they are kept as decimal text. SQLite has no checksums of
# its own pages, so every row has one: a flipped bit costs that row, and never becomes another identity or token.
_SCHEMA = """
CREATE TABLE fact (name TEXT PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE record (
    bucket TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, owner TEXT NOT NULL, version TEXT NOT NULL,
    updated_at INTEGER NOT NULL, deleted INTEGER NOT NULL, sig BLOB NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (bucket, key)
) WITHOUT ROWID;
CREATE TABLE forgotten (bucket TEXT NOT NULL, key TEXT NOT NULL, version TEXT NOT NULL, PRIMARY KEY (bucket, key))
    WITHOUT ROWID;
"""

_SEED = "identity-seed"
_LEASE = "lease"
_META = "meta:"

_CHECKPOINT_PAGES = 200
_BUSY_SECONDS = 2.0
_MAX_FORGOTTEN = 10_000
_DROP_OLDEST_GRAVES = (
    "DELETE FROM forgotten WHERE (bucket, key) NOT IN"
    " (SELECT bucket, key FROM forgotten ORDER BY length(version) DESC, version DESC LIMIT ?)"
)


@dataclass(frozen=True, slots=True)
class LoadedLedger:
    """What the disk kept: ``block`` is None when there is no record; ``forgotten`` are pruned tombstones."""

    block: Block | None
    forgotten: tuple[Forgotten, ...] = ()


@dataclass(slots=True)
class _Salvage:
    """What could still be read of a damaged file."""

    facts: dict[str, bytes] = field(default_factory=dict, repr=False)
    rows: list[Row] = field(default_factory=list)


class Store:
    """The state file of one daemon. Raises HostError with a remedy when the disk refuses.

    ``damage`` is empty, or one sentence about a damaged file that was set aside when this one was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = ""
        self._lock = threading.Lock()
        with self._explained("open"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = self._open()
        self._keep_seed_copy()

    def close(self) -> None:
        """Fold the log into the file and close. Without it nothing is lost either."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._connection.close()

    # --- identity, lease, facts ---

    def identity(self) -> bytes | None:
        """The 32-byte seed of this node's identity, None when there is none yet."""
        stored = self._fact(_SEED) or self._seed_copy()
        return stored if stored is not None and len(stored) == SEED_LENGTH else None

    def seed(self) -> bytes:
        """The same; made and kept at the first call."""
        if (stored := self.identity()) is not None:
            return stored
        seed = secrets.token_bytes(SEED_LENGTH)
        self.set_seed(seed)
        return seed

    def set_seed(self, seed: bytes) -> None:
        """Take over an identity, such as the one of a key file that EdgeVPN left."""
        self._set_fact(_SEED, seed)
        self._keep_seed_copy()

    def lease(self) -> str | None:
        """The leased virtual IP as text, or None."""
        stored = self._fact(_LEASE)
        return stored.decode() if stored is not None else None

    def set_lease(self, address: str | None) -> None:
        """Keep (or with None drop) the leased virtual IP; on disk when this returns."""
        self._set_fact(_LEASE, address.encode() if address is not None else None)

    def meta(self, name: str) -> str | None:
        """Any other small fact."""
        stored = self._fact(_META + name)
        return stored.decode() if stored is not None else None

    def set_meta(self, name: str, value: str | None) -> None:
        """Keep or drop a small fact; on disk when this returns."""
        self._set_fact(_META + name, value.encode() if value is not None else None)

    def _fact(self, name: str) -> bytes | None:
        with self._lock, self._explained("read"):
            row = self._connection.execute("SELECT value, crc FROM fact WHERE name = ?", (name,)).fetchone()
        if row is None or _fact_crc(name, bytes(row[0])) != row[1]:
            return None
        return bytes(row[0])

    def _set_fact(self, name: str, value: bytes | None) -> None:
        with self._transaction() as connection:
            if value is None:
                connection.execute("DELETE FROM fact WHERE name = ?", (name,))
            else:
                connection.execute(
                    "INSERT OR REPLACE INTO fact VALUES (?, ?, ?)", (name, value, _fact_crc(name, value))
                )

    # --- the ledger ---

    def load(self) -> LoadedLedger:
        """The ledger as it was when the last :meth:`save` returned."""
        storage: Storage = {}
        with self._lock, self._explained("read"):
            rows, damaged = _read_rows(self._connection)
            graves = self._connection.execute("SELECT bucket, key, version FROM forgotten").fetchall()
        for row in rows:
            storage.setdefault(row.bucket, {})[row.key] = row.entry
        if len(graves) > _MAX_FORGOTTEN:
            self._drop_oldest_graves()
        if damaged:
            log.error("%d records in %s are damaged and left out", damaged, self.path)
        forgotten = tuple(
            Forgotten(bucket, key, int(version)) for bucket, key, version in graves if version.isdecimal()
        )
        # Height and hashes mean nothing across a restart; any height above genesis says "there is something".
        return LoadedLedger(Block(1, "", storage, "", "") if storage else None, forgotten)

    def _drop_oldest_graves(self) -> None:
        with self._transaction() as connection:
            connection.execute(_DROP_OLDEST_GRAVES, (_MAX_FORGOTTEN,))

    def save(self, changes: Persist) -> None:
        """Write rows, removals and pruned tombstones in one transaction; on disk when this returns."""
        with self._transaction() as connection:
            connection.executemany("DELETE FROM record WHERE bucket = ? AND key = ?", changes.removed)
            _write_rows(connection, changes.rows)
            connection.executemany(
                "INSERT OR REPLACE INTO forgotten VALUES (?, ?, ?)",
                [(grave.bucket, grave.key, str(grave.version)) for grave in changes.forgotten],
            )
            if changes.forgotten:
                (count,) = connection.execute("SELECT count(*) FROM forgotten").fetchone()
                if count > 2 * _MAX_FORGOTTEN:  # peers choose how many records there are to be deleted
                    connection.execute(_DROP_OLDEST_GRAVES, (_MAX_FORGOTTEN,))

    # --- opening ---

    def _open(self) -> sqlite3.Connection:
        try:
            return self._open_checked()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            salvage = self._set_aside(error)
        connection = self._open_checked()
        with _atomic(connection):
            facts = [(name, value, _fact_crc(name, value)) for name, value in salvage.facts.items()]
            connection.executemany("INSERT OR REPLACE INTO fact VALUES (?, ?, ?)", facts)
            _write_rows(connection, salvage.rows)
        return connection

    def _open_checked(self) -> sqlite3.Connection:
        """Open, or create with the right mode before SQLite can create it with another. Raises sqlite3.Error, OSError."""
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self.path.chmod(0o600)
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=16
        )
        connection.text_factory = _lenient_text
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            self._check(connection)
            self._create(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _DamagedError(verdict)

    def _create(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise HostError(
                f"{self.path} was written by a later version of this program (schema {version})",
                hint="start that version, or move the file away",
            )
        if version == SCHEMA_VERSION:
            _read_rows(connection)  # what cannot be read is found now, when it can still be set aside
            return
        with _atomic(connection):
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        _sync_directory(self.path.parent)

    def _set_aside(self, error: sqlite3.DatabaseError) -> _Salvage:
        """Rename the damaged file and what belongs to it, after reading what can be read."""
        salvage = _salvage(self.path)
        aside = self.path.with_name(self.path.name + ".damaged")
        for suffix in ("-wal", "-shm", ""):
            source = self.path.with_name(self.path.name + suffix)
            if source.exists():
                source.replace(aside.with_name(aside.name + suffix))
        _sync_directory(self.path.parent)
        kept = f"{len(salvage.rows)} records{' and the identity' if _SEED in salvage.facts else ''} were saved from it"
        self.damage = f"{self.path} is damaged ({error}); it was set aside as {aside.name}, {kept}"
        log.error("%s", self.damage)
        return salvage

    # --- the identity's own copy ---

    @property
    def _seed_path(self) -> Path:
        return self.path.with_name(self.path.name + ".identity")

    def _seed_copy(self) -> bytes | None:
        try:
            copy = self._seed_path.read_bytes()
        except OSError:
            return None
        if copy != _with_crc(copy[:SEED_LENGTH]):
            return None
        self._set_fact(_SEED, copy[:SEED_LENGTH])
        return copy[:SEED_LENGTH]

    def _keep_seed_copy(self) -> None:
        seed = self._fact(_SEED)
        if seed is None:
            return
        fresh = self._seed_path.with_name(self._seed_path.name + ".new")
        with self._explained("write"):
            if self._seed_path.exists() and self._seed_path.read_bytes() == _with_crc(seed):
                return
            descriptor = os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_with_crc(seed))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._seed_path)
            _sync_directory(self.path.parent)

    # --- transactions and errors ---

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained("write"), _atomic(self._connection):
            yield self._connection

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn what SQLite and the system say into one sentence with a remedy."""
        try:
            yield
        except sqlite3.Error as error:
            raise _explain(self.path, doing, str(error), _primary(error)) from error
        except OSError as error:
            permission = isinstance(error, PermissionError)
            kind = PermissionHostError if permission else HostError
            hint = "run as root" if permission else "check the disk and the mount"
            raise kind(f"cannot {doing} {self.path}: {error.strerror}", hint=hint) from error


class _DamagedError(sqlite3.DatabaseError):
    """The file opens, but its pages contradict each other."""


_REMEDIES = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space; nothing written before is lost",
    sqlite3.SQLITE_READONLY: "the file or its mount is read-only: remount it for writing",
    sqlite3.SQLITE_CANTOPEN: "check that the directory exists and may be written to",
    sqlite3.SQLITE_IOERR: "the disk reports errors: look at the kernel log",
    sqlite3.SQLITE_BUSY: "another process holds it: is a second daemon running?",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restart the daemon, which sets it aside",
    sqlite3.SQLITE_NOTADB: "the file is damaged: restart the daemon, which sets it aside",
}


def _primary(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def _explain(path: Path, doing: str, what: str, code: int) -> HostError:
    kind = PermissionHostError if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM} else HostError
    return kind(f"cannot {doing} {path}: {what}", hint=_REMEDIES.get(code, "see the message"))


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return isinstance(error, _DamagedError) or _primary(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@contextmanager
def _atomic(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
            connection.execute("ROLLBACK")
        raise


def _lenient_text(raw: bytes) -> str:
    """Text that may be damaged: the row's checksum tells, not an exception in the middle of reading."""
    return raw.decode("utf-8", "replace")


def _fact_crc(name: str, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(name.encode()))


def _row_crc(row: Row) -> int:
    return zlib.crc32(row.entry.sig, zlib.crc32(canonical_bytes(row.bucket, row.key, row.entry)))


def _with_crc(seed: bytes) -> bytes:
    return seed + zlib.crc32(seed).to_bytes(4, "big")


def _read_rows(connection: sqlite3.Connection) -> tuple[list[Row], int]:
    """All whole records, and how many others there are. Raises sqlite3.Error when the file's structure is damaged."""
    rows, damaged = [], 0
    query = "SELECT bucket, key, value, owner, version, updated_at, deleted, sig, crc FROM record"
    for bucket, key, value, owner, version, updated_at, deleted, sig, crc in connection.execute(query):
        try:
            row = Row(bucket, key, Entry(value, owner, int(version), int(updated_at), bool(deleted), bytes(sig)))
            whole = _row_crc(row) == crc
        except (ValueError, TypeError, AttributeError, struct.error, OverflowError):
            whole = False
        if whole:
            rows.append(row)
        else:
            damaged += 1
    return rows, damaged


def _write_rows(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (r.bucket, r.key, e.value, e.owner, str(e.version), e.updated_at, int(e.deleted), e.sig, _row_crc(r))
            for r in rows
            for e in (r.entry,)
        ],
    )


def _salvage(path: Path) -> _Salvage:
    """What is whole, by its checksum, in a damaged file."""
    salvage = _Salvage()
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
            connection.text_factory = _lenient_text
            with contextlib.suppress(sqlite3.Error, TypeError, ValueError):
                for name, value, crc in connection.execute("SELECT name, value, crc FROM fact"):
                    if _fact_crc(name, bytes(value)) == crc:
                        salvage.facts[name] = bytes(value)
            with contextlib.suppress(sqlite3.Error):
                salvage.rows, _ = _read_rows(connection)
    except sqlite3.Error as error:
        log.warning("nothing can be read from %s: %s", path, error)
    return salvage


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
