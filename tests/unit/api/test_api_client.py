"""The client: what it makes of values, of daemons that misbehave, and of those that are not there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from provider_kairos.api.client import DaemonClient
from provider_kairos.api.model import ledger_text
from provider_kairos.api.testing import FakeBackend, serving
from provider_kairos.errors import (
    HostError,
    LocalError,
    PeerError,
    PermissionHostError,
    TimeoutHostError,
    UnreachableError,
)


@pytest.fixture
def listen(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/api.sock"


@asynccontextmanager
async def answering(listen: str, answer: bytes, *, close: bool = True) -> AsyncIterator[None]:
    """A thing at the socket that says the same to everybody."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(answer)
            if not close:
                await trio.sleep_forever()

    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(listen.removeprefix("unix://"))
    sock.listen(5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [trio.SocketListener(sock)])
        yield
        nursery.cancel_scope.cancel()


def http(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


def test_values_go_through_three_layers_and_back(listen: str) -> None:
    backend = FakeBackend()

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address) as client:
            await client.put("kairos", "abc-node1-role", "master")
            assert backend.data["kairos"]["abc-node1-role"] == '"Im1hc3RlciI="'
            await client.put("kairos", "odd key (*)", {"a": ["č", None, 1.5]})
            assert await client.get("kairos", "odd key (*)") == {"a": ["č", None, 1.5]}
            assert set(await client.bucket("kairos")) == {"abc-node1-role", "odd key (*)"}
            assert set(await client.ledger()) == {"kairos"}
            await client.delete("kairos", "odd key (*)")
            assert await client.get("kairos", "odd key (*)") is None
            await client.delete_bucket("kairos")
            assert await client.bucket("kairos") == {}

    trio.run(run)


def test_what_others_wrote_wrongly_counts_as_absent(listen: str) -> None:
    backend = FakeBackend({"kairos": {"good": ledger_text(1), "bad": '"notbase64!"', "worse": "{{{"}})
    backend.data["healthcheck"] = {"p": '"2026-01-01T00:00:00Z"', "q": "{"}

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address) as client:
            assert await client.get("kairos", "bad") is None
            assert await client.bucket("kairos") == {"good": 1}
            assert await client.plain_bucket("healthcheck") == {"p": "2026-01-01T00:00:00Z"}
            assert client.garbage == 4

    trio.run(run)


def test_shapes_of_the_node(listen: str) -> None:
    backend = FakeBackend({"machines": {"10.1.0.1": '{"PeerID":"p","Address":"10.1.0.1"}'}})
    backend.topic = ["q"]
    backend.links = ["p"]

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address) as client:
            assert (await client.summary())["OnChainNodes"] == 1
            machine = (await client.machines())[0]
            assert (machine["Address"], machine["Connected"], machine["OnChain"]) == ("10.1.0.1", True, False)
            assert await client.nodes() == [{"ID": "q", "Online": True}]
            assert len(await client.peerstore()) == 1
            status = await client.status()
            assert status is not None
            assert status["ready"] is True

    trio.run(run)


Call = Callable[[DaemonClient], Awaitable[Any]]


