"""Egress and proxy: requests and tunnels get out, what is closed stays closed, nobody is lied to."""

from __future__ import annotations

import ipaddress
import random
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest
import trio
import trio.testing

from provider_kairos.clock import ManualClock
from provider_kairos.mesh.streams import StreamEndedError
from provider_kairos.services import dialing, users
from provider_kairos.services.egress import EDGEVPN_PROTOCOL, PROTOCOL, EgressServer
from provider_kairos.services.egress_policy import EgressPolicy
from provider_kairos.services.endpoints import Endpoint, bind
from provider_kairos.services.proxy import NO_EGRESS, EgressProxy
from provider_kairos.services.reasons import NoEgress
from provider_kairos.services.records import EGRESS_BUCKET, USERS_BUCKET
from provider_kairos.services.testing import MemoryNetwork, read_all, tcp_server

OWN = frozenset({ipaddress.ip_address("192.0.2.7"), ipaddress.ip_address("2001:db8::7")})
LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
OPEN = EgressPolicy(lambda: OWN, allowed=[LOOPBACK])


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(users, "PATIENCE", 0.3)
    monkeypatch.setattr(dialing, "SETTLE", 0.05)
    monkeypatch.setattr(dialing, "GAP", 0.05)
    for name in ("open", "open_ours", "open_edgevpns"):
        monkeypatch.setattr(getattr(dialing.Dialer, name), "__kwdefaults__", {"patience": 1.0})


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


def egress(net, policy=OPEN, name="egress"):
    return EgressServer(net.ledger, net.node(name), net.clock, policy)


@asynccontextmanager
async def proxying(net, **options):
    proxy = EgressProxy(net.ledger, net.node("proxy"), net.clock, random.Random(1), Endpoint("127.0.0.1", 0), **options)
    async with running(proxy):
        yield proxy
    for listener in proxy._listeners:
        listener.close()


async def web(nursery, answers=None):
    """A web server that answers with what it was asked; a path of ``answers`` with those bytes instead."""

    async def serve(stream):
        http = h11.Connection(h11.SERVER)
        request: Any = None
        body = b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return
        canned = (answers or {}).get(request.target)
        if canned is not None:
            await stream.send_all(canned)
            return
        head = b"\n".join(name + b": " + value for name, value in request.headers.raw_items())
        text = request.method + b" " + request.target + b"\n" + head + b"\n\n" + body
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-From: web\r\n\r\n" % len(text) + text)

    return await tcp_server(nursery, serve)


async def ask_stream(net, data):
    """One conversation over EdgeVPN's protocol: what is sent, and all that comes back."""
    client = net.nodes.get("client") or net.node("client")
    net.ledger.announce(USERS_BUCKET, "client", "{}")
    stream = await client.open_stream(net.nodes["egress"].peer_id, EDGEVPN_PROTOCOL)
    await stream.write(data)
    found = bytearray()
    while more := await stream.read():
        found += more
    return bytes(found)


async def ask(proxy, data):
    endpoint = proxy.addresses[0]
    async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
        await stream.send_all(data)
        return await read_all(stream)


def get(endpoint, path="/x?y=1", more=""):
    return f"GET http://{endpoint}{path} HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n{more}\r\n".encode()


# --- the egress --------------------------------------------------------------------------------------------------------


def test_a_request_over_edgevpns_protocol_is_fetched():
    async def main():
        async with network() as (net, nursery):
            server = await web(nursery)
            async with running(egress(net)) as service:
                answer = await ask_stream(
                    net,
                    f"POST /p HTTP/1.1\r\nHost: {server}\r\nContent-Length: 5\r\nX-A: b\r\n\r\nabcde".encode(),
                )
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
                assert b"X-From: web\r\n" in answer
                assert b"\n\nabcde" in answer
                assert b"X-A: b" in answer
                assert service.counters["egress_requests"] == 1
                assert net.ledger.buckets[EGRESS_BUCKET] == {"egress": '"ok"'}

    trio.run(main)


def test_headers_of_one_connection_do_not_go_further():
    async def main():
        async with network() as (net, nursery):
            canned = b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nX-Keep: 1\r\nContent-Length: 0\r\n\r\n"
            server = await web(nursery, {b"/canned": canned})
            async with running(egress(net)):
                sent = (
                    f"GET /x HTTP/1.1\r\nHost: {server}\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nTE: trailers\r\n"
                    "Proxy-Connection: Keep-Alive\r\nProxy-Authorization: Basic eA==\r\nUpgrade: websocket\r\nX-Keep: 1\r\n\r\n"
                )
                seen = (await ask_stream(net, sent.encode())).lower()
                for name in (b"x-secret", b"te:", b"proxy-", b"upgrade"):
                    assert name not in seen
                assert b"x-keep: 1" in seen
                answer = (await ask_stream(net, f"GET /canned HTTP/1.1\r\nHost: {server}\r\n\r\n".encode())).lower()
                assert b"x-hop" not in answer
                assert b"keep-alive" not in answer
                assert b"x-keep: 1" in answer

    trio.run(main)


