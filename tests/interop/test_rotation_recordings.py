"""What EdgeVPN nodes hear of each other through rotations (rotation.jsonl) and how their streams end (otp.jsonl).

The judge of ``bench.rotation`` is held against the recorded runs: it must call the deaf ones deaf. And our gossip is
shown the recorded order of a rotation: the peer's stream ends, another one begins that names the new topic only.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from bench.rotation import INTERVAL, Hearing

RECORDINGS = Path(__file__).parent / "recordings"


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECORDINGS / name).read_text().splitlines()]


def hearings(run: str) -> dict[str, Hearing]:
    found: dict[str, Hearing] = {}
    for record in records("rotation.jsonl"):
        if record["run"] == run and record["record"] == "header":
            found = {node: Hearing(record["nodes"] - 1) for node in "abc"[: record["nodes"]]}
        elif record["run"] == run and record["record"] == "view":
            ages = {name: float(age) for name, age in record["heartbeat_age_s"].items()}
            found[record["node"]].samples.append((record["t"] / 1e9, record["on_chain_nodes"], ages))
    return found


def test_the_recording_is_complete():
    kinds = [record["record"] for record in records("rotation.jsonl")]
    assert (kinds.count("header"), kinds.count("view"), len(kinds)) == (6, 1040, 1046)


@pytest.mark.parametrize("run", ["new2a", "new2b", "new2c", "new3a"])
def test_small_v035_networks_go_deaf_on_one_side(run: str):
    steps = {node: hearing.in_step() for node, hearing in hearings(run).items()}
    deaf = [node for node, heard in steps.items() if not any(heard[-3:])]
    assert 1 <= len(deaf) < len(steps), steps
    assert all(all(heard) for node, heard in steps.items() if node not in deaf)


@pytest.mark.parametrize("run", ["old2a", "old2b"])
def test_v030_recovers(run: str):
    for hearing in hearings(run).values():
        assert any(hearing.in_step()[-2:])
        assert hearing.worst() < 2 * INTERVAL


def test_the_order_of_a_rotation():
    """At every boundary a peer's stream ends, another names the new topic, and the recorder's to the old one is reset."""
    seen: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records("otp.jsonl"):
        seen[record["record"]].append(record)
    assert {kind: len(found) for kind, found in seen.items()} == {
        "token": 6,
        "subscription": 162,
        "pubsub-in-open": 160,
        "pubsub-in-end": 144,
        "pubsub-out-end": 144,
        "rendezvous": 18,
    }
    rotations = [record for record in seen["pubsub-in-end"] if record["how"] == "StreamEOF"]
    assert len(rotations) == 136  # the other eight are the ends of runs
    for ended in rotations:
        assert ended["seconds_into_step"] < 1.3
        opened, named, reset = (
            min(
                (each for each in seen[kind] if each["peer"] == ended["peer"]),
                key=lambda each: abs(each["t"] - ended["t"]),
            )
            for kind in ("pubsub-in-open", "subscription", "pubsub-out-end")
        )
        # in any order, but all within two seconds
        assert max(abs(each["t"] - ended["t"]) for each in (opened, named, reset)) < 2 * 10**9
        assert opened["t"] <= named["t"]
        assert named["step_offset"] == 0
        assert reset["how"] == "StreamReset"
