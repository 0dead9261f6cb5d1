from __future__ import annotations

import os
import subprocess

import pytest

from provider_kairos.errors import ConfigError, HostError
from provider_kairos.system.files import parse_env, read_text, remove, render_env, write_atomic, write_env


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


AWKWARD = {
    "PLAIN": "600",
    "LEADING": "0600",
    "BANG": "p!ss",
    "DOLLAR": "$HOME ${HOME} $(id) `id`",
    "PERCENT": "100%i",
    "QUOTES": "'single' \"double\" \\back\\slash\\",
    "LINES": "one\ntwo\r\nthree\n",
    "SPACES": "  both sides  ",
    "EMPTY": "",
    "HASH": "#no comment; really",
    "UNICODE": "Grüße 🦭",
    "BACKSLASH_BANG": "\\!",
}


def test_env_reads_back_by_systemds_rules():
    assert parse_env(render_env(AWKWARD)) == AWKWARD


def test_env_reads_back_in_a_shell(tmp_path):
    write_env(tmp_path / "env", AWKWARD)
    script = 'set -a; . "$1"; env -0'
    out = subprocess.run(
        ["sh", "-c", script, "sh", tmp_path / "env"], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True
    ).stdout
    seen = dict(item.split("=", 1) for item in out.decode().split("\0") if item)
    assert {name: seen[name] for name in AWKWARD} == AWKWARD


def test_env_is_rewritten_whole_and_private(tmp_path):
    write_env(tmp_path / "env", {"OLD": "1", "KEPT": "1"})
    write_env(tmp_path / "env", {"KEPT": "2"})
    assert (tmp_path / "env").read_text() == 'KEPT="2"\n'
    assert (tmp_path / "env").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A\nB", "Ä"])
def test_env_refuses_names(name):
    with pytest.raises(ConfigError, match="is not a name"):
        render_env({name: "x"})


@pytest.mark.parametrize("value", ["se\0cret", "se\ud800cret"])
def test_env_refuses_values_without_showing_them(value):
    with pytest.raises(ConfigError) as caught:
        render_env({"TOKEN": value})
    assert "TOKEN" in str(caught.value)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=b c \n", {"A": "b c"}),
        ("  A = b\n", {"A": "b"}),
        ("# A=1\n; B=2\nC=3", {"C": "3"}),
        ("A='it is $x \\n'\n", {"A": "it is $x \\n"}),
        ("A=\"x\"'y'z\n", {"A": "xyz"}),
        ("A=z'y'\n", {"A": "z'y'"}),
        ("A=one\\\ntwo\n", {"A": "onetwo"}),
        ('A="one\\\ntwo"\n', {"A": "onetwo"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("export A=1\nnonsense\n=x\n2B=1\nC=\n", {"C": ""}),
        ("# continued \\\nA=1\nB=2\n", {"B": "2"}),
        ('A="open', {"A": "open"}),
        ("A='open", {"A": "open"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
    ],
)
def test_parse_env(text, expected):
    assert parse_env(text) == expected
