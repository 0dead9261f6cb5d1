"""ledger and peers, on our daemon and on one that has EdgeVPN's routes alone."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from provider_kairos.api import server
from provider_kairos.api.client import DaemonClient
from provider_kairos.api.model import ledger_text
from provider_kairos.api.router import Router
from provider_kairos.api.routes import edgevpn_routes
from provider_kairos.api.testing import PEER, FakeBackend, serving
from provider_kairos.cli.ledger_work import Watch
from provider_kairos.cli.main import run
from provider_kairos.errors import ExitCode, UnreachableError

OTHER = "12D3KooWLTiwbgJhHPkV7jLHeBFSaHae6AEHHoQBdDiRR5SpGX7d"


class Daemon:
    """A daemon beside the test's thread."""

    def __init__(self, listen: str) -> None:
        self.listen = listen
        self.backend = FakeBackend()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=trio.run, args=[self.serve])

    async def serve(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self.scope:
            async with serving(self.backend, self.listen):
                self.ready.set()
                await trio.sleep_forever()


@pytest.fixture(params=["ours", "edgevpn"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    if request.param == "edgevpn":
        monkeypatch.setattr(server, "routes", lambda backend: Router(edgevpn_routes(backend)))
    daemon = Daemon(f"unix://{tmp_path}/api.sock")
    daemon.thread.start()
    assert daemon.ready.wait(60)
    monkeypatch.setenv("EDGEVPN_API", daemon.listen)
    yield daemon
    daemon.token.run_sync_soon(daemon.scope.cancel)
    daemon.thread.join(60)
    assert not daemon.thread.is_alive()


only_ours = pytest.mark.parametrize("daemon", ["ours"], indirect=True)
only_edgevpn = pytest.mark.parametrize("daemon", ["edgevpn"], indirect=True)


# -- get


def test_a_value_is_printed_as_it_is(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.backend.data = {"b": {"text": ledger_text("ä b"), "json": '{"a":[1]}', "junk": "nothing known"}}
    for key, shown in (("text", "ä b\n"), ("json", '{"a": [1]}\n'), ("junk", "nothing known\n")):
        assert run(["ledger", "get", "b", key]) == 0
        assert capsys.readouterr().out == shown
    assert run(["ledger", "get", "b", "text", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["value"], record["encoding"], record["deleted"]) == ("ä b", "base64", False)


@pytest.mark.parametrize("words", [["b", "absent"], ["absent", "k"], ["absent"]])
def test_what_is_absent_gives_4(daemon: Daemon, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    daemon.backend.data = {"b": {"k": '"1"'}}
    assert run(["ledger", "get", *words]) == ExitCode.NOT_FOUND
    assert "there is no" in capsys.readouterr().err


def test_a_bucket_is_a_table(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.backend.data = {"b": {"k": ledger_text("x" * 100), "evil\x1b[2J": '"\\u001b[31m"'}}
    assert run(["ledger", "get", "b"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said, "what others write is no order to a terminal"
    assert f"{'x' * 57}..." in said
    assert run(["ledger", "get", "b", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["key"] for each in document["records"]] == ["evil\x1b[2J", "k"]
    assert (document["schema"], document["bucket"]) == (1, "b")


@only_ours
def test_ours_tells_author_age_and_tombstones(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.backend.data = {"b": {"k": '"1"'}}
    daemon.backend.graves = {("b", "gone")}
    daemon.backend.authors = {("b", "k"): OTHER}
    assert run(["ledger", "get", "b", "--deleted"]) == 0
    said = capsys.readouterr().out
    assert OTHER in said
    assert "(deleted)" in said
    assert run(["ledger", "get"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["b", "1", "1"]


def test_buckets_are_listed(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.backend.data = {"b": {"k": '"1"', "l": '"1"'}, "a": {"k": '"1"'}}
    assert run(["ledger", "get", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["records"]) for each in document["buckets"]] == [("a", 1), ("b", 2)]


# -- set, delete


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["plain text"], ledger_text("plain text")),
        (["--json", '{"a": [1, null]}'], ledger_text({"a": [1, None]})),
        (["--plain", "as it is"], '"as it is"'),
        (["--plain", "--json", '"as it is"'], '"as it is"'),
        (["--", "-1"], ledger_text("-1")),
    ],
)
def test_a_value_is_stored(daemon: Daemon, words: list[str], text: str) -> None:
    assert run(["ledger", "set", "b", "k", *words]) == 0
    assert daemon.backend.data == {"b": {"k": text}}


def test_a_secret_comes_from_standard_input(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("sécret\n\n".encode())))
    assert run(["ledger", "set", "b", "k", "-"]) == 0
    assert daemon.backend.data == {"b": {"k": ledger_text("sécret\n")}}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert run(["ledger", "set", "b", "k", "-"]) == ExitCode.CONFIG


def test_what_is_no_json_is_refused(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ledger", "set", "b", "k", "--json", "{"]) == ExitCode.CONFIG
    assert "without --json" in capsys.readouterr().err
    assert not daemon.backend.data


def test_deleting(daemon: Daemon) -> None:
    daemon.backend.data = {"b": {"k": '"1"', "l": '"1"', "m": '"1"'}}
    assert run(["ledger", "delete", "b", "k"]) == 0
    assert run(["ledger", "delete", "b", "k"]) == 0
    assert set(daemon.backend.data["b"]) == {"l", "m"}
    assert run(["ledger", "delete", "b"]) == 0
    assert not daemon.backend.data.get("b")


@only_ours
def test_records_of_others_are_named(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.backend.data = {"machines": {"10.1.0.1": '"1"', "10.1.0.2": '"1"'}}
    daemon.backend.authors = {("machines", "10.1.0.2"): OTHER}
    assert run(["ledger", "set", "machines", "10.1.0.2", "mine"]) == ExitCode.FAILURE
    assert OTHER in capsys.readouterr().err
    assert run(["ledger", "delete", "machines"]) == 0
    assert capsys.readouterr().err == f"not deleted: 10.1.0.2 belongs to {OTHER}\n"
    assert daemon.backend.data == {"machines": {"10.1.0.2": '"1"'}}


@only_ours
def test_ours_takes_any_name(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ledger", "set", "a/b", "c/ d%", "v"]) == 0
    assert run(["ledger", "set", "dns", "", "v", "--plain"]) == 0
    assert daemon.backend.data == {"a/b": {"c/ d%": ledger_text("v")}, "dns": {"": '"v"'}}
    assert run(["ledger", "get", "a/b", "c/ d%"]) == 0
    assert capsys.readouterr().out == "v\n"
    assert run(["ledger", "delete", "a/b", "c/ d%"]) == 0


@only_edgevpn
@pytest.mark.parametrize(
    "words",
    [
        ["get", "a/b"],
        ["get", "a", "b/c"],
        ["set", "a", "b/c", "v"],
        ["set", "a", "", "v"],
        ["delete", "a/b"],
        ["set", "a", "b", "--plain", "--json", "5"],
        ["set", "a", "b", "--plain", "with/slash"],
    ],
)
def test_what_edgevpns_api_cannot_do_is_said(
    daemon: Daemon, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ledger", *words]) == ExitCode.CONFIG
    assert "bug" not in capsys.readouterr().err
    assert not daemon.backend.data


def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ledger", "get", "b"], ["ledger", "watch"], ["peers"], ["ledger", "set", "b", "k", "v"]):
        assert run([*words, "--api", f"unix://{tmp_path}/none"]) == ExitCode.UNREACHABLE
        assert "no daemon listens" in capsys.readouterr().err


# -- watch


def test_every_state_of_a_record_is_told_once_through_restarts(tmp_path: Path) -> None:
    listen = f"unix://{tmp_path}/s"
    told: list[tuple[str, str, bool]] = []

    def tell(data: Any) -> None:
        told.append((data["key"], data["text"], data["deleted"]))

    async def until(count: int) -> None:
        with trio.fail_after(60):
            while len(told) < count:  # noqa: ASYNC110 - a list has no event
                await trio.sleep(0.01)

    async def main() -> None:
        backend = FakeBackend({"b": {"k": '"1"', "l": '"1"'}, "other": {"x": '"1"'}})
        async with DaemonClient(listen) as client, trio.open_nursery() as nursery:
            async with serving(backend, listen):
                nursery.start_soon(Watch(client, ["b"], tell).run)
                await until(2)
                backend.persist("b", "k", '"2"')
                await until(3)
            # another life of the daemon: nothing is told twice, what went meanwhile is
            backend = FakeBackend({"b": {"k": '"2"', "m": '"1"'}})
            backend.instance = "fake2"
            async with serving(backend, listen):
                await until(5)
                backend.delete_key("b", "m")
                await until(6)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert told[:3] == [("k", '"1"', False), ("l", '"1"', False), ("k", '"2"', False)]
    assert told[3:] == [("m", '"1"', False), ("l", "", True), ("m", "", True)]


def test_a_watcher_that_finds_nobody_ends(tmp_path: Path) -> None:
    async def main() -> None:
        async with DaemonClient(f"unix://{tmp_path}/none") as client:
            await Watch(client, [], print).run()

    with pytest.raises(UnreachableError):
        trio.run(main)


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_lines_come_as_things_happen(daemon: Daemon, option: list[str]) -> None:
    daemon.backend.data = {"b": {"k": ledger_text("one")}}
    program = str(Path(sys.executable).with_name("kairos-p2p"))
    with subprocess.Popen(
        [program, "ledger", "watch", "b", *option, "--api", daemon.listen], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        daemon.token.run_sync_soon(daemon.backend.persist, "b", "l", ledger_text("two"))
        second = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 130
        finally:
            process.kill()
    if option:
        assert [json.loads(line)["value"] for line in (first, second)] == ["one", "two"]
    else:
        assert first.split()[1:] == ["b/k", "one"]
        assert second.split()[1:] == ["b/l", "two"]


# -- peers


def known(daemon: Daemon) -> None:
    backend = daemon.backend
    backend.data = {
        "machines": {"10.1.0.2": json.dumps({"PeerID": OTHER, "Hostname": "box2\x1b[2J", "Address": "10.1.0.2"})},
        "healthcheck": {OTHER: '"2023-11-14T22:13:00Z"'},
    }
    backend.topic, backend.links, backend.known = [OTHER], [OTHER], [PEER, OTHER]
    peer: Any = {
        "peer_id": OTHER,
        "hostname": "box2\x1b[2J",
        "address": "10.1.0.2",
        "heartbeat_age": 20.0,
        "on_topic": True,
        "connected": True,
        "native": True,
        "direction": "out",
        "security": "/noise",
        "rtt_ms": 1.25,
        "agent": "kairos-p2p",
        "addresses": [],
        "last_error": None,
    }
    backend.others = [peer]


@only_ours
def test_peers_of_ours(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    known(daemon)
    assert run(["peers"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    line = said.splitlines()[2]
    assert line.split() == [
        OTHER,
        "box2?[2J",
        "10.1.0.2",
        "20",
        "s",
        "yes",
        "yes",
        "out",
        "1.2",
        "ms",
        "kairos-p2p",
        "-",
    ]
    assert run(["peers", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["daemon"] == "kairos-p2p"
    assert document["peers"][0]["in_ledger"]


@only_edgevpn
def test_peers_of_edgevpn(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    known(daemon)
    daemon.backend.known.append("12D3KooWQuJhNQu3QnZTx5M2aNcvtwKpdMWiheo8mZihzBK9udwF")
    assert run(["peers"]) == 0
    first, second = capsys.readouterr().out.splitlines()[2:]
    assert first.split()[1:6] == ["box2?[2J", "10.1.0.2", "yes", "yes", "?"]
    assert second.split()[1:6] == ["-", "-", "no", "no", "?"]
    assert run(["peers", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["daemon"] == "edgevpn"
    assert [each["connected"] for each in document["peers"]] == [None, None]
