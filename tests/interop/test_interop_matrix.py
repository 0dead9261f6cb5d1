"""The matrix itself: what makes a row green, and that the committed page has every row of the checklist."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.interop.cells import CELLS
from tests.interop.matrix import LINES, Matrix

PAGE = Path(__file__).parents[2] / "docs/reference/interop-matrix.md"
ROW = (5, "v0.35.4", "enforce", "accepted")


def report(nodeid: str, outcome: str, *, when: str = "call", row: tuple[Any, ...] = ROW, seen: str = "") -> Any:
    longrepr = {"failed": "AssertionError: lost\nmore", "skipped": ("file", 1, "Skipped: no program")}.get(outcome)
    properties = [("row", row), *([("seen", seen)] if seen else [])]
    return SimpleNamespace(
        nodeid=nodeid,
        when=when,
        user_properties=properties,
        longrepr=longrepr,
        skipped=outcome == "skipped",
        failed=outcome == "failed",
        passed=outcome == "passed",
    )


def state(*reports: Any) -> tuple[str, str]:
    matrix = Matrix()
    for each in reports:
        matrix.report(each)
    (row,) = matrix.rows
    return row.state, row.seen


def test_a_row_is_green_when_all_its_tests_passed():
    assert state(report("a", "passed"), report("b", "passed")) == ("green", "as expected")
    assert state(report("a", "passed", seen="2 ms"), report("b", "passed", seen="3 ms")) == ("green", "2 ms; 3 ms")


@pytest.mark.parametrize("when", ["setup", "call", "teardown"])
def test_one_failure_in_any_phase_makes_it_red(when: str):
    assert state(report("a", "passed"), report("b", "failed", when=when)) == ("RED", "AssertionError: lost")


def test_a_row_of_which_a_part_did_not_run_did_not_run():
    assert state(report("a", "passed"), report("b", "skipped", when="setup")) == ("not run", "no program")


def test_setup_alone_is_no_pass():
    assert state(report("a", "passed", when="setup")) == ("not run", "as expected")


def test_the_page_is_written_only_when_every_row_ran(tmp_path: Path):
    matrix, page = Matrix(), tmp_path / "page.md"
    matrix.report(report("a", "passed"))
    matrix.report(report("b", "skipped", row=("dns", "v0.30.2", "-", "answers")))
    assert "1 rows did not run" in matrix.write(page)
    assert not page.exists()
    matrix = Matrix()
    matrix.report(report("a", "passed", seen="a | b"))
    assert "is written" in matrix.write(page)
    assert "| 5 our block is accepted | v0.35.4 | enforce | accepted | a \\| b | green |" in page.read_text()


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| line")]
    return [re.split(r"(?<!\\)\|", line.strip("| \n")) for line in lines]


def test_the_committed_page_is_all_green():
    states = [row[-1].strip() for row in rows()]
    assert set(states) == {"green"}
    assert f"{len(states)} rows green, 0 red, 0 not run." in PAGE.read_text()


@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("line", LINES)
def test_the_committed_page_has_every_line_for_every_version_and_mode(line: int, cell: Any):
    assert any(
        row[0].strip().startswith(f"{line} ") and (row[1].strip(), row[2].strip()) == (cell.version, cell.mode)
        for row in rows()
    )
