"""generate-token, create-config, token inspect, validate."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from provider_kairos.cli.main import run
from provider_kairos.errors import ExitCode
from provider_kairos.token import codec


def test_a_fresh_token_rotates_every_9000_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate-token"]) == 0
    token = codec.decode(capsys.readouterr().out.strip())
    assert (token.dht.interval, token.crypto.interval) == (9000, 9000)


@pytest.mark.parametrize(
    ("arguments", "interval"), [(["30"], 30), (["--never"], 2**63 - 1), (["9223372036854775807"], 2**63 - 1)]
)
def test_the_interval_may_be_named(arguments: list[str], interval: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate-token", *arguments]) == 0
    assert codec.decode(capsys.readouterr().out.strip()).crypto.interval == interval


def test_a_config_with_a_token_is_what_validate_accepts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["create-config", "60"]) == 0
    text = capsys.readouterr().out
    head, rest = text.split("network_token: ")
    assert head == "#cloud-config\n\np2p:\n    "
    assert codec.decode(rest.strip()).dht.interval == 60
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert run(["validate", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: no remarks\n"


@pytest.mark.parametrize("kind", ["token", "config", "variable"])
def test_inspect_shows_no_secret(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = codec.generate(interval=77)
    text = codec.encode(token)
    file = tmp_path / "file"
    file.write_text(text + "\n" if kind == "token" else f"#cloud-config\np2p:\n  network_token: {text}\n")
    monkeypatch.setenv("EDGEVPNTOKEN", text)
    assert run(["token", "inspect", *([] if kind == "variable" else [str(file)]), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["otp"]["dht"]["interval"] == 77
    for secret in (token.dht.key, token.crypto.key, token.room, token.rendezvous, token.mdns, text):
        assert secret not in out


@pytest.mark.parametrize("data", [b"", b"rubbish!", b"\xff\xfe", b"bm90OiB5YW1s"])
def test_inspect_says_what_is_wrong(
    data: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEVPNTOKEN", raising=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run(["token", "inspect"]) == ExitCode.CONFIG
    assert capsys.readouterr().err.startswith("error: ")


def test_validate_names_line_and_column(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("#cloud-config\np2p:\n  network_token: broken\n  disable_dht: perhaps\n")
    assert run(["validate", str(file)]) == ExitCode.CONFIG
    assert f"{file}:4:16: error: " in capsys.readouterr().out
    file.write_text("#cloud-config\np2p:\n  network_token: broken\n")
    assert run(["validate", str(file), "--json"]) == ExitCode.CONFIG
    document = json.loads(capsys.readouterr().out)
    assert document["valid"] is False
    assert (document["remarks"][0]["line"], document["remarks"][0]["column"]) == (3, 18)


def test_validate_reads_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a: [")))
    assert run(["validate", "-"]) == ExitCode.CONFIG
    assert re.match(r"standard input:\d+:\d+: error: ", capsys.readouterr().out)