def test_an_answer_without_a_length_is_passed_on_whole():
    async def main():
        async with network() as (net, nursery):
            canned = {
                b"/chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                b"/close": b"HTTP/1.0 200 OK\r\n\r\nhello",
            }
            server = await web(nursery, canned)
            async with running(egress(net)):
                for path in ("/chunked", "/close"):
                    answer = await ask_stream(net, f"GET {path} HTTP/1.1\r\nHost: {server}\r\n\r\n".encode())
                    assert answer.endswith(b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")

    trio.run(main)


@pytest.mark.parametrize(
    ("request_text", "status", "words"),
    [
        ("CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1:443\r\n\r\n", 501, "kairos-p2p at both ends"),
        ("GET / HTTP/1.0\r\n\r\n", 400, "names no host"),
        ("garbage\r\n\r\n", 400, "no HTTP"),
        ("GET ftp://192.0.2.1/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "cannot be fetched"),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", 403, "loopback"),
        ("GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", 403, "link-local"),
        ("GET / HTTP/1.1\r\nHost: no.such.host.invalid\r\n\r\n", 502, "no.such.host.invalid"),
    ],
)
def test_what_cannot_be_fetched_is_said(request_text, status, words):
    async def main():
        async with network() as (net, _), running(egress(net, EgressPolicy(lambda: OWN))):
            answer = (await ask_stream(net, request_text.encode())).decode()
            assert answer.startswith(f"HTTP/1.1 {status} ")
            assert words in answer

    trio.run(main)


def test_half_an_answer_is_not_passed_on_as_a_whole_one():
    async def main():
        async with network() as (net, nursery):
            server = await web(nursery, {b"/half": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"})
            async with running(egress(net)):
                with pytest.raises(StreamEndedError):
                    await ask_stream(net, f"GET /half HTTP/1.1\r\nHost: {server}\r\n\r\n".encode())

    trio.run(main)


def test_who_is_no_user_is_reset():
    async def main():
        async with network() as (net, _), running(egress(net)) as service:
            client = net.node("client")
            stream = await client.open_stream(net.nodes["egress"].peer_id, EDGEVPN_PROTOCOL)
            with pytest.raises(StreamEndedError):
                await stream.read()
            assert service.counters["egress_not_a_user"] == 1

    trio.run(main)


# --- the proxy ---------------------------------------------------------------------------------------------------------


def test_a_request_goes_through_proxy_and_egress():
    async def main():
        async with network() as (net, nursery):
            server = await web(nursery)
            async with running(egress(net)), proxying(net) as proxy:
                answer = await ask(proxy, get(server))
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
                assert b"GET /x?y=1\nHost: " + str(server).encode() in answer
                assert proxy.waiting() == []
                assert proxy.counters["egress_proxy_requests"] == 1

    trio.run(main)


def test_a_connection_carries_several_requests():
    async def main():
        async with network() as (net, nursery):
            server = await web(nursery)
            async with running(egress(net)), proxying(net) as proxy:
                endpoint = proxy.addresses[0]
                async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
                    for number in range(3):
                        await stream.send_all(f"GET http://{server}/{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                        answer = b""
                        while f"GET /{number}\n".encode() not in answer or not answer.endswith(b"\n\n"):
                            answer += await stream.receive_some(65536)

    trio.run(main)


def test_a_body_goes_through_and_a_client_that_waits_is_told_to_go_on():
    async def main():
        async with network() as (net, nursery):
            server = await web(nursery)
            async with running(egress(net)), proxying(net) as proxy:
                endpoint = proxy.addresses[0]
                async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
                    head = f"POST http://{server}/p HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
                    await stream.send_all(head.encode())
                    assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 100 ")
                    await stream.send_all(b"b" * 300_000)
                    assert b"b" * 300_000 in await read_all(stream)

    trio.run(main)


def test_connect_is_a_tunnel_between_our_own_nodes():
    async def main():
        async with network() as (net, nursery):
            server = await web(nursery)
            async with running(egress(net)) as service, proxying(net) as proxy:
                answer = await ask(
                    proxy,
                    f"CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n\r\nGET /in HTTP/1.1\r\nHost: h\r\n\r\n".encode(),
                )
                assert answer.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
                assert b"GET /in\n" in answer
                assert proxy.counters["egress_proxy_tunnels"] == service.counters["egress_tunnels"] == 1

    trio.run(main)


def test_connect_is_refused_with_the_egress_nodes_words():
    async def main():
        async with network() as (net, _):
            (unused,) = bind(Endpoint("127.0.0.1", 0))
            nobody = Endpoint(*unused.getsockname())
            unused.close()
            async with running(egress(net)), proxying(net) as proxy:
                answer = await ask(proxy, f"CONNECT {nobody} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert answer.startswith(b"HTTP/1.1 502 ")
                assert b"Connection refused" in answer
                answer = await ask(proxy, b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 403 ")

    trio.run(main)


def edgevpn_egress(net, name="go"):
    """An egress node that has EdgeVPN's protocol only, answers every request alike, and lists what it was asked."""
    node = net.node(name)
    asked = []

    async def serve(_peer, stream):
        asked.append(await stream.read())
        await stream.write(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok")

    node.set_stream_handler(EDGEVPN_PROTOCOL, serve)
    net.ledger.announce(EGRESS_BUCKET, name, '"ok"')
    return asked


def test_edgevpns_egress_serves_requests_and_no_tunnels():
    async def main():
        async with network() as (net, _):
            asked = edgevpn_egress(net)
            async with proxying(net) as proxy:
                answer = await ask(proxy, get("example.test"))
                assert answer.startswith(b"HTTP/1.1 201 Created\r\n")
                assert asked == [b"GET /x?y=1 HTTP/1.1\r\nHost: example.test\r\n\r\n"]
                answer = await ask(proxy, b"CONNECT example.test:443 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 501 ")
                assert len(asked) == 1

    trio.run(main)


def test_tunnels_find_the_egress_that_can():
    async def main():
        async with network() as (net, nursery):
            server = await web(nursery)
            for number in range(5):
                edgevpn_egress(net, f"go{number}")
            async with running(egress(net)), proxying(net) as proxy:
                for _ in range(5):
                    answer = await ask(
                        proxy,
                        f"CONNECT {server} HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".encode(),
                    )
                    assert answer.startswith(b"HTTP/1.1 200 Connection established")

    trio.run(main)


def test_without_egress_nodes_the_answer_is_edgevpns():
    async def main():
        async with network() as (net, _), proxying(net) as proxy:
            assert proxy.waiting() == [NoEgress()]
            answer = await ask(proxy, get("example.test"))
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert answer.endswith(f"\r\n\r\n{NO_EGRESS}\n".encode())

    trio.run(main)


def test_an_egress_node_that_is_dead_is_not_asked():
    async def main():
        async with network() as (net, _):
            edgevpn_egress(net)
            net.ledger.live[net.nodes["go"].peer_id] = 601.0
            async with proxying(net) as proxy:
                assert proxy.waiting() == [NoEgress()]
            net.nodes.pop("proxy")
            async with proxying(net, dead_interval=900.0) as proxy:
                assert proxy.waiting() == []

    trio.run(main)


def test_an_egress_node_that_cannot_be_reached_costs_a_try_only():
    async def main():
        async with network() as (net, nursery):
            server = await web(nursery)
            for name in ("gone1", "gone2"):
                net.node(name)
                net.ledger.announce(EGRESS_BUCKET, name, '"ok"')
                net.nodes.pop(name)
            async with running(egress(net)), proxying(net) as proxy:
                for _ in range(5):
                    assert (await ask(proxy, get(server))).startswith(b"HTTP/1.1 200 ")

    trio.run(main)


def test_an_egress_that_breaks_off_is_named():
    async def main():
        async with network() as (net, _):
            node = net.node("go")

            async def serve(_peer, stream):
                await stream.read()
                await stream.reset()

            node.set_stream_handler(EDGEVPN_PROTOCOL, serve)
            net.ledger.announce(EGRESS_BUCKET, "go", '"ok"')
            async with proxying(net) as proxy:
                answer = await ask(proxy, get("example.test"))
                assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
                assert b"egress node go for example.test:80" in answer

    trio.run(main)


def test_half_an_answer_resets_the_client():
    async def main():
        async with network() as (net, nursery):
            server = await web(nursery, {b"/half": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"})
            async with running(egress(net)), proxying(net) as proxy:
                with pytest.raises(trio.BrokenResourceError):
                    await ask(proxy, get(server, "/half"))

    trio.run(main)


@pytest.mark.parametrize(
    "data",
    [b"garbage\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n", b"X" * 70_000],
)
def test_nonsense_from_a_client_is_answered_400(data):
    async def main():
        async with network() as (net, _), proxying(net) as proxy:
            assert (await ask(proxy, data)).startswith(b"HTTP/1.1 400 ")

    trio.run(main)


def test_our_protocols_are_gone_when_the_service_ends():
    async def main():
        async with network() as (net, _):
            async with running(egress(net)):
                assert set(net.nodes["egress"].handlers) == {PROTOCOL, EDGEVPN_PROTOCOL}
            assert net.nodes["egress"].handlers == {}

    trio.run(main)
