"""The Go peer of ``tests/interop/go/peer`` for tests everywhere: fixtures ``go_peer`` and ``go_programs``.

``tests/conftest.py`` registers this module as a plugin, so the fixtures exist in every folder. A session that has a
test with one of them starts the build in the background at once, and waits for it when the first such test begins.

::

    def test_it(go_peer, make_namespaces):
        go = go_peer(space, token=text, ledger={"ownership": "enforce", "sync": 1, "heartbeat": 1})
        go.do("connect", addr="/ip4/10.77.0.1/tcp/4001/p2p/12D3KooW...")
        go.event("identified", peer="12D3KooW...")
        go.do("publish", data=b"sealed and sent")

Without ``space`` the peer runs where the test runs, which is enough for loopback. Options of ``go_peer`` are the fields
of the command ``start`` (``settings`` in ``host.go``); every command with its fields stands in the ``init`` functions of
the Go sources. In a trio test the calls go through ``trio.to_thread``: ``await go.ado(...)``, ``await go.aevent(...)``.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import trio

__all__ = ["GoError", "GoPeer", "MakeGoPeer"]

PATIENCE = 60.0
"""Seconds after which a wait gives up; nothing is measured by it."""

FIXTURES = {"go_programs", "go_peer", "make_lasting_go_peer"}
HERE = Path(__file__).parent


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _load("go_build", HERE / "go" / "build.py")


class GoError(Exception):
    """What the peer answered to a command that failed."""


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def data_of(line: dict[str, Any]) -> bytes:
    """The field ``data`` of an answer or event, as bytes."""
    return base64.b64decode(line["data"] or "")


class GoPeer:
    """One running peer. ``id`` is its peer ID, ``addrs`` its multiaddrs with ``/p2p/``, ``events`` what it told."""

    def __init__(self, program: Path, space: Any, log: Path, **options: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self._answers: dict[int, tuple[dict[str, Any]]] = {}
        self._news = threading.Condition()
        self._last = 0
        self._log = log
        self._ended = False
        command = [str(program)]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                space.argv(command) if space else command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={"PATH": os.environ["PATH"], "HOME": str(log.parent)},
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            said = self.do("start", **options)
        except BaseException:
            self.kill()
            raise
        self.id: str = said["peer"]
        self.addrs: list[str] = said["addrs"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _read(self) -> None:
        assert self.process.stdout
        for text in self.process.stdout:
            line = json.loads(text)
            with self._news:
                if "re" in line:
                    self._answers[line.pop("re")] = (line,)
                else:
                    self.events.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _wait(self, found: Callable[[], Any], what: str, patience: float) -> Any:
        ends = time.monotonic() + patience
        with self._news:
            while True:
                if value := found():
                    return value
                left = ends - time.monotonic()
                if self._ended or left <= 0:
                    break
                self._news.wait(left)
        how = "the peer ended" if self._ended else f"not within {patience:g} s"
        raise AssertionError(f"{how}: {what}; last events {self.events[-8:]}\n{self.errors[-3000:]}")

    def do(self, command: str, *, patience: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """Give a command and wait for its answer; bytes travel as base64.

        Raises:
            GoError: it answered with an error; ``answer`` has what else it said.
        """
        with self._news:
            self._last += 1
            number = self._last
            assert self.process.stdin
            line = json.dumps({"id": number, "do": command, **_plain(fields)}) + "\n"
            try:
                self.process.stdin.write(line.encode())
                self.process.stdin.flush()
            except BrokenPipeError:
                self._ended = True
        answer: dict[str, Any]
        (answer,) = self._wait(lambda: self._answers.pop(number, None), f"{command} done", patience)
        if problem := answer.get("error"):
            raise GoError(f"{command}: {problem}")
        return answer

    def event(self, name: str, *, after: int = 0, patience: float = PATIENCE, **wanted: Any) -> dict[str, Any]:
        """The first event of that name whose fields are as wanted, past or to come; ``after`` skips so many events."""

        def found() -> dict[str, Any]:
            for line in self.events[after:]:
                if line["event"] == name and all(line.get(key) == value for key, value in wanted.items()):
                    return line
            return {}

        line: dict[str, Any] = self._wait(found, f"event {name} {wanted}", patience)
        return line

    def until(self, true: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
        """The first true value of ``true()``, asked again a few times a second."""
        ends = time.monotonic() + patience
        while True:
            if value := true():
                return value
            assert time.monotonic() < ends, f"not within {patience:g} s: {what}; last events {self.events[-8:]}"
            time.sleep(0.1)

    # -- what is asked often

    def connect(self, address: str) -> None:
        """Dial until it is connected: a busy machine breaks handshakes off."""

        def connected() -> bool:
            with contextlib.suppress(GoError):
                self.do("connect", addr=address)
                return True
            return False

        self.until(connected, f"a connection to {address}")

    def ledger(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Bucket → key → entry (value as JSON text, owner, version as text, deleted, signed), tombstones included."""
        buckets: dict[str, dict[str, dict[str, Any]]] = self.do("ledger")["buckets"]
        return buckets

    def value(self, bucket: str, key: str) -> Any:
        """The decoded value; None when it is absent or deleted."""
        entry = self.do("get", bucket=bucket, key=key)["entry"]
        return None if entry is None or entry["deleted"] else json.loads(entry["value"])

    def room(self) -> set[str]:
        """Peers that are subscribed to its current ledger topic."""
        return set(self.do("subscriptions")["peers"])

    def peers(self) -> dict[str, dict[str, Any]]:
        """Peer ID → connections and what identify said, of everybody connected."""
        return {each["peer"]: each for each in self.do("peers")["peers"] or []}

    def packets(self, peer: str) -> list[bytes]:
        """Packets that came from a peer, in the order of their arrival."""
        with self._news:
            return [data_of(each) for each in self.events if each["event"] == "packet" and each["peer"] == peer]

    # -- the same in a trio task

    async def ado(self, command: str, **fields: Any) -> dict[str, Any]:
        """:meth:`do` in a thread."""
        return await trio.to_thread.run_sync(functools.partial(self.do, command, **fields))

    async def aevent(self, name: str, **wanted: Any) -> dict[str, Any]:
        """:meth:`event` in a thread."""
        return await trio.to_thread.run_sync(functools.partial(self.event, name, **wanted))

    # -- its end

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def kill(self) -> None:
        """Gone without a goodbye."""
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


