"""The engine hears a whole recording of real EdgeVPN nodes, at the recorded times, as a fifth node would."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.clock import Now
from provider_kairos.ledger import block as blocks
from provider_kairos.ledger.engine import Ledger, LedgerSettings
from provider_kairos.ledger.policy import OwnershipMode
from provider_kairos.ledger.signing import Signer

RECORDINGS = Path(__file__).parent / "recordings"
MODES = {
    "messages-035-enforce.jsonl": OwnershipMode.ENFORCE,
    "messages-035-guard.jsonl": OwnershipMode.ENFORCE,
    "messages-035-observe.jsonl": OwnershipMode.OBSERVE,
    "messages-035-off.jsonl": OwnershipMode.OFF,
    "messages-030.jsonl": OwnershipMode.OFF,
}


def heard(name: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (RECORDINGS / name).read_text().splitlines()]
    return [record for record in records if record["record"] == "message" and "block" in record]


def replay(name: str, mode: OwnershipMode) -> tuple[Ledger, Counter[str], list[dict[str, Any]], Now]:
    ledger = Ledger(LedgerSettings(mode=mode), Signer(b"\x09" * 32), rng=random.Random(1))
    reasons: Counter[str] = Counter()
    messages = heard(name)
    now = Now(0, 0.0)
    for message in messages:
        now = Now(message["t"], message["t"] / 1e9)
        received = ledger.receive(blocks.pack_text(message["block"].encode()), message["from"], now)
        reasons.update(rejection.reason for rejection in received.rejected)
    return ledger, reasons, messages, now


@pytest.mark.parametrize("name", MODES)
def test_every_author_with_a_heartbeat_is_live_and_everything_is_understood(name: str):
    ledger, reasons, messages, now = replay(name, MODES[name])
    assert messages
    beating = {
        peer for message in messages for peer in blocks.decode(message["block"].encode()).storage.get("healthcheck", {})
    }
    assert set(ledger.live_peers(now)) == beating
    # What the recorded run did to others' records on purpose; nothing that a healthy node wrote is refused.
    assert set(reasons) <= {"tombstone by non-owner of a live entry"}


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if mode is OwnershipMode.OFF])
def test_off_ends_with_the_highest_block(name: str):
    ledger, _, messages, _ = replay(name, OwnershipMode.OFF)
    received = [blocks.decode(message["block"].encode()) for message in messages]
    highest = max(received, key=lambda block: (block.index, block.hash))
    assert ledger.block == highest


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if mode is not OwnershipMode.OFF])
def test_merging_ends_with_the_newest_version_of_every_live_record(name: str):
    ledger, _, messages, _ = replay(name, OwnershipMode.ENFORCE)
    newest: dict[tuple[str, str], int] = {}
    for message in messages:
        for bucket, entries in blocks.decode(message["block"].encode()).storage.items():
            for key, entry in entries.items():
                newest[bucket, key] = max(newest.get((bucket, key), 0), entry.version)
    for (bucket, key), version in newest.items():
        kept = ledger.entry(bucket, key)
        if kept is not None and bucket not in {"machines", "users"}:  # where the run deleted others' records
            assert kept.version == version, (bucket, key)


def test_our_block_is_text_that_re_encodes_to_itself():
    ledger, _, _, _ = replay("messages-035-enforce.jsonl", OwnershipMode.ENFORCE)
    text = blocks.encode(ledger.block)
    assert blocks.encode(blocks.decode(text)) == text
    assert blocks.block_hash(ledger.block) == ledger.block.hash
