"""First master and all the others (spec/provider.md 4.5.2, 13 #1-#6)."""

from __future__ import annotations

import random

from provider_kairos.clock import ManualClock
from provider_kairos.ids import NodeUuid
from provider_kairos.roles.assignment import assign
from provider_kairos.roles.founding import Decision, LeaderFounding, first_master
from provider_kairos.roles.leader import Leading
from provider_kairos.roles.model import Held, LocalTruth, Meta, Role, advertisement, view_of
from provider_kairos.roles.reasons import AnotherFirstMaster, ClusterExists, HaIncomplete, MoreNodes, NoCandidate

CLOCK = ManualClock()
NOW = CLOCK.now()
MINE = Leading("me", mine=True)


def view(roles, *, metas=None, away=(), extra=None):
    values = {}
    for uuid, role in roles.items():
        if uuid not in away:
            values[f"{uuid}-uuid"] = advertisement(NOW)
        if role:
            values[f"{uuid}-role"] = role
    for uuid, meta in (metas or {}).items():
        values[f"{uuid}-meta"] = meta.value()
    return view_of(values | (extra or {}))


def founding(uuid="me", **options):
    options.setdefault("forced", None)
    options.setdefault("role", Role.MASTER)
    return LeaderFounding(NodeUuid(uuid), rng=random.Random(1), **options)


def given(view, decision, additional=0):
    made = assign(view, decision, additional_masters=additional, now=NOW)
    return {put.key.removesuffix("-role"): put.value for put in made.writes}, made.waiting


# -- the first master


def test_the_leader_chooses_one_of_the_free_nodes():
    decision = founding().decide(view({"me": "", "a": "", "b": ""}), LocalTruth(), MINE, NOW)
    assert decision.first in {"me", "a", "b"}
    assert [(p.key, p.value) for p in decision.writes] == [(f"{decision.first}-role", "master")]
    assert not decision.certain


def test_a_node_that_does_not_lead_chooses_nobody():
    assert founding().decide(view({"me": "", "a": ""}), LocalTruth(), Leading("a"), NOW) == Decision()


def test_a_leader_with_a_fixed_role_does_not_choose_itself():
    chosen = {
        LeaderFounding(NodeUuid("me"), role=Role.MASTER, forced=Role.WORKER, rng=random.Random(n))
        .decide(view({"me": "", "a": "", "b": ""}), LocalTruth(), MINE, NOW)
        .first
        for n in range(20)
    }
    assert chosen == {"a", "b"}


def test_role_none_is_never_chosen():
    decision = founding().decide(view({"me": "none", "a": "none"}), LocalTruth(), MINE, NOW)
    assert decision.writes == ()
    assert decision.waiting == (NoCandidate(),)


def test_a_fixed_master_counts_as_first_in_a_cluster_with_ha():
    decision = founding(role=Role.CLUSTER_INIT).decide(view({"me": "", "a": "master"}), LocalTruth(), MINE, NOW)
    assert decision.first == "a"
    assert decision.writes == ()


def test_no_second_first_master_while_anybody_holds_a_role():
    seen = view({"me": "", "a": "worker"}, metas={"a": Meta(held=Role.WORKER)})
    decision = founding().decide(seen, LocalTruth(), MINE, NOW)
    assert decision.refused
    assert decision.waiting == (ClusterExists("a"),)


def test_a_first_master_that_went_away_is_still_first():
    held = view({"me": "", "a": "master"}, metas={"a": Meta(held=Role.MASTER, generation="1")}, away={"a"})
    assert founding().decide(held, LocalTruth(), MINE, NOW).first == "a"
    go = view({"me": "", "a": "master"}, away={"a"}, extra={"ip-master": "10.1.0.1", "token-nodetoken": "t"})
    assert founding().decide(go, LocalTruth(), MINE, NOW).first == "a"


def test_a_named_first_master_that_went_away_before_it_started_is_replaced():
    seen = view({"me": "", "b": "", "a": "master"}, metas={"a": Meta()}, away={"a"})
    decision = founding().decide(seen, LocalTruth(), MINE, NOW)
    assert decision.first in {"me", "b"}


def test_the_chosen_node_confirms_for_a_moment():
    clock = ManualClock()
    mine = founding()
    seen = view({"me": "master", "a": ""}, extra={"leader-auto": "a"})
    assert not mine.decide(seen, LocalTruth(), Leading("a"), clock.now()).certain
    assert not mine.decide(seen, LocalTruth(), Leading("a"), clock.advance(0.9)).certain
    assert mine.decide(seen, LocalTruth(), Leading("a"), clock.advance(0.2)).certain