MakeGoPeer = Callable[..., GoPeer]


class _Build:
    """The build that the session needs, if any."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.output = ""
        self.code: int | None = None

    def start(self) -> None:
        if build.current():
            self.code = 0
        elif self.process is None:
            # Low priority: tests that run meanwhile come first.
            self.process = subprocess.Popen(
                ["nice", "-n", "10", sys.executable, str(HERE / "go" / "build.py")],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def wait(self) -> int:
        if self.code is None:
            self.start()
        if self.code is None:
            assert self.process
            self.output, _ = self.process.communicate()
            self.code = self.process.returncode
        return self.code


_build = _Build()


NOT_BUILT = "the Go peer and plugin host cannot be built here"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the build when a chosen test will ask for it; of several workers the first one does."""
    if session.config.option.collectonly or os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        return
    if any(FIXTURES & set(getattr(item, "fixturenames", ())) for item in session.items):
        _build.start()


def pytest_sessionfinish() -> None:
    """A build that nobody waited for ends here, so that it is not left behind."""
    if _build.process is not None:
        _build.wait()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what did not run for want of the Go programs, and why."""
    reasons = [
        each.longrepr[2] if isinstance(each.longrepr, tuple) else str(each.longrepr)
        for each in terminalreporter.stats.get("skipped", [])
    ]
    missing = [reason.removeprefix("Skipped: ") for reason in reasons if NOT_BUILT in reason]
    if missing:
        terminalreporter.section("Go peer and plugin host", sep="!")
        terminalreporter.write_line(f"{len(missing)} tests did NOT run: {missing[0]}")


@pytest.fixture(scope="session")
def go_programs() -> Path:
    """The folder with the built programs ``peer`` and ``pluginhost``."""
    code = _build.wait()
    if code == build.CANNOT:
        pytest.skip(f"{NOT_BUILT}: {(_build.output.strip().splitlines() or ['no reason'])[-1][:500]}")
    assert code == 0, f"tests/interop/go does not build:\n{_build.output}"
    folder: Path = build.BIN
    return folder


def _peers(program: Path, folder: Path) -> Iterator[MakeGoPeer]:
    made: list[GoPeer] = []

    def make(space: Any = None, **options: Any) -> GoPeer:
        if space is None:
            options.setdefault("listen", ["/ip4/127.0.0.1/tcp/0"])
        made.append(GoPeer(program, space, folder / f"go_peer{len(made)}.log", **options))
        return made[-1]

    yield make
    for each in made:
        each.kill()


@pytest.fixture
def go_peer(go_programs: Path, tmp_path: Path) -> Iterator[MakeGoPeer]:
    """``go_peer(space=None, token=..., **options)`` → a started :class:`GoPeer`; all end with the test."""
    yield from _peers(go_programs / "peer", tmp_path)


@pytest.fixture(scope="module")
def make_lasting_go_peer(go_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeGoPeer]:
    """The same for peers that run beside all tests of a module."""
    yield from _peers(go_programs / "peer", tmp_path_factory.mktemp("go_peers"))
