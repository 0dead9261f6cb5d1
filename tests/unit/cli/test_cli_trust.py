"""peergater ecdsa-genkey and trust: against a daemon in a thread of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from provider_kairos.api.testing import FakeBackend, FakeGate, serving
from provider_kairos.cli.main import run
from provider_kairos.errors import ExitCode
from provider_kairos.trustzone import keys
from provider_kairos.trustzone.model import AUTH_BUCKET, NOTES_BUCKET, ZONE_BUCKET, note_text

PAIR = keys.generate()
PRINT = keys.fingerprint(keys.load_public(PAIR.public))


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBackend]:
    """A daemon that guards, asked through EDGEVPN_API."""
    found = FakeBackend()
    found.gate = FakeGate()
    ready, done = threading.Event(), threading.Event()
    listen = f"unix://{tmp_path}/s"
    monkeypatch.setenv("EDGEVPN_API", listen)

    async def serve() -> None:
        async with serving(found, listen):
            ready.set()
            await trio.to_thread.run_sync(done.wait)

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(30)
    yield found
    done.set()
    thread.join(30)


def test_genkey_prints_what_edgevpn_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["peergater", "ecdsa-genkey"]) == 0
    private, public, rest = capsys.readouterr().out.split("\n")
    assert rest == ""
    key = keys.load_private(private.removeprefix("Private key: "))
    assert keys.public_text(key.public_key()) == public.removeprefix("Public key: ")


@pytest.mark.parametrize(("option", "load"), [("--privkey", keys.load_private), ("--pubkey", keys.load_public)])
def test_genkey_prints_one_alone_without_a_line_end(capsys, option, load) -> None:
    assert run(["peergater", "ecdsa-genkey", option]) == 0
    out = capsys.readouterr().out
    assert out == out.strip()
    assert load(out)


def test_a_key_is_added_as_edgevpn_stores_it_listed_and_removed(backend, tmp_path, capsys) -> None:
    file = tmp_path / "key.pub"
    file.write_text(PAIR.public + "\n")
    assert run(["trust", "add-key", str(file)]) == 0
    assert backend.data[AUTH_BUCKET] == {f"ecdsa_{PRINT}": json.dumps(PAIR.public)}
    assert run(["trust", "add-key", str(file), "--name", "my-ecdsa"]) == 0
    assert backend.get(AUTH_BUCKET, "my-ecdsa") == json.dumps(PAIR.public)
    backend.persist(AUTH_BUCKET, "z-ecdsa-broken", '"nonsense"')
    backend.persist(ZONE_BUCKET, "12D3KooWA", '""')
    backend.persist(ZONE_BUCKET, backend.peer_id, '""')
    backend.persist(NOTES_BUCKET, "12D3KooWA", note_text(PRINT))
    capsys.readouterr()
    assert run(["trust", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "gate": True,
        "keys": [
            {"name": f"ecdsa_{PRINT}", "fingerprint": PRINT},
            {"name": "my-ecdsa", "fingerprint": PRINT},
            {"name": "z-ecdsa-broken", "fingerprint": None},
        ],
        "peers": [
            {"peer_id": "12D3KooWA", "online": False, "key": PRINT},
            {"peer_id": backend.peer_id, "online": True, "key": None},
        ],
    }
    assert run(["trust", "list"]) == 0
    out = capsys.readouterr().out
    assert "gate    on" in out
    assert "cannot be read" in out
    assert run(["trust", "remove-key", PRINT]) == 0
    assert list(backend.data[AUTH_BUCKET]) == ["z-ecdsa-broken"]
    assert run(["trust", "remove-key", "z-ecdsa-broken"]) == 0
    assert run(["trust", "remove-key", "z-ecdsa-broken"]) == ExitCode.NOT_FOUND


def test_what_genkey_printed_will_do_and_only_its_public_half_is_sent(backend, tmp_path) -> None:
    file = tmp_path / "pair"
    file.write_text(f"Private key: {PAIR.private}\nPublic key: {PAIR.public}\n")
    assert run(["trust", "add-key", str(file), "--name", "ecdsa_1"]) == 0
    assert backend.data == {AUTH_BUCKET: {"ecdsa_1": json.dumps(PAIR.public)}}


def test_a_private_key_is_not_handed_to_everybody(backend, tmp_path, capsys) -> None:
    file = tmp_path / "key"
    file.write_text(PAIR.private)
    assert run(["trust", "add-key", str(file)]) == ExitCode.CONFIG
    assert AUTH_BUCKET not in backend.data
    assert PAIR.private[:20] not in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ["rsa", "a/ecdsa", ""])
def test_a_name_that_nobody_would_look_at_is_refused(backend, tmp_path, name) -> None:
    file = tmp_path / "key.pub"
    file.write_text(PAIR.public)
    code = run(["trust", "add-key", str(file), "--name", name])
    assert (code, AUTH_BUCKET in backend.data) == ((0, True) if not name else (ExitCode.USAGE, False))


def test_the_gate_is_shown_and_switched(backend, capsys) -> None:
    for arguments, shown in (([], "on"), (["off"], "off"), ([], "off"), (["on"], "on")):
        assert run(["trust", "gate", *arguments]) == 0
        assert capsys.readouterr().out == f"{shown}\n"
    assert run(["trust", "gate", "sideways"]) == ExitCode.USAGE


def test_without_a_gate_it_says_how_to_get_one(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("EDGEVPN_API", f"unix://{tmp_path}/nobody")
    assert run(["trust", "gate"]) == ExitCode.UNREACHABLE
