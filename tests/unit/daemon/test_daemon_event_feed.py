"""What the daemon tells its streams, and its own API on a real ledger."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from provider_kairos.api.client import DaemonClient
from provider_kairos.clock import SystemClock
from provider_kairos.daemon.daemon import Daemon
from provider_kairos.daemon.event_feed import LOOKED_AT, EventFeed
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.store import Store
from provider_kairos.ids import PeerId
from provider_kairos.mesh.views import EpochChanged, NoPeers, PeerConnected, PeerSubscribed, PeerUnsubscribed
from provider_kairos.token.codec import generate

PATIENCE = 60


class Facts:
    """The state of a node, as it is set."""

    def __init__(self):
        self.ready = False
        self.phases: list[Any] = [{"name": "mesh", "state": "active", "seconds": 1.0}]
        self.reasons: list[Any] = []
        self.address = None

    def progress(self):
        return self.ready, self.phases

    def waiting(self):
        return self.reasons

    def vpn_status(self):
        return {"enabled": True, "interface": "edgevpn0", "address": self.address, "mtu": 1200}


def view(peer, *, connected=True, on_topic=False):
    return SimpleNamespace(peer_id=peer, connected=connected, on_topic=on_topic)


class Rig:
    def __init__(self, folder):
        self.facts = Facts()
        self.views: list[Any] = []
        self.file = folder / "provider.json"
        self.feed = EventFeed(self.facts, lambda: self.views, provider_file=self.file)

    def told(self, since=0):
        return [(e.kind, json.loads(e.data) if e.data else (e.bucket, e.key)) for e in self.feed.log.after(since)]


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def test_records_and_peers_tell_themselves(rig):
    async def main():
        rig.views = [view("A", on_topic=True)]
        rig.feed.records_changed(frozenset({("b", "k"), ("a", "l")}))
        rig.feed.mesh_event(PeerConnected(PeerId("A")))
        rig.feed.mesh_event(PeerSubscribed(PeerId("A")))
        rig.feed.mesh_event(EpochChanged(1))
        rig.views = []
        rig.feed.mesh_event(PeerUnsubscribed(PeerId("A")))

    trio.run(main)
    assert rig.told() == [
        ("ledger", ("a", "l")),
        ("ledger", ("b", "k")),
        ("peer", {"peer_id": "A", "change": "connected", "connected": True, "on_topic": True, "snapshot": False}),
        ("peer", {"peer_id": "A", "change": "joined", "connected": True, "on_topic": True, "snapshot": False}),
        ("peer", {"peer_id": "A", "change": "left", "connected": False, "on_topic": False, "snapshot": False}),
    ]


def test_what_says_nothing_is_looked_at_while_somebody_wants_it(rig):
    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.feed.run)
            rig.facts.address = "10.1.0.1/24"
            await trio.sleep(60)
            assert rig.feed.log.last == 0, "nobody listens: nothing is looked at"
            leave = rig.feed.log.admit(LOOKED_AT)
            await trio.sleep(5)
            assert rig.feed.log.last == 0, "nothing has changed since"
            rig.facts.ready = True
            rig.facts.phases = [{"name": "mesh", "state": "done", "seconds": 1.0}]
            rig.facts.reasons = [NoPeers(known=2)]
            rig.facts.address = "10.1.0.9/24"
            rig.file.write_text(json.dumps({"role": "master", "configured": True, "leader": 5}))
            await trio.sleep(5)
            seen = dict(rig.told())
            assert len(rig.told()) == 4
            assert seen["phase"]["ready"]
            assert seen["waiting"]["waiting"][0]["code"] == "mesh-no-peers"
            assert seen["address"] == {"address": "10.1.0.9/24", "interface": "edgevpn0"}
            assert seen["role"]["role"] == "master"
            assert seen["role"]["leader"] is None
            # an unfinished phase grows older without being news
            rig.facts.phases = [*rig.facts.phases, {"name": "peers", "state": "active", "seconds": 2.0}]
            await trio.sleep(5)
            rig.facts.phases = [rig.facts.phases[0], {"name": "peers", "state": "active", "seconds": 9.0}]
            await trio.sleep(5)
            assert [kind for kind, _ in rig.told(4)] == ["phase"]
            # what happens while nobody listens is told to the next one
            leave()
            await trio.sleep(5)
            rig.facts.address = None
            await trio.sleep(60)
            assert rig.feed.log.last == 5
            rig.feed.log.admit(["address"])
            await trio.sleep(5)
            assert rig.told(5) == [("address", {"address": None, "interface": "edgevpn0"})]
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_the_present_state(rig):
    async def main():
        rig.views = [view("B", on_topic=True), view("A"), view("C", connected=False)]
        present = rig.feed.present(["peer", "address", "role"])
        assert [(kind, data.get("peer_id"), data.get("change")) for kind, data in present] == [
            ("peer", "A", "connected"),
            ("peer", "B", "joined"),
            ("address", None, None),
            ("role", None, None),
        ]
        assert present[0][1]["snapshot"]

    trio.run(main)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"x"', "[" * 5000, "\xff"])
def test_a_broken_file_of_the_provider_says_nothing(rig, text):
    async def main():
        rig.file.write_text(text, "latin-1")
        assert rig.feed.provider() is None
        rig.file.unlink()
        assert rig.feed.provider() is None
        rig.file.write_text('{"role": "worker"}')
        assert rig.feed.provider() == {"role": "worker"}

    trio.run(main)


# -- whole daemons


@pytest.fixture
def make(tmp_path):
    stores = []

    def build(name, token, *bootstrap):
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
        )
        return Daemon(settings, store, SystemClock(), random.Random(name))

    yield build
    for store in stores:
        store.close()


async def next_of(events, true):
    with trio.fail_after(PATIENCE):
        async for event in events:
            if true(event):
                break
    return event


def test_a_stream_of_a_real_daemon(make, tmp_path):
    """Another node joins, writes and is refused; the stream tells all of it, the API whose the records are."""
    token = generate()

    async def main():
        one = make("one", token)
        async with trio.open_nursery() as nursery:
            await nursery.start(one.run)
            address = f"{one.mesh.addresses()[0]}/p2p/{one.mesh.peer_id}"
            two = make("two", token, address)
            async with DaemonClient(f"unix://{tmp_path}/one.sock") as client, client.events() as events:
                await next_of(events, lambda e: e.kind == "synced")
                await nursery.start(two.run)
                joined = await next_of(events, lambda e: e.kind == "peer" and e.data["change"] == "joined")
                assert joined.data["peer_id"] == two.mesh.peer_id
                two.ledger.add("services", {"web": json.dumps({"PeerID": two.mesh.peer_id, "Name": "web"})})
                record = await next_of(events, lambda e: e.kind == "ledger" and e.data["bucket"] == "services")
                assert record.data["author"] == two.mesh.peer_id
                assert record.data["value"]["Name"] == "web"
                assert int(record.data["version"]) > 2**53
                with trio.fail_after(PATIENCE):  # whoever lives, owns
                    while two.mesh.peer_id not in await client.plain_bucket("healthcheck"):  # noqa: ASYNC110
                        await trio.sleep(0.05)
                answer = await client.request("DELETE", "/v1/ledger/services/web")
                assert answer.status == 409
                assert two.mesh.peer_id in json.loads(answer.body)["message"]
                answer = await client.request("DELETE", "/v1/ledger/services")
                assert answer.status == 409
                await client.put("kairos", "a", 1)
                mine = await next_of(events, lambda e: e.kind == "ledger" and e.data["key"] == "a")
                assert mine.data["author"] == one.mesh.peer_id
                await client.delete_bucket("kairos")
                gone = await next_of(events, lambda e: e.kind == "ledger" and e.data["key"] == "a")
                assert gone.data["deleted"]
                summary = json.loads((await client.request("GET", "/v1/ledger")).body)
                assert {"name": "kairos", "records": 0, "deleted": 1} in summary["buckets"]
                waiting = await next_of(events, lambda e: e.kind == "phase" and e.data["ready"])
                assert [p["state"] for p in waiting.data["phases"]] == ["done"] * 3
            nursery.cancel_scope.cancel()

    trio.run(main)
