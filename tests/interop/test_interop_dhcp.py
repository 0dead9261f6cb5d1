"""Our lease engine in the recorded leases of EdgeVPN v0.35.4: their turns, their addresses, their stalls (spec 9, 17).

What the ledger showed to a recorded node at each moment is what our engine sees. Deliberate differences: a lone node
gets an address (theirs never does), and peers without a VPN do not hold a lease up for good (theirs wait for ever when
such a peer has the highest hash).
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.daemon.lease_file import LeaseFile
from provider_kairos.ids import PeerId
from provider_kairos.ledger.leader import leader
from provider_kairos.token.codec import decode
from provider_kairos.vpn.lease import Assigned, LeaseEngine, LeaseSettings, LeaseView, TakeLead
from provider_kairos.vpn.records import machine_record

RECORDS = [
    json.loads(line) for line in (Path(__file__).parent / "recordings" / "dhcp.jsonl").read_text("utf-8").splitlines()
]
STALLS = [record for record in RECORDS if "attempt" in record]


@dataclass
class Seen:
    """A recorded ledger at one moment."""

    at: float
    machines: dict[str, str] = field(default_factory=dict)
    alive: frozenset[PeerId] = frozenset()
    lead: dict[str, str] = field(default_factory=dict)

    def view(self) -> LeaseView:
        machines = {
            address: machine_record(peer, peer[-4:], "amd64", address, "v0.35.4")
            for address, peer in self.machines.items()
        }
        return LeaseView(machines=machines, dhcp=self.lead, live=self.alive, connected=self.alive)


def as_seen_by(name: str) -> list[Seen]:
    """The ledger of one of the three nodes, at every change until all have an address."""
    found = [Seen(0.0)]
    for record in RECORDS:
        if record.get("scenario") != "three" or record.get("node") != name or not 0 < record.get("at", 0) < 100:
            continue
        last = found[-1]
        found.append(
            Seen(
                record["at"],
                record.get("machines", last.machines),
                frozenset(map(PeerId, record["healthcheck"])) if "healthcheck" in record else last.alive,
                record.get("dhcp", last.lead),
            )
        )
    return found


def until(engine: LeaseEngine, clock: ManualClock, view: LeaseView, end: float) -> list[Any]:
    """All effects while the ledger stays as it is."""
    effects = list(engine.step(view, clock.now()))
    while (due := engine.next_wakeup()) is not None and due <= end:
        clock.advance(max(0.0, due - clock.now().mono))
        effects += engine.step(view, clock.now())
    clock.advance(max(0.0, end - clock.now().mono))
    return effects


def test_the_lease_file_has_edgevpns_name(tmp_path):
    for record in RECORDS:
        if name := record.get("expected_lease_name"):
            assert LeaseFile(tmp_path, decode(record["token"])).path.name == name


def test_turns_fall_as_recorded():
    turns = 0
    for before, after in itertools.pairwise(as_seen_by("a")):
        if after.lead != before.lead:
            waiting = sorted(before.alive - set(before.machines.values()))
            assert json.loads(after.lead["leader"]) == leader(waiting)
            turns += 1
    assert turns == 3


@pytest.mark.parametrize("number", range(30))
def test_among_three_go_nodes_that_lease_ours_takes_none_of_their_addresses(number):
    """Whatever our place in the queue: their addresses stay theirs, and ours is inside of the subnet."""
    me = PeerId(f"12D3KooW{number}")
    clock = ManualClock()
    start = clock.now().mono
    engine = LeaseEngine(LeaseSettings(), me, rng=Random(number))
    history = as_seen_by("a")
    theirs = set(history[-1].machines)
    assert theirs == {"10.1.0.1", "10.1.0.2", "10.1.0.3"}
    effects: list[Any] = []
    for seen, after in itertools.pairwise(history):
        stepped = until(engine, clock, seen.view(), start + after.at)
        for effect in stepped:
            if isinstance(effect, Assigned):
                # while somebody of theirs waits, only when the turn is ours
                waiting = seen.alive - set(seen.machines.values())
                holder = json.loads(seen.lead["leader"]) if seen.lead else None
                assert holder not in waiting
        effects += stepped
    effects += until(engine, clock, history[-1].view(), start + 200)
    (assigned,) = (effect for effect in effects if isinstance(effect, Assigned))
    assert assigned.address not in theirs
    assert assigned.address.startswith("10.1.0.")
    assert engine.address == assigned.address
    assert engine.waiting() == ()


@pytest.mark.parametrize("number", range(10))
def test_a_node_of_ours_that_is_there_first_is_above_nobodys_next_address(number):
    """Go takes the highest address plus one: ours must leave room above itself, .255 is no address."""
    clock = ManualClock()
    engine = LeaseEngine(LeaseSettings(), PeerId(f"12D3KooW{number}"), rng=Random(number))
    until(engine, clock, LeaseView(), clock.now().mono + 30)
    assert engine.address is not None
    assert int(engine.address.rpartition(".")[2]) + len({"a", "b", "c"}) < 254


def test_a_lone_edgevpn_never_got_an_address_and_ours_does():
    last = [record for record in RECORDS if record["scenario"] == "lone" and "machines" in record][-1]
    assert last["machines"] == {}
    clock = ManualClock()
    engine = LeaseEngine(LeaseSettings(), PeerId(last["id"]), rng=Random(1))
    effects = until(engine, clock, LeaseView(), clock.now().mono + 65)
    assert [type(effect) for effect in effects if isinstance(effect, Assigned)] == [Assigned]


@pytest.mark.parametrize("record", STALLS, ids=lambda record: f"attempt {record['attempt']}")
def test_peers_without_vpn_held_edgevpn_up_and_do_not_hold_up_ours(record):
    """The recorded peers with a heartbeat and no address; ours in the place of the node that leased."""
    me = PeerId(record["dhcp_node"])
    machines = {address: peer for address, peer in record["machines"].items() if peer != me}
    assert leader(record["waiting"]) == record["leader_of_waiting"]
    assert record["got_address"] == (record["leader_of_waiting"] == me)
    alive = frozenset(map(PeerId, record["healthcheck"])) - {me}
    clock = ManualClock()
    engine = LeaseEngine(LeaseSettings(), me, rng=Random(1))
    seen = Seen(0.0, machines, alive)
    effects = until(engine, clock, seen.view(), clock.now().mono + 60)
    (assigned,) = (effect for effect in effects if isinstance(effect, Assigned))
    assert assigned.address not in machines
    if record["leader_of_waiting"] == me:
        # EdgeVPN nodes must see whose turn it is, as they saw it of their own
        assert [effect.text for effect in effects if isinstance(effect, TakeLead)]


def test_a_go_node_that_comes_back_with_another_identity_is_no_second_holder():
    """c was killed and came back under a new peer ID with its old address (its lease file): ours keeps clear of it."""
    last = [record for record in RECORDS if record["scenario"] == "three" and "machines" in record][-1]
    again = PeerId(last["id"])
    assert last["machines"]["10.1.0.1"] == again
    alive = frozenset(map(PeerId, last["machines"].values()))
    for number in range(20):
        clock = ManualClock()
        engine = LeaseEngine(LeaseSettings(), PeerId(f"12D3KooW{number}"), rng=Random(number))
        until(engine, clock, Seen(0.0, last["machines"], alive).view(), clock.now().mono + 60)
        assert engine.address is not None
        assert engine.address not in last["machines"]