@pytest.mark.parametrize(
    ("answer", "call", "error"),
    [
        (b"SSH-2.0-x\r\n\r\n", lambda c: c.summary(), PeerError),
        (http(b"no json"), lambda c: c.summary(), PeerError),
        (http(b"[]"), lambda c: c.summary(), PeerError),
        (http(b"{}"), lambda c: c.machines(), PeerError),
        (http(b"[1]"), lambda c: c.nodes(), PeerError),
        (http(b"7"), lambda c: c.get("a", "b"), PeerError),
        (http(b"[]"), lambda c: c.bucket("a"), PeerError),
        (http(b'{"a":5}'), lambda c: c.ledger(), PeerError),
        (http(b"{}"), lambda c: c.put("a", "b", 1), PeerError),
        (http(b'{"schema":9}'), lambda c: c.status(), PeerError),
        (http(b'{"schema":1}'), lambda c: c.watch(["a"]), PeerError),
        (http(b"", 500), lambda c: c.summary(), HostError),
        (http(b"", 431), lambda c: c.put("a", "b", 1), HostError),
        (http(b"", 404), lambda c: c.summary(), LocalError),
        (http(b"", 302), lambda c: c.summary(), PeerError),
        (b"", lambda c: c.summary(), UnreachableError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", lambda c: c.summary(), PeerError),
    ],
)
def test_every_misbehaviour_has_its_error(listen: str, answer: bytes, call: Call, error: type[Exception]) -> None:
    async def run() -> None:
        async with answering(listen, answer), DaemonClient(listen) as client:
            with pytest.raises(error):
                await call(client)

    trio.run(run)


@pytest.mark.parametrize(("bucket", "key"), [("", "k"), ("b", ""), ("b", "a/b")])
def test_keys_that_no_path_can_carry_are_a_bug_of_the_caller(listen: str, bucket: str, key: str) -> None:
    async def run() -> None:
        async with DaemonClient(listen) as client:
            with pytest.raises(LocalError):
                await client.put(bucket, key, 1)

    trio.run(run)


def test_errors_never_show_a_value(listen: str) -> None:
    async def run() -> str:
        async with answering(listen, http(b"", 500)), DaemonClient(listen) as client:
            with pytest.raises(HostError) as caught:
                await client.put("kairos", "token-nodetoken", "K10secret")
            return str(caught.value)

    text = trio.run(run)
    assert "/api/ledger/kairos/token-nodetoken" in text
    assert "K10secret" not in text
    assert "IksxM" not in text


def test_nobody_there(tmp_path: Path) -> None:
    stale = tmp_path / "stale.sock"

    async def run() -> None:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(stale))
        sock.close()
        for address in (f"unix://{tmp_path}/none.sock", f"unix://{stale}", "http://127.0.0.1:1"):
            with pytest.raises(UnreachableError) as caught:
                await DaemonClient(address).summary()
            assert address in str(caught.value)
            assert "systemctl start" in caught.value.hint

    trio.run(run)


def test_a_socket_that_may_not_be_opened_says_so(listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(trio, "open_unix_socket", refuse)
    with pytest.raises(PermissionHostError, match="run as root"):
        trio.run(DaemonClient(listen).summary)


def test_a_silent_daemon_times_out(listen: str) -> None:
    async def run() -> None:
        async with answering(listen, b"", close=False), DaemonClient(listen, timeout=0.05) as client:
            with pytest.raises(TimeoutHostError, match=r"within 0\.05 s"):
                await client.summary()

    trio.run(run)


def test_the_first_address_that_answers_is_kept(tmp_path: Path, listen: str) -> None:
    nowhere = f"unix://{tmp_path}/none.sock"

    async def run() -> None:
        client = DaemonClient([nowhere, listen])
        async with client:
            with pytest.raises(UnreachableError, match=r"any of .*none\.sock.*api\.sock"):
                await client.summary()
            async with serving(FakeBackend(), listen):
                await client.summary()
                assert client.address == listen

    trio.run(run)


def test_a_restarted_daemon_is_found_again(listen: str) -> None:
    async def run() -> None:
        async with DaemonClient(listen) as client:
            for _ in range(2):
                async with serving(FakeBackend(), listen):
                    await client.summary()
                    await client.summary()

    trio.run(run)


def test_many_at_once(listen: str) -> None:
    backend = FakeBackend()

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address) as client, trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(client.put, "b", f"k{number}", number)

    trio.run(run)
    assert len(backend.data["b"]) == 30


def test_waiting_for_a_daemon_that_starts(listen: str) -> None:
    backend = FakeBackend()
    backend.topic = None  # 500 at first

    async def run() -> None:
        async with DaemonClient(listen) as client:
            with pytest.raises(UnreachableError):
                await client.wait_until_reachable(timeout=0.05, interval=0.01)
            waited = trio.Event()

            async def wait() -> None:
                await client.wait_until_reachable()
                waited.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                async with serving(backend, listen):
                    await trio.sleep(0.05)
                    backend.topic = []
                    await client.wait_until_reachable(interval=0.01)
                    await waited.wait()

    trio.run(run)
