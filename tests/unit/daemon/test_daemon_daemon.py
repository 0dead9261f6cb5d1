"""Whole daemons in this process: real meshes on loopback, no VPN; clocks are ours."""

from __future__ import annotations

import json
import logging
import random
import re
from contextlib import asynccontextmanager

import pytest
import trio

from provider_kairos.clock import Now, SystemClock
from provider_kairos.daemon.daemon import Daemon
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.store import Store
from provider_kairos.errors import HostError
from provider_kairos.token.codec import encode, generate

PATIENCE = 30


class SkewedClock:
    def __init__(self, seconds):
        self._seconds = seconds

    def now(self):
        now = SystemClock().now()
        return Now(now.unix_ns + self._seconds * 1_000_000_000, now.mono)


@pytest.fixture
def make(tmp_path):
    stores = []

    def build(name, token, *bootstrap, skew=0, **options):
        store = Store(tmp_path / name / "mesh.db")
        stores.append(store)
        settings = DaemonSettings(
            token,
            vpn=False,
            mdns=False,
            dht=False,
            listen=("/ip4/127.0.0.1/tcp/0",),
            bootstrap_peers=bootstrap,
            api_listen=f"unix://{tmp_path}/{name}.sock",
            state_dir=tmp_path / name,
            **options,
        )
        return Daemon(settings, store, SkewedClock(skew), random.Random(name))

    yield build
    for store in stores:
        store.close()


@asynccontextmanager
async def running(*daemons):
    async with trio.open_nursery() as nursery:
        for daemon in daemons:
            await nursery.start(daemon.run)
        yield
        nursery.cancel_scope.cancel()


def address(daemon):
    return f"{daemon.mesh.addresses()[0]}/p2p/{daemon.mesh.peer_id}"


async def until(daemon, true):
    with trio.fail_after(PATIENCE):
        while not true():
            with trio.move_on_after(0.1):
                await daemon.ledger.wait_changed()


def codes(daemon):
    return {reason["code"]: reason["text"] for reason in daemon.backend.status()["waiting"]}


def test_two_daemons_share_records_and_say_so(make):
    async def main():
        token = generate()
        one = make("one", token)
        async with running(one):
            assert one.backend.status()["ready"]  # alone it has everything that it can have
            two = make("two", token, address(one))
            async with running(two):
                one.backend.persist("mine", "k", '"v"')
                await one.backend.persisted()
                await until(two, lambda: two.backend.get("mine", "k") == '"v"')
                await until(one, lambda: one.backend.status()["ready"])
                status = one.backend.status()
                assert status["vpn"]["enabled"] is False
                (peer,) = status["peers"]
                assert (peer["peer_id"], peer["connected"], peer["on_topic"]) == (two.mesh.peer_id, True, True)
                await until(one, lambda: one.backend.status()["peers"][0]["native"] is True)
                # a peer with a heartbeat is a member: its connection stays when there are too many
                await until(one, lambda: one.backend.status()["connections"]["members"] == 1)
                assert one.backend.status()["connections"]["most"] == 512
                assert one.backend.healthy()
                json.dumps(status)

    trio.run(main)


@pytest.mark.parametrize("interval", [9_223_372_036_854_775_807, 30])
@pytest.mark.parametrize("skew", [3600, -3600])
def test_a_clock_that_is_an_hour_off_is_named_and_nothing_is_lost(make, interval, skew):
    async def main():
        token = generate(interval)
        one = make("one", token)
        async with running(one):
            two = make("two", token, address(one), skew=skew, heartbeat_interval=1)
            async with running(two):
                one.backend.persist("mine", "k", '"v"')
                await one.backend.persisted()
                await until(one, lambda: any("clock-skew" in code for code in codes(one)))
                said = [re.search(r"(\d+) s ", text) for code, text in codes(one).items() if "clock-skew" in code]
                # heartbeats name whole seconds and take a moment to arrive
                assert all(found is not None and abs(int(found[1]) - 3600) <= 60 for found in said), codes(one)
                assert one.backend.get("mine", "k") == '"v"'
                if interval != 30:  # with a common key they even go on together
                    await until(two, lambda: two.backend.get("mine", "k") == '"v"')
                    two.backend.persist("mine", "back", '"w"')
                    await until(one, lambda: one.backend.get("mine", "back") == '"w"')
                assert one.backend.healthy()
                assert two.backend.healthy()

    trio.run(main)


def test_what_it_knew_is_there_after_a_restart_under_the_same_name(make, tmp_path):
    async def main():
        token = generate()
        first = make("one", token)
        async with running(first):
            first.backend.persist("mine", "k", '"v"')
            await first.backend.persisted()
        again = make("one", token)
        assert again.mesh.peer_id == first.mesh.peer_id
        assert again.backend.get("mine", "k") == '"v"'

    trio.run(main)


def test_the_place_of_the_api_that_is_taken_ends_it_with_a_remedy(make, tmp_path):
    async def main():
        (tmp_path / "one.sock").write_text("in the way")
        with pytest.raises(ExceptionGroup) as caught:
            async with running(make("one", generate())):
                pass
        assert caught.group_contains(HostError, match="in the way")

    trio.run(main)


def test_an_exception_in_an_odd_place_tells_no_secret(make, monkeypatch, caplog):
    token = generate()

    async def main():
        one = make("one", token)
        seen = trio.Event()

        def broken(*_args, **_kwargs):
            seen.set()
            raise RuntimeError("broken on purpose")

        monkeypatch.setattr(one.ledger.ledger, "tick", broken)
        monkeypatch.setattr(one.mesh, "publish", broken)
        async with running(one):
            with trio.fail_after(PATIENCE):
                await seen.wait()
                while one.backend.healthy():  # noqa: ASYNC110 - health is looked at, as a monitor does
                    await trio.sleep(0.01)
            assert one.backend.status()["peer_id"] == one.mesh.peer_id  # the others go on

    with caplog.at_level(logging.DEBUG):
        trio.run(main)
    text = caplog.text + repr(token)
    assert "broken on purpose" in text
    for secret in (encode(token), token.crypto.key, token.dht.key, token.room, token.mdns, token.rendezvous):
        assert secret not in text
