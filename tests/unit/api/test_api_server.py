"""What a client can do to the server: nothing that ends it."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from provider_kairos.api.address import Address, parse_address
from provider_kairos.api.http import Limits
from provider_kairos.api.listener import open_listener
from provider_kairos.api.testing import FakeBackend, ask, raw_exchange, serving
from provider_kairos.errors import HostError


@pytest.fixture
def listen(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/api.sock"


GET = b"GET /api/ledger/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Broken(FakeBackend):
    def bucket(self, name: str) -> Mapping[str, str] | None:
        raise RuntimeError("secret-in-message")


def test_an_exception_in_a_handler_is_500_and_a_log_line(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with serving(Broken(), listen) as address:
            status, _, body = await ask(address, "GET", "/api/ledger/token-path")
            assert (status, body) == (500, '{"message":"Internal Server Error"}\n')
            assert (await ask(address, "GET", "/api/v1/healthz"))[0] == 200

    with caplog.at_level(logging.ERROR):
        trio.run(run)
    assert "handler of the API failed" in caplog.text
    assert "token-path" not in caplog.text


def test_summary_before_the_room_exists_is_500(listen: str) -> None:
    backend = FakeBackend()
    backend.topic = None

    async def run() -> None:
        async with serving(backend, listen) as address:
            assert (await ask(address, "GET", "/api/summary"))[0] == 500
            assert (await ask(address, "GET", "/api/machines"))[0] == 200

    trio.run(run)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\xff\x16\x03\x01 tls?\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /api/dns HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST /api/dns HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5000, b"413"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"404"),
        (b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"431"),
        (b"GET /api/v1/watch?" + b"&" * 999 + b"a=1&" * 300 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
    ],
)
def test_malformed_requests_get_a_refusal_and_the_server_lives(listen: str, data: bytes, status: bytes) -> None:
    limits = Limits(header_bytes=2600, body_bytes=1000, request_seconds=5, idle_seconds=0.2)

    async def run() -> None:
        async with serving(FakeBackend(), listen, limits) as address:
            assert (await raw_exchange(address, data)).split()[1] == status
            assert (await raw_exchange(address, GET)).split()[1] == b"200"

    trio.run(run)


def test_clients_that_stall_are_let_go(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    limits = Limits(request_seconds=0.05, idle_seconds=0.05, send_seconds=0.05)
    backend = FakeBackend({"huge": {"key": "x" * 8_000_000}})

    async def run() -> None:
        async with serving(backend, listen, limits) as address:
            assert await raw_exchange(address, b"") == b""
            assert b" 408 " in await raw_exchange(address, b"GET /api/summ")
            assert b" 408 " in await raw_exchange(
                address, b"POST /api/dns HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
            )
            # One that asks for much and reads nothing: the server gives up before the end.
            stream = await trio.open_unix_socket(address.removeprefix("unix://"))
            async with stream:
                await stream.send_all(GET.replace(b"/x", b"/huge"))
                with trio.fail_after(30):
                    while "did not read its answer" not in caplog.text:  # noqa: ASYNC110 - the log is all there is
                        await trio.sleep(0.01)
                got = 0
                try:
                    while chunk := await stream.receive_some(1 << 20):
                        got += len(chunk)
                except trio.BrokenResourceError:
                    pass
                assert got < 8_000_000
            assert b" 200 " in await raw_exchange(address, GET)

    trio.run(run)


def test_more_connections_than_allowed_are_turned_away(listen: str) -> None:
    async def run() -> None:
        async with serving(FakeBackend(), listen, Limits(connections=2)) as address:
            path = address.removeprefix("unix://")
            async with await trio.open_unix_socket(path) as one, await trio.open_unix_socket(path) as two:
                for stream in (one, two):
                    await stream.send_all(b"GET /api/summary HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 200")
                assert b" 503 " in await raw_exchange(address, b"")
            while b" 503 " in await raw_exchange(address, GET):  # noqa: ASYNC110 - nothing tells when it has counted
                await trio.sleep(0.01)

    trio.run(run)


def test_clients_over_the_limit_that_leave_at_once_do_not_end_the_server(listen: str) -> None:
    async def run() -> None:
        async with serving(FakeBackend(), listen, Limits(connections=1)) as address:
            path = address.removeprefix("unix://")
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(b"GET /api/summary HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await stream.receive_some(100)
                for _ in range(20):
                    with socket.socket(socket.AF_UNIX) as rude:  # accepted and gone before the answer is written
                        rude.connect(path)
                await trio.testing.wait_all_tasks_blocked(0.01)
            while b" 503 " in await raw_exchange(address, GET):  # noqa: ASYNC110 - nothing tells when it has counted
                await trio.sleep(0.01)

    trio.run(run)


def test_what_the_machine_refuses_is_503_with_the_remedy(listen: str) -> None:
    class Full(FakeBackend):
        async def persisted(self) -> None:
            await trio.lowlevel.checkpoint()
            raise HostError("cannot write mesh.db: disk is full", hint="free some space")

    async def run() -> None:
        async with serving(Full(), listen) as address:
            status, _, body = await ask(address, "PUT", "/api/ledger/b/k/eA==")
            assert status == 503
            assert "free some space" in body

    trio.run(run)


def test_expect_continue(listen: str) -> None:
    async def run() -> None:
        async with (
            serving(FakeBackend(), listen) as address,
            await trio.open_unix_socket(address.removeprefix("unix://")) as stream,
        ):
            await stream.send_all(
                b"POST /api/dns HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
            )
            assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 100")
            await stream.send_all(b"{}")
            assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 200")

    trio.run(run)


def test_a_write_is_acknowledged_when_it_is_on_disk(listen: str) -> None:
    class Slow(FakeBackend):
        on_disk = trio.Event()

        async def persisted(self) -> None:
            await self.on_disk.wait()

    backend = Slow()

    async def run() -> None:
        async with serving(backend, listen) as address, trio.open_nursery() as nursery:
            for method, path in (("PUT", "/a/b/c"), ("DELETE", "/a/b"), ("DELETE", "/a")):
                backend.on_disk = trio.Event()
                answers: list[int] = []

                async def write(method: str = method, path: str = path, into: list[int] = answers) -> None:
                    into.append((await ask(address, method, f"/api/ledger{path}"))[0])
                    backend.on_disk.set()

                nursery.start_soon(write)
                with trio.move_on_after(0.05):
                    await backend.on_disk.wait()
                assert not answers
                done = backend.on_disk
                backend.on_disk = trio.Event()
                done.set()
                await backend.on_disk.wait()
                assert answers == [200]

    trio.run(run)


def test_dns_entries_are_kept_by_number(listen: str) -> None:
    backend = FakeBackend()
    body = json.dumps({"Regex": "a<b", "Records": {"AAAA": "fd00::1", "A": "10.1.0.1", "NOPE": "x"}}).encode()

    async def run() -> None:
        async with serving(backend, listen) as address:
            status, _, answer = await ask(address, "POST", "/api/dns", body, "Content-Type: application/json\r\n")
            assert (status, answer) == (200, '{"State":"Announcing"}\n')

    trio.run(run)
    assert backend.data["dns"]["a<b"] == '{"0":"x","1":"10.1.0.1","28":"fd00::1"}'


@pytest.mark.parametrize(
    "body", ["{", "[]", '{"Regex":5}', '{"Records":[]}', '{"Records":{"A":1}}', "[" * 90_000, "nul"]
)
def test_bad_dns_bodies_are_400(listen: str, body: str) -> None:
    backend = FakeBackend()

    async def run() -> None:
        async with serving(backend, listen) as address:
            answer = await ask(address, "POST", "/api/dns", body.encode(), "Content-Type: application/json\r\n")
            assert answer[0] == 400
            assert json.loads(answer[2])["message"].startswith("code=400")

    trio.run(run)
    assert not backend.data


def test_tcp_listener_reports_its_real_port(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with serving(FakeBackend(), "127.0.0.1:0") as address:
            port = parse_address(address).port
            assert port
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                await stream.send_all(GET)
                assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 200")
            with pytest.raises(BaseExceptionGroup) as caught:
                async with serving(FakeBackend(), f"127.0.0.1:{port}"):
                    raise AssertionError("started twice")
            assert caught.value.subgroup(lambda e: isinstance(e, HostError) and "taken" in str(e))

    trio.run(run)
    assert "no authentication" not in caplog.text


def test_an_address_that_others_reach_is_served_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with serving(FakeBackend(), "0.0.0.0:0"):
            pass

    trio.run(run)
    assert "no authentication" in caplog.text


# -- the socket file


def test_the_socket_is_ours_alone_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"

    async def run() -> int:
        async with serving(FakeBackend(), f"unix://{path}"):
            return stat.S_IMODE(path.stat().st_mode)

    before = os.umask(0)
    try:
        assert trio.run(run) == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_socket_of_somebody_else_is_not_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"

    async def run() -> None:
        async with open_listener(Address(path=str(path))):
            path.unlink()
            path.write_text("another's")

    trio.run(run)
    assert path.read_text() == "another's"


def test_systemd_must_pass_on_exactly_one_socket(tmp_path: Path) -> None:
    async def run() -> None:
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
        async with open_listener(Address(path=str(tmp_path / "s")), environ=environ):
            raise AssertionError("started")

    with pytest.raises(HostError, match="2 sockets"):
        trio.run(run)