def test_another_leader_restarts_the_confirmation():
    clock = ManualClock()
    mine = founding()
    mine.decide(view({"me": "master", "a": ""}, extra={"leader-auto": "a"}), LocalTruth(), Leading("a"), clock.now())
    other = view({"me": "master", "a": ""}, extra={"leader-auto": "me"})
    assert not mine.decide(other, LocalTruth(), MINE, clock.advance(1.1)).certain


def test_of_two_choices_the_same_one_gives_way_on_every_node():
    roles = {"node-1": "master", "node-3": "master", "a": ""}
    seen = view(roles, metas={"node-1": Meta(), "node-3": Meta()})
    assert first_master(seen, NOW) == "node-3"
    loser = founding("node-1").decide(seen, LocalTruth(), Leading("a"), NOW)
    assert loser.waiting == (AnotherFirstMaster("node-3"),)
    assert not loser.certain
    # one that has started wins over every hash
    seen = view(roles, metas={"node-1": Meta(held=Role.MASTER, generation="1"), "node-3": Meta()})
    assert first_master(seen, NOW) == "node-1"


def test_too_few_nodes_confirm_nothing():
    alone = view({"me": "master"})
    assert founding().decide(alone, LocalTruth(), Leading(), NOW).waiting == (MoreNodes(1, 2),)


def test_a_named_node_does_not_found_beside_a_cluster():
    clock = ManualClock()
    mine = founding()
    seen = view({"me": "master", "a": "worker"}, metas={"a": Meta(held=Role.WORKER)})
    mine.decide(seen, LocalTruth(), Leading("a"), clock.now())
    late = mine.decide(seen, LocalTruth(), Leading("a"), clock.advance(10))
    assert not late.certain
    assert late.refused


def test_a_configured_node_decides_nothing_new():
    truth = LocalTruth(held=Held(Role.MASTER, "kairos", "1"), deployed=True)
    decision = founding().decide(view({"me": "", "a": ""}), truth, MINE, NOW)
    assert decision.first == "me"
    assert decision.writes == ()


# -- the others


def test_everyone_else_becomes_a_worker():
    roles, waiting = given(view({"f": "master", "a": "", "b": ""}), Decision(NodeUuid("f")))
    assert roles == {"a": "worker", "b": "worker"}
    assert waiting == ()


def test_nothing_before_a_first_master_is_named():
    assert given(view({"a": "", "b": ""}), Decision()) == ({}, ())


def test_additional_masters_are_named_together_and_the_rest_are_workers():
    seen = view({"f": "master/clusterinit", "a": "", "b": "", "c": ""})
    roles, _ = given(seen, Decision(NodeUuid("f")), 2)
    assert roles == {"a": "master/ha", "b": "master/ha", "c": "worker"}


def test_too_few_nodes_for_all_masters_give_no_workers():
    roles, waiting = given(view({"f": "master/clusterinit", "a": ""}), Decision(NodeUuid("f")), 3)
    assert roles == {"a": "master/ha"}
    assert waiting == (HaIncomplete(1, 3),)


def test_fewer_masters_asked_for_than_there_are_makes_workers():
    seen = view({"f": "master/clusterinit", "a": "master/ha", "b": "master/ha", "c": ""})
    roles, _ = given(seen, Decision(NodeUuid("f")), 1)
    assert roles == {"c": "worker"}


def test_an_additional_master_that_is_away_but_holds_its_role_is_counted():
    seen = view({"f": "master/clusterinit", "a": "master/ha", "b": ""}, metas={"a": Meta(held=Role.HA)}, away={"a"})
    assert given(seen, Decision(NodeUuid("f")), 1)[0] == {"b": "worker"}


def test_roles_are_never_written_over():
    seen = view({"f": "master", "a": "master/ha", "b": "none", "c": "worker"})
    assert given(seen, Decision(NodeUuid("f")))[0] == {}


def test_one_named_first_in_vain_gets_another_role_but_not_when_it_is_forced_or_runs_the_original():
    metas = {"x": Meta(), "y": Meta(forced=True)}
    seen = view({"f": "master", "x": "master", "y": "master", "z": "master"}, metas=metas)
    assert given(seen, Decision(NodeUuid("f")))[0] == {"x": "worker"}


def test_newcomers_become_workers_of_a_cluster_without_a_known_first_master():
    seen = view({"a": "worker", "b": ""}, metas={"a": Meta(held=Role.WORKER)})
    assert given(seen, Decision(refused=True))[0] == {"b": "worker"}
