"""The trust zone between whole daemons of ours: real meshes on loopback, no VPN.

The gate is the point: who is not trusted may talk as it likes, nothing of it gets into the ledger.
"""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

import pytest
import trio

from provider_kairos.api.testing import ask
from provider_kairos.clock import SystemClock
from provider_kairos.daemon.daemon import Daemon
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.settings_trust import TrustSettings
from provider_kairos.daemon.store import Store
from provider_kairos.token.codec import generate
from provider_kairos.trustzone import keys
from provider_kairos.trustzone.model import AUTH_BUCKET, NOTES_BUCKET, ZONE_BUCKET, read_notes

PATIENCE = 60
TRUSTED, OTHER = keys.generate(), keys.generate()


@pytest.fixture
def make(tmp_path):
    stores = []

    def build(name, token, *bootstrap, services=None, **options):
        services = {} if services is None else {"services": services}
        store = Store(tmp_path / name / "mesh.db")
        stores.append(store)
        settings = DaemonSettings(
            token,
            vpn=False,
            mdns=False,
            dht=False,
            listen=("/ip4/127.0.0.1/tcp/0",),
            bootstrap_peers=tuple(map(address, bootstrap)),
            api_listen=f"unix://{tmp_path}/{name}.sock",
            state_dir=tmp_path / name,
            heartbeat_interval=5,
            sync_interval=2,
            announce_interval=2,
            **options,
        )
        return Daemon(settings, store, SystemClock(), random.Random(name), **services)

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


def guard(pair=TRUSTED, *, gate=True, **options):
    return TrustSettings(guard=True, gate=gate, private_key=pair.private if pair else "", **options)


def address(daemon):
    return f"{daemon.mesh.addresses()[0]}/p2p/{daemon.mesh.peer_id}"


async def until(true, what):
    with trio.move_on_after(PATIENCE) as scope:
        while not true():  # noqa: ASYNC110 - several daemons are looked at
            await trio.sleep(0.05)
    assert not scope.cancelled_caught, what


def zone(daemon):
    return set(daemon.backend.bucket(ZONE_BUCKET) or {})


def codes(daemon):
    return {reason["code"]: reason["text"] for reason in daemon.backend.status()["waiting"]}


def counter(daemon, name):
    return daemon.backend.status()["counters"].get(name, 0)


def has(daemon, key):
    return daemon.backend.get("mine", key) is not None


def put_key(daemon, pair=TRUSTED):
    daemon.backend.persist(AUTH_BUCKET, "ecdsa_1", f'"{pair.public}"')


async def all_trust_each_other(*daemons):
    ids = {daemon.mesh.peer_id for daemon in daemons}
    await until(lambda: all(zone(daemon) == ids for daemon in daemons), "all are in the zone")


@pytest.mark.parametrize("strict", [False, True])
def test_what_an_unauthorised_node_writes_gets_in_nowhere_and_what_authorised_ones_write_does(make, strict):
    async def main():
        token = generate()
        one = make("one", token, trust=guard(relaxed=True, strict=strict))
        async with running(one):
            put_key(one)
            two = make("two", token, one, trust=guard(relaxed=True, strict=strict))
            async with running(two):
                # the third one's gate is closed from the beginning
                three = make("three", token, one, two, trust=guard(strict=strict))
                async with running(three):
                    trusted = [one, two, three]
                    await all_trust_each_other(*trusted)
                    fingerprint = keys.fingerprint(keys.load_public(TRUSTED.public))
                    await until(lambda: read_notes(one.backend.bucket(NOTES_BUCKET) or {}), "a note")
                    assert set(read_notes(one.backend.bucket(NOTES_BUCKET)).values()) == {fingerprint}
                    plain = make("plain", token, *trusted)
                    wrong = make("wrong", token, *trusted, trust=guard(OTHER))
                    async with running(plain, wrong):
                        for stranger in (plain, wrong):
                            stranger.backend.persist("mine", stranger.mesh.peer_id, '"stranger"')
                            stranger.backend.persist(ZONE_BUCKET, stranger.mesh.peer_id, '""')
                        for daemon in trusted:
                            await until(lambda daemon=daemon: counter(daemon, "gated") >= 4, "strangers are gated")
                            await until(lambda daemon=daemon: counter(daemon, "trust_heard_refused"), "and refused")
                        two.backend.persist("mine", "two", '"trusted"')
                        await until(lambda: all(has(daemon, "two") for daemon in trusted), "two's record")
                        for daemon in trusted:
                            assert zone(daemon) == {each.mesh.peer_id for each in trusted}
                            assert set(daemon.backend.bucket("mine")) == {"two"}

    trio.run(main)


