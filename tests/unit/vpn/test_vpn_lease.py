"""The lease of one node, driven by hand."""

from __future__ import annotations

import json
from random import Random

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.errors import ConfigError
from provider_kairos.ids import PeerId
from provider_kairos.ledger.leader import leader
from provider_kairos.vpn import lease
from provider_kairos.vpn.lease import LeaseEngine, LeaseSettings, LeaseView
from provider_kairos.vpn.pool import Pool
from provider_kairos.vpn.records import LEASE_BUCKET, LeaseNote, LeaseState, machine_record, parse_machines, parse_notes

ME, YOU, GO = PeerId("12D3KooWMe"), PeerId("12D3KooWYou"), PeerId("12D3KooWGo")
NONE: frozenset[PeerId] = frozenset()


@pytest.fixture
def clock():
    return ManualClock()


def engine(saved=None, me=ME, **settings):
    return LeaseEngine(LeaseSettings(**settings), me, saved, Random(1))


def machine(peer, address):
    return {address: machine_record(peer, "box", "amd64", address, "v0")}


def note(peer, state=LeaseState.HELD, address="", since=0, **more):
    return {peer: LeaseNote(state, address, since, **more).text()}


def of(effects, kind):
    return [effect for effect in effects if isinstance(effect, kind)]


def run(node, clock, view, seconds=10.0):
    """Step at once and at every wake-up; returns all effects and when an address came."""
    start = clock.now().mono
    effects = list(node.step(view, clock.now()))
    while node.address is None:
        due = node.next_wakeup()
        if due is None or due > start + seconds:
            break
        clock.advance(due - clock.now().mono)
        effects += node.step(view, clock.now())
    return effects, clock.now().mono - start


def test_a_lone_node_gets_an_address(clock):
    node = engine()
    effects, took = run(node, clock, LeaseView())
    (assigned,) = of(effects, lease.Assigned)
    assert assigned.address in Pool.parse("10.1.0.1/24")
    assert assigned.prefix == 24
    assert took == pytest.approx(2.5)
    assert node.address == assigned.address
    assert node.waiting() == ()
    assert node.next_wakeup() is None


def test_the_reason_for_waiting_is_told(clock):
    node = engine()
    node.step(LeaseView(), clock.now())
    (reason,) = node.waiting()
    assert reason.code == "lease-listening"
    node.step(LeaseView(notes=note(YOU, LeaseState.SEEKING), live=frozenset({YOU})), clock.now())
    (reason,) = node.waiting()
    assert reason.code == "lease-confirming"
    assert reason.as_dict()["address"] in reason.text()


def test_among_others_it_takes_well_below_a_second(clock):
    node = engine()
    _, took = run(node, clock, LeaseView(notes=note(YOU, LeaseState.HELD, "10.1.0.1"), live=frozenset({YOU})))
    assert took <= 0.8


def test_claims_first_and_says_so(clock):
    node = engine()
    effects = node.step(LeaseView(), clock.now())
    (published,) = of(effects, lease.PublishNote)
    assert (published.bucket, published.key) == (LEASE_BUCKET, ME)
    claim = parse_notes({ME: published.text})[ME]
    assert claim.state is LeaseState.CLAIMED
    assert node.address is None


def test_the_better_claim_wins_and_the_other_takes_the_next(clock):
    node = engine()
    node.step(LeaseView(), clock.now())
    mine = node._note.address
    older = note(YOU, LeaseState.CLAIMED, mine, since=1)
    _, _ = run(node, clock, LeaseView(notes=older, live=frozenset({YOU})))
    assert node.address is not None
    assert node.address != mine
    again = engine()
    again.step(LeaseView(), clock.now())
    younger = note(YOU, LeaseState.CLAIMED, mine, since=2**60)
    run(again, clock, LeaseView(notes=younger, live=frozenset({YOU})))
    assert again.address == mine


