"""Minutes of EdgeVPN nodes by the clock (timing.json), replayed to our engine as a fourth node of the same network.

The recording has when each node said what kind of thing, the texts of its heartbeats, and what one node's API listed;
blocks are made again from that. Where our timing differs on purpose:

================================  ====================================================================================
difference                        reason
================================  ====================================================================================
heartbeats every 40 to 60 s       EdgeVPN: 5, 10, 20, 40, 80, 120 s, each half to one and a half times that. v0.35.0 to
                                  v0.35.3 stop routing to a peer whose heartbeat is older than 120 s
the periodic broadcast            left out while somebody else has just shown the same state, its gap grows from 10 to 60 s
in ``off`` the dead alone leave   EdgeVPN's leader empties the whole heartbeat bucket, and for seconds nobody is online
presence by our own clock too     a peer counts while its heartbeat advances before our eyes, whatever its clock shows
================================  ====================================================================================
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.clock import Now
from provider_kairos.ids import PeerId
from provider_kairos.ledger import block as blocks
from provider_kairos.ledger.block import Block, Storage
from provider_kairos.ledger.engine import Ledger, LedgerSettings
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.liveness import parse_heartbeat
from provider_kairos.ledger.model import Broadcast
from provider_kairos.ledger.policy import OwnershipMode
from provider_kairos.ledger.signing import Signer

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recordings" / "timing.json").read_text())
RUNS: dict[str, Any] = RECORDED["runs"]
KINDS = {"own heartbeat", "other change", "same block again"}
OURS = Signer(b"\x09" * 32)


def flag(run: dict[str, Any], name: str, default: int) -> int:
    words = run["flags"].split()
    return int(words[words.index(name) + 1]) if name in words else default


def settings_of(run: dict[str, Any]) -> LedgerSettings:
    """Our settings for the run's flags. Heartbeats of others cannot be signed anew here, so ``observe``."""
    heartbeat = flag(run, "--aliveness-healthcheck-interval", 120)
    return LedgerSettings(
        mode=OwnershipMode.OFF if "off" in run["flags"].split() else OwnershipMode.OBSERVE,
        ownership_ttl=4 * heartbeat,
        heartbeat_interval=min(heartbeat, 40),
        offline_after=flag(run, "--aliveness-healthcheck-max-interval", 900),
        scrub_interval=flag(run, "--aliveness-healthcheck-scrub-interval", 600),
    )


@dataclass(frozen=True)
class Said:
    """One message of a recorded node; ``heartbeat`` is the text that was new in it, if any."""

    t: int
    peer: PeerId
    kind: str
    index: int
    heartbeat: str = ""


def said(run: dict[str, Any]) -> list[Said]:
    """Every recorded message, in order."""
    found = []
    for peer, record in run["peers"].items():
        beats = dict(record["first_seen_heartbeats"])
        for t, kind, index, _size in record["messages"]:
            found.append(Said(t, PeerId(peer), kind, index, beats.get(t, "")))
    return sorted(found, key=lambda each: each.t)


