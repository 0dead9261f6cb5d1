"""The lease engine over the real ledger: partitions that leased one address meet, in every ownership mode."""

from __future__ import annotations

import json
from random import Random

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.ledger.engine import Ledger, LedgerSettings
from provider_kairos.ledger.model import Broadcast
from provider_kairos.ledger.policy import OwnershipMode
from provider_kairos.ledger.signing import Signer
from provider_kairos.vpn.lease import (
    Assigned,
    LeaseEngine,
    LeaseSettings,
    LeaseView,
    PublishNote,
    RefreshMachine,
    WithdrawMachine,
)
from provider_kairos.vpn.records import DHCP_BUCKET, LEASE_BUCKET, MACHINES_BUCKET, machine_record
from provider_kairos.vpn.routes import RouteTable


class Box:
    def __init__(self, number: int, mode: OwnershipMode, saved: str | None, clock: ManualClock, skew: float) -> None:
        signer = Signer(bytes([number]) * 32)
        self.peer = signer.peer_id
        self.ledger = Ledger(LedgerSettings(mode), signer, rng=Random(number))
        self.engine = LeaseEngine(LeaseSettings(), self.peer, saved, Random(number))
        self.clock, self.skew, self.side = clock, skew, number

    def now(self):
        now = self.clock.now()
        return now if not self.skew else type(now)(now.unix_ns + round(self.skew * 1e9), now.mono)

    def step(self, connected) -> None:
        ledger, now = self.ledger, self.now()
        ledger.tick(now)
        view = LeaseView(
            ledger.bucket(MACHINES_BUCKET) or {},
            ledger.bucket(LEASE_BUCKET) or {},
            ledger.bucket(DHCP_BUCKET) or {},
            frozenset(ledger.live_peers(now)),
            frozenset(connected),
        )
        for effect in self.engine.step(view, now):
            match effect:
                case PublishNote(text, key, bucket):
                    ledger.announce(bucket, key, text, now)
                case Assigned(address, _):
                    self.announce(address)
                case WithdrawMachine(address):
                    ledger.retract(MACHINES_BUCKET, address)
                    ledger.delete(MACHINES_BUCKET, address, now)
                case RefreshMachine(address):
                    ledger.delete(MACHINES_BUCKET, address, now)
                    self.announce(address)

    def announce(self, address: str) -> None:
        self.ledger.announce(MACHINES_BUCKET, address, machine_record(self.peer, "h", "amd64", address, ""), self.now())

    def owner(self, address: str):
        text = self.ledger.get(MACHINES_BUCKET, address)
        return json.loads(text)["PeerID"] if text else None


def pass_time(boxes: list[Box], clock: ManualClock, seconds: float) -> None:
    end = clock.now().mono + seconds
    while clock.now().mono < end:
        clock.advance(0.1)
        for box in boxes:
            near = [other for other in boxes if other is not box and other.side == box.side]
            box.step(other.peer for other in near)
            for effect in box.ledger.take_effects():
                if isinstance(effect, Broadcast):
                    for other in near:
                        other.ledger.receive(effect.data, box.peer, other.now())


@pytest.mark.parametrize("mode", [OwnershipMode.ENFORCE, OwnershipMode.OBSERVE, OwnershipMode.OFF])
@pytest.mark.parametrize("skew", [0.0, 20.0])
def test_partitions_with_one_address_meet(mode, skew):
    clock = ManualClock(unix=1_790_000_000)
    older = Box(1, mode, "10.1.0.77", clock, 0.0)
    younger = Box(2, mode, None, clock, skew)
    third = Box(3, mode, None, clock, 0.0)
    boxes = [older, younger, third]
    older.side, younger.side, third.side = 0, 1, 1
    older.step(())
    clock.advance(60)
    younger.engine = LeaseEngine(LeaseSettings(), younger.peer, "10.1.0.77", Random(2))
    pass_time(boxes, clock, 10)
    assert older.engine.address == younger.engine.address == "10.1.0.77"
    assert third.owner("10.1.0.77") == younger.peer
    for box in boxes:
        box.side = 0
    for box in boxes:
        for other in boxes:
            if other is not box:
                box.ledger.peer_joined(other.peer, box.now())
    pass_time(boxes, clock, 60)
    assert older.engine.address == "10.1.0.77"
    addresses = [box.engine.address for box in boxes]
    assert None not in addresses
    assert len(set(addresses)) == 3
    for box in boxes:
        now = box.now()
        routes = RouteTable(box.peer)
        routes.update(
            box.ledger.bucket(MACHINES_BUCKET) or {}, set(box.ledger.live_peers(now)), box.ledger.bucket(LEASE_BUCKET)
        )
        for other in boxes:
            assert routes.lookup(other.engine.address or "") == other.peer
            assert box.owner(other.engine.address or "") == other.peer, "and in machines, for Go nodes"