def test_equal_claims_are_decided_the_same_way_by_both(clock):
    at = clock.now().unix_ns // 1_000_000
    a, b = LeaseNote(LeaseState.CLAIMED, "10.1.0.9", at), LeaseNote(LeaseState.CLAIMED, "10.1.0.9", at)
    assert (a.rank(ME) < b.rank(YOU)) != (b.rank(YOU) < a.rank(ME))


def test_a_held_address_beats_every_claim_and_a_pinned_one_every_other():
    claim = LeaseNote(LeaseState.CLAIMED, "10.1.0.9", 1)
    held = LeaseNote(LeaseState.HELD, "10.1.0.9", 1000)
    pinned = LeaseNote(LeaseState.HELD, "10.1.0.9", 2000, pinned=True)
    assert pinned.rank("c") < held.rank("b") < claim.rank("a")


def test_a_saved_lease_is_used_at_once(clock):
    node = engine("10.1.0.77/24\n")
    effects = node.step(LeaseView(), clock.now())
    assert effects[0] == lease.Assigned("10.1.0.77", 24)
    assert node.address == "10.1.0.77"


@pytest.mark.parametrize("saved", ["10.1.0.255", "10.1.1.0", "10.1.0.254", "nonsense", ""])
def test_a_worthless_saved_lease_is_not_used(clock, saved):
    node = engine(saved)
    node.step(LeaseView(), clock.now())
    assert node.address is None


def test_a_saved_lease_keeps_its_age_from_the_ledger(clock):
    node = engine("10.1.0.77")
    effects = node.step(LeaseView(notes=note(ME, LeaseState.HELD, "10.1.0.77", since=12345)), clock.now())
    (published,) = of(effects, lease.PublishNote)
    assert json.loads(published.text)["since"] == 12345


def test_steps_aside_for_an_older_holder(clock):
    node = engine("10.1.0.77")
    node.step(LeaseView(), clock.now())
    view = LeaseView(
        notes=note(YOU, LeaseState.HELD, "10.1.0.77", since=1),
        machines=machine(YOU, "10.1.0.77"),
        live=frozenset({YOU}),
    )
    effects = node.step(view, clock.now())
    assert of(effects, lease.Released)[0].address == "10.1.0.77"
    assert of(effects, lease.WithdrawMachine) == [lease.WithdrawMachine("10.1.0.77")]
    run(node, clock, view)
    assert node.address not in {None, "10.1.0.77"}


