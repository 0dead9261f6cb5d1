"""What every test session prints at its end: tests per folder, and what this machine could not run."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.interop import go_peer

ROOT = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """The Go peer's fixtures are for every folder, and SIGINT works.

    A run in the background inherits a SIGINT that is ignored, and so would every program that a test interrupts.
    """
    config.pluginmanager.register(go_peer, "go_peer")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _folder(nodeid: str) -> str:
    parts = nodeid.split("::", 1)[0].split("/")
    return parts[1] if len(parts) > 2 else parts[0]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a table of folders and the reasons of everything that was not run."""
    ran: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for outcome in ("passed", "failed", "error", "xfailed", "xpassed"):
        for report in terminalreporter.stats.get(outcome, []):
            if outcome == "passed" and report.when != "call":
                continue
            ran[_folder(report.nodeid)] += 1
            if outcome in {"failed", "error", "xpassed"}:
                failed[_folder(report.nodeid)] += 1
    missing: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        missing.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)

    terminalreporter.section("tests per folder")
    for folder in sorted(ran):
        bad = f", {failed[folder]} failed" if failed[folder] else ""
        terminalreporter.write_line(f"{folder:12} {ran[folder]:5} ran{bad}")
    terminalreporter.section("what this machine could not run")
    if not missing:
        terminalreporter.write_line("nothing: everything ran")
    for reason, nodeids in sorted(missing.items()):
        terminalreporter.write_line(f"{len(nodeids):5} x {reason}")
        for nodeid in nodeids[:5]:
            terminalreporter.write_line(f"        {nodeid}")
