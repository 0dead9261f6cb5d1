from __future__ import annotations

import os

import pytest

from provider_kairos.errors import HostError, LocalError, TimeoutHostError
from provider_kairos.system.init import OpenRC, Systemd, detect


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


def test_a_unit_is_written_when_it_differs(tmp_path):
    system = Systemd(tmp_path)
    assert system.write_unit("k3s", "[Service]\n") is True
    path = tmp_path / "etc/systemd/system/k3s.service"
    assert path.read_text() == "[Service]\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert system.write_unit("k3s", "[Service]\n") is False, "nothing changed"
    path.chmod(0o600)
    assert system.write_unit("k3s", "[Service]\n") is True, "the mode counts"
    assert system.write_unit("k3s", "[Unit]\n") is True


def test_openrc_paths(tmp_path):
    system = OpenRC(tmp_path)
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
