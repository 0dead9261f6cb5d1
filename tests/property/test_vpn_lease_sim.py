"""Hundreds of seeded clusters lease addresses in virtual time, through loss, delay, partitions, reboots and wrong clocks.

A failure prints its seed and the line that runs it again. KAIROS_P2P_SIM=<n> runs n clusters instead of 200,
KAIROS_P2P_SEED=<seed> only that one, with a log.
"""

from __future__ import annotations

import heapq
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import pytest

from provider_kairos.clock import NANO, Now
from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId
from provider_kairos.ledger.leader import leader
from provider_kairos.vpn import lease
from provider_kairos.vpn.lease import LeaseEngine, LeaseSettings, LeaseView
from provider_kairos.vpn.pool import Pool
from provider_kairos.vpn.records import LEASE_BUCKET
from provider_kairos.vpn.routes import RouteTable

SEED = os.environ.get("KAIROS_P2P_SEED")
SEEDS = [int(SEED)] if SEED else range(int(os.environ.get("KAIROS_P2P_SIM", "200")))
ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
EPOCH = 1_790_000_000
OFFLINE = 900.0


@dataclass
class Entry:
    value: str | None  # None is a tombstone
    version: int
    owner: str


@dataclass
class Node:
    """One of ours: a ledger with EdgeVPN's rules for owned and open buckets, an engine, and what the daemon does."""

    sim: Sim
    peer: PeerId
    skew: float
    settings: LeaseSettings
    store: dict[tuple[str, str], Entry] = field(default_factory=dict)
    wanted: dict[tuple[str, str], str] = field(default_factory=dict)
    engine: LeaseEngine | None = None
    up: bool = False
    side: int = 0
    saved: str | None = None
    pinned: bool = False
    pinned_address: str | None = None
    stepping: bool = False
    boots: int = 0
    since_boot: float = 0.0

    @property
    def address(self) -> str | None:
        return self.engine.address if self.up and self.engine else None

    def waiting(self) -> tuple[Waiting, ...]:
        assert self.engine is not None
        return self.engine.waiting()

    def now(self) -> Now:
        return Now(round((EPOCH + self.sim.time + self.skew) * NANO), self.sim.time)

    def boot(self) -> None:
        self.up = True
        self.boots += 1
        self.since_boot = self.sim.time
        self.wanted = {}
        self.engine = LeaseEngine(
            self.settings, self.peer, self.saved, Random(self.sim.rng.random()), pinned=self.pinned
        )
        self.heartbeat(self.boots)
        self.soon()
        for other in self.sim.nodes:
            if other is not self:
                self.sim.after(self.sim.rng.uniform(0.1, 1.0), partial(self.sim.meet, self, other))

    def boot_if_down(self) -> None:
        if not self.up:
            self.boot()

    def kill(self) -> None:
        self.up = False
        self.engine = None
        self.wanted = {}

    def heartbeat(self, boot: int) -> None:
        if self.up and boot == self.boots:
            self.write("healthcheck", self.peer, str(EPOCH + self.sim.time + self.skew))
            self.sim.after(30.0, lambda: self.heartbeat(boot))
            self.keep()

    def keep(self) -> None:
        """The announce loops."""
        for (bucket, key), value in list(self.wanted.items()):
            entry = self.store.get((bucket, key))
            if entry is None or entry.value != value:
                self.write(bucket, key, value)

    def write(self, bucket: str, key: str, value: str | None) -> None:
        before = self.store.get((bucket, key))
        version = max(self.now().unix_ns, before.version + 1 if before else 0)
        self.store[bucket, key] = Entry(value, version, self.peer)
        self.sim.spread(self, {(bucket, key): self.store[bucket, key]})
        self.soon()

    def live(self) -> dict[str, float]:
        clock = EPOCH + self.sim.time + self.skew
        return {
            key: clock - float(entry.value)
            for (bucket, key), entry in self.store.items()
            if bucket == "healthcheck" and entry.value and clock - float(entry.value) < OFFLINE
        }

    def receive(self, entries: dict[tuple[str, str], Entry]) -> None:
        if not self.up:
            return
        changed = False
        live = self.live()
        for (bucket, key), new in entries.items():
            old = self.store.get((bucket, key))
            if self.accepts(bucket, old, new, live):
                self.store[bucket, key] = new
                changed = True
        if changed:
            self.keep()
            self.soon()

    @staticmethod
    def accepts(bucket: str, old: Entry | None, new: Entry, live: dict[str, float]) -> bool:
        if old is None:
            return bucket != "machines" or new.value is not None
        if bucket == "machines":
            if new.value is None and new.owner != old.owner and old.owner in live and old.value is not None:
                return False
            if new.value is not None and old.value is not None and old.owner != new.owner and old.owner in live:
                return False
        return new.version > old.version

    def route(self, address: str) -> PeerId | None:
        table = RouteTable(self.peer)
        table.update(self.bucket("machines"), {PeerId(p) for p in self.live()}, self.bucket(LEASE_BUCKET))
        return table.lookup(address)

    def soon(self) -> None:
        if not self.stepping:
            self.stepping = True
            self.sim.after(0.01, self.step)

    def bucket(self, name: str) -> dict[str, str]:
        return {
            key: entry.value
            for (bucket, key), entry in self.store.items()
            if bucket == name and entry.value is not None
        }

    def step(self) -> None:
        self.stepping = False
        if not self.up or self.engine is None:
            return
        engine = self.engine
        connected = frozenset(n.peer for n in self.sim.nodes if n is not self and self.sim.linked(self, n))
        view = LeaseView(
            self.bucket("machines"),
            self.bucket(LEASE_BUCKET),
            self.bucket("dhcp"),
            frozenset(PeerId(p) for p in self.live()),
            connected | self.sim.go_peers,
        )
        for effect in engine.step(view, self.now()):
            self.sim.note(self, effect)
            match effect:
                case lease.PublishNote(text, key, bucket):
                    self.wanted[bucket, key] = text
                case lease.TakeLead(text, bucket, key):
                    self.write(bucket, key, text)
                case lease.Assigned(address, _):
                    self.saved = address
                    self.wanted["machines", address] = json.dumps({"PeerID": self.peer, "Address": address})
                case lease.Released(_, _):
                    self.saved = None
                case lease.WithdrawMachine(address):
                    self.wanted.pop(("machines", address), None)
                    if (entry := self.store.get(("machines", address))) and entry.value and self.peer in entry.value:
                        self.write("machines", address, None)
                case lease.RefreshMachine(address):
                    self.write("machines", address, None)
        self.keep()
        due = engine.next_wakeup()
        if due is not None:
            self.sim.after(max(due - self.sim.time, 0.01), self.soon)

    def pin(self) -> None:
        if self.up and self.engine and self.engine.address:
            self.pinned = self.engine.pinned = True
            self.pinned_address = self.engine.address
            self.soon()


