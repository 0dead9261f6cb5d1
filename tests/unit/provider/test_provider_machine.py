"""The real machine below a temporary root: files, stages, hooks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from provider_kairos.errors import HostError
from provider_kairos.provider.machine import RealMachine


@pytest.fixture
def machine(tmp_path):
    return RealMachine(tmp_path)


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_write_says_whether_it_changed_anything(machine, tmp_path):
    assert machine.write("/etc/a/b", "text", 0o600)
    assert not machine.write("/etc/a/b", "text", 0o600)
    assert machine.write("/etc/a/b", "text", 0o644)
    assert machine.write("/etc/a/b", "other", 0o644)
    assert (tmp_path / "etc/a/b").stat().st_mode & 0o777 == 0o644
    assert machine.read("/etc/a/b") == "other"


def test_files_that_are_not_there(machine):
    assert machine.read("/nothing") is None
    assert not machine.exists("/nothing")
    assert machine.remove("/nothing") is False


def test_a_file_in_the_way_is_said(machine):
    machine.write("/etc", "a file", 0o600)
    with pytest.raises(HostError, match="cannot write"):
        machine.write("/etc/a", "text", 0o600)


def test_stages_run_through_the_agent_and_their_status_is_ignored(machine, tmp_path, monkeypatch, capfd):
    program(tmp_path / "bin/kairos-agent", f'echo "$@" >> {tmp_path}/ran; echo noise; exit 3')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    machine.run_stage("provider-kairos.bootstrap.before.master/ha")
    assert (tmp_path / "ran").read_text() == "run-stage provider-kairos.bootstrap.before.master/ha\n"
    assert capfd.readouterr() == ("", "")


def test_a_machine_without_the_agent_runs_no_stage(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    machine.run_stage("kairos-agent.bootstrap")


def test_hooks(machine, tmp_path):
    machine.run_hook("/usr/bin/hook")
    program(tmp_path / "usr/bin/hook", f"touch {tmp_path}/hooked")
    machine.run_hook("/usr/bin/hook")
    assert (tmp_path / "hooked").exists()


def test_a_hook_that_cannot_be_run_stops_nothing(machine, tmp_path):
    program(tmp_path / "hook", "exit 1")
    (tmp_path / "hook").write_bytes(b"\x7fnot a program")
    machine.run_hook("/hook")


def test_the_init_system_is_looked_for_when_it_is_needed(machine, tmp_path):
    with pytest.raises(HostError, match="neither systemd nor OpenRC"):
        machine.start("k3s")
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert not machine.openrc
    assert machine.write_unit("edgevpn@", "[Unit]\n")
    assert machine.read("/etc/systemd/system/edgevpn@.service") == "[Unit]\n"


def test_openrc_has_one_script_for_both_modes(machine, tmp_path):
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/openrc").touch()
    assert machine.openrc
    machine.write_unit("edgevpn@", "#!/sbin/openrc-run\n")
    assert machine.exists("/etc/init.d/edgevpn")
