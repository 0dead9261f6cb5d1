"""A fake network of ledgers in virtual time, for the simulator, tests and the traffic figures (design: sans-IO).

Every broadcast reaches every other node that is not cut off, after a random delay, unless it is lost; some arrive twice.
One seed decides everything, so a failure replays. Real gossip, sealing and sockets are elsewhere; :attr:`sent_bytes`
counts what a broadcast would weigh there.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

from provider_kairos.clock import ManualClock, Now
from provider_kairos.ledger.block import Block, Storage
from provider_kairos.ledger.engine import Ledger, LedgerSettings
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import Broadcast, Forgotten, Persist, RecordKey
from provider_kairos.ledger.signing import Signer
from provider_kairos.token.seal import OVERHEAD

__all__ = ["Node", "Simulation", "wire_size"]

ENVELOPE_AND_PUBSUB = 48 + 150
"""Bytes around a sealed text: the envelope's JSON; author, sequence number, topic and signature of the pubsub message."""


def wire_size(data: bytes) -> int:
    """What a broadcast weighs in a pubsub RPC: sealed, hexadecimal, enveloped, signed."""
    return 2 * (len(data) + OVERHEAD) + ENVELOPE_AND_PUBSUB


@dataclass(slots=True)
class Node:
    """One simulated node: its ledger, what its disk holds, how its clock differs, and whom it can reach."""

    signer: Signer
    ledger: Ledger
    skew: float = 0.0
    up: bool = True
    disk: dict[RecordKey, Entry] = field(default_factory=dict)
    forgotten: list[Forgotten] = field(default_factory=list)
    sent_bytes: int = 0
    sent: int = 0


class Simulation:
    """``size`` nodes that all reach each other; ``loss`` is the share of lost deliveries, ``delay`` in seconds."""

    def __init__(
        self,
        size: int,
        seed: int,
        settings: LedgerSettings | None = None,
        *,
        loss: float = 0.0,
        duplication: float = 0.0,
        delay: tuple[float, float] = (0.002, 0.05),
    ) -> None:
        self.settings = settings or LedgerSettings()
        self.rng = random.Random(seed)
        self.loss = loss
        self.duplication = duplication
        self.delay = delay
        self.clock = ManualClock(unix=1_800_000_000.0)
        self.cut: set[frozenset[int]] = set()
        self._in_flight: list[tuple[float, int, int, int, bytes]] = []
        self._numbers = itertools.count()
        signers = [Signer(self.rng.randbytes(32)) for _ in range(size)]
        self.nodes = [Node(signer, self._fresh(signer, None, ())) for signer in signers]
        for number in range(size):
            self._greet(number)

    def _fresh(self, signer: Signer, block: Block | None, forgotten: tuple[Forgotten, ...]) -> Ledger:
        rng = random.Random(self.rng.getrandbits(64))
        return Ledger(self.settings, signer, block, rng=rng, forgotten=forgotten)

    # --- what a test does to the network ---

    def now(self, number: int) -> Now:
        """The instant as node ``number`` sees it: its wall clock may be wrong, its monotonic one is not."""
        now = self.clock.now()
        return Now(now.unix_ns + round(self.nodes[number].skew * 1e9), now.mono)

    def partition(self, group: set[int]) -> None:
        """Cut every link between ``group`` and the others."""
        everybody = set(range(len(self.nodes)))
        self.cut |= {frozenset((a, b)) for a in group for b in everybody - group}

    def heal(self) -> None:
        """Restore all links; the peers see each other subscribe again."""
        self.cut.clear()
        for number in range(len(self.nodes)):
            self._greet(number)

    def crash(self, number: int) -> None:
        """Power off: memory is gone."""
        self.nodes[number].up = False

    def restart(self, number: int) -> None:
        """Power on with what the disk kept."""
        node = self.nodes[number]
        storage: Storage = {}
        for (bucket, key), entry in node.disk.items():
            storage.setdefault(bucket, {})[key] = entry
        block = Block(1, "", storage, "", "") if storage else None
        node.ledger = self._fresh(node.signer, block, tuple(node.forgotten))
        node.up = True
        self._greet(number)

    def _greet(self, number: int) -> None:
        for other, node in enumerate(self.nodes):
            if other != number and node.up and self.nodes[number].up and self._linked(number, other):
                node.ledger.peer_joined(self.nodes[number].signer.peer_id, self.now(other))
                self.nodes[number].ledger.peer_joined(node.signer.peer_id, self.now(number))

    def _linked(self, a: int, b: int) -> bool:
        return frozenset((a, b)) not in self.cut

    # --- time ---

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.clock.now().mono + seconds
        self.settle()
        while True:
            due = min(self._next_event(), end)
            self.clock.advance(max(0.0, due - self.clock.now().mono))
            if due >= end:
                return
            self._deliver()
            self.settle()

    def settle(self) -> None:
        """Tick every node and carry out its effects."""
        for number, node in enumerate(self.nodes):
            if not node.up:
                continue
            node.ledger.tick(self.now(number))
            for effect in node.ledger.take_effects():
                if isinstance(effect, Broadcast):
                    self._broadcast(number, effect.data)
                elif isinstance(effect, Persist):
                    node.disk.update({(row.bucket, row.key): row.entry for row in effect.rows})
                    for where in effect.removed:
                        node.disk.pop(where, None)
                    node.forgotten += effect.forgotten

    def _next_event(self) -> float:
        wakeups = [node.ledger.next_wakeup() for node in self.nodes if node.up]
        times = [wakeup for wakeup in wakeups if wakeup is not None]
        # A timer that is due exactly now must still move time on: floats of different sums may differ in the last bit.
        now = self.clock.now().mono
        return max(
            min([*times, *(self._in_flight[0][:1] if self._in_flight else ())], default=float("inf")), now + 1e-4
        )

    def _broadcast(self, sender: int, data: bytes) -> None:
        self.nodes[sender].sent += 1
        self.nodes[sender].sent_bytes += wire_size(data)
        for receiver, node in enumerate(self.nodes):
            if receiver == sender or not node.up or not self._linked(sender, receiver):
                continue
            copies = 1 + (self.rng.random() < self.duplication)
            for _ in range(copies):
                if self.rng.random() >= self.loss:
                    arrives = self.clock.now().mono + self.rng.uniform(*self.delay)
                    heapq.heappush(self._in_flight, (arrives, next(self._numbers), sender, receiver, data))

    def _deliver(self) -> None:
        while self._in_flight and self._in_flight[0][0] <= self.clock.now().mono:
            _, _, sender, receiver, data = heapq.heappop(self._in_flight)
            node = self.nodes[receiver]
            if node.up and self._linked(sender, receiver):
                node.ledger.receive(data, self.nodes[sender].signer.peer_id, self.now(receiver))

    # --- what a test asks ---

    def views(self) -> list[dict[str, dict[str, str]]]:
        """What every running node shows, without heartbeats (they differ while one is under way)."""
        return [
            {name: records for name, records in node.ledger.current().items() if name != "healthcheck"}
            for node in self.nodes
            if node.up
        ]

    def converged(self) -> bool:
        """Whether all running nodes show the same records."""
        views = self.views()
        return all(view == views[0] for view in views)
