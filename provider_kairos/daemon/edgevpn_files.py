"""What an EdgeVPN node left on this disk and ours takes over at its first start: its identity and its ledger.

With ``EDGEVPNPRIVKEYCACHE`` the key file of EdgeVPN becomes this node's identity, so that a node that moves keeps its
peer ID and the records that it owns; where there is no such file ours is written there, so that the way back is open
too. With ``EDGEVPNLEDGERSTATE`` the newest block of EdgeVPN's ledger on disk fills a ledger that is still empty: it
matters when a whole network moves at once and no neighbour has one. Both happen once: afterwards the state file decides.
Specification: spec/edgevpn.md 5.13, 7, 12.3.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.store import Store
from provider_kairos.errors import ConfigError, HostError, PeerError, PermissionHostError
from provider_kairos.ids import PeerId, peer_id_of_public_key
from provider_kairos.ledger.block import MAX_BLOCK_BYTES, Block, decode
from provider_kairos.ledger.model import Persist, Row
from provider_kairos.system.files import write_atomic

__all__ = ["encode_key", "read_key", "read_ledger", "take_over"]

log = logging.getLogger(__name__)

KEY_FILE = "privkey"
_KEY_HEAD = bytes.fromhex("08011240")  # libp2p's protobuf of an Ed25519 key: type 1, then 64 bytes


def take_over(settings: DaemonSettings, store: Store) -> None:
    """Fill a fresh ``store`` from what EdgeVPN left, as the settings ask; blocks.

    Raises ConfigError for files that are not what they should be, HostError for what cannot be read or written.
    """
    if settings.privkey_cache:
        _take_key(settings.privkey_cache_dir.expanduser() / KEY_FILE, store)
    if settings.ledger_state is not None and store.load().block is None:
        _take_ledger(settings.ledger_state, store)


# --- the identity ----------------------------------------------------------------------------------------------------


def _take_key(path: Path, store: Store) -> None:
    ours = store.identity()
    if not _exists(path):
        seed = ours or store.seed()
        write_atomic(path, encode_key(seed), directory_mode=0o700)
        log.info("the identity %s is kept in %s too", _peer(seed), path)
        return
    theirs = read_key(path)
    if ours is None:
        store.set_seed(theirs)
        log.info("identity %s taken over from %s", _peer(theirs), path)
    elif ours != theirs:
        log.warning(
            "%s holds another identity (%s) than this node's state (%s), which stays; to take the file's, stop the"
            " daemon and move %s and its copies away",
            path,
            _peer(theirs),
            _peer(ours),
            store.path,
        )


def read_key(path: Path) -> bytes:
    """The 32-byte seed in EdgeVPN's key file.

    Raises ConfigError when the file is no such key or others may read or replace it, HostError when it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise PermissionHostError(f"{path} may not be read", hint="run as its owner or as root") from error
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}", hint="set EDGEVPNPRIVKEYCACHEDIR") from error
    try:
        _check_rights(os.fstat(descriptor), path)
        data = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    if len(data) != 68 or not data.startswith(_KEY_HEAD):
        raise ConfigError(
            "this is no Ed25519 private key of libp2p",
            path=str(path),
            hint="move it away, or set EDGEVPNPRIVKEYCACHE=false",
        )
    seed = data[4:36]
    if _public(seed) != data[36:]:
        raise ConfigError(
            "the two halves of this private key do not fit", path=str(path), hint="restore it, or move it away"
        )
    return seed


def encode_key(seed: bytes) -> bytes:
    """EdgeVPN's key file of a seed: 68 bytes."""
    return _KEY_HEAD + seed + _public(seed)


def _check_rights(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError("this is no ordinary file", path=str(path), hint="move it away")
    if status.st_uid not in {0, os.geteuid()}:
        raise ConfigError(
            "this key belongs to another user, who is this node then", path=str(path), hint=f"chown root {path}"
        )
    if status.st_mode & 0o077:
        raise ConfigError(
            f"this key is open to other users (mode {stat.S_IMODE(status.st_mode):04o})",
            path=str(path),
            hint=f"chmod 600 {path}",
        )
    if path.parent.stat().st_mode & 0o022:
        raise ConfigError("other users may replace this key", path=str(path), hint=f"chmod 700 {path.parent}")


def _public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def _peer(seed: bytes) -> PeerId:
    return peer_id_of_public_key(_public(seed))


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise HostError(f"cannot look at {path}: {error.strerror}", hint="set EDGEVPNPRIVKEYCACHEDIR") from error
    return True


# --- the ledger ------------------------------------------------------------------------------------------------------


def _take_ledger(directory: Path, store: Store) -> None:
    block = read_ledger(directory)
    if block is None:
        return
    rows = tuple(Row(bucket, key, entry) for bucket, records in block.storage.items() for key, entry in records.items())
    store.save(Persist(rows))
    log.info("%d records taken over from %s, the ledger of EdgeVPN at height %d", len(rows), directory, block.index)


def read_ledger(directory: Path) -> Block | None:
    """The newest block of EdgeVPN's ledger on disk; None, and a line in the log, where there is none to be read.

    One file per height, named by it, and ``index`` with the newest height (spec/edgevpn.md 5.13).
    """
    try:
        height = (directory / "index").read_text("ascii").strip()
        if not height.isdecimal():
            raise ValueError(f"{height[:20]!r} is no height")
        path = directory / height
        if path.stat().st_size > MAX_BLOCK_BYTES:
            raise ValueError(f"{path} is larger than a ledger may be")
        return decode(path.read_bytes())
    except FileNotFoundError:
        log.info("there is no ledger of EdgeVPN in %s", directory)
    except (OSError, ValueError, PeerError) as error:
        log.warning("the ledger of EdgeVPN in %s cannot be taken over: %s", directory, error)
    return None