class Fourth:
    """Our engine in a recorded run; ``broadcasts`` counts what it said, ``beats`` when its own heartbeat changed."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.settings = settings_of(run)
        self.ledger = Ledger(self.settings, OURS, rng=random.Random(4))
        self.broadcasts = 0
        self.beats: list[float] = []
        self._t = said(run)[0].t

    @property
    def now(self) -> Now:
        return Now(self._t, self._t / 1e9)

    def until(self, t: int) -> None:
        """Let time pass."""
        while True:
            self.ledger.tick(self.now)
            self.broadcasts += sum(isinstance(each, Broadcast) for each in self.ledger.take_effects())
            own = self.ledger.get("healthcheck", OURS.peer_id)
            stamp = parse_heartbeat(own) if own else None
            if stamp is not None and (not self.beats or stamp > self.beats[-1]):
                self.beats.append(stamp)
            wakeup = self.ledger.next_wakeup()
            due = max(int(wakeup * 1e9) + 1, self._t + 1) if wakeup is not None else t
            if due >= t:
                self._t = t
                return
            self._t = due

    def hear(self, message: Said) -> None:
        """The recorded node shows all that we have, and the heartbeat that was new then."""
        storage: Storage = {name: dict(entries) for name, entries in self.ledger.block.storage.items()}
        if message.heartbeat:
            version = 0 if self.settings.mode is OwnershipMode.OFF else message.t
            entry = Entry(message.heartbeat, message.peer if version else "", version, self.now.unix if version else 0)
            storage.setdefault("healthcheck", {})[message.peer] = entry
        index = self.ledger.block.index + bool(message.heartbeat)
        self.ledger.receive(blocks.pack(Block(index, "", storage, "f" * 64, "")), message.peer, self.now)

    def present(self) -> set[PeerId]:
        """Who is listed as online, ourselves left out."""
        return set(self.ledger.live_peers(self.now, self.settings.offline_after)) - {OURS.peer_id}


def test_the_recording_is_complete():
    assert set(RUNS) == {"default", "fast-enforce", "fast-off"}
    assert sum(len(peer["messages"]) for run in RUNS.values() for peer in run["peers"].values()) == 356


@pytest.mark.parametrize("name", RUNS)
def test_every_message_is_of_a_known_kind_and_its_gaps_are_the_back_off_tickers(name: str):
    run = RUNS[name]
    longest = 1.5 * flag(run, "--aliveness-healthcheck-interval", 120)
    for record in run["peers"].values():
        assert {kind for _, kind, _, _ in record["messages"]} <= KINDS
        gaps = [(b[0] - a[0]) / 1e9 for a, b in zip(record["messages"], record["messages"][1:], strict=False)]
        assert gaps == pytest.approx(record["message_gaps_s"], abs=0.011)
        # the whole ledger every 5 to 15 s
        assert max(gaps) <= 15.2
        assert max(record["heartbeat_gaps_s"]) <= longest + 15  # a heartbeat may be heard a broadcast later


@pytest.mark.parametrize("name", RUNS)
def test_every_heartbeat_is_read_and_says_when_it_was_heard(name: str):
    for record in RUNS[name]["peers"].values():
        stamps = [parse_heartbeat(text) for _, text in record["first_seen_heartbeats"]]
        assert None not in stamps
        ages = [t / 1e9 - stamp for (t, _), stamp in zip(record["first_seen_heartbeats"], stamps, strict=True) if stamp]
        assert stamps == sorted(each for each in stamps if each is not None)
        assert all(-1 <= age <= 16 for age in ages), ages


@pytest.mark.parametrize("name", RUNS)
def test_we_list_who_is_there_and_drop_who_was_killed(name: str):
    """EdgeVPN's own list, by its API, drops the dead no earlier than ours, and never knows one that ours does not."""
    run = RUNS[name]
    fourth, everybody = Fourth(run), {PeerId(peer) for peer in run["peers"]}
    (killed,) = [peer for peer, record in run["peers"].items() if record["last_message_t"] < run["kill"]]
    known: set[PeerId] = set()
    for message in said(run):
        fourth.until(message.t)
        fourth.hear(message)
        known |= {message.peer} if message.heartbeat else set()
        # by the stamp it may be dropped earlier than by when it was heard
        stamp, heard = last_beat(run, killed)
        limit = fourth.settings.offline_after
        if message.t / 1e9 < stamp + limit:
            assert fourth.present() == known
        elif message.t / 1e9 > heard + limit:
            assert fourth.present() == known - {PeerId(killed)}
    assert known == everybody
    listed = [set(view["healthcheck_keys"]) for view in run["api_view_of_node_a"] if "healthcheck_keys" in view]
    assert (killed in fourth.present()) is (name == "default")
    assert (killed in listed[-1]) is (name == "default")
    if name == "fast-off":
        assert set() in listed  # EdgeVPN's leader had emptied the bucket


def last_beat(run: dict[str, Any], peer: str) -> tuple[float, float]:
    """What the last heartbeat says, and when it was heard."""
    t, text = run["peers"][peer]["first_seen_heartbeats"][-1]
    return parse_heartbeat(text) or 0, t / 1e9


@pytest.mark.parametrize("name", RUNS)
def test_we_say_less_than_any_of_them_and_beat_often_enough(name: str):
    run = RUNS[name]
    fourth = Fourth(run)
    messages = said(run)
    for message in messages:
        fourth.until(message.t)
        fourth.hear(message)
    staying = [record for record in run["peers"].values() if record["last_message_t"] > run["kill"]]
    theirs = min(len(record["messages"]) for record in staying)
    assert fourth.broadcasts < theirs * (0.5 if name == "default" else 1)
    gaps = [b - a for a, b in zip(fourth.beats, fourth.beats[1:], strict=False)]
    assert max(gaps) <= 1.5 * fourth.settings.heartbeat_interval + 1
    assert max(gaps) < 120  # the window of v0.35.0 to v0.35.3
