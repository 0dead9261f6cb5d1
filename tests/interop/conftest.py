"""Fixtures for runs beside the real EdgeVPN, and the matrix that these tests make.

Nodes and networks are ``network.py``'s, rows and their table ``matrix.py``'s. The table is printed at the end of every
run that has rows, and written to the file that KAIROS_P2P_INTEROP_MATRIX names (``make interop`` does) when all ran.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.matrix import Matrix, mark
from tests.interop.network import NEW, OLD, PROGRAMS, Site, cannot
from tests.net.conftest import _cannot as cannot_make_namespaces
from tests.net.conftest import namespaces

_matrix = Matrix()
_figures: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(line, expected, mode, version, expected_by): a row of the interop matrix")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark(item)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _matrix.report(report)
    _figures.extend(str(value) for name, value in report.user_properties if name == "figure" and report.when == "call")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the matrix and what was measured, and loudly what did not run."""
    for version in PROGRAMS:
        if reason := cannot(version):
            terminalreporter.section(f"EdgeVPN {version}", sep="!")
            terminalreporter.write_line(reason)
    if not _matrix.rows:
        return
    counts = _matrix.counts()
    terminalreporter.section("interop matrix: " + ", ".join(f"{number} {state}" for state, number in counts.items()))
    if counts["green"] or counts["RED"]:
        terminalreporter.write_line(_matrix.text())
    if counts["not run"]:
        terminalreporter.section(f"{counts['not run']} rows of the interop matrix did NOT run", sep="!")
    if path := os.environ.get("KAIROS_P2P_INTEROP_MATRIX"):
        terminalreporter.write_line(_matrix.write(Path(path)))
    if _figures:
        terminalreporter.section("beside EdgeVPN (figures, not asserted)")
        for line in _figures:
            terminalreporter.write_line(line)


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``seen("text")``: what the table shows in the rows of this test."""
    return lambda text: request.node.user_properties.append(("seen", text))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``figure("text")``: a line for the end of the run. Nothing is asserted of it."""
    return lambda text: request.node.user_properties.append(("figure", text))


def _needs(version: str) -> None:
    if reason := cannot(version):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def edgevpn_bin() -> str:
    """EdgeVPN v0.35.4; a skip that says so when there is none."""
    _needs(NEW)
    return os.environ[PROGRAMS[NEW]]


@pytest.fixture(scope="session")
def edgevpn_old_bin() -> str:
    """EdgeVPN v0.30.2; likewise."""
    _needs(OLD)
    return os.environ[PROGRAMS[OLD]]


MakeSite = Callable[..., Site]


def _sites(root: Path) -> Iterator[MakeSite]:
    made: list[Site] = []
    with namespaces() as make:

        def build(go: int, ours: int, **options: Any) -> Site:
            if go:
                _needs(str(options.get("version", NEW)))
            elif reason := cannot_make_namespaces():
                pytest.skip(reason)
            made.append(Site(make, root / f"site{len(made)}", go, ours, **options))
            return made[-1]

        yield build


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[MakeSite]:
    """``make_site(go, ours, interval=..., version=..., address=...)`` → a network that is not started yet."""
    yield from _sites(tmp_path)


@pytest.fixture(scope="module")
def make_lasting_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSite]:
    """The same for networks that run beside all tests of a module."""
    yield from _sites(tmp_path_factory.mktemp("lasting"))
