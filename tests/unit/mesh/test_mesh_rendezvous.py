"""Where and when nodes meet: every epoch is announced in time, the right ones are looked into, rounds come as promised."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import random
from datetime import datetime
from pathlib import Path

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.mesh.rendezvous import LONGEST_PAUSE_ALONE, MAX_OLDER, MOST_LEAD, Rendezvous, key_of
from provider_kairos.token.codec import decode, generate
from provider_kairos.token.otp import rendezvous_at

START = 1_700_000_000 - 1_700_000_000 % 9000
RECORDINGS = Path(__file__).parents[2] / "interop" / "recordings"


def engine(epoch=360, interval=720.0):
    return Rendezvous(generate(interval=epoch), interval, random.Random(1))


def steps(engine, points, clock):
    """Points as offsets in epochs."""
    unix = clock.now().unix
    epoch = engine._token.dht.interval
    names = {rendezvous_at(engine._token, unix + step * epoch): step for step in range(-9, 3)}
    return [(names[point.rendezvous], point.provide) for point in points]


def test_the_key_is_the_hash_of_the_text_as_a_multihash():
    assert key_of("rdv") == b"\x12\x20" + hashlib.sha256(b"rdv").digest()
    # spec/edgevpn.md 2.3, 6.2: what Go makes of V2a
    expected = "12201dc5090e76011541020d6689353eac3b5c334088a2ee74bcd1f5e942dae2576a"
    assert key_of("cb3b7003e6d185aca5576d87cc10b0ae").hex() == expected


def test_in_company_the_current_and_the_previous_epoch_are_looked_into():
    made, clock = engine(), ManualClock(START + 100)
    assert steps(made, made.points(clock.now(), alone=False), clock) == [(0, True), (-1, False)]


def test_the_next_epoch_is_announced_shortly_before_it_begins():
    made, clock = engine(), ManualClock(START + 360 - MOST_LEAD - 1)
    assert steps(made, made.points(clock.now(), alone=False), clock) == [(0, True), (-1, False)]
    clock.advance(2)
    assert steps(made, made.points(clock.now(), alone=False), clock) == [(0, True), (1, True), (-1, False)]


@pytest.mark.parametrize(("epoch", "older"), [(9000, 1), (1000, 2), (360, 3), (30, MAX_OLDER)])
def test_alone_older_epochs_are_looked_into_as_far_as_a_go_node_may_be_behind(epoch, older):
    made, clock = engine(epoch), ManualClock(START + 1)
    assert [step for step, _ in steps(made, made.points(clock.now(), alone=True), clock)] == list(
        range(0, -older - 2, -1)
    )


def test_a_rendezvous_that_never_changes_is_one_point():
    token = generate()
    made = Rendezvous(dataclasses.replace(token, dht=dataclasses.replace(token.dht, key="")), 720, random.Random(1))
    clock = ManualClock(START)
    (point,) = made.points(clock.now(), alone=True)
    assert point.rendezvous == token.rendezvous
    assert point.provide
    made.announced(point)
    made.done(clock.now(), alone=False)
    assert not made.new_points(clock.now())
    clock.advance(1000)
    assert made.full_round_due(clock.now(), alone=False)


def run(made, clock, seconds, alone):
    """Play the loop of the DHT service; returns (time of round, full, announced rendezvous) of each round."""
    began, rounds = clock.now().mono, []
    while clock.now().mono - began < seconds:
        now = clock.now()
        full = made.full_round_due(now, alone=alone)
        points = made.points(now, alone=alone) if full else made.new_points(now)
        if points:
            rounds.append((now.mono - began, full, [point.rendezvous for point in points if point.provide]))
            for point in points:
                if point.provide:
                    made.announced(point)
            if full:
                made.done(now, alone=alone)
        clock.advance(made.wait(clock.now(), alone=alone))
    return rounds


def test_alone_rounds_come_at_once_and_soon_again():
    times = [when for when, full, _ in run(engine(9000), ManualClock(START), 3600, alone=True) if full]
    assert times[0] == 0
    assert times[1] < 3
    assert sum(when <= 60 for when in times) >= 5
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) <= LONGEST_PAUSE_ALONE + 1
    assert gaps[-1] > LONGEST_PAUSE_ALONE / 2
    assert len(times) < 30


@pytest.mark.parametrize("interval", [60.0, 720.0])
def test_in_company_rounds_come_within_the_interval(interval):
    times = [when for when, full, _ in run(engine(9000, interval), ManualClock(START), 7200, alone=False) if full]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) <= interval + 1
    assert min(gaps) >= interval * 0.7


@pytest.mark.parametrize("epoch", [30, 60, 360, 9000])
@pytest.mark.parametrize("alone", [True, False])
def test_every_epoch_is_announced_before_it_begins(epoch, alone):
    made, clock = engine(epoch), ManualClock(START + 7)
    announced: dict[str, float] = {}
    for when, _, names in run(made, clock, 10 * epoch, alone):
        for name in names:
            announced.setdefault(name, START + 7 + when)
    for number in range(1, 10):
        begins = START + number * epoch
        assert begins - MOST_LEAD - 1 <= announced[rendezvous_at(made._token, begins)] <= begins


def test_a_clock_that_is_set_back_or_forth_ends_nothing():
    made, clock = engine(360), ManualClock(START)
    run(made, clock, 100, alone=False)
    clock.step_wall(86400)
    assert [point.provide for point in made.new_points(clock.now())].count(True) >= 1
    assert run(made, clock, 100, alone=False)
    clock.step_wall(-200_000)
    assert run(made, clock, 100, alone=False)


def test_we_look_wherever_a_recorded_node_announced_itself():
    """At every moment that was recorded, a newcomer's points hold all that the EdgeVPN node used."""
    tokens = {}
    checked = 0
    for line in (RECORDINGS / "otp.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["record"] == "token":
            tokens["now"] = decode(record["token"])
        if record["record"] == "rendezvous":
            made = Rendezvous(tokens["now"], 720, random.Random(1))
            clock = ManualClock(datetime.fromisoformat(record["time"]).timestamp())
            assert set(record["points"]) <= {point.rendezvous for point in made.points(clock.now(), alone=True)}
            assert record["points"][-1] == made.points(clock.now(), alone=True)[0].rendezvous
            checked += 1
    assert checked == 18