def test_does_not_step_aside_for_a_younger_or_a_dead_holder(clock):
    node = engine("10.1.0.77")
    node.step(LeaseView(), clock.now())
    clock.advance(1)
    younger = note(YOU, LeaseState.HELD, "10.1.0.77", since=clock.now().unix_ns // 1_000_000)
    older = note(YOU, LeaseState.HELD, "10.1.0.77", since=1)
    for view in (LeaseView(notes=younger, live=frozenset({YOU})), LeaseView(notes=older)):
        assert of(node.step(view, clock.now()), lease.Released) == []
    assert node.address == "10.1.0.77"


def test_a_pinned_address_is_for_life(clock):
    node = engine("10.1.0.77")
    node.step(LeaseView(), clock.now())
    node.pinned = True
    effects = node.step(LeaseView(), clock.now())
    assert json.loads(of(effects, lease.PublishNote)[0].text)["pinned"] is True
    older = note(YOU, LeaseState.HELD, "10.1.0.77", since=1)
    assert of(node.step(LeaseView(notes=older, live=frozenset({YOU})), clock.now()), lease.Released) == []
    assert node.waiting() == (), "the other one will move"
    both = note(YOU, LeaseState.HELD, "10.1.0.77", since=1, pinned=True)
    node.step(LeaseView(notes=both, live=frozenset({YOU})), clock.now())
    (reason,) = node.waiting()
    assert isinstance(reason, lease.AddressConflict)
    assert YOU in reason.text()


def test_a_go_node_never_moves_so_we_do(clock):
    node = engine("10.1.0.77")
    node.step(LeaseView(), clock.now())
    view = LeaseView(machines=machine(GO, "10.1.0.77"), live=frozenset({GO}))
    assert of(node.step(view, clock.now()), lease.Released)
    pinned = LeaseEngine(LeaseSettings(), ME, "10.1.0.77", Random(1), pinned=True)
    pinned.step(view, clock.now())
    assert isinstance(pinned.waiting()[0], lease.AddressConflict)


def test_who_keeps_the_address_outdoes_the_others_tombstone(clock):
    node = engine("10.1.0.77")
    node.step(LeaseView(), clock.now())
    # the other one's clock is 30 s ahead, and so is its tombstone
    left = clock.now().unix_ns // 1_000_000 + 30_000
    view = LeaseView(
        notes=note(YOU, LeaseState.HELD, "10.1.0.5", since=9, left=(("10.1.0.77", left),)), live=frozenset({YOU})
    )
    times = []
    start = clock.now().mono
    for _ in range(60):
        if of(node.step(view, clock.now()), lease.RefreshMachine):
            times.append(clock.now().mono - start)
        if (due := node.next_wakeup()) is None:
            break
        clock.advance(due - clock.now().mono)
    assert times == pytest.approx([30.05, 32, 36])


def test_old_machines_records_of_ours_are_withdrawn(clock):
    node = engine("10.1.0.77")
    view = LeaseView(machines=machine(ME, "10.1.0.3") | machine(ME, "10.1.0.77") | machine(YOU, "10.1.0.4"))
    assert of(node.step(view, clock.now()), lease.WithdrawMachine) == [lease.WithdrawMachine("10.1.0.3")]


def test_static_address(clock):
    node = engine(address="10.1.0.50/16", static=True)
    assert lease.Assigned("10.1.0.50", 16) in node.step(LeaseView(), clock.now())
    view = LeaseView(machines=machine(GO, "10.1.0.50"), live=frozenset({GO}))
    assert of(node.step(view, clock.now()), lease.Released) == []
    assert isinstance(node.waiting()[0], lease.AddressConflict)


def test_addresses_of_absent_peers_are_the_last_to_be_given(clock):
    # 10.1.0.1 to .6; four are taken by live peers, one by one that is gone
    peers = [PeerId(f"p{n}") for n in range(4)]
    machines: dict[str, str] = {}
    for number, peer in enumerate(peers, 1):
        machines |= machine(peer, f"10.1.0.{number}")
    notes: dict[str, str] = {}
    for number, peer in enumerate(peers, 1):
        notes |= note(peer, LeaseState.HELD, f"10.1.0.{number}")
    gone = machine("gone", "10.1.0.5")
    node = engine(address="10.1.0.1/29")
    run(node, clock, LeaseView(machines | gone, notes, live=frozenset(peers)))
    assert node.address == "10.1.0.6"
    full = machines | machine(YOU, "10.1.0.6")
    last = engine(address="10.1.0.1/29")
    run(
        last,
        clock,
        LeaseView(full | gone, notes | note(YOU, LeaseState.HELD, "10.1.0.6"), live=frozenset([*peers, YOU])),
    )
    assert last.address == "10.1.0.5"


def test_a_pinned_address_is_kept_for_its_absent_owner(clock):
    node = engine(address="10.1.0.1/30")
    run(node, clock, LeaseView(notes=note(YOU, LeaseState.HELD, "10.1.0.1", pinned=True)))
    assert node.address == "10.1.0.2"


def test_no_address_left(clock):
    node = engine(address="10.1.0.1/30")
    view = LeaseView(machine(YOU, "10.1.0.1") | machine(GO, "10.1.0.2"), note(YOU), live=frozenset({YOU, GO}))
    run(node, clock, view)
    assert node.address is None
    (reason,) = node.waiting()
    assert reason.code == "lease-exhausted"
    assert "10.1.0.0/30" in reason.text()
    run(node, clock, LeaseView(machine(YOU, "10.1.0.1"), note(YOU), live=frozenset({YOU})))
    assert node.address == "10.1.0.2", "when one is free it goes on"


# ------------------------------------------------------------------ beside Go nodes


def me_with(lower: bool) -> PeerId:
    """A peer ID with a lower or higher hash than the Go node's."""
    for number in range(1000):
        peer = PeerId(f"12D3KooWme{number}")
        if (leader([GO, peer]) == GO) is lower:
            return peer
    raise AssertionError


def test_waits_while_it_is_a_go_nodes_turn(clock):
    node = engine(me=me_with(lower=True))
    view = LeaseView(live=frozenset({GO}))
    run(node, clock, view, seconds=3.0)
    assert node.address is None
    assert node.waiting()[0].code == "lease-turn"
    _, took = run(node, clock, LeaseView(machine(GO, "10.1.0.1"), live=frozenset({GO})))
    assert took < 2.0
    assert node.address is not None


def test_takes_the_lead_when_it_is_its_turn(clock):
    me = me_with(lower=False)
    node = engine(me=me)
    effects, took = run(node, clock, LeaseView(live=frozenset({GO})))
    assert of(effects, lease.TakeLead) == [lease.TakeLead(f'"{me}"')]
    assert took < 3.0


def test_a_peer_without_vpn_is_not_waited_for_for_ever(clock):
    node = engine(me=me_with(lower=True))
    effects, took = run(node, clock, LeaseView(live=frozenset({GO})), seconds=60)
    assert 15 < took < 25
    assert parse_notes({ME: of(effects, lease.PublishNote)[-1].text})[ME].plain == (GO,)


def test_what_another_node_found_out_saves_the_wait(clock):
    node = engine(me=me_with(lower=True))
    view = LeaseView(notes=note(YOU, LeaseState.HELD, "10.1.0.1", plain=(GO,)), live=frozenset({GO, YOU}))
    _, took = run(node, clock, view)
    assert took < 2.0


def test_the_address_that_a_waiting_go_node_would_take_is_left_to_it(clock):
    me = me_with(lower=False)
    mine = next(Pool.parse("10.1.0.1/24").candidates(me))
    before = mine.rpartition(".")[2]
    highest = machine(YOU, f"10.1.0.{int(before) - 1}")
    node = engine(me=me)
    run(
        node,
        clock,
        LeaseView(highest, note(YOU, LeaseState.HELD, f"10.1.0.{int(before) - 1}"), live=frozenset({GO, YOU})),
    )
    assert node.address is not None
    assert node.address != mine


def test_the_first_address_is_left_to_a_waiting_go_node_when_nobody_has_one(clock):
    """It takes exactly that one, without looking; one of 190 of our peer IDs would start there."""
    pool = Pool.parse("10.1.0.1/24")
    first = next(
        peer
        for peer in (PeerId(f"12D3KooWme{number}") for number in range(10_000))
        if next(pool.candidates(peer)) == "10.1.0.1" and leader([GO, peer]) == peer
    )
    node = engine(me=first)
    run(node, clock, LeaseView(live=frozenset({GO})))
    assert node.address not in {None, "10.1.0.1"}


# ------------------------------------------------------------------ pool and records


def test_pool():
    pool = Pool.parse("10.1.0.1/24")
    everything = list(pool.candidates(ME))
    assert len(everything) == len(set(everything)) == 253
    assert all(address in pool for address in everything)
    for outside in ("10.1.0.0", "10.1.0.254", "10.1.0.255", "10.1.1.1", "x", "fd00::1"):
        assert outside not in pool
    assert list(Pool.parse("10.1.0.100/24").candidates(ME)) != everything
    assert "10.1.0.99" not in Pool.parse("10.1.0.100/24")
    assert next(Pool.parse("10.0.0.1/8").candidates(ME)) in Pool.parse("10.0.0.1/8")


def test_different_peers_start_at_different_places():
    pool = Pool.parse("10.1.0.1/24")
    firsts = {next(pool.candidates(f"12D3KooW{number}")) for number in range(100)}
    assert len(firsts) > 60
    assert all(int(address.rpartition(".")[2]) <= 190 for address in firsts), "Go nodes need room above"


@pytest.mark.parametrize("text", ["", "10.1.0.1", "10.1.0.1/33", "fd00::1/64", "10.1.0.1/31", "10.1.0.1/4"])
def test_bad_pools(text):
    with pytest.raises(ConfigError):
        Pool.parse(text)


def test_machine_record_is_gos_text():
    assert machine_record("12D3", "node1", "amd64", "10.1.0.11", "v0.35.4") == (
        '{"PeerID":"12D3","Hostname":"node1","OS":"linux","Arch":"amd64","Address":"10.1.0.11","Version":"v0.35.4"}'
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"lease":2,"state":"held"}',
        '{"lease":1,"state":"new"}',
        '{"lease":1,"state":"held"}',
        '{"lease":1,"state":"held","address":5}',
        '{"lease":1,"state":"held","address":"x"}',
        '{"lease":1,"state":"held","address":"10.1.0.1","since":1.5}',
        '{"lease":1,"state":[]}',
        "[" * 100_000,
    ],
)
def test_unreadable_notes_are_passed_over(text):
    assert parse_notes({YOU: text}) == {}
    assert parse_machines({"10.1.0.1": text}) == {}


