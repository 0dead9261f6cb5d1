"""The interop matrix: rows that are tests (spec/edgevpn.md 16).

A test says with a marker which row it is, and with the fixture ``seen`` what it saw::

    @pytest.mark.row(7, "packets both ways")
    @pytest.mark.row("lease", "no address twice", version="v0.35.4", mode="enforce")
    def test_packets(mode, version, seen): ...
        seen("0.4 ms")

``line`` is a line of the checklist (1 to 10) or a word for what it does not list. ``mode`` and ``version`` are taken
from the test's parameters of these names, or from a parameter ``cell`` that has both, when the marker does not say
them; ``expected_by={(mode, version): text}`` says what is expected otherwise in one cell. A row is green when all its
tests passed. Nothing is written twice: the table at the end of a run and ``docs/reference/interop-matrix.md`` come
from the markers and the outcomes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

__all__ = ["LINES", "Matrix", "Row"]

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


@dataclass
class Row:
    """One line in one mode and version, with what its tests said."""

    line: int | str
    mode: str
    version: str
    expected: str
    tests: list[str] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        if self.failed:
            return RED
        return GREEN if self.passed and len(self.passed) + len(self.skipped) == len(self.tests) else NOT_RUN

    @property
    def seen(self) -> str:
        """What was seen, or why nothing was."""
        if self.failed:
            return "; ".join(dict.fromkeys(self.failed.values()))
        if not self.passed:
            return "; ".join(dict.fromkeys(self.skipped.values())) or "-"
        return "; ".join(dict.fromkeys(self.notes)) or "as expected"

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """One line of the table."""
        title = f"{self.line} {LINES[self.line]}" if isinstance(self.line, int) else self.line
        return title, self.version, self.mode, self.expected, self.seen, self.state


class Matrix:
    """All rows of one run, in the order of the checklist."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Any, ...], Row] = {}
        self._of_test: dict[str, list[Row]] = {}

    def collect(self, items: Iterable[pytest.Item]) -> None:
        """Make a row of every marker."""
        for item in items:
            for marker in item.iter_markers("row"):
                row = self._row(item, *marker.args, **marker.kwargs)
                row.tests.append(item.nodeid)
                self._of_test.setdefault(item.nodeid, []).append(row)

    def _row(
        self,
        item: pytest.Item,
        line: int | str,
        expected: str,
        *,
        mode: str = "",
        version: str = "",
        expected_by: dict[tuple[str, str], str] | None = None,
    ) -> Row:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        cell = given.get("cell")
        mode = mode or str(given.get("mode", "") or getattr(cell, "mode", "-"))
        version = version or str(given.get("version", "") or getattr(cell, "version", "-"))
        assert not isinstance(line, int) or line in LINES, f"{item.nodeid}: the checklist has no line {line}"
        expected = (expected_by or {}).get((mode, version), expected)
        return self._rows.setdefault((line, version, mode, expected), Row(line, mode, version, expected))

    def note(self, nodeid: str, text: str) -> None:
        """A test says what it saw."""
        for row in self._of_test.get(nodeid, ()):
            row.notes.append(text)

    def report(self, report: pytest.TestReport) -> None:
        """Take one outcome."""
        for row in self._of_test.get(report.nodeid, ()):
            if report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                row.skipped[report.nodeid] = reason.removeprefix("Skipped: ")
            elif report.failed:
                text = str(getattr(getattr(report.longrepr, "reprcrash", None), "message", report.longrepr))
                row.failed[report.nodeid] = text.splitlines()[0][:200] if text else report.when
            elif report.when == "call":
                row.passed.add(report.nodeid)

    @property
    def rows(self) -> list[Row]:
        """The checklist first, then words in alphabetical order; versions and modes as the tests have them."""
        order = {"enforce": 0, "observe": 1, "off": 2}

        def key(row: Row) -> tuple[Any, ...]:
            numbered = isinstance(row.line, int)
            line = (0, row.line, "") if numbered else (1, 0, str(row.line))
            return *line, row.version == "v0.30.2", row.version, order.get(row.mode.split()[0], 3), row.mode

        return sorted(self._rows.values(), key=key)

    def counts(self) -> dict[str, int]:
        """Rows by state."""
        states = [row.state for row in self._rows.values()]
        return {state: states.count(state) for state in (GREEN, RED, NOT_RUN)}

    def text(self) -> str:
        """The table for a terminal."""
        lines = ["line | version | mode | expected | seen | "]
        lines += [" | ".join(row.cells()) for row in self.rows]
        return "\n".join(lines)

    def markdown(self) -> str:
        """The page of the documentation."""
        counts = self.counts()
        lines = [
            "<!-- Generated by `make interop` from the tests in tests/interop. -->",
            "# Interop matrix",
            "",
            "What was tested beside the real EdgeVPN: one row for each line of the checklist, version and ownership mode.",
            "`a/b` in the mode column: EdgeVPN runs with `a`, ours with `b`. v0.30.2 knows no ownership: the mode is ours.",
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
