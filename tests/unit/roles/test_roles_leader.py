"""Leadership: who claims, when it counts (spec/provider.md 4.5.1)."""

from __future__ import annotations

from provider_kairos.clock import ManualClock
from provider_kairos.ids import NodeUuid
from provider_kairos.roles.effects import PutKey
from provider_kairos.roles.leader import Leadership
from provider_kairos.roles.model import advertisement, format_time, view_of
from provider_kairos.roles.reasons import ConfirmingLeadership, LeaderHasNotClaimed, MoreNodes, Settling

CLOCK = ManualClock()


def leadership(uuid, **options):
    return Leadership(NodeUuid(uuid), **options)


UUIDS = ("node-1", "node-2", "node-3")  # node-3 has the highest hash


def view(*uuids, leader="", peers=0, at=None):
    now = at or CLOCK.now()
    values = {f"{u}-uuid": advertisement(now) for u in uuids}
    if leader:
        values["leader-auto"] = leader
    return view_of(values, {f"p{n}": format_time(now.unix_ns) for n in range(peers)})


def test_the_highest_hash_claims_after_the_settle_time_and_counts_after_another():
    clock = ManualClock()
    mine = leadership("node-3")
    first = mine.step(view(*UUIDS, at=clock.now()), clock.now())
    assert isinstance(first.waiting[0], Settling)
    assert first.wake == clock.now().mono + 1
    claim = mine.step(view(*UUIDS, at=clock.now()), clock.advance(1))
    assert claim.writes == (PutKey("leader-auto", "node-3"),)
    assert not claim.mine
    shown = mine.step(view(*UUIDS, leader="node-3", at=clock.now()), clock.advance(0.1))
    assert not shown.mine
    assert isinstance(shown.waiting[0], ConfirmingLeadership)
    assert mine.step(view(*UUIDS, leader="node-3", at=clock.now()), clock.advance(1)).mine


def test_others_wait_for_the_claim():
    clock = ManualClock()
    result = leadership("node-1").step(view(*UUIDS, at=clock.now()), clock.now())
    assert result.waiting == (LeaderHasNotClaimed("node-3"),)
    assert result.writes == ()


def test_a_recorded_leader_that_advertises_is_kept_although_a_higher_hash_came():
    clock = ManualClock()
    for uuid in ("node-1", "node-3"):
        result = leadership(uuid).step(view(*UUIDS, leader="node-2", at=clock.now()), clock.now())
        assert result.leader == "node-2"
        assert result.writes == ()


def test_a_leader_that_went_away_is_replaced():
    clock = ManualClock()
    mine = leadership("node-2")
    seen = view("node-1", "node-2", leader="node-3", at=clock.now())
    mine.step(seen, clock.now())
    assert mine.step(seen, clock.advance(1)).writes == (PutKey("leader-auto", "node-2"),)


def test_a_newcomer_restarts_the_settle_time():
    clock = ManualClock()
    mine = leadership("node-3")
    mine.step(view("node-1", "node-3", at=clock.now()), clock.now())
    clock.advance(0.9)
    assert not mine.step(view(*UUIDS, at=clock.now()), clock.now()).writes
    assert not mine.step(view(*UUIDS, at=clock.now()), clock.advance(0.9)).writes
    assert mine.step(view(*UUIDS, at=clock.now()), clock.advance(0.2)).writes


def test_a_claim_that_was_overwritten_does_not_lead():
    clock = ManualClock()
    mine = leadership("node-3")
    mine.step(view(*UUIDS, at=clock.now()), clock.now())
    mine.step(view(*UUIDS, at=clock.now()), clock.advance(1))
    lost = mine.step(view(*UUIDS, leader="node-2", at=clock.now()), clock.advance(0.5))
    assert lost.leader == "node-2"
    assert not mine.step(view(*UUIDS, leader="node-2", at=clock.now()), clock.advance(5)).mine


def test_peers_that_do_not_advertise_yet_are_waited_for_but_not_for_ever():
    clock = ManualClock()
    mine = leadership("node-3", patience=4)
    mine.step(view("node-1", "node-3", peers=4, at=clock.now()), clock.now())
    assert not mine.step(view("node-1", "node-3", peers=4, at=clock.now()), clock.advance(3.9)).writes
    assert mine.step(view("node-1", "node-3", peers=4, at=clock.now()), clock.advance(0.2)).writes


def test_too_few_nodes():
    clock = ManualClock()
    result = leadership("node-1", minimum_nodes=3).step(view("node-1", "node-2", at=clock.now()), clock.now())
    assert result.waiting == (MoreNodes(2, 3),)
    assert result.waiting[0].text() == "waiting for 1 more node: 2 of 3 seen"