# --- the EdgeVPN that ran on this machine before


def predecessor(address="10.1.0.7", hostname="box"):
    return {address: machine_record(GO, hostname, "amd64", address, "v0.35.4")}


def test_the_address_of_the_edgevpn_that_ran_here_stays_ours(clock):
    """It had another identity, its heartbeat is young, and nobody is connected with it: it is this machine."""
    node = engine(saved="10.1.0.7", hostname="box")
    view = LeaseView(machines=predecessor(), live=frozenset({GO}))
    effects, _ = run(node, clock, view)
    assert [each.address for each in of(effects, lease.Assigned)] == ["10.1.0.7"]
    clock.advance(60)
    assert not of(node.step(view, clock.now()), lease.Released)
    assert node.waiting() == ()


@pytest.mark.parametrize(
    ("hostname", "connected"),
    [("box", frozenset({GO})), ("other", NONE), ("", NONE)],
    ids=["alive", "other", "unknown"],
)
def test_the_address_of_another_edgevpn_is_given_up(clock, hostname, connected):
    node = engine(saved="10.1.0.7", hostname="box")
    view = LeaseView(machines=predecessor(hostname=hostname), live=frozenset({GO}), connected=connected)
    effects, _ = run(node, clock, view, seconds=60)
    assert [each.address for each in of(effects, lease.Released)] == ["10.1.0.7"]
    assert node.address not in {None, "10.1.0.7"}


def test_a_predecessor_that_turns_out_to_live_gets_its_address_back(clock):
    node = engine(saved="10.1.0.7", hostname="box")
    run(node, clock, LeaseView(machines=predecessor(), live=frozenset({GO})))
    view = LeaseView(machines=predecessor(), live=frozenset({GO}), connected=frozenset({GO}))
    assert of(node.step(view, clock.now()), lease.Released)


def test_a_fixed_ipv6_address_is_held_at_once(clock):
    node = engine(address="fd00::5/64", static=True)
    effects = node.step(LeaseView(), clock.now())
    assert of(effects, lease.Assigned) == [lease.Assigned("fd00::5", 64)]
    assert parse_notes({ME: of(effects, lease.PublishNote)[0].text})[ME].address == "fd00::5"
    assert not of(
        node.step(LeaseView(machines=machine(GO, "10.1.0.1"), live=frozenset({GO})), clock.now()), lease.Released
    )
