"""What people and programs get from the lab: settings, progress, tables, documents, refusals; layers and ping."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from provider_kairos.errors import ConfigError, ExitCode, HostError, NotFoundError, PermissionHostError
from provider_kairos.lab import client, place, up
from provider_kairos.lab.cli import app
from provider_kairos.lab.image import image_files, image_links, wrapper
from provider_kairos.lab.logs import log_files
from provider_kairos.lab.model import BoxSpec, LabError, LabSettings, box_number
from provider_kairos.lab.nodes import KubeApi, heartbeats, summarize
from provider_kairos.lab.ping import Statistics, checksum, echo_request, parse_reply
from provider_kairos.lab.place import Place
from provider_kairos.lab.report import box_table, node_table, status_document, up_document
from provider_kairos.lab.rootfs import Layers
from provider_kairos.lab.up import Progress, config_files, foreign_daemons, settings_for


def box(name: str = "box1", **changes):
    phases = {"booted": 0.2, "daemon": 1.0, "address": 3.0, "role": 4.0, "k3s": 5.0, "ready": 9.0}
    made = {
        "name": name,
        "state": "running",
        "role": "master",
        "address": "10.1.0.7",
        "uuid": "abc-box1",
        "seconds_to_address": 3.0,
        "seconds_to_role": 4.0,
        "seconds_to_ready": 9.0,
        "lan_address": "192.168.240.11",
        "hostname": name,
        "node": name,
        "boots": 1,
        "pid": 4,
        "phases": phases,
        "services": {},
        "waiting": [],
    }
    return made | changes


def lab_status(*boxes, nodes=()):
    cluster = {"distribution": "k3s stand-in", "version": "v1.34.3+k3s1-standin", "nodes": list(nodes)}
    made = list(boxes)
    return {"name": "lab", "rootless": False, "complete": True, "seconds": 9.5, "boxes": made, "cluster": cluster}


NODE = {"name": "box1", "ready": True, "roles": "control-plane", "address": "10.1.0.7", "version": "v1.34.3"}


def test_the_json_document_has_the_promised_shape():
    document = up_document(lab_status(box(), box("box2"), nodes=[NODE]))
    assert set(document["boxes"][0]) == {
        "name",
        "role",
        "address",
        "uuid",
        "seconds_to_address",
        "seconds_to_role",
        "seconds_to_ready",
    }
    assert document["cluster"]["distribution"] == "k3s stand-in"
    assert document["cluster"]["nodes"] == [NODE]
    assert document["seconds"] == 9.5
    assert status_document(lab_status(box()))["boxes"][0]["state"] == "running"


def test_tables():
    waiting = box("box2", role="", address="", seconds_to_address=None, seconds_to_role=None, seconds_to_ready=None)
    lines = box_table(lab_status(box(), waiting))
    assert lines[0].split() == ["BOX", "ROLE", "VIRTUAL", "IP", "TO", "ADDRESS", "TO", "ROLE", "TO", "READY", "STATE"]
    assert lines[1].split() == ["box1", "master", "10.1.0.7", "3.0", "4.0", "9.0", "running"]
    assert lines[2].split() == ["box2", "-", "-", "-", "-", "-", "running"]
    nodes = node_table(lab_status(box(), nodes=[NODE]))
    assert "k3s stand-in" in nodes[0]
    assert nodes[2].split() == ["box1", "Ready", "control-plane", "10.1.0.7", "v1.34.3"]
    assert node_table(lab_status(box()))[1] == "none yet"


def test_progress_says_every_phase_once_and_reasons_when_they_change():
    said: list[str] = []
    progress = Progress(said.append)
    early = box(phases={"booted": 0.2, "daemon": None, "address": None, "role": None, "k3s": None, "ready": None})
    early |= {"seconds_to_ready": None, "waiting": [{"code": "peers", "text": "1 more node"}]}
    progress.show(lab_status(early))
    progress.show(lab_status(early))
    assert [" ".join(line.split()) for line in said] == ["0.2 s box1 booted", "box1 waits: 1 more node"]
    progress.show(lab_status(box()))
    assert [" ".join(line.split()[2:]) for line in said[2:]] == [
        "box1 daemon answers",
        "box1 address 10.1.0.7",
        "box1 role master",
        "box1 k3s started",
        "box1 Ready",
    ]


def test_what_is_still_missing_is_said_per_box(monkeypatch):
    late = box(
        "box2",
        uuid="def-box2",
        phases=box()["phases"] | {"role": None, "k3s": None, "ready": None},
        seconds_to_ready=None,
    )
    monkeypatch.setattr(up, "_from_box", lambda place, name: [{"code": "peers", "text": "1 more node than abc-box1"}])
    lines = up.still_waiting(Place("lab"), lab_status(box(), late))
    assert lines == ["box2 (running) has not reached 'role': 1 more node than box1"]


def test_a_generated_config_holds_one_token_and_a_lone_box_waits_for_nobody():
    from provider_kairos.token import codec

    first = yaml.safe_load(config_files(None, 3)[up.CONFIG_PATH])
    assert set(first) == {"p2p"}
    assert set(first["p2p"]) == {"network_token", "disable_dht"}
    codec.decode(first["p2p"]["network_token"])
    assert yaml.safe_load(config_files(None, 1)[up.CONFIG_PATH])["p2p"]["minimum_nodes"] == 1
    assert "minimum_nodes" not in config_files(None, 1, as_is=True)[up.CONFIG_PATH]


def test_the_user_s_config_is_laid_as_it_is(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("#cloud-config\np2p: {network_id: one}\n", "utf-8")
    assert config_files(config, 3) == {up.CONFIG_PATH: config.read_text("utf-8")}
    lone = config_files(config, 1)
    assert lone[up.CONFIG_PATH] == config.read_text("utf-8")
    assert yaml.safe_load(lone[up.EXTRA_PATH]) == {"p2p": {"minimum_nodes": 1}}
    with pytest.raises(ConfigError, match="cannot be read"):
        config_files(tmp_path / "none", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p2p: {network_id: one}\n", "no #cloud-config"),
        ("#cloud-config\np2p: [\n", r"c\.yaml:\d+:\d+"),
        ("#cloud-config\np2p:\n  network_token: T\n", r"c\.yaml:3:\d+: network token"),
    ],
)
def test_a_broken_config_is_refused_before_a_box_boots(tmp_path, text, message):
    config = tmp_path / "c.yaml"
    config.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=message):
        config_files(config, 3)
    assert config_files(config, 3, as_is=True) == {up.CONFIG_PATH: text}


def test_k3s_comes_from_the_option_then_the_environment(monkeypatch, tmp_path):
    def chosen(k3s: str) -> str:
        return settings_for(name="lab", boxes=1, config=None, k3s=k3s, agent_api="").k3s

    monkeypatch.delenv("K3S_BIN", raising=False)
    assert chosen("") == ""
    monkeypatch.setenv("K3S_BIN", str(tmp_path / "env"))
    assert chosen("") == str(tmp_path / "env")
    assert chosen(str(tmp_path / "option")) == str(tmp_path / "option")


def test_secrets_are_not_in_the_repr_of_settings():
    settings = LabSettings(files={"/oem/x": "network_token: SECRET"})
    spec = BoxSpec("lab", "box1", 1, "a" * 32, "/s", files=settings.files)
    assert "SECRET" not in repr(settings) + repr(spec)
    assert LabSettings.from_json(settings.to_json()) == settings
    assert BoxSpec.from_json(spec.to_json()) == spec


def test_box_names():
    assert box_number("box2", 3) == 2
    assert box_number("2", 3) == 2
    for name in ("box4", "box0", "boxes", "", "box²"):
        with pytest.raises(NotFoundError):
            box_number(name, 3)


def test_the_machine_is_checked_before_anything_is_made(monkeypatch, tmp_path):
    with pytest.raises(LabError, match="1 to 50"):
        client.check_machine(LabSettings(boxes=0))
    monkeypatch.setattr(client, "_TUN", str(tmp_path / "tun"))
    with pytest.raises(HostError, match="modprobe tun"):
        client.check_machine(LabSettings())
    client.check_machine(LabSettings(product=False))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionHostError, match="needs the machine's root"):
        client.check_machine(LabSettings(product=False, k3s="/k3s"))
    monkeypatch.undo()
    if os.geteuid() == 0:
        with pytest.raises(HostError, match="no executable file"):
            client.check_machine(LabSettings(product=False, k3s=str(tmp_path)))


def test_a_tun_device_that_may_not_be_opened_names_the_remedy(monkeypatch):
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionHostError, match="chmod 0666 /dev/net/tun"):
        client._check_tun()


def test_a_lab_that_is_not_up(monkeypatch, tmp_path):
    monkeypatch.setattr(place, "base_folder", lambda: tmp_path / "base")
    elsewhere = Place("lab", tmp_path / "base")
    assert not elsewhere.alive()
    with pytest.raises(NotFoundError, match="no lab 'lab' is up"):
        client.order(elsewhere, "status")
    assert client.take_down(elsewhere) is False
    with pytest.raises(LabError):
        Place("../x")


def test_what_a_dead_supervisor_left_is_cleaned(tmp_path):
    left = Place("lab", tmp_path / "base")
    left.make()
    assert stat.S_IMODE((tmp_path / "base").stat().st_mode) == 0o700
    (left.folder / "supervisor.log").write_text("x", "utf-8")
    held = left.lock()
    assert held is not None
    assert left.alive(), "somebody holds the lock"
    os.close(held)
    assert not left.alive()
    assert not (tmp_path / "base").exists()


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "base").symlink_to(tmp_path)
    with pytest.raises(LabError, match="not a folder of this user"):
        Place("lab", tmp_path / "base").make()


def test_commands_and_their_help():
    run = CliRunner()
    text = run.invoke(app, ["--help"]).output
    for verb in ("up", "status", "exec", "logs", "kill", "reboot", "down", "demo"):
        assert verb in text
        assert run.invoke(app, [verb, "--help"]).exit_code == 0
    assert run.invoke(app, ["up", "--boxes", "x"]).exit_code == ExitCode.USAGE
    missing = run.invoke(app, ["status", "--name", "no-such-lab"])
    assert isinstance(missing.exception, NotFoundError)


def test_the_image_holds_the_product_under_its_names():
    spec = BoxSpec("lab", "box2", 2, "b" * 32, "/s", files={"/oem/90_custom.yaml": "#cloud-config\n"})
    files = {file.path: file for file in image_files(spec)}
    links = {link.path: link.target for link in image_links(spec)}
    assert files["/etc/machine-id"].content == "b" * 32 + "\n"
    assert files["/oem/90_custom.yaml"].once
    assert files["/oem/90_custom.yaml"].mode == 0o600
    assert links["/system/providers/agent-provider-kairos-p2p"].endswith("/bin/agent-provider-kairos-p2p")
    assert "/usr/local/bin/k3s" in files
    real = BoxSpec("lab", "box2", 2, "b" * 32, "/s", k3s="/opt/k3s")
    assert "/usr/local/bin/k3s" not in {file.path for file in image_files(real)}
    assert {link.path for link in image_links(real)} >= {"/usr/local/bin/kubectl", "/usr/local/bin/ctr"}
    bare = BoxSpec("lab", "box2", 2, "b" * 32, "/s", product=False)
    assert "/usr/bin/kairos-agent" not in {file.path for file in image_files(bare)}


def test_wrappers_survive_odd_interpreter_paths(monkeypatch, tmp_path):
    import subprocess
    import sys

    odd = tmp_path / "a folder" / "python"
    odd.parent.mkdir()
    odd.symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(odd))
    program = tmp_path / "systemctl"
    program.write_text(wrapper("provider_kairos.lab.systemctl"), "utf-8")
    program.chmod(0o755)
    assert "252" in subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout


def test_layers_put_files_where_they_will_show(tmp_path):
    uppers = {"/": tmp_path / "root", "/usr/local": tmp_path / "local"}
    for folder in uppers.values():
        folder.mkdir()
    layers = Layers(uppers)
    layers.write("/usr/local/bin/x", "x", 0o755)
    layers.write("/usr/bin/x", "y", 0o644)
    layers.link("/etc/l", "/target")
    assert (tmp_path / "local/bin/x").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "root/usr/bin/x").read_text() == "y"
    assert (tmp_path / "root/etc/l").readlink() == Path("/target")
    layers.write("/usr/bin/x", "again", 0o600)
    assert (tmp_path / "root/usr/bin/x").read_text() == "again"
    layers.folder("/tmp")
    assert stat.S_IMODE((tmp_path / "root/tmp").stat().st_mode) == stat.S_IMODE(Path("/tmp").stat().st_mode)


def test_logs_by_unit(tmp_path):
    for name in ("lab/k3s.log", "lab/edgevpn@kairos.log", "kairos/provider.log"):
        place = tmp_path / "var/log" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(name, "utf-8")
    assert len(log_files("", str(tmp_path))) == 3
    assert [p.name for p in log_files("k3s.service", str(tmp_path))] == ["k3s.log"]
    with pytest.raises(NotFoundError, match="edgevpn@kairos"):
        log_files("other", str(tmp_path))


def test_node_lists_are_read_as_kubectl_reads_them():
    listing: dict[str, Any] = {
        "items": [
            {
                "metadata": {"name": "b", "labels": {"node-role.kubernetes.io/control-plane": "true"}},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": "10.1.0.2"},
                        {"type": "InternalIP", "address": "fd00::2"},
                        {"type": "Hostname", "address": "b"},
                    ],
                    "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
                    "nodeInfo": {"kubeletVersion": "v1"},
                },
            },
            {"metadata": {"name": "a"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}},
            {"metadata": {"name": "c"}},
        ]
    }
    a, b, c = summarize(listing)
    assert (a["name"], a["ready"], a["roles"]) == ("a", False, "<none>")
    assert b == {"name": "b", "ready": True, "roles": "control-plane", "address": "10.1.0.2", "version": "v1"}
    assert c["ready"] is False
    listing["items"][1]["status"]["conditions"][0]["lastHeartbeatTime"] = "1970-01-01T00:01:40Z"
    assert heartbeats(listing) == {"a": 100.0, "b": 0.0, "c": 0.0}
    with pytest.raises(LabError, match="kubeconfig"):
        KubeApi("clusters: []")


def test_ping_packets():
    request = echo_request(7, 3, b"abcdefg", six=False)
    assert checksum(request) == 0, "a right checksum sums to nothing"
    reply = b"\0" + request[1:]
    assert parse_reply(reply, 7, six=False, header=False) == (3, 0, 15)
    header = bytes([0x45]) + bytes(7) + bytes([63]) + bytes(11)
    assert parse_reply(header + reply, 7, six=False, header=True) == (3, 63, 15)
    assert parse_reply(reply, 8, six=False, header=False) is None
    assert parse_reply(request, 7, six=False, header=False) is None
    assert parse_reply(b"short", 7, six=False, header=True) is None
    answer = bytes([129]) + echo_request(7, 1, b"", six=True)[1:]
    assert parse_reply(answer, 7, six=True, header=False) == (1, 0, 8)


def test_ping_statistics():
    text = "\n".join(Statistics(4, [0.001, 0.003]).lines("h", 1.5))
    assert "4 packets transmitted, 2 received, 50% packet loss, time 1500ms" in text
    assert "= 1.000/2.000/3.000/1.000 ms" in text


def test_which_boxes_run_edgevpn(tmp_path):
    program = tmp_path / "edgevpn"
    environ = {"EDGEVPN_BIN": str(program)}
    with pytest.raises(LabError, match="no EdgeVPN to run"):
        foreign_daemons(["go"], 2, environ)
    program.touch(0o755)
    assert foreign_daemons([], 2, environ) == {}
    assert foreign_daemons(["go"], 2, environ) == {"box1": str(program), "box2": str(program)}
    assert foreign_daemons(["2=go"], 2, environ) == {"box2": str(program)}
    assert foreign_daemons(["go", "box1=ours"], 2, environ) == {"box2": str(program)}
    with pytest.raises(ConfigError, match="'rust' is no daemon"):
        foreign_daemons(["box1=rust"], 2, environ)
    with pytest.raises(NotFoundError):
        foreign_daemons(["box3=go"], 2, environ)