class GoNode:
    """An EdgeVPN node with DHCP as spec section 9 describes it, or a peer without VPN (``plain``)."""

    def __init__(self, sim: Sim, peer: PeerId, *, plain: bool) -> None:
        self.sim, self.peer, self.plain = sim, peer, plain
        self.address: str | None = None
        self.store: dict[tuple[str, str], Entry] = {}
        self.up, self.side, self.skew = False, 0, 0.0
        self.second = False

    def boot(self) -> None:
        self.up = True
        self.beat()
        if not self.plain:
            self.sim.after(5.0, self.poll)

    def now_ns(self) -> int:
        return round((EPOCH + self.sim.time) * NANO)

    def write(self, bucket: str, key: str, value: str) -> None:
        self.store[bucket, key] = Entry(value, self.now_ns(), self.peer)
        self.sim.spread(self, {(bucket, key): self.store[bucket, key]})

    def beat(self) -> None:
        self.write("healthcheck", self.peer, str(EPOCH + self.sim.time))
        if self.address:
            self.write("machines", self.address, json.dumps({"PeerID": self.peer, "Address": self.address}))
        self.sim.after(20.0, self.beat)

    def receive(self, entries: dict[tuple[str, str], Entry]) -> None:
        for key, new in entries.items():
            old = self.store.get(key)
            if old is None or new.version > old.version:
                self.store[key] = new

    def poll(self) -> None:
        machines = {k: json.loads(e.value)["PeerID"] for (b, k), e in self.store.items() if b == "machines" and e.value}
        alive = [k for (b, k), e in self.store.items() if b == "healthcheck"]
        waiting = sorted(p for p in alive if p not in machines.values())
        if len(alive) > 1 and waiting:
            should = leader(waiting)
            entry = self.store.get(("dhcp", "leader"))
            lead = json.loads(entry.value) if entry and entry.value else ""
            if self.peer in {should, lead}:
                if should == self.peer and lead not in waiting:
                    self.write("dhcp", "leader", json.dumps(self.peer))
                elif lead != self.peer:
                    pass
                else:
                    highest = max((tuple(map(int, a.split("."))) for a in machines), default=(10, 1, 0, 0))
                    self.address = ".".join(map(str, (*highest[:3], highest[3] + 1)))
                    self.write("machines", self.address, json.dumps({"PeerID": self.peer, "Address": self.address}))
                    return
        self.sim.after(5.0, self.poll)


