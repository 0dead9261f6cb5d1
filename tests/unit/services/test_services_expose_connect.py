"""Services: named ones among our own nodes, EdgeVPN's nameless protocol, refusals that say why, limits."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from provider_kairos.clock import ManualClock
from provider_kairos.errors import HostError
from provider_kairos.services import connect, dialing, expose, tunnel, users
from provider_kairos.services.connect import ServiceConnector
from provider_kairos.services.endpoints import Endpoint, bind
from provider_kairos.services.expose import EDGEVPN_PROTOCOL, PROTOCOL, ServiceExposer
from provider_kairos.services.reasons import NameTaken, PeerNotReached, ServiceNotExposed
from provider_kairos.services.records import SERVICES_BUCKET, USERS_BUCKET, named_value
from provider_kairos.services.testing import MemoryNetwork, echo, read_all, tcp_server

LOOPBACK = Endpoint("127.0.0.1", 0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(users, "PATIENCE", 0.3)
    monkeypatch.setattr(dialing, "SETTLE", 0.1)
    monkeypatch.setattr(tunnel, "QUIET", 0.1)
    monkeypatch.setattr(dialing, "GAP", 0.05)
    monkeypatch.setattr(connect, "FIND_PATIENCE", 0.2)
    monkeypatch.setattr(dialing.Dialer.open, "__kwdefaults__", {"patience": 1.0})


@asynccontextmanager
async def network():
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            yield MemoryNetwork(nursery, ManualClock()), nursery
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def running(service):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        await trio.testing.wait_all_tasks_blocked()
        yield service
        nursery.cancel_scope.cancel()
    if isinstance(service, ServiceConnector):
        service.close()


@asynccontextmanager
async def connected(net, *names):
    client = net.nodes.get("client") or net.node("client")
    connector = ServiceConnector(net.ledger, client, net.clock, dict.fromkeys(names, LOOPBACK))
    async with running(connector):
        yield connector


async def dial(connector, number=0):
    endpoint = connector.addresses[number][1]
    return await trio.open_tcp_stream(endpoint.host, endpoint.port)


async def ask(connector, data=b"hello", number=0):
    async with await dial(connector, number) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        return await read_all(stream)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - counters tell nobody when they change
        await trio.sleep(0.01)


def server(net, services, **options):
    return ServiceExposer(net.ledger, net.node("server"), net.clock, services, **options)


def test_one_process_exposes_many_services():
    async def shout(stream):
        while data := await stream.receive_some(65536):
            await stream.send_all(data.upper())

    async def main():
        async with network() as (net, nursery):
            targets = {"echo": await tcp_server(nursery, echo), "shout": await tcp_server(nursery, shout)}
            async with running(server(net, targets)) as exposer, connected(net, "echo", "shout") as connector:
                assert await ask(connector, number=0) == b"hello"
                assert await ask(connector, number=1) == b"HELLO"
                assert connector.waiting() == exposer.waiting() == []
                assert {protocol for _, protocol in net.nodes["client"].opened} == {PROTOCOL}
                await until(lambda: connector.counters["service_connect_ended_done"] == 2)
                await until(lambda: exposer.counters["services_ended_done"] == 2)
                assert exposer.counters["services_connections"] == 2
                assert exposer.counters["services_bytes_in"] == exposer.counters["services_bytes_out"] == 10

    trio.run(main)


def test_records_are_those_of_edgevpn():
    async def main():
        async with network() as (net, nursery):
            target = await tcp_server(nursery, echo)
            async with running(server(net, {"echo": target})), connected(net, "echo"):
                assert net.ledger.buckets[SERVICES_BUCKET] == {"echo": '{"PeerID":"server","Name":"echo"}'}
                assert net.ledger.buckets[USERS_BUCKET]["client"].startswith(
                    '{"PeerID":"client","Timestamp":"2023-11-14 22:13:20.000000000 +0000 UTC m=+'
                )

    trio.run(main)


def test_a_service_that_appears_late_is_waited_for(monkeypatch):
    monkeypatch.setattr(connect, "FIND_PATIENCE", 30)

    async def main():
        async with network() as (net, nursery), connected(net, "echo") as connector:
            target = await tcp_server(nursery, echo)
            assert connector.waiting() == [ServiceNotExposed("echo")]
            answers = []

            async def client():
                answers.append(await ask(connector))

            async with trio.open_nursery() as asking:
                asking.start_soon(client)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(server(net, {"echo": target}).run)
            assert answers == [b"hello"]

    trio.run(main)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, "no node exposes it"),
        ('{"PeerID":"nobody","Name":"echo"}', "node nobody: peer nobody is not connected"),
        ('{"PeerID":"client","Name":"echo"}', "node client: it is this node itself"),
        ("garbage", "no node exposes it"),
    ],
)
def test_a_connection_that_cannot_be_made_is_reset_and_the_reason_told(record, words, caplog):
    async def main():
        async with network() as (net, _), connected(net, "echo") as connector:
            if record is not None:
                net.ledger.announce(SERVICES_BUCKET, "echo", record)
            with pytest.raises(trio.BrokenResourceError):
                await ask(connector)
            assert words in caplog.text
            assert connector.counters["service_connect_failed"] == 1

    with caplog.at_level(logging.WARNING):
        trio.run(main)


def test_a_backend_that_refuses_is_told_to_the_client_side():
    async def main():
        async with network() as (net, _):
            (unused,) = bind(LOOPBACK)
            nobody = Endpoint(*unused.getsockname())
            unused.close()
            async with running(server(net, {"echo": nobody})) as exposer, connected(net, "echo") as connector:
                with pytest.raises(trio.BrokenResourceError):
                    await ask(connector)
                assert connector.waiting() == [
                    PeerNotReached("service 'echo'", net.nodes["server"].peer_id, f"{nobody}: Connection refused")
                ]
                assert exposer.counters["services_backend"] == 1

    trio.run(main)


def test_a_name_that_the_node_does_not_have_is_refused_by_name():
    async def main():
        async with network() as (net, nursery):
            target = await tcp_server(nursery, echo)
            async with running(server(net, {"echo": target})) as exposer, connected(net, "other") as connector:
                net.ledger.announce(SERVICES_BUCKET, "other", named_value(net.nodes["server"].peer_id, "other"))
                with pytest.raises(trio.BrokenResourceError):
                    await ask(connector)
                assert "exposes no service 'other'" in connector.waiting()[0].text()
                assert exposer.counters["services_unknown"] == 1

    trio.run(main)


def test_who_is_no_user_is_refused_after_a_while_and_taken_when_its_record_comes(monkeypatch):
    async def main():
        async with network() as (net, nursery):
            target = await tcp_server(nursery, echo)
            async with running(server(net, {"echo": target})) as exposer, connected(net, "echo") as connector:
                net.ledger.delete(USERS_BUCKET, "client")
                with pytest.raises(trio.BrokenResourceError):
                    await ask(connector)
                assert exposer.counters["services_not_a_user"] == 1

                monkeypatch.setattr(users, "PATIENCE", 30)
                answers = []

                async def client():
                    answers.append(await ask(connector))

                async with trio.open_nursery() as asking:
                    asking.start_soon(client)
                    await trio.testing.wait_all_tasks_blocked()
                    net.ledger.announce(USERS_BUCKET, "client", "{}")
                assert answers == [b"hello"]

    trio.run(main)


def test_more_streams_than_one_peer_may_have_are_refused(monkeypatch):
    monkeypatch.setattr(expose, "MAX_STREAMS_PER_PEER", 2)

    async def main():
        async with network() as (net, nursery):
            target = await tcp_server(nursery, echo)
            async with running(server(net, {"echo": target})) as exposer, connected(net, "echo") as connector:
                open_ones = [await dial(connector) for _ in range(2)]
                for stream in open_ones:
                    await stream.send_all(b"x")
                    assert await stream.receive_some(1) == b"x"
                assert exposer.counters["services_open"] == 2
                with pytest.raises(trio.BrokenResourceError):
                    await ask(connector)
                assert exposer.counters["services_full"] == 1
                await open_ones[0].aclose()
                await until(lambda: exposer.counters["services_open"] == 1)
                assert await ask(connector) == b"hello"
                await open_ones[1].aclose()

    trio.run(main)


# --- EdgeVPN's protocol ------------------------------------------------------------------------------------------------


def test_edgevpns_protocol_reaches_the_only_service():
    async def main():
        async with network() as (net, nursery):
            target = await tcp_server(nursery, echo)
            async with running(server(net, {"echo": target})) as exposer:
                client = net.node("client")
                net.ledger.announce(USERS_BUCKET, "client", "{}")
                stream = await client.open_stream(net.nodes["server"].peer_id, EDGEVPN_PROTOCOL)
                await stream.write(b"hello")
                assert await stream.read() == b"hello"
                await stream.close()
                await until(lambda: not exposer.counters["services_open"])

    trio.run(main)


def test_with_several_services_edgevpns_protocol_is_served_only_for_the_chosen_one():
    async def main():
        async with network() as (net, nursery):
            targets = {"echo": await tcp_server(nursery, echo), "other": await tcp_server(nursery, echo)}
            async with running(server(net, targets)):
                assert set(net.nodes["server"].handlers) == {PROTOCOL}
            async with running(server(net, targets, for_edgevpn="other")):
                assert set(net.nodes["server"].handlers) == {PROTOCOL, EDGEVPN_PROTOCOL}
            assert net.nodes["server"].handlers == {}

    trio.run(main)


class EdgevpnServer:
    """A node that serves EdgeVPN's protocol only, and resets the first streams as one that does not know us."""

    def __init__(self, net, resets=0):
        self.node = net.node("server")
        self.resets = resets
        self.seen = 0
        self.node.set_stream_handler(EDGEVPN_PROTOCOL, self._serve)
        net.ledger.announce(SERVICES_BUCKET, "echo", named_value(self.node.peer_id, "echo"))

    async def _serve(self, _peer, stream):
        self.seen += 1
        if self.seen <= self.resets:
            await stream.reset()
            return
        await stream.write(b"banner ")
        while data := await stream.read():
            await stream.write(data)
        # EdgeVPN closes both directions at the first end


