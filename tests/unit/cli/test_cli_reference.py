"""The reference pages name what the code has: every exit code, command and route."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from provider_kairos.api import server
from provider_kairos.api.events import EventLog
from provider_kairos.api.http import Limits
from provider_kairos.api.testing import FakeBackend, FakeGate
from provider_kairos.cli.app import app
from provider_kairos.errors import ExitCode

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


def test_exit_codes() -> None:
    rows = re.findall(r"(?m)^\| (\d+) \| ([A-Z_]+) \|", (REFERENCE / "exit-codes.md").read_text())
    assert {name: int(code) for code, name in rows} == {code.name: code.value for code in ExitCode}


def test_commands() -> None:
    text = (REFERENCE / "cli.md").read_text()
    documented = {" ".join(re.findall(r"[a-z-]+", row)[:2]) for row in re.findall(r"(?m)^\| `([^`]+)` \|", text)}
    commands: list[str] = []
    for command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        name, inner = command
        commands += [f"{name} {sub}" for sub in getattr(inner, "commands", {})] or [name]
    for name in commands:
        assert any(row == name or row.startswith(f"{name} ") or row.split()[0] == name for row in documented), name


def test_routes() -> None:
    text = (REFERENCE / "api.md").read_text()
    rows = re.findall(r"(?m)^\| ((?:GET|PUT|POST|DELETE)[^|]*) \|(?:[^|]*; also (GET `[^`]+`))?", text)
    documented = {
        (method, path)
        for row in (each for found in rows for each in found)
        for method in re.findall(r"(?<![/:])\b[A-Z]{3,}\b", row)
        for path in re.findall(r"`([^`]+)`", row)
    }
    backend = FakeBackend()
    backend.gate, backend.debug = FakeGate(), True
    assert documented == {(route.method, route.pattern) for route in server.routes(backend).table}


def test_limits() -> None:
    text = (REFERENCE / "api.md").read_text()
    limits = Limits()
    assert limits.header_bytes == (1 << 20) + 4096
    assert limits.body_bytes == 1 << 20
    for words in (
        f"{limits.request_seconds:g} s, else 408",
        f"| {limits.idle_seconds:g} s |",
        f"| {limits.send_seconds:g} s |",
        f"| {limits.connections}, else 503 |",
        f"| {EventLog().max_readers}, else 503 |",
        f"{limits.held_bytes >> 20} MiB, else 503 |",
        f"{EventLog().entries} events",
    ):
        assert words in text