class Sim:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.time = 0.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.nodes: list[Any] = []
        self.go_peers: frozenset[PeerId] = frozenset()
        self.loss = 0.0
        self.delay = (0.01, 0.2)
        self.log: list[str] = []
        self.first_address: dict[str, float] = {}
        self.together = 0

    def peer(self) -> PeerId:
        return PeerId("12D3KooW" + "".join(self.rng.choices(ALPHABET, k=44)))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.time + seconds, self.count, what))

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.after(when - self.time, what)

    def linked(self, a: Any, b: Any) -> bool:
        return bool(a.up and b.up and a.side == b.side and (a.peer, b.peer) in self.met)

    met: set[tuple[str, str]]

    def meet(self, a: Any, b: Any) -> None:
        """They find each other: a connection, and both tell all that they know."""
        if a.up and b.up and a.side == b.side:
            self.met |= {(a.peer, b.peer), (b.peer, a.peer)}
            for one, other in ((a, b), (b, a)):
                self.after(self.rng.uniform(*self.delay), partial(self.tell, one, other))

    @staticmethod
    def tell(one: Any, other: Any) -> None:
        other.receive(dict(one.store))

    def meet_all(self) -> None:
        for a in self.nodes:
            for b in self.nodes:
                if a.peer < b.peer and not self.linked(a, b):
                    self.meet(a, b)

    def spread(self, sender: Any, entries: dict[tuple[str, str], Entry]) -> None:
        for other in self.nodes:
            if other is not sender and self.linked(sender, other) and self.rng.random() >= self.loss:
                self.after(self.rng.uniform(*self.delay), partial(other.receive, entries))

    def resync(self) -> None:
        """The periodic broadcast of the whole ledger."""
        for node in self.nodes:
            if node.up:
                whole = dict(node.store)
                for other in self.rng.sample(self.nodes, min(3, len(self.nodes))):
                    if other is not node and self.linked(node, other) and self.rng.random() >= self.loss:
                        self.after(self.rng.uniform(*self.delay), partial(other.receive, whole))
        self.after(self.rng.uniform(2.0, 6.0), self.resync)

    def split(self, sides: int) -> None:
        for node in self.nodes:
            node.side = self.rng.randrange(sides)
        self.log.append(f"{self.time:8.2f} split {Counter(node.side for node in self.nodes)}")

    def heal(self) -> None:
        self.log.append(f"{self.time:8.2f} heal")
        for node in self.nodes:
            node.side = 0
        for a in self.nodes:
            for b in self.nodes:
                if a.peer < b.peer:
                    self.after(self.rng.uniform(0.1, 2.0), partial(self.meet, a, b))

    def note(self, node: Node, effect: Any) -> None:
        if SEED:
            self.log.append(f"{self.time:8.2f} {node.peer[8:14]} {effect}")
        if isinstance(effect, lease.Assigned):
            self.first_address.setdefault(node.peer, self.time - node.since_boot)
            self.together += sum(
                other is not node and other.address == effect.address and self.linked(node, other)
                for other in self.nodes
            )

    def run(self, until: float) -> None:
        while self.queue and self.queue[0][0] <= until:
            self.time, _, what = heapq.heappop(self.queue)
            what()
        self.time = until

    def fail(self, text: str) -> None:
        held = "\n".join(f"{n.peer[8:14]} side {n.side} up {n.up} pinned {n.pinned} {n.address}" for n in self.nodes)
        pytest.fail(
            f"seed {self.seed}: {text}\n{held}\n" + "\n".join(self.log[-200:]) + "\n"
            f"replay: KAIROS_P2P_SEED={self.seed} .venv/bin/python -m pytest tests/property/test_vpn_lease_sim.py"
        )


def build(seed: int) -> Sim:
    sim = Sim(seed)
    sim.met = set()
    rng = sim.rng
    sim.loss = rng.choice([0.0, 0.0, 0.1, 0.3])
    sim.delay = (0.01, rng.choice([0.05, 0.2, 0.6]))
    count = rng.choice([1, 2, 3, 3, 3, 5, 8, 13, 20, 40 if seed % 10 == 0 else 6])
    # small subnets make collisions the rule
    address = rng.choice(["10.1.0.1/24", "10.1.0.1/24", "10.1.0.1/26" if count > 20 else "10.1.0.1/27"])
    for _ in range(count):
        sim.nodes.append(
            Node(sim, sim.peer(), rng.choice([0.0, rng.uniform(-3, 3), rng.uniform(-30, 30)]), LeaseSettings(address))
        )
    return sim


