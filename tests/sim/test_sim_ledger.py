"""Seeded networks of ledgers: lossy links, partitions, crashes, wrong clocks. A failure prints its seed.

Replay one with ``SIM_SEED=<seed> pytest tests/sim/test_sim_ledger.py``; ``SIM_SEEDS=500`` tries more of them.
"""

from __future__ import annotations

import os

import pytest

from provider_kairos.ledger.engine import LedgerSettings
from provider_kairos.ledger.policy import OwnershipMode
from provider_kairos.ledger.simulation import Simulation

COUNT = int(os.environ.get("SIM_SEEDS", "16"))
SEEDS = [int(os.environ["SIM_SEED"])] if "SIM_SEED" in os.environ else list(range(COUNT))
OFF = LedgerSettings(mode=OwnershipMode.OFF)


def machine(sim: Simulation, number: int) -> str:
    return f'{{"PeerID":"{sim.nodes[number].signer.peer_id}","Address":"10.1.0.{number}"}}'


def busy(sim: Simulation, seconds: int, tag: str) -> None:
    """Everybody announces a machine and writes into the open bucket now and then."""
    for number, node in enumerate(sim.nodes):
        if node.up:
            node.ledger.announce("machines", f"10.1.0.{number}", machine(sim, number), sim.now(number))
    for second in range(seconds):
        number = sim.rng.randrange(len(sim.nodes))
        node, now = sim.nodes[number], sim.now(number)
        if node.up:
            choice = sim.rng.random()
            key = f"key-{sim.rng.randrange(6)}"
            if choice < 0.6:
                node.ledger.persist("kairos", key, f'"{tag}-{second}-{number}"', now)
            elif choice < 0.8:
                node.ledger.persist_delete("kairos", key, now)
        sim.run(1)


def settle(sim: Simulation, seed: int, within: int) -> None:
    for _ in range(within):
        sim.run(1)
        if sim.converged():
            return
    pytest.fail(f"seed {seed}: not converged after {within} s: {sim.views()}")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("settings", [LedgerSettings(), OFF], ids=["enforce", "off"])
def test_converges_over_lossy_links(seed: int, settings: LedgerSettings):
    sim = Simulation(2 + seed % 6, seed, settings, loss=0.3, duplication=0.2)
    busy(sim, 40, "a")
    settle(sim, seed, 240)
    expected = {f"10.1.0.{number}": machine(sim, number) for number in range(len(sim.nodes))}
    assert sim.views()[0]["machines"] == expected, f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_converges_after_a_partition_and_crashes(seed: int):
    sim = Simulation(5, seed, loss=0.1)
    busy(sim, 20, "before")
    sim.partition({0, 1})
    sim.crash(4)
    busy(sim, 30, "apart")
    sim.heal()
    sim.restart(4)
    busy(sim, 10, "after")
    settle(sim, seed, 120)
    assert len(sim.views()[0]["machines"]) == 5, f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_power_cycle_of_everybody_loses_nothing(seed: int):
    sim = Simulation(3, seed)
    sim.nodes[0].ledger.add("kairos", {"token": '"K10::server"'}, sim.now(0))
    busy(sim, 10, "x")
    settle(sim, seed, 60)
    before = sim.views()[0]
    for number in range(3):
        sim.crash(number)
    sim.run(5)
    for number in range(3):
        sim.restart(number)
    sim.run(2)
    assert sim.converged(), f"seed {seed}"
    assert sim.views()[0] == before, f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_write_reaches_everybody_within_a_second(seed: int):
    sim = Simulation(5, seed, delay=(0.002, 0.2))
    sim.run(60 + seed)
    writer = seed % 5
    sim.nodes[writer].ledger.add("kairos", {"token": '"K10::server"', "ip": '"10.1.0.1"'}, sim.now(writer))
    sim.run(1)
    assert all(view["kairos"]["token"] == '"K10::server"' for view in sim.views()), f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_newcomer_knows_everything_within_a_second(seed: int):
    sim = Simulation(4, seed)
    sim.crash(3)
    busy(sim, 20, "x")
    sim.run(30)
    sim.nodes[3].disk.clear()
    sim.restart(3)
    sim.run(1)
    assert sim.converged(), f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS[:10])
def test_nobody_is_dead_or_reaped_because_of_a_wrong_clock(seed: int):
    sim = Simulation(4, seed)
    sim.nodes[1].skew = -3600.0
    sim.nodes[2].skew = 3600.0
    busy(sim, 5, "x")
    sim.run(3600)
    assert sim.converged(), f"seed {seed}"
    for number, node in enumerate(sim.nodes):
        assert len(node.ledger.live_peers(sim.now(number))) == 4, f"seed {seed}, node {number}"
        assert len(node.ledger.bucket("machines") or {}) == 4, f"seed {seed}, node {number}"
    said = {notice.code for notice in sim.nodes[0].ledger.explain(sim.now(0))}
    assert "clock-skew" in said


@pytest.mark.parametrize("seed", SEEDS[:10])
def test_the_dead_are_taken_away_everywhere_and_their_tombstones_too(seed: int):
    sim = Simulation(4, seed)
    busy(sim, 5, "x")
    settle(sim, seed, 60)
    sim.crash(0)
    sim.run(2000)
    for view in sim.views():
        assert "10.1.0.0" not in view["machines"], f"seed {seed}"
    sim.run(2 * 2700)
    for node in sim.nodes[1:]:
        assert node.ledger.entry("machines", "10.1.0.0") is None, f"seed {seed}"
    assert sim.converged()


def test_traffic_of_two_idle_nodes_stays_in_the_budget():
    """<= 0.6 kB/s for two nodes together; the bench prints the figure, this holds the order of magnitude."""
    sim = Simulation(2, 1)
    for number, node in enumerate(sim.nodes):
        now = sim.now(number)
        node.ledger.announce("machines", f"10.1.0.{number}", machine(sim, number), now)
        for key in ("ip", "role", "uuid", "assigned"):
            node.ledger.add("kairos", {f"{number}-{key}": f'"value of {key} {number}"'}, now)
    sim.run(300)
    before = [node.sent_bytes for node in sim.nodes]
    sim.run(3600)
    per_second = sum(node.sent_bytes - was for node, was in zip(sim.nodes, before, strict=True)) / 3600
    assert per_second < 300
