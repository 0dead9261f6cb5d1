"""The long poll, from both ends, and what it falls back to against a daemon that has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from provider_kairos.api import server
from provider_kairos.api.client import DaemonClient, WatchResult
from provider_kairos.api.model import ledger_text
from provider_kairos.api.revisions import Revisions
from provider_kairos.api.router import Router
from provider_kairos.api.routes import edgevpn_routes
from provider_kairos.api.testing import FakeBackend, ask, serving


@pytest.fixture
def listen(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/api.sock"


@pytest.fixture
def go_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server without our routes."""
    monkeypatch.setattr(server, "routes", lambda backend: Router(edgevpn_routes(backend)))


async def until(condition: Any) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - state of a fake, which has no events
            await trio.sleep(0.005)


def test_a_change_wakes_the_watcher_of_its_bucket_only(listen: str) -> None:
    backend = FakeBackend()
    seen: list[WatchResult] = []

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address) as client:
            first = await client.watch(["a", "b"])
            assert first.texts == {"a": None, "b": None}
            async with trio.open_nursery() as nursery:

                async def watcher() -> None:
                    seen.append(await client.watch(["a", "b"], first.cursor))

                nursery.start_soon(watcher)
                await until(lambda: backend.waiting)
                await client.put("other", "key", 1)
                assert backend.waiting
                await client.put("b", "key", "v")

    trio.run(run)
    assert seen[0].values("b") == {"key": "v"}
    assert seen[0].value("b", "nokey") is None


def test_deleting_the_last_record_is_a_change(listen: str) -> None:
    backend = FakeBackend({"a": {"k": ledger_text(1)}})

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address) as client:
            first = await client.watch(["a"])
            await client.delete("a", "k")
            assert (await client.watch(["a"], first.cursor)).texts == {"a": None}

    trio.run(run)


def test_nothing_lost_between_two_polls(listen: str) -> None:
    backend = FakeBackend()

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address) as client:
            cursor = (await client.watch(["a"])).cursor
            backend.persist("a", "k", ledger_text(1))
            result = await client.watch(["a"], cursor)
            assert result.values("a") == {"k": 1}

    trio.run(run)


def test_time_out_answers_with_the_same_state(listen: str) -> None:
    async def run() -> None:
        async with serving(FakeBackend(), listen) as address, DaemonClient(address) as client:
            first = await client.watch(["a"])
            again = await client.watch(["a"], first.cursor, timeout=0.05)
            assert again.texts == first.texts
            assert again.cursor == first.cursor

    trio.run(run)


def test_another_instance_answers_at_once(listen: str) -> None:
    old, new = FakeBackend(), FakeBackend()
    new.instance = "fake2"

    async def run() -> None:
        async with DaemonClient(listen) as client:
            async with serving(old, listen):
                old.persist("a", "k", ledger_text("old"))
                cursor = (await client.watch(["a"])).cursor
            async with serving(new, listen):
                result = await client.watch(["a"], cursor)
                assert result.cursor.instance == "fake2"
                assert result.texts == {"a": None}

    trio.run(run)


def test_a_client_that_goes_away_ends_the_wait(listen: str) -> None:
    backend = FakeBackend()

    async def run() -> None:
        async with serving(backend, listen) as address:
            async with DaemonClient(address) as client:
                cursor = (await client.watch(["a"])).cursor
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.watch, ["a"], cursor)
                    await until(lambda: backend.waiting)
                    nursery.cancel_scope.cancel()
                await until(lambda: not backend.waiting)
                await client.put("a", "k", 1)  # the client itself is as good as new
            # A request behind the watch on the same connection is answered after it.
            async with await trio.open_unix_socket(address.removeprefix("unix://")) as stream:
                watch = f"GET /api/v1/watch?bucket=b&since=99&instance={backend.instance} HTTP/1.1\r\nHost: x\r\n\r\n"
                await stream.send_all(watch.encode() + b"GET /api/v1/healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                await until(lambda: backend.waiting)
                backend.revisions.changed(["b"], 100)
                got = b""
                while b"ok\n" not in got:
                    got += await stream.receive_some(4096)
                assert got.index(b'"revision":100') < got.index(b"ok\n")

    trio.run(run)


@pytest.mark.parametrize("query", ["since=x", "timeout=nan", "timeout=x", "&".join(f"bucket={n}" for n in range(65))])
def test_bad_questions_are_400(listen: str, query: str) -> None:
    async def run() -> None:
        async with serving(FakeBackend(), listen) as address:
            status, _, body = await ask(address, "GET", f"/api/v1/watch?{query}")
            assert status == 400
            assert json.loads(body)["message"]

    trio.run(run)


def test_without_buckets_everything_is_watched(listen: str) -> None:
    backend = FakeBackend({"a": {"k": '"v"'}})

    async def run() -> None:
        async with serving(backend, listen) as address:
            _, _, body = await ask(address, "GET", "/api/v1/watch")
            assert json.loads(body) == {"schema": 1, "instance": "fake1", "revision": 0, "buckets": {"a": {"k": '"v"'}}}

    trio.run(run)


@pytest.mark.usefixtures("go_daemon")
def test_polling_where_there_is_no_long_poll(listen: str) -> None:
    backend = FakeBackend({"a": {"k": ledger_text(1)}})

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address, poll_interval=0.01) as client:
            first = await client.watch(["a", "b"])
            assert not first.native
            assert first.values("a") == {"k": 1}
            assert first.texts["b"] is None
            same = await client.watch(["a", "b"], first.cursor, timeout=0.03)
            assert same.cursor == first.cursor
            results: list[WatchResult] = []
            async with trio.open_nursery() as nursery:

                async def watcher() -> None:
                    results.append(await client.watch(["a", "b"], first.cursor))

                nursery.start_soon(watcher)
                await client.put("b", "x", "y")
            assert results[0].values("b") == {"x": "y"}
            assert await client.status() is None

    trio.run(run)


def test_revisions_know_which_bucket_changed() -> None:
    revisions = Revisions()
    revisions.changed(["a"])
    revisions.changed(["b"], 7)
    assert revisions.latest == 7
    assert revisions.since(1, frozenset({"b"}))
    assert not revisions.since(1, frozenset({"a"}))
    assert revisions.since(6, frozenset())
    assert not revisions.since(7, frozenset())
