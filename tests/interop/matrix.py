"""The interop matrix: rows that are tests (spec/edgevpn.md 16).

A test says with a marker which row it is, and with the fixture ``seen`` what it saw::

    @pytest.mark.row(7, "packets both ways")
    @pytest.mark.row("lease", "no address twice", version="v0.35.4", mode="enforce")
    def test_packets(mode, version, seen): ...
        seen("0.4 ms")

``line`` is a line of the checklist (1 to 10) or a word for what it does not list. ``mode`` and ``version`` are taken
from the test's parameters of these names, or from a parameter ``cell`` that has both, when the marker does not say
them; ``expected_by={(version, mode): text}`` says what is expected otherwise in one cell. A row is green when all its
tests passed. Nothing is written twice: the table at the end of a run and ``docs/reference/interop-matrix.md`` come
from the markers and the outcomes, which travel as properties of the test reports (from other processes too).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

__all__ = ["LINES", "Matrix", "Row", "mark"]

LINES: dict[int, str] = {
    1: "streams, identity, identify",
    2: "finding each other",
    3: "gossip streams, subscription, signatures",
    4: "their message is opened",
    5: "our block is accepted",
    6: "rotation of topic and key",
    7: "machine records, packets both ways",
    8: "lease in a mixed group",
    9: "the same API",
    10: "restart, ephemeral and cached identity",
}
"""The lines of the checklist, in the order in which a failure would show."""

NOT_RUN, GREEN, RED = "not run", "green", "RED"
MODES = {"enforce": 0, "observe": 1, "off": 2}


def mark(item: pytest.Item) -> None:
    """Turn the markers of a test into properties of its reports."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    cell = given.get("cell")
    mode = str(given.get("mode", "") or getattr(cell, "mode", "-"))
    version = str(given.get("version", "") or getattr(cell, "version", "-"))
    for marker in item.iter_markers("row"):
        item.user_properties.append(("row", _row(item.nodeid, mode, version, *marker.args, **marker.kwargs)))


def _row(
    nodeid: str,
    mode_of_test: str,
    version_of_test: str,
    line: int | str,
    expected: str,
    *,
    mode: str = "",
    version: str = "",
    expected_by: dict[tuple[str, str], str] | None = None,
) -> tuple[int | str, str, str, str]:
    assert not isinstance(line, int) or line in LINES, f"{nodeid}: the checklist has no line {line}"
    mode, version = mode or mode_of_test, version or version_of_test
    return line, version, mode, (expected_by or {}).get((version, mode), expected)


@dataclass
class Row:
    """One line in one mode and version, with what its tests said."""

    line: int | str
    version: str
    mode: str
    expected: str
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """In one word."""
        if self.failed:
            return RED
        return GREEN if self.passed and not self.skipped else NOT_RUN

    @property
    def seen(self) -> str:
        """What was seen, or why nothing was."""
        said = self.failed or self.skipped or self.notes or ["as expected"]
        return "; ".join(dict.fromkeys(said))

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """One line of the table."""
        title = f"{self.line} {LINES[self.line]}" if isinstance(self.line, int) else self.line
        return title, self.version, self.mode, self.expected, self.seen, self.state

    def order(self) -> tuple[Any, ...]:
        """The checklist first, then words; newer versions and stricter modes first."""
        line = (0, self.line, "") if isinstance(self.line, int) else (1, 0, self.line)
        return *line, self.version != "v0.35.4", self.version, MODES.get(self.mode, 3), self.mode


class Matrix:
    """All rows of one run."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Any, ...], Row] = {}

    def report(self, report: pytest.TestReport) -> None:
        """Take the outcome of one phase of a test."""
        rows: list[Any] = [value for name, value in report.user_properties if name == "row"]
        for value in rows:
            self._outcome(self._rows.setdefault(tuple(value), Row(*value)), report)

    @staticmethod
    def _outcome(row: Row, report: pytest.TestReport) -> None:
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            row.skipped.append(reason.removeprefix("Skipped: "))
        elif report.failed:
            text = str(getattr(getattr(report.longrepr, "reprcrash", None), "message", report.longrepr))
            row.failed.append(text.splitlines()[0][:200] if text else str(report.when))
        elif report.when == "call":
            row.passed.append(report.nodeid)
            row.notes += [str(value) for name, value in report.user_properties if name == "seen"]

    @property
    def rows(self) -> list[Row]:
        """In the order of the checklist."""
        return sorted(self._rows.values(), key=Row.order)

    def counts(self) -> dict[str, int]:
        """Rows by state."""
        states = [row.state for row in self._rows.values()]
        return {state: states.count(state) for state in (GREEN, RED, NOT_RUN)}

    def text(self) -> str:
        """The table for a terminal."""
        return "\n".join(" | ".join(row.cells()) for row in self.rows)

    def markdown(self) -> str:
        """The page of the documentation."""
        counts = self.counts()
        lines = [
            "<!-- Generated by `make interop` from the tests in tests/interop. -->",
            "# Interop matrix",
            "",
            "What was tested beside the real EdgeVPN: one row for each line of the checklist, version and ownership mode.",
            "`a/b` as a mode: EdgeVPN runs with `a`, ours with `b`. v0.30.2 knows no ownership, so there the mode is ours.",
            "What it means for a network in the field is in [beside EdgeVPN](../explanation/beside-edgevpn.md).",
            "",
            f"{counts[GREEN]} rows green, {counts[RED]} red, {counts[NOT_RUN]} not run.",
            "",
            "| line | version | mode | expected | seen | |",
            "|---|---|---|---|---|---|",
        ]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells()) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> str:
        """Write the page when every row ran; returns what was done, in words."""
        if missing := self.counts()[NOT_RUN]:
            return f"{path} is not written: {missing} rows did not run"
        path.write_text(self.markdown())
        return f"{path} is written"