def test_a_service_of_an_edgevpn_node_is_reached_by_its_protocol():
    async def main():
        async with network() as (net, _):
            edgevpn = EdgevpnServer(net)
            async with connected(net, "echo") as connector:
                assert await ask(connector) == b"banner hello"
                assert await ask(connector) == b"banner hello"
                # what it does not serve is not asked for again
                assert [protocol for _, protocol in net.nodes["client"].opened] == [PROTOCOL] + [EDGEVPN_PROTOCOL] * 2
                assert edgevpn.seen == 2

    trio.run(main)


def test_an_edgevpn_node_that_does_not_know_us_yet_is_asked_again():
    async def main():
        async with network() as (net, _):
            edgevpn = EdgevpnServer(net, resets=3)
            async with connected(net, "echo") as connector:
                assert await ask(connector) == b"banner hello"
                assert edgevpn.seen == 4

    trio.run(main)


def test_an_edgevpn_node_that_never_takes_us_is_told_of():
    async def main():
        async with network() as (net, _):
            EdgevpnServer(net, resets=10_000)
            async with connected(net, "echo") as connector:
                with pytest.raises(trio.BrokenResourceError):
                    await ask(connector)
                assert "it resets our streams" in connector.waiting()[0].text()

    trio.run(main)


# --- names and ports ---------------------------------------------------------------------------------------------------


def test_a_name_that_another_node_has_is_a_reason_to_wait():
    async def main():
        async with network() as (net, nursery):
            target = await tcp_server(nursery, echo)
            async with running(server(net, {"echo": target})) as exposer:
                net.ledger.announce(SERVICES_BUCKET, "echo", named_value(net.node("thief").peer_id, "echo"))
                assert exposer.waiting() == [NameTaken("service", "echo", net.nodes["thief"].peer_id)]

    trio.run(main)


def test_a_port_that_is_taken_is_an_error_at_once():
    async def main():
        async with network() as (net, _):
            (taken,) = bind(LOOPBACK)
            try:
                with pytest.raises(HostError, match="Address already in use"):
                    ServiceConnector(
                        net.ledger,
                        net.node("client"),
                        net.clock,
                        {"free": LOOPBACK, "taken": Endpoint(*taken.getsockname())},
                    )
            finally:
                taken.close()

    trio.run(main)
