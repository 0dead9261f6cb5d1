"""DHT nodes of ours on loopback, beside each other and beside go-libp2p-kad-dht: both roles, records, limits, rude peers."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from functools import partial

import base58
import pytest
import trio

from provider_kairos.clock import SystemClock
from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import kad_links, kad_wire, multiaddr
from provider_kairos.mesh.kad import PROTOCOL
from provider_kairos.mesh.kad_server import BURST
from provider_kairos.mesh.kad_wire import KadMessage, KadPeer, Kind
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.rendezvous import key_of
from provider_kairos.mesh.settings import DhtMode, DhtSettings, MeshSettings
from provider_kairos.mesh.streams import StreamEndedError
from provider_kairos.mesh.wire import encode_delimited, read_delimited
from provider_kairos.token.codec import encode, generate
from provider_kairos.token.otp import rendezvous_at
from tests.interop.go_peer import GoPeer

PATIENCE = 60  # seconds after which a test gives up; nothing is measured
KEY = key_of("somewhere")
ADDRESS = multiaddr.encode("/ip4/192.0.2.1/tcp/4001")


def node(name, token=None, *bootstrap, mode=DhtMode.AUTO, dht=True, **options):
    return Mesh(
        MeshSettings(
            seed=name.encode() * 32,
            token=token or generate(),
            listen=("/ip4/127.0.0.1/tcp/0",),
            bootstrap_peers=bootstrap,
            mdns=False,
            dht=DhtSettings(mode=mode, defaults=(), **options) if dht else None,
        ),
        SystemClock(),
        random.Random(name),
    )


def address(mesh):
    return f"{mesh.addresses()[0]}/p2p/{mesh.peer_id}"


@asynccontextmanager
async def running(*meshes):
    with trio.fail_after(2 * PATIENCE):
        async with trio.open_nursery() as nursery:
            for mesh in meshes:
                await nursery.start(mesh.run)
            yield nursery
            nursery.cancel_scope.cancel()


async def until(true):
    with trio.fail_after(PATIENCE):
        while not true():  # noqa: ASYNC110 - it tells nobody
            await trio.sleep(0.02)


def view(mesh, peer):
    return next((each for each in mesh.peers() if each.peer_id == peer), None)


async def meets(mesh, other):
    await until(lambda: other in mesh.on_chain())


# --- among our own ------------------------------------------------------------------------------------------------


def test_nodes_of_one_network_meet_at_a_server_of_another():
    async def main():
        server, token = node("s", mode=DhtMode.SERVER), generate()
        async with running(server) as nursery:
            one = node("a", token, address(server))
            await nursery.start(one.run)
            await until(lambda: any(reason.code == "dht-nobody-found" for reason in one.waiting()))
            two = node("b", token, address(server))
            await nursery.start(two.run)
            await meets(one, two.peer_id)
            await meets(two, one.peer_id)
            assert (one.waiting(), two.waiting()) == ([], [])
            assert {view(one, two.peer_id).found_by, view(two, one.peer_id).found_by} & {"dht"}
            assert view(one, server.peer_id).found_by == "bootstrap"
            assert PROTOCOL in view(one, server.peer_id).protocols
            # a client says that it is none
            assert PROTOCOL not in view(two, one.peer_id).protocols

    trio.run(main)


def test_a_server_that_is_a_member_too_finds_by_its_own_records():
    """Its client is of the same network, but the server was not told of it."""

    async def main():
        token = generate()
        server = node("s", token, mode=DhtMode.SERVER)
        async with running(server) as nursery:
            client = node("a", token, address(server))
            await nursery.start(client.run)
            await meets(server, client.peer_id)
            await meets(client, server.peer_id)

    trio.run(main)


def test_a_chain_of_servers_is_one_dht():
    """Each knows only the one before; a record that was given to the last is found through the first."""

    async def main():
        first = node("s", mode=DhtMode.SERVER)
        async with running(first) as nursery:
            servers = [first]
            for number in range(6):
                servers.append(node(str(number), None, address(servers[-1]), mode=DhtMode.SERVER))
                await nursery.start(servers[-1].run)
            for each in servers:
                table = each._host.discovery.kad.table
                await until(lambda table=table: len(table) == 6)
            token = generate()
            one, two = node("a", token, address(servers[0])), node("b", token, address(servers[-1]))
            await nursery.start(one.run)
            await nursery.start(two.run)
            await meets(one, two.peer_id)
            assert len(one._host.discovery.kad.table) >= 6

    trio.run(main)


def test_nodes_that_were_only_asked_are_let_go(monkeypatch):
    monkeypatch.setattr(kad_links, "IDLE", 0.3)
    monkeypatch.setattr(kad_links, "LOOK", 0.1)

    async def main():
        servers = [node("s", mode=DhtMode.SERVER)]
        async with running(servers[0]) as nursery:
            for number in range(3):
                servers.append(node(str(number), None, address(servers[0]), mode=DhtMode.SERVER))
                await nursery.start(servers[-1].run)
            client = node("a", None, address(servers[0]))
            await nursery.start(client.run)
            await until(lambda: client.counters.get("dht_rounds", 0) >= 1)
            kad = client._host.discovery.kad
            await until(lambda: len(kad.table) == 4)
            await until(lambda: [each.peer_id for each in client.peers()] == [servers[0].peer_id])
            # they are still contacts, and asked again in the next round
            asked = client.counters["dht_questions"]
            await until(lambda: client.counters["dht_questions"] >= asked + 4)
            await until(lambda: len(kad.table) == 4)
            assert not any(
                type(event).__name__ == "PeerConnected" and event.peer != servers[0].peer_id
                for event in drain(client.events)
            )

    trio.run(main)


def drain(channel):
    found = []
    while True:
        try:
            found.append(channel.receive_nowait())
        except trio.WouldBlock:
            return found


def test_stale_records_and_relayed_addresses_cost_nobody_else_anything():
    """What EdgeVPN nodes of an hour ago left behind at the rendezvous."""

    async def main():
        server, token = node("s", mode=DhtMode.SERVER), generate()
        async with running(server) as nursery:
            kad = server._host.discovery.kad
            key = key_of(rendezvous_at(token, SystemClock().now().unix))
            rng = random.Random(1)
            for number in range(100):
                peer = PeerId(base58.b58encode(b"\x12\x20" + rng.randbytes(32)).decode())
                gone = multiaddr.encode(f"/ip4/127.0.0.1/tcp/{1 + number % 20}")
                relayed = multiaddr.encode(f"{address(server)}/p2p-circuit/p2p/{peer}")
                kad.providers.add(
                    key, KadPeer(peer, (relayed, gone) if number % 2 else (relayed,)), SystemClock().now()
                )
            one, two = node("a", token, address(server)), node("b", token, address(server))
            await nursery.start(one.run)
            await nursery.start(two.run)
            await meets(one, two.peer_id)
            assert one.counters["dht_peers_without_tcp_address"] >= 50

    trio.run(main)


def test_with_nobody_in_reach_it_says_so():
    async def main():
        lost = node("a", None, f"/ip4/127.0.0.1/tcp/1/p2p/{'QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN'}")
        deaf = node("b", dht=False)
        async with running(lost, deaf):
            await until(lambda: "dht-no-bootstrap" in [reason.code for reason in lost.waiting()])
            assert [reason.code for reason in deaf.waiting()] == ["mesh-no-peers", "mesh-no-discovery"]

    trio.run(main)


def test_bootstrap_peers_behind_a_name_are_kept(monkeypatch):
    """Without a DHT too."""

    async def main():
        token = generate()
        named = node("n", token, dht=False)
        async with running(named) as nursery:

            async def resolve(name):
                assert name == "_dnsaddr.boot.example"
                return [f"dnsaddr={address(named)}", f"dnsaddr=/ip4/127.0.0.1/udp/1/quic-v1/p2p/{named.peer_id}"]

            monkeypatch.setattr(
                "provider_kairos.mesh.bootstrap.Bootstrap.__init__.__defaults__", (resolve,), raising=False
            )
            other = node("o", token, f"/dnsaddr/boot.example/p2p/{named.peer_id}", dht=False)
            await nursery.start(other.run)
            await meets(other, named.peer_id)
            assert view(other, named.peer_id).found_by == "bootstrap"

    trio.run(main)


# --- rude peers ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def server_and_stranger():
    """A server, and a peer that is connected to it and no DHT node itself."""
    server, stranger = node("s", mode=DhtMode.SERVER), node("x", dht=False)
    async with running(server, stranger):
        stranger.add_peer(server.peer_id, server.addresses())
        await until(lambda: view(stranger, server.peer_id) and view(stranger, server.peer_id).connected)
        yield server, stranger


async def ask(stranger, server, message):
    stream = await stranger.open_stream(server.peer_id, PROTOCOL)
    await stream.write(encode_delimited(kad_wire.encode(message)))
    return kad_wire.decode(await read_delimited(stream.read, 1 << 20))


async def ends(stream):
    """The peer resets the stream."""

    async def to_the_end():
        while await stream.read():
            pass

    with pytest.raises(StreamEndedError):
        await to_the_end()


def test_one_stream_carries_many_questions():
    async def main():
        async with server_and_stranger() as (server, stranger):
            stream = await stranger.open_stream(server.peer_id, PROTOCOL)
            own = KadMessage(Kind.ADD_PROVIDER, KEY, providers=(KadPeer(stranger.peer_id, (ADDRESS,)),))
            questions = [KadMessage(Kind.PING), own, KadMessage(Kind.GET_PROVIDERS, KEY), KadMessage(Kind.PING)]
            await stream.write(b"".join(encode_delimited(kad_wire.encode(each)) for each in questions))
            stream.close_write()
            data = b""
            while piece := await stream.read():
                data += piece
            expected = [
                KadMessage(Kind.PING),
                KadMessage(Kind.GET_PROVIDERS, KEY, providers=(KadPeer(stranger.peer_id, (ADDRESS,)),)),
                KadMessage(Kind.PING),
            ]
            assert data == b"".join(encode_delimited(kad_wire.encode(each)) for each in expected)
            # who is asked for by its ID is named, servers and others alike
            answer = await ask(stranger, server, KadMessage(Kind.FIND_NODE, multiaddr.peer_id_bytes(server.peer_id)))
            assert [each.peer for each in answer.closer] == [server.peer_id]
            answer = await ask(stranger, server, KadMessage(Kind.FIND_NODE, multiaddr.peer_id_bytes(stranger.peer_id)))
            assert [str(each) for each in answer.closer[0].endpoints()] == stranger.addresses()
            assert (await ask(stranger, server, KadMessage(Kind.GET_VALUE, b"/pk/x"))).closer == ()

    trio.run(main)


RUDE = {
    "garbage": b"\x05\xff\xff\xff\xff\xff",
    "a length without end": b"\xff" * 20,
    "a message over the limit": b"\xff\xff\x7f" + b"x" * 20_000,
    "an unknown type": encode_delimited(b"\x08\x09"),
    "a value": encode_delimited(kad_wire.encode(KadMessage(Kind.PUT_VALUE, b"/ipns/x"))),
    "no key": encode_delimited(kad_wire.encode(KadMessage(Kind.GET_PROVIDERS))),
    "a record of somebody else": encode_delimited(
        kad_wire.encode(
            KadMessage(
                Kind.ADD_PROVIDER,
                KEY,
                providers=(KadPeer(PeerId("QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN"), (ADDRESS,)),),
            )
        )
    ),
    "too many questions": encode_delimited(kad_wire.encode(KadMessage(Kind.PING))) * int(BURST * 3),
}


@pytest.mark.parametrize("kind", RUDE)
def test_a_rude_peer_loses_its_stream_and_the_server_lives(kind):
    async def main():
        async with server_and_stranger() as (server, stranger):
            stream = await stranger.open_stream(server.peer_id, PROTOCOL)
            await stream.write(RUDE[kind])
            await ends(stream)
            assert {"malformed", "dht_requests_refused", "dht_requests_over_limit"} & server.counters.keys()
            kad = server._host.discovery.kad
            assert not kad.providers.of(KEY, SystemClock().now())
            await until(lambda: not kad._served)
            other = node("y", None, address(server))
            async with trio.open_nursery() as nursery:
                await nursery.start(other.run)
                await until(lambda: other.counters.get("dht_rounds", 0) >= 1)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_streams_of_one_peer_are_bounded():
    async def main():
        async with server_and_stranger() as (server, stranger):
            for _ in range(12):  # nothing is ever asked on them
                await stranger.open_stream(server.peer_id, PROTOCOL)
            await until(lambda: server.counters.get("dht_streams_over_limit", 0) == 4)

    trio.run(main)


def test_a_client_serves_nobody():
    async def main():
        client, stranger = node("c"), node("x", dht=False)
        async with running(client, stranger):
            stranger.add_peer(client.peer_id, client.addresses())
            with pytest.raises(PeerError, match="serves none"):
                await stranger.open_stream(client.peer_id, PROTOCOL)

    trio.run(main)


@pytest.mark.parametrize(
    "answer", [b"", b"\x05\xff\xff\xff\xff\xff", b"\xff\xff\xff\x7f", encode_delimited(b"\x08\x05")]
)
def test_a_server_that_answers_nonsense_is_no_contact(answer):
    async def main():
        liar, client = node("l", dht=False), node("c")

        async def lie(_peer, stream):
            await stream.read()
            await stream.write(answer or b"\x00")

        liar.set_stream_handler(PROTOCOL, lie)
        async with running(liar) as nursery:
            client = node("c", None, address(liar))
            await nursery.start(client.run)
            await until(lambda: client.counters.get("dht_questions_failed", 0) >= 1)
            await until(lambda: "dht-no-bootstrap" in [reason.code for reason in client.waiting()])
            assert not len(client._host.discovery.kad.table)

    trio.run(main)


# --- beside Go ----------------------------------------------------------------------------------------------------


def test_through_a_go_server_our_nodes_meet(go_peer):
    server = go_peer(token=encode(generate()), dht="server")
    token = generate()

    async def main():
        one, two = node("a", token, server.addrs[0]), node("b", token, server.addrs[0])
        async with running(one, two):
            await meets(one, two.peer_id)
            found = await server.ado("find", key=rendezvous_at(token, SystemClock().now().unix))
            assert {each["peer"] for each in found["providers"]} == {one.peer_id, two.peer_id}
            # as clients we are none of its contacts
            assert (await server.ado("dht"))["table"] in ([], None)

    trio.run(main)


def test_through_our_server_a_go_node_and_ours_find_each_other(go_peer):
    token = generate()

    async def main():
        server = node("s", mode=DhtMode.SERVER)
        async with running(server) as nursery:
            go = await trio.to_thread.run_sync(
                partial(go_peer, token=encode(token), dht="client", bootstrap=[address(server)])
            )
            ours = node("a", token, address(server))
            await nursery.start(ours.run)
            await trio.to_thread.run_sync(
                lambda: go.until(lambda: go.do("dht")["table"] == [server.peer_id], "our server is its contact")
            )
            await go.ado("dht_round")
            await meets(ours, go.id)

    trio.run(main)


def test_a_go_node_finds_us_by_what_we_announced(go_peer, monkeypatch):
    """We do not dial: the connection is made by the Go node alone."""
    monkeypatch.setattr("provider_kairos.mesh.dialer.Dialer.lead", lambda *_: None)
    token = generate()

    async def main():
        server = node("s", mode=DhtMode.SERVER)
        async with running(server) as nursery:
            ours = node("a", token, address(server))
            await nursery.start(ours.run)
            await until(lambda: ours.counters.get("dht_rounds", 0) >= 1)
            go = await trio.to_thread.run_sync(
                partial(go_peer, token=encode(token), dht="client", bootstrap=[address(server)], rounds=1)
            )
            await go.aevent("dht_found", peer=ours.peer_id, error="")
            await meets(ours, go.id)
            assert view(ours, go.id).direction == "inbound"

    trio.run(main)


def test_go_and_our_servers_are_one_dht(go_peer):
    """Ours and Go's servers know each other, and either answers with the other's nearest nodes."""

    async def main():
        first = node("s", mode=DhtMode.SERVER)
        async with running(first) as nursery:
            gos: list[GoPeer] = []
            for number in range(3):
                start = partial(
                    go_peer,
                    token=encode(generate()),
                    dht="server",
                    bootstrap=[gos[-1].addrs[0] if gos else address(first)],
                )
                gos.append(await trio.to_thread.run_sync(start))
                ours = node(str(number), None, gos[-1].addrs[0], mode=DhtMode.SERVER)
                await nursery.start(ours.run)
            kad = first._host.discovery.kad
            await until(lambda: {go.id for go in gos} & {each.peer for each in kad.table.nearest(0)})
            token = generate()
            one, two = node("a", token, gos[-1].addrs[0]), node("b", token, address(first))
            await nursery.start(one.run)
            await nursery.start(two.run)
            await meets(one, two.peer_id)
            table = (await gos[0].ado("dht"))["table"]
            assert first.peer_id in table

    trio.run(main)
