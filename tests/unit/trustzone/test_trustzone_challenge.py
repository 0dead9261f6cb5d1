"""What is said in the public room: EdgeVPN's challenge, and the one that is bound to its author and time."""

from __future__ import annotations

import json

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.ids import PeerId
from provider_kairos.token import envelope
from provider_kairos.trustzone import challenge, keys

A, B = PeerId("12D3KooWA"), PeerId("12D3KooWB")
PRIVATE = keys.load_private(keys.generate().private)
PUBLIC = PRIVATE.public_key()
CLOCK = ManualClock()


def made(**options):
    options = {"inside": False, "for_edgevpn": True, **options}
    return challenge.annotated(PRIVATE, A, CLOCK.now(), **options)


def test_ours_holds_edgevpns_too_and_survives_the_envelope():
    notes = made()
    passed_on = envelope.decode(envelope.encode(envelope.Envelope("00", annotations=notes))).annotations
    assert passed_on == json.loads(json.dumps(notes))
    read = challenge.read(A, challenge.TEXT, passed_on)
    assert (read.edgevpn, read.inside, read.at) == (notes["sigs"], False, CLOCK.now().unix)
    assert read.proves(PUBLIC)
    assert not read.proves(keys.load_public(keys.generate().public))


def test_said_by_somebody_else_or_changed_it_proves_nothing():
    notes = made()
    assert not challenge.read(B, challenge.TEXT, notes).proves(PUBLIC)
    for name, value in (("at", notes["kairos-p2p"]["at"] + 1), ("inside", True)):
        changed = {**notes, "kairos-p2p": {**notes["kairos-p2p"], name: value}}
        assert not challenge.read(A, challenge.TEXT, changed).proves(PUBLIC)


def test_edgevpns_own_can_be_said_by_anybody():
    theirs = {"sigs": made()["sigs"]}
    assert challenge.read(B, challenge.TEXT, theirs).proves(PUBLIC)


def test_without_edgevpn_nothing_is_sent_that_can_be_said_again():
    assert set(made(for_edgevpn=False)) == {"kairos-p2p"}
    read = challenge.read(A, challenge.TEXT, made(for_edgevpn=False, inside=True))
    assert read.inside
    assert read.proves(PUBLIC)


@pytest.mark.parametrize(("later", "fresh"), [(0, True), (599, True), (601, False), (-599, True), (-601, False)])
def test_it_is_worth_something_for_ten_minutes(later, fresh):
    clock = ManualClock()
    read = challenge.read(
        A, challenge.TEXT, challenge.annotated(PRIVATE, A, clock.now(), inside=False, for_edgevpn=False)
    )
    assert read.is_fresh(clock.advance(later)) is fresh


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        (b"Challenge", {"sigs": "x"}),
        (b"", {"sigs": "x"}),
        (b"challenge", None),
        (b"challenge", {}),
        (b"challenge", {"sigs": 1}),
        (b"challenge", {"sigs": "x" * 2000}),
        (b"challenge", {"sigs": "x", "kairos-p2p": 1}),
        (b"challenge", {"kairos-p2p": {}}),
        (b"challenge", {"kairos-p2p": {"at": True, "inside": False, "sig": "x"}}),
        (b"challenge", {"kairos-p2p": {"at": -1, "inside": False, "sig": "x"}}),
        (b"challenge", {"kairos-p2p": {"at": 2**70, "inside": False, "sig": "x"}}),
        (b"challenge", {"kairos-p2p": {"at": 1, "inside": 0, "sig": "x"}}),
        (b"challenge", {"kairos-p2p": {"at": 1, "inside": False, "sig": ""}}),
        (b"challenge", {"kairos-p2p": {"at": 1, "inside": False, "sig": "x" * 2000}}),
    ],
)
def test_what_is_no_challenge_is_refused(text, notes):
    with pytest.raises(challenge.ChallengeError):
        challenge.read(A, text, notes)
