from __future__ import annotations

import os

import pytest

from provider_kairos.errors import HostError
from provider_kairos.system.files import read_text, remove, write_atomic


def test_writes_whole_with_mode_and_makes_directories(tmp_path):
    path = tmp_path / "a" / "b" / "token"
    write_atomic(path, "secret", 0o600)
    assert path.read_text() == "secret"
    assert path.stat().st_mode & 0o777 == 0o600
    write_atomic(path, b"\x00\xff", 0o644)
    assert path.read_bytes() == b"\x00\xff"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["token"], "no temporary file stays behind"


def test_mode_does_not_depend_on_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "unit", "x", 0o644)
    finally:
        os.umask(before)
    assert (tmp_path / "unit").stat().st_mode & 0o777 == 0o644


def test_a_link_is_followed(tmp_path):
    (tmp_path / "persistent").mkdir()
    real = tmp_path / "persistent" / "file"
    (tmp_path / "link").symlink_to(real)
    write_atomic(tmp_path / "link", "x")
    assert real.read_text() == "x"
    assert (tmp_path / "link").is_symlink()


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match=r"cannot write .*No space left on device.*disk is full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(HostError, match=r"file stands where a directory should be|File exists"):
        write_atomic(tmp_path / "a" / "b", "x")


def test_read_text(tmp_path):
    assert read_text(tmp_path / "none") is None
    (tmp_path / "some").write_bytes(b"a\xffb")
    assert read_text(tmp_path / "some") == "a\ufffdb"
    with pytest.raises(HostError, match="larger than"):
        read_text(tmp_path / "some", limit=2)
    with pytest.raises(HostError, match="cannot read"):
        read_text(tmp_path)


def test_remove(tmp_path):
    (tmp_path / "x").write_text("")
    assert remove(tmp_path / "x") is True
    assert remove(tmp_path / "x") is False
