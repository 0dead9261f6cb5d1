from __future__ import annotations

import os
import subprocess

import pytest

from provider_kairos.errors import HostError, LocalError, TimeoutHostError
from provider_kairos.system.files import parse_env
from provider_kairos.system.init import OpenRC, Systemd, detect, quote_exec


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        (["usr/bin/systemctl"], Systemd),
        (["sbin/openrc"], OpenRC),
        (["usr/bin/openrc", "run/systemd/system"], Systemd),
    ],
)
def test_detect(tmp_path, signs, expected):
    for sign in signs:
        touch(tmp_path / sign)
    assert type(detect(tmp_path)) is expected


def test_detect_nothing(tmp_path):
    with pytest.raises(HostError, match="neither systemd nor OpenRC"):
        detect(tmp_path)


def unquote(line: str) -> list[str]:
    """systemd's reading of a command line: words, C escapes, then ``%%`` and ``$$``."""
    words: list[str] = []
    position = 0
    while position < len(line):
        if line[position] == " ":
            position += 1
            continue
        word = ""
        if line[position] == '"':
            position += 1
            while line[position] != '"':
                if line[position] == "\\":
                    position += 1
                    word += {"n": "\n", "r": "\r", "t": "\t"}.get(line[position], line[position])
                else:
                    word += line[position]
                position += 1
            position += 1
        else:
            while position < len(line) and line[position] != " ":
                assert line[position] not in "\"'\\;"
                word += line[position]
                position += 1
        specifiers = word.replace("%%", "\0")
        assert "%" not in specifiers
        variables = specifiers.replace("\0", "%").replace("$$", "\0")
        assert "$" not in variables
        words.append(variables.replace("\0", "$"))
    return words


