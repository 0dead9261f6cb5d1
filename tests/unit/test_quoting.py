"""What env files and command lines may hold, what is refused and with which words; texts that others wrote."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from provider_kairos.errors import ConfigError, LocalError
from provider_kairos.quoting import openrc_command_args, parse_env_file, systemd_env_file, systemd_exec

AWKWARD = {
    "PLAIN": "600",
    "LEADING": "0600",
    "BANG": "p!ss",
    "DOLLAR": "$HOME ${HOME} $(id) `id`",
    "PERCENT": "100%i",
    "QUOTES": "'single' \"double\" \\back\\slash\\",
    "LINES": "one\ntwo\nthree\n",
    "SPACES": "  both sides  ",
    "TAB": "a\tb",
    "EMPTY": "",
    "HASH": "#no comment; really",
    "UNICODE": "Grüße 🦭",
    "BACKSLASH_BANG": "\\!",
}
ARGUMENTS = [
    "server",
    "--a=%i %n %%",
    "--b=$HOME ${X} $$",
    "--c=two words",
    "",
    ";",
    "'",
    '"',
    "\\",
    "a\nb\tc\r",
    "--token=p!s*s~#",
]


def test_an_env_file_is_sorted_and_always_quoted():
    assert systemd_env_file({"B": "$x", "A": "1"}) == 'A="1"\nB="\\$x"\n'
    assert systemd_env_file({}) == ""


def test_awkward_values_read_back_by_systemds_rules():
    assert parse_env_file(systemd_env_file(AWKWARD)) == AWKWARD


def test_awkward_values_are_exported_by_a_shell(tmp_path):
    (tmp_path / "env").write_text(systemd_env_file(AWKWARD), encoding="utf-8")
    script = 'set -a; . "$1"; env -0'
    out = subprocess.run(
        ["sh", "-c", script, "sh", tmp_path / "env"], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True
    ).stdout
    seen = dict(item.split("=", 1) for item in out.decode().split("\0") if item)
    assert {name: seen[name] for name in AWKWARD} == AWKWARD


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A\nB", "A\n", "Ä"])
def test_names_that_are_no_variable_are_refused(name):
    with pytest.raises(ConfigError, match="is no name of an environment variable") as caught:
        systemd_env_file({name: "secret"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("sign", ["\0", "\ud800", "\x01", "\r", "\x1b", "\x7f"])
def test_values_that_systemd_would_ignore_are_refused_without_showing_them(sign):
    with pytest.raises(ConfigError, match="value of TOKEN contains a control character") as caught:
        systemd_env_file({"TOKEN": f"se{sign}cret"})
    assert "cret" not in str(caught.value)
    assert "cret" not in repr(caught.value)


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
        ("A='a\r\nb'\n", {"A": "a\r\nb"}),
    ],
)
def test_lines_as_systemd_reads_them(text, expected):
    assert parse_env_file(text) == expected


def test_env_files_of_others_are_read():
    text = (
        '# c\nK3S_URL=https://10.1.0.1:6443\nA=\'x $y\'  \nB="x \\" y"\n C = plain text  \nD=a\\\n b\nE=\nF=\'a\'"b"c\n'
    )
    assert parse_env_file(text) == {
        "K3S_URL": "https://10.1.0.1:6443",
        "A": "x $y",
        "B": 'x " y',
        "C": "plain text",
        "D": "a b",
        "E": "",
        "F": "abc",
    }


def test_plain_words_stay_readable():
    assert systemd_exec(["/usr/bin/k3s", "server", "--node-ip=10.1.0.5"]) == "/usr/bin/k3s server --node-ip=10.1.0.5"


@pytest.mark.parametrize(
    "argv",
    [[], ["k3s"], [""], ["/usr/bin/my k3s"], ["-/usr/bin/k3s"], ["/usr/%h"], ["/opt/$x"], ["/a$b"], ["/bin/a\n"]],
)
def test_only_absolute_plain_paths_are_started(argv):
    with pytest.raises(LocalError, match="no absolute path that a unit can start"):
        systemd_exec(argv)


@pytest.mark.parametrize("sign", ["\0", "\ud800"])
def test_arguments_that_no_command_line_holds_are_not_shown(sign):
    for write in (lambda word: systemd_exec(["/bin/true", word]), lambda word: openrc_command_args([word], "/log")):
        with pytest.raises(LocalError, match="that no command line can hold") as caught:
            write(f"se{sign}cret")
        assert "cret" not in str(caught.value)


def test_openrc_arguments_survive_the_file_and_the_scripts_eval(tmp_path):
    arguments = [word for word in ARGUMENTS if "\r" not in word]
    path = tmp_path / "k3s.env"
    path.write_text(systemd_env_file({"K3S_TOKEN": "a$b!"}) + openrc_command_args(arguments, "/var/log/k3s.log"))
    # what the service script does: source the file, eval the arguments (here towards a program that prints them)
    script = '. "$1"; eval "printf \'%s\\0\' ${command_args%>>*}"'
    out = subprocess.run(
        ["sh", "-c", script, "sh", path], capture_output=True, check=True, env={"PATH": os.environ["PATH"]}
    ).stdout
    assert out.decode().split("\0")[:-1] == arguments
    variables = parse_env_file(path.read_text())
    assert variables["K3S_TOKEN"] == "a$b!"
    assert variables["command_args"].endswith(">>/var/log/k3s.log 2>&1")


def verify(folder, command: str) -> str:
    """What systemd has to say about a unit and the drop-in that replaces its command."""
    unit = folder / "kairos-quoting.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    (folder / "kairos-quoting.service.d").mkdir(exist_ok=True)
    (folder / "kairos-quoting.service.d/override.conf").write_text(f"[Service]\nExecStart=\nExecStart={command}\n")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    return done.stderr


def test_systemd_analyze_agrees(tmp_path):
    """Where systemd itself is here, it must accept the command line; a wrong one shows that it looked."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed: systemd did not judge the command line")
    assert "override.conf" in verify(tmp_path, '/bin/echo "open')
    assert "override.conf" not in verify(tmp_path, systemd_exec(["/bin/echo", *ARGUMENTS]))
