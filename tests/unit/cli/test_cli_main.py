"""Dispatch, exit codes, and what is loaded for what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from provider_kairos.cli import main
from provider_kairos.errors import ConfigError, ExitCode, HostError, LocalError, TokenError, UnreachableError
from provider_kairos.provider import plugin


def loaded_by(code: str) -> set[str]:
    """Top-level names of what a fresh interpreter has imported."""
    script = f"{code}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_dispatch_loads_the_standard_library_only() -> None:
    names = loaded_by("import provider_kairos.cli.main, provider_kairos.provider.plugin") - loaded_by("")
    assert names - sys.stdlib_module_names == {"provider_kairos"}


def test_help_loads_neither_rich_nor_what_commands_need() -> None:
    names = loaded_by("from provider_kairos.cli.main import run; assert run(['--help']) == 0")
    assert not names & {"rich", "trio", "pydantic", "yaml", "jinja2", "cryptography", "libp2p"}


def test_an_event_goes_to_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def fake(event: str) -> int:
        seen.append(event)
        return 5

    monkeypatch.setattr(plugin, "run", fake)
    assert main.run(["agent.bootstrap", "ignored"]) == 5
    assert seen == ["agent.bootstrap"]


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (HostError("no /dev/net/tun", hint="load it"), ExitCode.HOST, ["error: no /dev/net/tun", "hint: load it"]),
        (UnreachableError("nobody"), ExitCode.UNREACHABLE, ["error: nobody"]),
        (ConfigError("odd", path="f.yaml", line=3, column=7), ExitCode.CONFIG, ["error: f.yaml:3:7: odd"]),
        (
            TokenError("is zero", field="otp.crypto.interval"),
            ExitCode.CONFIG,
            ["error: network token: otp.crypto.interval: is zero"],
        ),
        (ExceptionGroup("nursery", [HostError("inside")]), ExitCode.HOST, ["error: inside"]),
        (LocalError("misuse"), ExitCode.BUG, ["error: misuse"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_errors_become_lines_and_codes(
    error: BaseException, code: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert main.report(fail) == code
    assert capsys.readouterr().err.splitlines() == lines


def test_a_bug_says_where_and_never_what(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(main.DEBUG_VARIABLE, raising=False)

    def fail() -> int:
        raise ValueError("the secret K10abc")

    assert main.report(fail) == ExitCode.BUG
    out = capsys.readouterr().err
    assert out.count("\n") == 1
    assert "ValueError at cli/main.py:" in out
    assert "K10abc" not in out
    monkeypatch.setenv(main.DEBUG_VARIABLE, "1")
    assert main.report(fail) == ExitCode.BUG
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["version"], 0),
        ([], 2),
        (["nosuch"], 2),
        (["generate-token", "soon"], 2),
        (["generate-token", "0"], 2),
        (["role", "set", "only-one"], 2),
        (["validate", "/no/such/file"], ExitCode.NOT_FOUND),
        (["token", "inspect", "/no/such/file"], ExitCode.NOT_FOUND),
        (["role", "list", "--api", "ftp://x"], ExitCode.CONFIG),
        (["role", "list", "--api", "unix:///no/such.sock"], ExitCode.UNREACHABLE),
        (["get-kubeconfig", "--api", "unix:///no/such.sock"], ExitCode.UNREACHABLE),
    ],
)
def test_exit_codes(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == code
    captured = capsys.readouterr()
    assert captured.err or captured.out


def test_every_command_has_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["generate-token"], ["create-config"], ["token", "inspect"], ["status"], ["role", "list"],
                    ["role", "set"], ["get-kubeconfig"], ["validate"], ["daemon"], ["version"]):  # fmt: skip
        assert main.run([*command, "--help"]) == 0
        assert "Usage: kairos-p2p" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_bug(tmp_path: Path) -> None:
    script = (
        "import sys; from provider_kairos.cli.main import report\n"
        "def much() -> int:\n    print('x' * 1_000_000)\n    return 0\nsys.exit(report(much))"
    )
    done = subprocess.run(
        ["sh", "-c", f'{sys.executable} -c "$0" 2>{tmp_path}/err | head -c 1', script], capture_output=True, check=True
    )
    assert done.stdout == b"x"
    assert (tmp_path / "err").read_text() == ""