def test_nodes_with_one_key_come_together_behind_closed_gates_with_nothing_in_the_ledger(make):
    async def main():
        token = generate()
        one = make("one", token, trust=guard())
        async with running(one):
            two = make("two", token, one, trust=guard())
            three = make("three", token, one, trust=guard())
            async with running(two, three):
                await all_trust_each_other(one, two, three)
                three.backend.persist("mine", "three", '"x"')
                await until(lambda: has(two, "three"), "a record by way of the one in the middle")
                assert "trust-no-trusted-key" not in codes(one), "nobody is missing"

    trio.run(main)


def test_the_gate_is_switched_by_its_route_and_says_when_it_keeps_everybody_out(make, tmp_path):
    async def main():
        token = generate()
        one = make("one", token, trust=guard(pair=None))
        async with running(one):
            stranger = make("stranger", token, one)
            async with running(stranger):
                socket = f"unix://{tmp_path}/one.sock"
                assert (await ask(socket, "GET", "/api/peergate"))[::2] == (200, "true\n")
                stranger.backend.persist("mine", "first", '"x"')
                await until(lambda: counter(one, "gated") >= 2, "the stranger is gated")
                reasons = {"mesh-all-gated-out", "trust-no-key", "trust-no-trusted-key"}
                await until(lambda: reasons <= codes(one).keys(), "it says why")
                assert codes(one)["mesh-all-gated-out"].startswith("all 1 peers in the ledger room are gated out")
                assert not has(one, "first")
                assert (await ask(socket, "PUT", "/api/peergate/disable"))[2] == "false\n"
                await until(lambda: has(one, "first"), "the record is heard")
                assert "mesh-all-gated-out" not in codes(one)
                assert (await ask(f"unix://{tmp_path}/stranger.sock", "GET", "/api/peergate"))[0] == 404

    trio.run(main)


def test_a_guard_without_a_gate_lets_everybody_speak_and_still_lets_in(make):
    async def main():
        token = generate()
        one = make("one", token, trust=guard(gate=False))
        async with running(one):
            put_key(one)
            two = make("two", token, one, trust=guard(gate=False))
            async with running(two):
                await all_trust_each_other(one, two)
                stranger = make("stranger", token, one, two)
                async with running(stranger):
                    stranger.backend.persist("mine", "stranger", '"x"')
                    await until(lambda: has(one, "stranger") and has(two, "stranger"), "the stranger's record")
                    assert counter(one, "gated") == 0

    trio.run(main)


def test_a_command_that_is_a_node_of_its_own_guards_too(make):
    node = make("node", generate(), services=lambda _parts: [], trust=guard())
    assert [service.name for service in node.services] == ["trust"]
    assert node.backend.gate is node.mesh.admission.gate


def test_the_zone_is_kept_on_disk_and_counts_from_the_first_message_on(make):
    async def main():
        token = generate()
        one = make("one", token, trust=guard())
        async with running(one):
            two = make("two", token, one, trust=guard())
            async with running(two):
                await all_trust_each_other(one, two)
                await one.backend.persisted()
        again = make("one", token, trust=guard())
        assert again.mesh.peer_id == one.mesh.peer_id
        assert again.backend.gate is not None
        assert again.mesh.admission.hears(two.mesh.peer_id)
        assert not again.mesh.admission.hears(make("other", token).mesh.peer_id)

    trio.run(main)
