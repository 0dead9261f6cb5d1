"""The state file: what was acknowledged is there after kill -9, a torn log, a damaged file, a full disk."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from provider_kairos.daemon.store import Store
from provider_kairos.errors import HostError
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import Forgotten, Persist, Row
from provider_kairos.ledger.signing import Signer

SIGNER = Signer(b"\x07" * 32)


def row(key: str, value: str, version: int = 1_800_000_000_000_000_000) -> Row:
    return Row("kairos", key, SIGNER.sign("kairos", key, value, version, 1_800_000_000))


def records(store: Store) -> dict[str, str]:
    block = store.load().block
    return {key: entry.value for key, entry in block.storage["kairos"].items()} if block else {}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "mesh.db"


def test_everything_is_there_again(path: Path):
    store = Store(path)
    seed = store.seed()
    store.set_lease("10.1.0.7")
    store.set_meta("generation", "3")
    biggest = Entry("1", "o", 2**64 - 1, -(2**63), deleted=True, sig=b"\x00\xff")
    store.save(Persist((row("a", '"\u2028č\x00"'), Row("kairos", "big", biggest), Row("b", "legacy", Entry("v")))))
    store.save(Persist((), (("b", "legacy"), ("b", "never was")), (Forgotten("kairos", "gone", 2**64 - 1),)))
    store.close()
    again = Store(path)
    assert again.seed() == seed
    assert again.lease() == "10.1.0.7"
    assert again.meta("generation") == "3"
    assert again.meta("nothing") is None
    loaded = again.load()
    assert loaded.block is not None
    assert loaded.block.storage == {"kairos": {"a": row("a", '"\u2028č\x00"').entry, "big": biggest}}
    assert loaded.forgotten == (Forgotten("kairos", "gone", 2**64 - 1),)
    again.set_lease(None)
    assert again.lease() is None
    assert not again.damage


def test_a_fresh_file_is_empty(path: Path):
    loaded = Store(path).load()
    assert loaded.block is None
    assert loaded.forgotten == ()


def test_pruned_tombstones_do_not_pile_up_for_ever(path: Path):
    store = Store(path)
    store.save(Persist((), (), tuple(Forgotten("b", f"k{number}", number) for number in range(10_500))))
    store.load()
    kept = store.load().forgotten
    assert len(kept) == 10_000
    assert min(grave.version for grave in kept) == 500


def test_nobody_else_may_read_it(path: Path):
    previous = os.umask(0)
    try:
        store = Store(path)
        store.seed()
        store.save(Persist((row("a", "1"),)))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(previous)
    assert set(modes) == {"mesh.db", "mesh.db-wal", "mesh.db-shm", "mesh.db.identity"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.close()
    path.chmod(0o644)
    Store(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_identity_that_somebody_else_made_is_taken_over(path: Path):
    store = Store(path)
    store.set_seed(b"\x05" * 32)
    assert store.seed() == b"\x05" * 32
    store.close()
    assert Store(path).seed() == b"\x05" * 32


def test_many_threads_may_call(path: Path):
    store = Store(path)
    threads = [threading.Thread(target=lambda n=n: store.save(Persist((row(f"k{n}", str(n)),)))) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records(store)) == 16


# --- power cuts ---

WRITER = """
import sys
from pathlib import Path
from provider_kairos.daemon.store import Store
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import Persist, Row
store = Store(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    rows = tuple(Row("kairos", f"{half}-{number % 50}", Entry(str(number))) for half in ("left", "right"))
    store.save(Persist(rows))
    print(number, flush=True)
    number += 1
"""


def test_kill_9_in_the_middle_of_writing_loses_nothing_acknowledged(path: Path):
    acknowledged = 0
    for attempt in range(8):
        start = str(acknowledged + 1)
        with subprocess.Popen([sys.executable, "-c", WRITER, path, start], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(20 + 7 * attempt):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:  # what it said before it died
                acknowledged = int(line)
        store = Store(path)
        kept = records(store)
        store.close()
        assert not store.damage
        newest = max(int(value) for value in kept.values())
        assert acknowledged <= newest <= acknowledged + 1
        for slot in range(50):
            assert kept.get(f"left-{slot}") == kept.get(f"right-{slot}"), "half a transaction"


def test_a_log_cut_at_any_byte_of_the_last_transactions_opens_with_all_before_it(path: Path, tmp_path: Path):
    store = Store(path)
    wal = path.with_name("mesh.db-wal")
    store.save(Persist((row("first", "0"),)))
    ends = [wal.stat().st_size]
    for number in range(1, 4):
        store.save(Persist((row("last", str(number)), row(f"n{number}", "x"))))
        ends.append(wal.stat().st_size)
    cuts = range(ends[0], ends[-1] + 1, 307)  # a step that meets every part of a frame
    for cut in [*cuts, *ends, *(end - 1 for end in ends[1:])]:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        shutil.copy(path, copy / "mesh.db")
        (copy / "mesh.db-wal").write_bytes(wal.read_bytes()[:cut])
        torn = Store(copy / "mesh.db")
        whole = max(number for number, end in enumerate(ends) if end <= cut)
        kept = records(torn)
        torn.close()
        assert not torn.damage
        assert kept["first"] == "0"
        assert kept.get("last") == (str(whole) if whole else None), f"cut at byte {cut}"
        assert {key for key in kept if key.startswith("n")} == {f"n{n}" for n in range(1, whole + 1)}


# --- damage ---


def filled(path: Path) -> bytes:
    store = Store(path)
    seed = store.seed()
    store.set_lease("10.1.0.7")
    store.save(Persist(tuple(row(f"key-{number}", '"' + "x" * 100 + '"') for number in range(200))))
    store.close()
    return seed


@pytest.mark.parametrize("junk", [b"", b"\x00" * 4096, b"this is no database, but a text" * 400])
def test_a_file_that_is_no_database_is_set_aside_and_the_identity_stays(path: Path, junk: bytes):
    seed = filled(path)
    path.write_bytes(junk)
    store = Store(path)
    assert store.seed() == seed
    assert store.load().block is None
    if junk.strip(b"\x00"):  # a file of nothing is a new one to SQLite
        assert "set aside as mesh.db.damaged" in store.damage
        assert path.with_name("mesh.db.damaged").read_bytes() == junk
    store.save(Persist((row("a", "1"),)))


def test_damaged_pages_cost_only_what_was_on_them(path: Path):
    seed = filled(path)
    data = bytearray(path.read_bytes())
    for page in range(6, 9):
        data[page * 4096 : page * 4096 + 4096] = os.urandom(4096)
    path.write_bytes(data)
    store = Store(path)
    assert "is damaged" in store.damage
    assert store.seed() == seed
    assert store.lease() == "10.1.0.7"
    store.close()
    assert not Store(path).damage


@pytest.mark.parametrize("position", range(0, 80_000, 1777))
def test_a_flipped_byte_anywhere_never_keeps_the_daemon_from_starting(path: Path, position: int):
    seed = filled(path)
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 0xFF
    path.write_bytes(data)
    store = Store(path)
    assert store.seed() == seed
    store.load()
    store.save(Persist((row("after", "1"),)))
    assert records(store)["after"] == "1"


def test_a_damaged_identity_copy_is_made_again(path: Path):
    seed = filled(path)
    copy = path.with_name("mesh.db.identity")
    good = copy.read_bytes()
    copy.write_bytes(b"short")
    assert Store(path).seed() == seed
    assert copy.read_bytes() == good
    copy.write_bytes(b"x" + good[1:])
    path.unlink()
    assert Store(path).seed() not in {seed, b"x" + seed[1:]}


# --- the disk refuses ---


def test_a_full_disk_is_a_host_error_with_a_remedy_and_passes(path: Path):
    store = Store(path)
    store.save(Persist((row("before", "1"),)))
    store._connection.execute("PRAGMA max_page_count = 8")
    with pytest.raises(HostError, match="disk is full") as caught:
        store.save(Persist((row("big", '"' + "x" * 200_000 + '"'),)))
    assert "free some space" in str(caught.value)
    assert records(store) == {"before": "1"}
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.save(Persist((row("big", '"' + "x" * 200_000 + '"'),)))
    assert set(records(store)) == {"before", "big"}


def test_a_path_that_cannot_be_is_a_host_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot open"):
        Store(tmp_path / "file" / "mesh.db")


def test_a_second_daemon_is_named_as_the_reason(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("provider_kairos.daemon.store._BUSY_SECONDS", 0.0)
    store = Store(path)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(HostError, match="second daemon"):
            store.save(Persist((row("a", "1"),)))
        other.execute("ROLLBACK")
    other.close()
    store.save(Persist((row("a", "1"),)))


def test_a_file_of_a_later_version_is_left_alone(path: Path):
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(HostError, match="later version"):
        Store(path)
    assert path.exists()


def test_an_errors_text_never_shows_the_identity(path: Path):
    store = Store(path)
    seed = store.seed()
    assert seed.hex() not in repr(store)
    assert repr(seed) not in repr(vars(store))


def test_graves_do_not_fill_the_disk_while_the_daemon_runs(tmp_path, monkeypatch):
    from provider_kairos.daemon import store as module

    monkeypatch.setattr(module, "_MAX_FORGOTTEN", 50)
    store = Store(tmp_path / "mesh.db")
    for number in range(30):
        store.save(Persist((), (), tuple(Forgotten("b", f"k{number}-{key}", 100 * number + key) for key in range(10))))
    kept = store._connection.execute("SELECT count(*), max(length(version)) FROM forgotten").fetchone()
    assert 50 <= kept[0] <= 100
    assert {grave.version for grave in store.load().forgotten} >= {2900 + key for key in range(10)}
    store.close()