AWKWARD = [
    "/usr/bin/k3s",
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


def test_exec_words_survive():
    line = quote_exec(AWKWARD)
    assert "\n" not in line
    assert unquote(line) == AWKWARD


def test_plain_words_stay_readable():
    assert quote_exec(["/usr/bin/k3s", "server", "--node-ip=10.1.0.5"]) == "/usr/bin/k3s server --node-ip=10.1.0.5"


@pytest.mark.parametrize("argv", [[], ["k3s"], ["/usr/bin/my k3s"], ["/opt/$x"], ["/bin/true", "a\0b"]])
def test_exec_refuses_what_cannot_be_written(argv):
    with pytest.raises(LocalError):
        quote_exec(argv)


def test_systemd_analyze_agrees(tmp_path):
    """Where systemd itself is here, it must accept the drop-in."""
    system = Systemd(tmp_path)
    system.write_unit("k3s", "[Service]\nExecStart=/bin/true\n")
    system.write_override("k3s", ["/bin/echo", *AWKWARD[1:]])
    probe = subprocess.run(["sh", "-c", "command -v systemd-analyze"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("systemd-analyze is not installed: systemd did not judge the drop-in")
    unit = system.unit_path("k3s")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "override.conf" not in done.stderr


def test_systemd_override(tmp_path):
    system = Systemd(tmp_path)
    env = tmp_path / "etc/sysconfig/k3s"
    assert system.write_override("k3s", AWKWARD, environment={"K3S_TOKEN": "a$b!"}) is True
    path = tmp_path / "etc/systemd/system/k3s.service.d/override.conf"
    lines = path.read_text().splitlines()
    assert lines[0] == "[Service]"
    assert lines[-2] == "ExecStart="
    assert unquote(lines[-1].removeprefix("ExecStart=")) == AWKWARD
    assert f"EnvironmentFile=-{env}" in lines
    assert "Restart=always" in lines
    assert path.stat().st_mode & 0o777 == 0o600
    assert parse_env(env.read_text()) == {"K3S_TOKEN": "a$b!"}
    assert env.stat().st_mode & 0o777 == 0o600
    assert system.write_override("k3s", AWKWARD, environment={"K3S_TOKEN": "a$b!"}) is False, "nothing changed"
    assert system.write_override("k3s", AWKWARD, environment={"K3S_TOKEN": "new"}) is True
    assert system.write_override("k3s", [*AWKWARD, "x"], environment={"K3S_TOKEN": "new"}) is True


def test_openrc_override_survives_the_scripts_eval(tmp_path):
    system = OpenRC(tmp_path)
    argv = [*AWKWARD[:-2], "--token=p!s*s~#"]
    assert system.write_override("k3s-agent", argv, environment={"K3S_TOKEN": "a$b!"}) is True
    assert system.write_override("k3s-agent", argv, environment={"K3S_TOKEN": "a$b!"}) is False
    path = tmp_path / "etc/rancher/k3s/k3s-agent.env"
    assert path.stat().st_mode & 0o777 == 0o600
    # what the service script does: source the file, eval the arguments (here towards a program that prints them)
    script = '. "$1"; eval "printf \'%s\\0\' ${command_args%>>*}"'
    out = subprocess.run(
        ["sh", "-c", script, "sh", path], capture_output=True, check=True, env={"PATH": os.environ["PATH"]}
    ).stdout
    assert out.decode().split("\0")[:-1] == argv[1:]
    assert parse_env(path.read_text())["command_args"].endswith(">>/var/log/k3s-agent.log 2>&1")


def test_openrc_paths(tmp_path):
    system = OpenRC(tmp_path)
    assert system.env_file("k0scontroller") == tmp_path / "etc/k0s/k0scontroller.env"
    assert system.env_file("edgevpn@kairos") == tmp_path / "etc/rancher/k3s/edgevpn.env"
    assert system.write_unit("edgevpn@kairos", "#!/sbin/openrc-run\n") is True
    assert (tmp_path / "etc/init.d/edgevpn").stat().st_mode & 0o777 == 0o755
    system.enable("edgevpn@kairos")
    system.enable("edgevpn@kairos")
    link = tmp_path / "etc/runlevels/default/edgevpn"
    assert str(link.readlink()) == "/etc/init.d/edgevpn"
    system.disable("edgevpn@kairos")
    system.disable("edgevpn@kairos")
    assert not link.is_symlink()


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A ``systemctl`` that writes down its arguments and does what the test says."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(body: str):
        path = folder / "systemctl"
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{tmp_path}/calls\n{body}\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return lambda: (tmp_path / "calls").read_text().splitlines()

    return make


def test_systemctl_calls(tmp_path, programs):
    calls = programs("exit 0")
    system = Systemd(tmp_path)
    system.daemon_reload()
    system.start("k3s")
    system.restart("edgevpn@kairos.service")
    system.enable("k3s")
    system.stop("k3s")
    system.disable("k3s")
    assert system.is_active("k3s") is True
    assert calls() == [
        "daemon-reload",
        "start --no-block k3s.service",
        "restart --no-block edgevpn@kairos.service",
        "enable --no-block k3s.service",
        "stop k3s.service",
        "disable --no-block k3s.service",
        "is-active --quiet k3s.service",
    ]


def test_systemctl_failure_is_told_in_its_own_words(tmp_path, programs):
    programs("echo 'Unit k3s.service not found.' >&2; exit 5")
    system = Systemd(tmp_path)
    with pytest.raises(
        HostError, match=r"systemctl start --no-block k3s.service ended with status 5: Unit k3s.service not found"
    ):
        system.start("k3s")
    assert system.is_active("k3s") is False


def test_systemctl_that_hangs(tmp_path, programs, monkeypatch):
    programs("exec sleep 30")
    monkeypatch.setattr(Systemd, "timeout", 0.2)
    with pytest.raises(TimeoutHostError):
        Systemd(tmp_path).daemon_reload()


def test_missing_tools(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="systemctl is not on this machine"):
        Systemd(tmp_path).daemon_reload()


@pytest.mark.parametrize("name", ["../../etc/passwd", "a b", "", ".hidden", "a/b"])
def test_names_cannot_leave_the_directory(tmp_path, name):
    with pytest.raises(LocalError):
        Systemd(tmp_path).write_unit(name, "")
