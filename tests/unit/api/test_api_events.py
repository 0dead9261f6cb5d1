"""The stream of events from both ends: what it tells, how it resumes, what a slow or rude client costs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from provider_kairos.api import event_stream, server
from provider_kairos.api.client import DaemonClient
from provider_kairos.api.events import EventLog
from provider_kairos.api.follow import DaemonEvent, EventFollower
from provider_kairos.api.http import Limits, Load
from provider_kairos.api.model import ledger_text
from provider_kairos.api.native import native_routes
from provider_kairos.api.router import Router
from provider_kairos.api.routes import edgevpn_routes
from provider_kairos.api.sse import EventReader
from provider_kairos.api.testing import FakeBackend, FakeEvents, ask, serving
from provider_kairos.errors import NotFoundError, PeerError, TimeoutHostError, UnreachableError


@pytest.fixture
def listen(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/api.sock"


@pytest.fixture
def go_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server without our routes."""
    monkeypatch.setattr(server, "routes", lambda backend: Router(edgevpn_routes(backend)))


@pytest.fixture
def older_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the version before: our routes under /api/v1 only."""

    def routes(backend: Any) -> Router:
        older = [route for route in native_routes(backend) if route.pattern.startswith("/api/")]
        return Router([*edgevpn_routes(backend), *older])

    monkeypatch.setattr(server, "routes", routes)


@asynccontextmanager
async def following(backend: FakeBackend, listen: str, **chosen: Any) -> AsyncIterator[EventFollower]:
    async with serving(backend, listen) as address, DaemonClient(address) as client, client.events(**chosen) as events:
        yield events


async def take(events: EventFollower, count: int) -> list[DaemonEvent]:
    with trio.fail_after(60):
        return [await events.__anext__() for _ in range(count)]


async def until(condition: Any) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - state of a fake, which has no events
            await trio.sleep(0.005)


def kinds(events: list[DaemonEvent]) -> list[str]:
    return [event.kind for event in events]


# -- what is told


def test_the_state_comes_first_then_changes(listen: str) -> None:
    backend = FakeBackend({"kairos": {"ip": ledger_text("10.1.0.1")}, "other": {"x": '"y"'}})
    backend.events.state = [("address", {"address": "10.1.0.1/24", "interface": "edgevpn0"})]

    async def run() -> None:
        async with following(backend, listen, buckets=["kairos"]) as events:
            hello, record, address, synced = await take(events, 4)
            assert kinds([hello, record, address, synced]) == ["hello", "ledger", "address", "synced"]
            assert not hello.data["resumed"]
            assert record.data["value"] == "10.1.0.1"
            assert record.data["snapshot"]
            assert record.data["author"] == backend.peer_id
            assert address.data["address"] == "10.1.0.1/24"
            backend.persist("other", "x", '"z"')
            backend.persist("kairos", "role", ledger_text("master"))
            backend.delete_key("kairos", "ip")
            changed = await take(events, 2)
            assert [(e.data["key"], e.data["value"], e.data["deleted"]) for e in changed] == [
                ("role", "master", False),
                ("ip", None, True),
            ]
            assert not changed[0].data["snapshot"]

    trio.run(run)


def test_keys_and_kinds_choose(listen: str) -> None:
    backend = FakeBackend({"a": {"k": '"1"', "l": '"1"'}, "b": {"k": '"1"'}})

    async def run() -> None:
        async with following(backend, listen, kinds=["ledger", "role"], keys=["k"]) as events:
            assert kinds(await take(events, 4)) == ["hello", "ledger", "ledger", "synced"]
            backend.events.log.add("waiting", "{}")
            backend.persist("a", "l", '"2"')
            backend.events.log.add("role", '{"role":"master"}')
            backend.persist("b", "k", '"2"')
            role, record = await take(events, 2)
            assert role.data == {"role": "master"}
            assert (record.data["bucket"], record.data["text"]) == ("b", '"2"')

    trio.run(run)


def test_without_a_snapshot_there_are_changes_alone(listen: str) -> None:
    backend = FakeBackend({"a": {"k": '"1"'}})

    async def run() -> None:
        async with following(backend, listen, snapshot=False) as events:
            assert kinds(await take(events, 1)) == ["hello"]
            backend.persist("a", "k", '"2"')
            (record,) = await take(events, 1)
            assert record.data["text"] == '"2"'

    trio.run(run)


def test_what_changes_while_the_state_is_sent_is_told(listen: str) -> None:
    backend = FakeBackend({"a": {str(n): '"1"' for n in range(50)}})
    told: list[Any] = []

    class During(FakeEvents):
        def present(self, kinds: Any) -> Any:
            backend.persist("a", "7", '"2"')
            backend.delete_key("a", "8")
            return super().present(kinds)

    backend.events = During()

    async def run() -> None:
        async with following(backend, listen) as events:
            while not told or told[-1].kind != "synced":
                told.extend(await take(events, 1))
            changes = await take(events, 2)
            assert {(e.data["key"], e.data["text"], e.data["deleted"]) for e in changes} == {
                ("7", '"2"', False),
                ("8", "", True),
            }

    trio.run(run)


@pytest.mark.parametrize(
    "text",
    [
        ledger_text("x" * 100_000),
        '"' + "[" * 900 + '"',
        "[" * 200 + "]" * 200,
        "1e999",
        "NaN",
        "no json",
        "",
        ledger_text(float("-0.0")),
        json.dumps("\u2028\n\u0000<&>"),
        '"\\ud800"',
    ],
)
def test_whatever_others_write_can_be_told(listen: str, text: str) -> None:
    backend = FakeBackend({"a": {"k\n": text}})

    async def run() -> None:
        async with following(backend, listen) as events:
            _, record, synced = await take(events, 3)
            assert synced.kind == "synced"
            assert record.data["key"] == "k\n"
            status, _, body = await ask(listen, "GET", "/v1/ledger/a")
            assert status == 200
            assert json.loads(body)["records"][0]["encoding"] in {"base64", "json", "none"}

    trio.run(run)


# -- resuming


def test_it_goes_on_where_it_broke_off(listen: str) -> None:
    backend = FakeBackend({"a": {"k": '"0"'}})

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address) as client:
            async with client.events() as events:
                assert kinds(await take(events, 3)) == ["hello", "ledger", "synced"]
                last = events.last_id
            backend.persist("a", "k", '"1"')
            backend.persist("b", "l", '"1"')
            async with client.events(last_id=last) as events:
                hello, one, two = await take(events, 3)
                assert hello.data["resumed"]
                assert [one.data["text"], two.data["bucket"]] == ['"1"', "b"]
                assert not one.data["snapshot"]

    trio.run(run)


@pytest.mark.parametrize("last", ["other-1", "fake1-99", "fake1-", "fake1-x", "fake1-²", "-1", "x" * 5000, "fake1-1"])
def test_an_unknown_place_begins_anew(listen: str, last: str) -> None:
    backend = FakeBackend({"a": {"k": '"1"'}})
    backend.events = FakeEvents(EventLog(entries=4))
    for _ in range(9):
        backend.events.log.records([("x", "y")])

    async def run() -> None:
        async with following(backend, listen, last_id=last) as events:
            hello, record, synced = await take(events, 3)
            assert not hello.data["resumed"]
            assert kinds([record, synced]) == ["ledger", "synced"]

    trio.run(run)


def test_a_break_within_the_state_leaves_no_place_to_resume() -> None:
    """Else a client would take half a state for the whole."""
    reader = EventReader()
    backend = FakeBackend({"a": {str(n): '"1"' for n in range(5)}})
    sent: list[bytes] = []

    async def run() -> None:
        async def send(piece: bytes) -> None:
            sent.append(piece)
            await trio.lowlevel.checkpoint()

        with trio.move_on_after(0.05):
            wanted = event_stream.Filter(("ledger",), snapshot=True)
            await event_stream.stream_events(backend, wanted, "fake1-77", send)

    trio.run(run)
    reader.last_id = "fake1-3"
    whole = b"".join(sent)
    events = reader.feed(whole[: whole.index(b"event: synced")])
    assert len(events) == 6
    assert reader.last_id == ""
    assert reader.feed(whole[whole.index(b"event: synced") :])[0].id == "fake1-0"


def test_a_quiet_stream_says_that_it_lives_and_where_it_stands(listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT", 0.02)
    backend = FakeBackend()

    async def run() -> None:
        async with following(backend, listen, buckets=["a"], snapshot=False) as events:
            await take(events, 1)
            before = events.last_id
            backend.persist("other", "k", '"1"')  # nothing that this stream tells
            with trio.move_on_after(60) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(take, events, 1)
                    while events.last_id == before:  # noqa: ASYNC110 - a comment is no event
                        await trio.sleep(0.005)
                    nursery.cancel_scope.cancel()
            assert not scope.cancelled_caught
            assert events.last_id == "fake1-1"

    trio.run(run)


# -- bounds


def test_the_log_keeps_a_number_and_a_size() -> None:
    log = EventLog(entries=10, size=5000)
    for n in range(30):
        log.records([("bucket", str(n))])
    assert log.last == 30
    assert log.knows(20)
    assert not log.knows(19)
    assert not log.knows(31)
    assert [event.key for event in log.after(25)] == ["25", "26", "27", "28", "29"]
    assert [event.key for event in log.after(20, limit=2)] == ["20", "21"]
    log.add("role", "x" * 4000)
    assert not log.knows(29 - 8)
    log.add("role", "x" * 6000)
    assert not log.knows(31)
    assert log.after(32) == []


def test_a_flood_of_records_costs_no_memory() -> None:
    log = EventLog(entries=10)
    log.records([("b", "k")])
    log.records([("b", str(n)) for n in range(100_000)])
    assert not log.knows(1)
    assert log.knows(100_001)
    log.records([("b", "k")])
    assert [event.key for event in log.after(100_001)] == ["k"]


def test_a_client_that_falls_behind_is_told_and_gets_the_state(listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "PIECE", 1)
    backend = FakeBackend({"a": {"k": '"0"'}})
    backend.events = FakeEvents(EventLog(entries=8))

    async def run() -> None:
        async with following(backend, listen, buckets=["a"]) as events:
            await take(events, 3)
            for n in range(100):  # within one step of the scheduler nobody can follow
                backend.persist("a", str(n % 10), f'"{n}"')
            lost = await take(events, 1)
            assert kinds(lost) == ["lost"]
            assert lost[0].data["missed"] == 100
            state = await take(events, 12)
            assert kinds(state) == ["ledger"] * 11 + ["synced"]
            assert {e.data["text"] for e in state[:-1]} == {'"0"', *(f'"{n}"' for n in range(90, 100))}
            backend.persist("a", "k", '"1"')
            assert (await take(events, 1))[0].data["text"] == '"1"'

    trio.run(run)


def test_a_client_that_does_not_read_is_let_go_and_holds_no_memory(listen: str) -> None:
    backend = FakeBackend({"a": {str(n): json.dumps("x" * 50_000) for n in range(100)}})
    load = Load()

    async def run() -> None:
        async with serving(backend, listen, Limits(send_seconds=0.1), load=load):
            stream = await trio.open_unix_socket(listen.removeprefix("unix://"))
            async with stream:
                await stream.send_all(b"GET /v1/events?snapshot=true HTTP/1.1\r\nHost: x\r\n\r\n")
                await until(lambda: backend.events.log.readers == 1)
                # the state is 5 MB; no more than a piece of it is in memory
                assert load.held < 200_000
                await until(lambda: backend.events.log.readers == 0)
                assert load.held == 0

    trio.run(run)


def test_more_streams_than_allowed_are_refused_and_the_client_looks_again(listen: str) -> None:
    backend = FakeBackend({"a": {"k": '"1"'}})
    backend.events = FakeEvents(EventLog(readers=2))

    async def run() -> None:
        async with (
            serving(backend, listen) as address,
            DaemonClient(address, poll_interval=0.01) as client,
            client.events() as one,
            client.events() as two,
        ):
            assert one.streaming
            assert two.streaming
            status, headers, body = await ask(address, "GET", "/v1/events")
            assert (status, headers["retry-after"], json.loads(body)["code"]) == (503, "5", "too-many-streams")
            async with client.events(buckets=["a"]) as third:
                assert not third.streaming
                assert kinds(await take(third, 3)) == ["hello", "ledger", "synced"]
                backend.persist("a", "k", '"2"')
                assert (await take(third, 1))[0].data["text"] == '"2"'
        await until(lambda: backend.events.log.readers == 0)

    trio.run(run)


def test_clients_that_leave_free_their_place(listen: str) -> None:
    backend = FakeBackend()

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address) as client:
            for _ in range(40):
                async with client.events() as events:
                    await take(events, 2)
            await until(lambda: backend.events.log.readers == 0)
            assert not backend.events.log.wanted(["ledger"])

    trio.run(run)


@pytest.mark.parametrize("query", ["kind=nonsense", "snapshot=perhaps", "kind=ledger&kind=%00"])
def test_wrong_wishes_are_refused(listen: str, query: str) -> None:
    async def run() -> None:
        async with serving(FakeBackend(), listen) as address:
            status, _, body = await ask(address, "GET", f"/v1/events?{query}")
            assert (status, json.loads(body)["code"]) == (400, "bad-request")

    trio.run(run)


# -- other daemons


@pytest.mark.usefixtures("go_daemon")
@pytest.mark.parametrize("buckets", [["a"], []])
def test_on_edgevpn_records_are_looked_at(listen: str, buckets: list[str]) -> None:
    backend = FakeBackend({"a": {"k": ledger_text("v")}})

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address, poll_interval=0.01) as client:
            async with client.events(buckets=buckets) as events:
                _, record, synced = await take(events, 3)
                assert (record.data["value"], record.data["snapshot"], synced.kind) == ("v", True, "synced")
                backend.persist("a", "l", '"2"')
                assert (await take(events, 1))[0].data["key"] == "l"
                backend.delete_bucket("a")
                gone = await take(events, 2)
                assert {e.data["key"] for e in gone if e.data["deleted"]} == {"k", "l"}
                assert events.last_id == ""
            assert client.native is (False if buckets else None)
            with pytest.raises(NotFoundError, match="records only"):
                await client.events(kinds=["role"]).__aenter__()

    trio.run(run)


@pytest.mark.usefixtures("older_daemon")
def test_on_our_version_before_it_is_the_long_poll(listen: str) -> None:
    backend = FakeBackend({"a": {"k": '"1"'}})

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address, poll_interval=3600) as client:
            async with client.events(buckets=["a"]) as events:
                await take(events, 3)
                async with trio.open_nursery() as nursery:

                    async def look() -> None:
                        assert (await take(events, 1))[0].data["text"] == '"2"'

                    nursery.start_soon(look)
                    await until(lambda: backend.waiting)
                    backend.persist("a", "k", '"2"')
            assert client.native
            status = await client.status()
            assert status is not None
            assert status["peer_id"] == backend.peer_id

    trio.run(run)


def test_a_daemon_that_ends_ends_the_following(listen: str) -> None:
    async def run() -> None:
        async with DaemonClient(listen) as client:
            async with serving(FakeBackend(), listen):
                events = await client.events().__aenter__()
                await take(events, 2)
            with pytest.raises(UnreachableError):
                await take(events, 1)
            await events.__aexit__(None, None, None)
            with pytest.raises(UnreachableError):
                await client.events().__aenter__()

    trio.run(run)


def test_a_daemon_that_is_stuck_is_noticed(listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provider_kairos.api.follow.PATIENCE", 0.05)

    async def run() -> None:
        async with following(FakeBackend(), listen) as events:
            await take(events, 2)
            with pytest.raises(TimeoutHostError):
                await take(events, 1)

    trio.run(run)


# -- the state of buckets


@pytest.mark.parametrize("way", ["stream", "long poll", "polling"])
def test_the_state_of_buckets_is_followed(listen: str, way: str, request: pytest.FixtureRequest) -> None:
    if way != "stream":
        request.getfixturevalue({"long poll": "older_daemon", "polling": "go_daemon"}[way])
    backend = FakeBackend({"a": {"k": ledger_text(1)}, "x": {"y": '"z"'}})

    async def run() -> None:
        async with (
            serving(backend, listen) as address,
            DaemonClient(address, poll_interval=0.01) as client,
            client.follow(["a", "b", "a"]) as states,
        ):
            with trio.fail_after(60):
                first = await states.__anext__()
                assert first.values("a") == {"k": 1}
                assert first.texts["b"] is None
                assert first.native is (way == "stream")
                backend.persist("b", "l", ledger_text([2]))
                while (state := await states.__anext__()).values("b") != {"l": [2]}:
                    pass
                backend.delete_bucket("a")
                while (state := await states.__anext__()).texts["a"] is not None:
                    pass
                assert state.values("b") == {"l": [2]}
                assert first.values("a") == {"k": 1}, "a state does not change afterwards"

    trio.run(run)


def test_the_state_is_whole_again_after_a_loss(listen: str) -> None:
    backend = FakeBackend({"a": {str(n): '"0"' for n in range(5)}})
    backend.events = FakeEvents(EventLog(entries=4))

    async def run() -> None:
        async with serving(backend, listen) as address, DaemonClient(address) as client, client.follow(["a"]) as states:
            with trio.fail_after(60):
                assert len((await states.__anext__()).texts["a"] or {}) == 5
                for n in range(5):
                    backend.delete_key("a", str(n))
                for n in range(20):
                    backend.persist("a", f"new{n}", '"1"')
                while (await states.__anext__()).texts["a"] != {f"new{n}": '"1"' for n in range(20)}:
                    pass

    trio.run(run)


# -- reading


def test_events_are_read_however_they_are_cut() -> None:
    text = b": c\n\nevent: a\r\nid: 1\r\ndata: x\r\ndata: y\r\n\r\ndata: z\nretry: 1\n\nid\n\nevent: none\n\n"
    for size in range(1, len(text) + 1):
        reader = EventReader()
        found = [e for n in range(0, len(text), size) for e in reader.feed(text[n : n + size])]
        assert [(e.kind, e.data, e.id) for e in found] == [("a", "x\ny", "1"), ("message", "z", "1")]
        assert reader.last_id == ""


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provider_kairos.api.sse.MAX_EVENT", 1000)
    reader = EventReader()
    for _ in range(50):
        assert len(reader.feed(b"data: " + b"x" * 90 + b"\n\n")) == 1
    for _ in range(10):
        assert reader.feed(b"data: " + b"x" * 90 + b"\n") == []
    with pytest.raises(PeerError):
        reader.feed(b"data: " + b"x" * 90 + b"\n")
    with pytest.raises(PeerError):
        EventReader().feed(b"x" * 1001)
