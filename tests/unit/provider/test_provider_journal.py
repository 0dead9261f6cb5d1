"""Where the provider's log goes (spec/provider.md 1.9)."""

from __future__ import annotations

import logging
import socket

import pytest

from provider_kairos.provider import journal
from provider_kairos.provider.status import process_age


@pytest.fixture(autouse=True)
def _restore():
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("provider_kairos").level
    yield
    for handler in root.handlers[:]:
        if handler not in before[0]:
            handler.close()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.getLogger("provider_kairos").setLevel(before[2])


def test_to_the_journal_as_kairos_provider(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        journal.set_up(logging.INFO, journal=path, file=tmp_path / "log")
        logging.getLogger("provider_kairos.x").info("Configuring k3s")
        logging.getLogger("provider_kairos.x").warning("two\nlines")
        first, second = server.recv(4096), server.recv(4096)
    assert b"MESSAGE=Configuring k3s\n" in first
    assert b"SYSLOG_IDENTIFIER=kairos-provider\n" in first
    assert b"PRIORITY=6\n" in first
    assert b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n" in second
    assert not (tmp_path / "log").exists()


def test_a_journal_that_went_away_loses_lines_and_nothing_else(tmp_path):
    path = tmp_path / "socket"
    path.touch()
    journal.set_up(logging.INFO, journal=path, file=tmp_path / "log")
    logging.getLogger("provider_kairos.x").info("into the void")
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, journal.JournalHandler)
    assert handler.lost == 1


def test_to_a_private_file_without_a_journal(tmp_path):
    file = tmp_path / "kairos" / "provider.log"
    journal.set_up(logging.INFO, journal=tmp_path / "none", file=file)
    logging.getLogger("provider_kairos.x").info("hello")
    assert file.read_text().endswith("INFO hello\n")
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "environ", "level"),
    [
        ("", {}, logging.DEBUG),
        ("info", {}, logging.INFO),
        ("WARN", {}, logging.WARNING),
        ("nonsense", {}, logging.DEBUG),
        ("error", {"PROVIDER_DEBUG": "1"}, logging.DEBUG),
    ],
)
def test_levels(text, environ, level):
    assert journal.level_of(text, environ) == level


def test_age_of_this_process():
    assert 0 < process_age() < 86400
