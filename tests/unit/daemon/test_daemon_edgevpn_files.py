"""What an EdgeVPN node left on the disk becomes ours once: its identity, and its ledger where nobody has one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from provider_kairos.daemon.edgevpn_files import encode_key, read_key, read_ledger, take_over
from provider_kairos.daemon.settings import DaemonSettings, read_settings
from provider_kairos.daemon.store import Store
from provider_kairos.errors import ConfigError, HostError
from provider_kairos.ids import peer_id_of_public_key
from provider_kairos.ledger.block import Block, encode
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import Persist, Row
from provider_kairos.token import codec

TOKEN = codec.encode(codec.generate())

KEY = bytes.fromhex(
    "08011240e6108292208c6b71d0a604c8dd6d7ecd1d493e5d5b21d3bdc6732740eb0a6ba4"
    "2d7716ecf5aeabc1468d24c556224f8fb01b5c12d5983051403b2dbee2455577"
)
PEER = "12D3KooWCsqqbMM6oSmrEbeYfRQUgi1fGdDouqffJkwhyVs6WpbG"
"""A key file that EdgeVPN v0.35.4 wrote, and the peer ID that it logged."""


@pytest.fixture
def store(tmp_path: Path):
    made = Store(tmp_path / "state" / "mesh.db")
    yield made
    made.close()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "edgevpn" / "privkey"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(KEY)
    path.chmod(0o600)
    return path


def settings(**variables: object) -> DaemonSettings:
    return read_settings({"EDGEVPNTOKEN": TOKEN, **{name: str(value) for name, value in variables.items()}})


def cached(path: Path) -> DaemonSettings:
    return settings(EDGEVPNPRIVKEYCACHE="true", EDGEVPNPRIVKEYCACHEDIR=path.parent)


def test_a_key_of_edgevpn_is_read(key_file):
    assert peer_id_of_public_key(KEY[36:]) == PEER
    assert read_key(key_file) == KEY[4:36]
    assert encode_key(KEY[4:36]) == KEY


def test_a_fresh_node_takes_the_identity_over(store, key_file):
    take_over(cached(key_file), store)
    assert store.seed() == KEY[4:36]


def test_without_the_variable_nothing_is_taken(store, key_file):
    take_over(settings(EDGEVPNPRIVKEYCACHEDIR=key_file.parent), store)
    assert store.identity() is None


def test_a_node_keeps_the_identity_that_it_has_and_says_so(store, key_file, caplog):
    mine = store.seed()
    with caplog.at_level(logging.WARNING):
        take_over(cached(key_file), store)
    assert store.seed() == mine
    assert f"holds another identity ({PEER})" in caplog.text
    assert key_file.read_bytes() == KEY


def test_the_way_back_is_open(store, tmp_path):
    path = tmp_path / "edgevpn" / "privkey"
    take_over(cached(path), store)
    assert path.read_bytes() == encode_key(store.seed())
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    take_over(cached(path), store)  # and once more, with both there


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.chmod(0o640), r"open to other users \(mode 0640\).*chmod 600"),
        (lambda path: path.parent.chmod(0o777), "other users may replace this key .*chmod 700"),
        (lambda path: path.write_bytes(KEY[:-1]), "no Ed25519 private key"),
        (lambda path: path.write_bytes(b""), "no Ed25519 private key"),
        (lambda path: path.write_bytes(b"\x08\x00" + KEY[2:]), "no Ed25519 private key"),
        (lambda path: path.write_bytes(KEY[:-1] + b"\0"), "two halves"),
        (lambda path: (path.unlink(), path.mkdir()), "no ordinary file"),
    ],
)
def test_a_key_that_is_not_safe_or_not_one_stops_the_start(store, key_file, spoil, words):
    spoil(key_file)
    with pytest.raises(ConfigError, match=words) as caught:
        take_over(cached(key_file), store)
    assert KEY.hex() not in str(caught.value)
    assert store.identity() is None


def test_a_place_that_cannot_be_is_named(store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError):
        take_over(cached(tmp_path / "file" / "privkey"), store)


# --- the ledger ---


BLOCK = Block(7, "2026-11-24 14:31:44.97 +0000 UTC", {"kairos": {"a-role": Entry('"master"')}, "empty": {}}, "h", "p")


def lay(directory: Path, block: bytes = encode(BLOCK), height: str = "7") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "index").write_text(height)
    (directory / "7").write_bytes(block)
    (directory / "6").write_bytes(b"{}")
    return directory


def records(store: Store) -> dict[str, dict[str, str]]:
    block = store.load().block
    return {} if block is None else {b: {k: e.value for k, e in found.items()} for b, found in block.storage.items()}


def test_an_empty_ledger_is_filled_from_edgevpns(store, tmp_path):
    take_over(settings(EDGEVPNLEDGERSTATE=lay(tmp_path / "ledger")), store)
    assert records(store) == {"kairos": {"a-role": '"master"'}}


def test_a_ledger_that_is_there_stays(store, tmp_path):
    store.save(Persist((Row("kairos", "a-role", Entry('"worker"')),)))
    take_over(settings(EDGEVPNLEDGERSTATE=lay(tmp_path / "ledger")), store)
    assert records(store) == {"kairos": {"a-role": '"worker"'}}


@pytest.mark.parametrize(
    ("block", "height"), [(b"{", "7"), (b"[]", "7"), (encode(BLOCK), "x"), (encode(BLOCK), "../7"), (b"", "9")]
)
def test_a_ledger_that_cannot_be_read_is_left_and_told_of(store, tmp_path, caplog, block, height):
    directory = lay(tmp_path / "ledger", block, height)
    with caplog.at_level(logging.INFO):
        take_over(settings(EDGEVPNLEDGERSTATE=directory), store)
    assert records(store) == {}
    assert str(directory) in caplog.text


def test_a_fresh_edgevpn_ledger_is_read(tmp_path):
    directory = tmp_path / "ledger"
    directory.mkdir()
    (directory / "index").write_text("0")
    (directory / "0").write_text(
        '{"Index":0,"Timestamp":"2026-11-24 14:31:44.972328777 +0000 UTC m=+0.011891484","Storage":{},'
        '"Hash":"993c923422cd134b6aad0235ebfd4290a7b27b83d1bcd6b1fb2addc4b45b2fa6","PrevHash":""}'
    )
    block = read_ledger(directory)
    assert block is not None
    assert block.index == 0
