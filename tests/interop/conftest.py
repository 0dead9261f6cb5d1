"""Fixtures for runs beside the real EdgeVPN, and the matrix that these tests make.

Nodes and networks are :mod:`network`'s, rows and their table :mod:`matrix`'s. The table is printed at the end of every
run that has rows, and written to the file that KAIROS_P2P_INTEROP_MATRIX names (``make interop`` does) when all ran.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def _load(name: str) -> Any:
    """A module beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(f"interop_{name}", HERE / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


network = _load("network")
_matrix = _load("matrix").Matrix()
_figures: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(line, expected, mode, version, expected_by): a row of the interop matrix")


def pytest_collection_finish(session: pytest.Session) -> None:
    _matrix.collect(session.items)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _matrix.report(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the matrix and what was measured, and loudly what did not run."""
    for version in network.PROGRAMS:
        if reason := network.cannot(version):
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
    return lambda text: _matrix.note(request.node.nodeid, text)


@pytest.fixture(scope="session")
def figures() -> list[str]:
    """Lines for the end of the run. Nothing is asserted of them."""
    return _figures


def _needs(version: str) -> None:
    if reason := network.cannot(version):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def edgevpn_bin() -> str:
    """EdgeVPN v0.35.4; a skip that says so when there is none."""
    _needs(network.NEW)
    return os.environ[network.PROGRAMS[network.NEW]]


@pytest.fixture(scope="session")
def edgevpn_old_bin() -> str:
    """EdgeVPN v0.30.2; likewise."""
    _needs(network.OLD)
    return os.environ[network.PROGRAMS[network.OLD]]


MakeSite = Callable[..., Any]


def _sites(root: Path) -> Iterator[MakeSite]:
    made: list[Any] = []
    with network.spaces.namespaces() as make:

        def build(go: int, ours: int, **options: Any) -> Any:
            if go:
                _needs(options.get("version", network.NEW))
            elif reason := network.spaces._cannot():
                pytest.skip(reason)
            made.append(network.Site(make, root / f"site{len(made)}", go, ours, **options))
            return made[-1]

        yield build


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[MakeSite]:
    """``make_site(go, ours, interval=..., version=..., address=...)`` → a :class:`network.Site`, not started yet."""
    yield from _sites(tmp_path)


@pytest.fixture(scope="module")
def make_lasting_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSite]:
    """The same for networks that run beside all tests of a module."""
    yield from _sites(tmp_path_factory.mktemp("lasting"))