def check(sim: Sim, pool: Pool) -> None:
    """After settling: one address each, all different but for two pinned ones, inside the pool, and found by all."""
    by_address: dict[str, list[Node]] = {}
    for node in sim.nodes:
        if not node.up:
            continue
        if node.address is None:
            sim.fail(f"{node.peer} has no address: {node.waiting()}")
        if node.address not in pool:
            sim.fail(f"{node.address} is outside of the pool")
        if node.pinned_address and node.address != node.pinned_address:
            sim.fail(f"pinned {node.pinned_address} became {node.address}")
        by_address.setdefault(node.address, []).append(node)
    for address, holders in by_address.items():
        if len(holders) > 1:
            stuck = all(n.pinned and any(isinstance(w, lease.AddressConflict) for w in n.waiting()) for n in holders)
            if not stuck:
                sim.fail(f"{address} is held by {[n.peer for n in holders]}")
            continue
        for other in sim.nodes:
            if other.up and other.route(address) != holders[0].peer:
                sim.fail(
                    f"{other.peer[8:14]} does not find {holders[0].peer[8:14]} at {address}: {other.store.get(('machines', address))}"
                )


@pytest.mark.parametrize("seed", SEEDS)
def test_never_two_with_one_address(seed):
    sim = build(seed)
    rng = sim.rng
    for node in sim.nodes:
        sim.at(rng.choice([0.0, rng.uniform(0, 1), rng.uniform(0, 10)]), node.boot)
    sim.after(2.0, sim.resync)
    end = 15.0
    for _ in range(rng.choice([0, 0, 1, 2])):
        start = end + rng.uniform(-14, 10)
        sim.at(max(start, 0.0), lambda: sim.split(rng.choice([2, 3])))
        end = max(start, 0.0) + rng.uniform(1, 60)
        sim.at(end, sim.heal)
    for node in rng.sample(sim.nodes, rng.randrange(len(sim.nodes) // 2 + 1)):
        sim.at(rng.uniform(3, end), node.pin)
    for node in rng.sample(sim.nodes, rng.randrange(len(sim.nodes) // 3 + 1)):
        down = rng.uniform(2, end)
        sim.at(down, node.kill)
        if rng.random() < 0.8:
            sim.at(down + rng.uniform(1, 20), node.boot_if_down)
    sim.run(end + 120)
    check(sim, Pool.parse(sim.nodes[0].settings.address))


@pytest.mark.parametrize("seed", SEEDS[:40])
def test_in_a_connected_network_nobody_ever_moves(seed):
    """No partition, no loss, quick links: what is assigned is never taken back and comes within seconds."""
    sim = build(seed + 100_000)
    sim.loss, sim.delay = 0.0, (0.01, 0.1)
    for node in sim.nodes:
        sim.at(sim.rng.uniform(0, 0.5), node.boot)
    sim.after(2.0, sim.resync)
    sim.run(30)
    check(sim, Pool.parse(sim.nodes[0].settings.address))
    assert sim.together == 0, f"seed {sim.seed}"
    assert all(node.engine.counters["stepped_aside"] == 0 for node in sim.nodes), f"seed {sim.seed}"
    slowest = max(sim.first_address.values())
    assert slowest < (3.0 if len(sim.nodes) <= 3 else 8.0), f"seed {sim.seed}: {slowest}"


@pytest.mark.parametrize("seed", SEEDS[:60])
def test_beside_go_nodes_and_peers_without_vpn(seed):
    """Go nodes get addresses in their turns, ours do too, nobody's is taken twice, and nobody waits for ever."""
    sim = Sim(seed + 200_000)
    sim.met = set()
    rng = sim.rng
    sim.delay = (0.01, 0.2)
    ours = [Node(sim, sim.peer(), 0.0, LeaseSettings()) for _ in range(rng.randrange(1, 5))]
    go = [GoNode(sim, sim.peer(), plain=False) for _ in range(rng.randrange(3))]
    plain = [GoNode(sim, sim.peer(), plain=True) for _ in range(rng.randrange(2))]
    sim.nodes = [*ours, *go, *plain]
    for node in sim.nodes:
        sim.at(rng.uniform(0, 15), node.boot)
        sim.at(15.0, sim.meet_all)
    for moment in range(16):
        sim.at(
            moment + 0.5,
            sim.meet_all,
        )
    sim.after(2.0, sim.resync)
    sim.run(200)
    assert all(node.address for node in ours), f"seed {sim.seed}"
    # a peer without VPN that has the highest hash stalls Go nodes among themselves (spec 17): not ours to mend
    if not plain:
        assert all(node.address for node in go), f"seed {sim.seed}"
    held = [node.address for node in sim.nodes if node.address]
    assert len(set(held)) == len(held), f"seed {sim.seed}: {held}"
