"""The gate's rule, and how much of strangers' talk is looked at."""

from __future__ import annotations

import pytest

from provider_kairos.ids import PeerId
from provider_kairos.trustzone import limits
from provider_kairos.trustzone.gate import PeerGate

A, B, X = PeerId("a"), PeerId("b"), PeerId("x")


@pytest.mark.parametrize(
    ("options", "trusted", "heard"),
    [
        ({}, {A}, {A}),
        ({}, set(), set()),
        ({"relaxed": True}, set(), {A, B, X}),
        ({"relaxed": True}, {B}, {B}),
        ({"enabled": False}, {A}, {A, B, X}),
    ],
)
def test_who_is_heard(options, trusted, heard):
    gate = PeerGate(**options)
    gate.trusted = frozenset(trusted)
    assert {peer for peer in (A, B, X) if gate.allows(peer)} == heard


def test_both_who_wrote_it_and_who_brought_it_are_judged():
    gate = PeerGate()
    gate.trusted = frozenset({A, B})
    assert gate.allows(A, B)
    assert gate.allows(A)
    assert not gate.allows(A, X)
    assert not gate.allows(X, A)


def test_it_is_switched_at_run_time():
    gate = PeerGate()
    assert not gate.allows(A)
    gate.switch(on=False)
    assert gate.allows(A)
    assert not gate.closed
    gate.switch(on=True)
    assert not gate.allows(A)


def test_one_author_is_looked_at_every_two_seconds():
    attention = limits.Attention()
    assert attention.spend(X, A, 1, 0.0)
    assert not attention.spend(X, A, 1, 1.9)
    assert attention.spend(X, A, 1, 2.0)


def test_one_neighbour_cannot_use_up_what_is_there_for_all():
    attention = limits.Attention()
    through_a = sum(attention.spend(PeerId(f"p{n}"), A, 1, 0.0) for n in range(1000))
    assert through_a == limits.PER_NEIGHBOUR * limits.BURST
    assert attention.spend(X, B, 1, 0.0)
    later = sum(attention.spend(PeerId(f"q{n}"), A, 1, 1.0) for n in range(1000))
    assert later == limits.PER_NEIGHBOUR


def test_all_neighbours_together_are_bounded_and_so_is_what_is_remembered():
    attention = limits.Attention()
    checks = sum(attention.spend(PeerId(f"p{n}"), PeerId(f"v{n}"), 1, 0.0) for n in range(5000))
    assert checks == limits.PER_SECOND * limits.BURST
    assert len(attention._neighbours) <= limits.MAX_REMEMBERED
    assert len(attention._authors) <= limits.MAX_REMEMBERED


def test_a_signature_is_whose_it_was_first():
    used = limits.UsedSignatures()
    assert used.first("s", A, good=False) == A
    assert used.first("s", B, good=True) == A
    assert used.first("s", A, good=True) == A


def test_a_proof_outdoes_who_came_first():
    used = limits.UsedSignatures()
    used.first("s", X, good=False)
    used.belongs("s", A)
    assert used.first("s", X, good=False) == A


def test_made_up_signatures_do_not_push_out_good_ones():
    used = limits.UsedSignatures()
    used.first("good", A, good=True)
    for number in range(3 * limits.MAX_REMEMBERED):
        used.first(f"made up {number}", X, good=False)
    assert used.first("good", X, good=False) == A
    assert sum(map(len, used._tables)) <= 2 * limits.MAX_REMEMBERED
