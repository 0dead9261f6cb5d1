"""The socket of the API over a daemon's life: handed on by systemd, deleted by somebody, taken by somebody else."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from provider_kairos.api import listener
from provider_kairos.api.address import Address
from provider_kairos.api.client import DaemonClient
from provider_kairos.api.testing import FakeBackend, ask, serving


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "LOOK_SECONDS", 0.01)


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - a file tells nobody
            await trio.sleep(0.01)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


# -- a file that goes away


def test_a_deleted_socket_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "api.sock"

    async def run() -> None:
        async with (
            serving(FakeBackend(), f"unix://{path}", unix_mode=0o640) as address,
            await trio.open_unix_socket(str(path)) as before,
        ):
            for _ in range(2):
                path.unlink()
                await until(lambda: answers(path))
                assert stat.S_IMODE(path.stat().st_mode) == 0o640
                assert (await ask(address, "GET", "/api/summary"))[0] == 200
            # whoever was connected stays connected
            await before.send_all(b"GET /api/summary HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await before.receive_some(100)).startswith(b"HTTP/1.1 200")

    trio.run(run)
    assert "somebody deleted" in caplog.text
    assert not path.exists()


def test_a_directory_that_was_wiped_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run" / "api.sock"
    path.parent.mkdir()

    async def run() -> None:
        async with serving(FakeBackend(), f"unix://{path}") as address:
            shutil.rmtree(path.parent)
            await until(lambda: "make the directory" in caplog.text)
            path.parent.mkdir()
            await until(lambda: answers(path))
            assert (await ask(address, "GET", "/api/summary"))[0] == 200

    trio.run(run)
    assert caplog.text.count("make the directory") == 1


def test_what_somebody_puts_in_its_place_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "api.sock"

    async def run() -> None:
        async with serving(FakeBackend(), f"unix://{path}"):
            (tmp_path / "new").write_text("another's")
            (tmp_path / "new").rename(path)
            await until(lambda: "taken the place" in caplog.text)

    trio.run(run)
    assert path.read_text() == "another's"


def test_our_client_finds_the_new_socket(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"

    async def run() -> None:
        async with serving(FakeBackend(), f"unix://{path}") as address, DaemonClient(address) as client:
            await client.summary()
            path.unlink()
            client.close()
            await client.wait_until_reachable(60)

    trio.run(run)


# -- systemd

SERVE = """
import json, os, sys, trio
from provider_kairos.api.testing import FakeBackend
from provider_kairos.api.server import serve
from provider_kairos.errors import HostError

if sys.argv[2] != "-":
    os.dup2(int(sys.argv[2]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = "1"

async def main():
    async with trio.open_nursery() as nursery:
        where = await nursery.start(lambda task_status: serve(
            FakeBackend(), "unix://" + sys.argv[1], environ=os.environ, task_status=task_status))
        print(json.dumps({"where": where, "inherited": os.get_inheritable(3)}), flush=True)

try:
    trio.run(main)
except* HostError as group:
    print(json.dumps({"error": str(group.exceptions[0])}))
"""


def activated(path: Path, passed: int | None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, str(path), "-" if passed is None else str(passed)],
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[] if passed is None else [passed],
    )


def test_a_socket_of_systemd_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as unit:
        unit.bind(str(path))
        path.chmod(0o666)
        unit.listen(5)
        with activated(path, unit.fileno()) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == {"where": f"unix://{path}", "inherited": False}
            # mode and file are systemd's
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert trio.run(ask, f"unix://{path}", "GET", "/api/summary")[0] == 200
            process.terminate()
        assert path.exists()


@pytest.mark.parametrize("kind", ["nothing", "a file", "tcp", "not listening"])
def test_what_is_no_listening_unix_socket_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "api.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as silent,
        (tmp_path / "file").open("w") as file,
    ):
        passed = {"nothing": None, "a file": file.fileno(), "tcp": tcp.fileno(), "not listening": silent.fileno()}[kind]
        with activated(path, passed) as process:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
    assert "systemd passed on" in said["error"]
    assert not path.exists()


def test_a_socket_for_another_process_is_none_for_us(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    environ = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}

    async def run() -> None:
        async with listener.open_listener(Address(path=str(path)), environ=environ):
            assert path.exists()

    trio.run(run)


def test_a_tcp_address_is_not_systemds(caplog: pytest.LogCaptureFixture) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
    caplog.set_level(logging.INFO)

    async def run() -> None:
        async with listener.open_listener(Address(host="127.0.0.1"), environ=environ) as place:
            assert place.listeners[0].socket.getsockname()[1]

    trio.run(run)
