from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from provider_kairos.clock import Now
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.status import Phases
from provider_kairos.daemon.testing import FakeLinks, FakeMesh, FakeTun
from provider_kairos.daemon.vpn_service import VpnService
from provider_kairos.errors import HostError, PermissionHostError
from provider_kairos.token.codec import generate

ADDRESS = ("10.1.0.5", 24)


class TrioClock:
    def now(self):
        return Now(0, trio.current_time())


class FakePump:
    """A pump that reads its device, so that a device that is gone ends it as the real one does: in a group."""

    def __init__(self):
        self.serving = 0

    async def run(self, tun):
        self.serving += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            while True:
                await tun.read()


class Rig:
    def __init__(self, **options):
        self.links = FakeLinks(edgevpn0=1500)
        self.devices: list[FakeTun] = []
        self.refuse: HostError | None = None
        settings = DaemonSettings(generate(), **options)
        clock = TrioClock()
        self.phases = Phases(clock)
        self.pump = FakePump()
        nothing: Any = FakeMesh()
        opens: Any = self.open
        self.vpn = VpnService(
            settings,
            nothing,
            nothing,
            clock,
            self.phases,
            open_device=opens,
            links=self.links,
        )
        self.vpn._pump = cast("Any", self.pump)

    def open(self, name):
        if self.refuse is not None:
            raise self.refuse
        self.links.mtu.setdefault(name, 1500)
        self.devices.append(FakeTun())
        return self.devices[-1]

    def codes(self):
        return {reason.code: reason.text() for reason in self.vpn.waiting()}


@asynccontextmanager
async def running(rig):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.vpn.run)
        await wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


def drive(scenario, **options):
    async def main():
        rig = Rig(**options)
        async with running(rig):
            await scenario(rig)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_the_address_brings_the_interface_up():
    async def scenario(rig):
        assert rig.vpn.status()["address"] is None
        rig.links.held = [("edgevpn0", "10.1.0.77/24")]  # of the last boot
        rig.vpn.use_address(ADDRESS)
        await wait_all_tasks_blocked()
        assert rig.links.changes == ["mtu 1200", "delete 10.1.0.77/24", "add 10.1.0.5/24", "up"]
        assert rig.vpn.status()["address"] == "10.1.0.5/24"
        assert rig.pump.serving == 1
        assert rig.codes() == {}

    drive(scenario)


def test_an_interface_that_is_right_is_left_alone_even_without_the_right_to_change_it():
    async def scenario(rig):
        rig.links.mtu["edgevpn0"], rig.links.up = 1200, {"edgevpn0"}
        rig.links.held = [("edgevpn0", "10.1.0.5/24")]
        rig.links.refuse = PermissionHostError("may not")
        rig.vpn.use_address(ADDRESS)
        await wait_all_tasks_blocked()
        assert rig.vpn.status()["address"] == "10.1.0.5/24"

    drive(scenario)


def test_another_address_replaces_the_first():
    async def scenario(rig):
        rig.vpn.use_address(ADDRESS)
        await wait_all_tasks_blocked()
        rig.vpn.use_address(("10.1.0.6", 24))
        await trio.sleep(1)
        assert rig.links.held == [("edgevpn0", "10.1.0.6/24")]
        assert [device.closed for device in rig.devices] == [True, False]
        rig.vpn.use_address(None)
        await trio.sleep(1)
        assert rig.vpn.status()["address"] is None
        assert rig.devices[-1].closed

    drive(scenario)


@pytest.mark.parametrize("damage", ["flush", "down", "mtu"])
def test_what_somebody_changes_is_put_right(damage):
    async def scenario(rig):
        rig.vpn.use_address(ADDRESS)
        await trio.sleep(5)
        match damage:
            case "flush":
                rig.links.held.clear()
            case "down":
                rig.links.up.clear()
            case "mtu":
                rig.links.mtu["edgevpn0"] = 1500
        rig.links.change()
        await trio.sleep(5)
        assert rig.links.held == [("edgevpn0", "10.1.0.5/24")]
        assert rig.links.up == {"edgevpn0"}
        assert rig.links.mtu == {"edgevpn0": 1200}
        assert len(rig.devices) == 1

    drive(scenario)


def test_a_deleted_interface_is_made_anew_without_breaking_the_part():
    async def scenario(rig):
        rig.vpn.use_address(ADDRESS)
        await wait_all_tasks_blocked()
        rig.links.mtu.clear()
        rig.links.held.clear()
        rig.devices[0].delete()
        await wait_all_tasks_blocked()
        assert "gone" in rig.codes()["interface-not-ready"]
        assert rig.vpn.status()["address"] is None
        await trio.sleep(4)
        assert rig.vpn.status()["address"] == "10.1.0.5/24"
        assert rig.codes() == {}
        assert rig.devices[0].closed

    drive(scenario)


def test_what_the_machine_refuses_is_a_reason_and_tried_again(caplog):
    async def scenario(rig):
        rig.refuse = HostError("there is no /dev/net/tun", hint="load the module (modprobe tun)")
        rig.vpn.use_address(ADDRESS)
        await trio.sleep(20)
        assert "modprobe tun" in rig.codes()["interface-not-ready"]
        assert len([r for r in caplog.records if "no /dev/net/tun" in r.message]) == 1
        rig.refuse = None
        await trio.sleep(4)
        assert rig.codes() == {}
        assert rig.vpn.status()["address"] == "10.1.0.5/24"

    drive(scenario)


def test_another_interface_in_the_vpns_network_is_said():
    async def scenario(rig):
        rig.links.held = [("eth0", "10.1.0.9/16"), ("eth1", "192.168.1.1/24")]
        rig.vpn.use_address(ADDRESS)
        await trio.sleep(1)
        assert "10.1.0.9/16" in rig.codes()["address-taken"]
        assert "eth1" not in str(rig.codes())
        rig.links.held.remove(("eth0", "10.1.0.9/16"))
        rig.links.change()
        await trio.sleep(5)
        assert rig.codes() == {}

    drive(scenario)


def test_an_interface_that_others_look_after_is_not_touched():
    async def scenario(rig):
        rig.vpn.use_address(ADDRESS)
        await trio.sleep(5)
        assert rig.links.changes == []
        assert rig.pump.serving == 1

    drive(scenario, bootstrap_interface=False)


def test_an_ipv6_address_leaves_what_the_interface_has_of_its_own():
    async def scenario(rig):
        rig.links.held = [("edgevpn0", "fe80::1/64"), ("edgevpn0", "fd00::9/64"), ("edgevpn0", "10.1.0.5/24")]
        rig.links.held += [("eth0", "fd00::7/64")]
        rig.vpn.use_address(("fd00::5", 64))
        await wait_all_tasks_blocked()
        assert rig.links.changes == ["mtu 1280", "delete fd00::9/64", "add fd00::5/64", "up"]
        assert rig.vpn.status()["address"] == "fd00::5/64"
        assert "fd00::7/64" in rig.codes()["address-taken"]

    drive(scenario, mtu=1280)
