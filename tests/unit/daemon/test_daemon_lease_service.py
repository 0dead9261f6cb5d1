from __future__ import annotations

import logging
import random
import time
from ipaddress import IPv4Interface

import pytest
import trio
from trio.testing import MockClock

from provider_kairos.clock import Now
from provider_kairos.daemon.lease_service import LeaseService, RoleOnDisk
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.errors import HostError
from provider_kairos.ledger.engine import Ledger
from provider_kairos.ledger.model import LedgerSettings
from provider_kairos.ledger.signing import Signer
from provider_kairos.token.codec import generate
from provider_kairos.vpn.records import parse_machines

US = Signer(b"u" * 32)
START = 1_800_000_000
TOKEN = generate()


class TrioClock:
    def now(self):
        return Now(round((START + trio.current_time()) * 1e9), trio.current_time())


class Rig:
    def __init__(self, folder, **options):
        clock = TrioClock()
        self.service = LedgerService(
            Ledger(LedgerSettings(), US, rng=random.Random(1)), clock, lambda _rows: None, self._publish
        )
        self.given: list[object] = []
        self.lease = LeaseService(
            DaemonSettings(TOKEN, dhcp=True, lease_dir=folder, **options),
            self.service,
            US.peer_id,
            clock,
            connected=frozenset,
            on_address=self.given.append,
            rng=random.Random(1),
            role=RoleOnDisk(folder / "role.json"),
            version="v1",
        )

    async def _publish(self, data):
        await trio.lowlevel.checkpoint()

    async def until(self, true):
        # virtual time runs on while a thread works for us: how far says nothing
        deadline = time.monotonic() + 60
        while not true():
            assert time.monotonic() < deadline, "did not happen"
            await trio.sleep(0.5)


def drive(scenario, folder, **options):
    async def main():
        rig = Rig(folder, **options)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.service.run)
            nursery.start_soon(rig.lease.run)
            await scenario(rig)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_lone_node_gets_an_address_saves_it_and_keeps_it(tmp_path):
    got: list[object] = []

    async def scenario(rig):
        await rig.until(lambda: rig.given)
        got.append(rig.given[0])
        address = rig.lease.address
        assert rig.lease._file.read() == address
        assert parse_machines(rig.service.ledger.bucket("machines") or {}) == {address: US.peer_id}

    drive(scenario, tmp_path)
    drive(scenario, tmp_path)
    assert got[0] == got[1]


def test_a_static_address_needs_no_file(tmp_path):
    async def main():
        rig = Rig(tmp_path)
        rig.lease._settings = DaemonSettings(TOKEN, dhcp=False, address=IPv4Interface("10.9.0.7/24"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.lease.run)
            await rig.until(lambda: rig.given)
            nursery.cancel_scope.cancel()
        assert rig.given == [("10.9.0.7", 24)]
        assert list(tmp_path.iterdir()) == []

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_lease_that_the_disk_refuses_is_used_said_once_and_saved_later(tmp_path, caplog):
    async def scenario(rig):
        write, refusals = rig.lease._file.write, []

        def refuse(address):
            refusals.append(address)
            raise HostError("no space left on device")

        rig.lease._file.write = refuse
        await rig.until(lambda: rig.given)
        assert "no space" in str(rig.lease.trouble)
        await rig.until(lambda: len(refusals) >= 4)
        rig.lease._file.write = write
        await rig.until(lambda: rig.lease.trouble is None)
        assert rig.lease._file.read() == rig.lease.address

    with caplog.at_level(logging.INFO):
        drive(scenario, tmp_path)
    assert [r.message for r in caplog.records if "saved" in r.message] == [
        "the lease is not saved: no space left on device",
        "the lease is saved now",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, False),
        ('{"role": "master"}', True),
        ('{"role": "master/ha"}', True),
        ('{"role": "worker"}', False),
        ('{"role": null}', False),
        ("[]", False),
        ('{"role": "mas', False),
    ],
)
def test_the_role_on_disk(tmp_path, text, expected):
    path = tmp_path / "role.json"
    if text is not None:
        path.write_text(text)
    assert RoleOnDisk(path).is_control_plane() is expected
