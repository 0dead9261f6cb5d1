"""Commands that are nodes of their own: where their network comes from, who they are, how they leave."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections import Counter

import pytest
import trio

from provider_kairos.cli import own_node
from provider_kairos.daemon.edgevpn_files import encode_key
from provider_kairos.errors import ConfigError, HostError, NotFoundError
from provider_kairos.ids import peer_id_of_public_key
from provider_kairos.quoting import systemd_env_file
from provider_kairos.token import codec

TOKEN = codec.encode(codec.generate())
ALONE = {
    "EDGEVPNTOKEN": TOKEN,
    "EDGEVPNMDNS": "false",
    "EDGEVPNDHT": "false",
    "EDGEVPNLISTENMADDRS": "/ip4/127.0.0.1/tcp/0",
}


@pytest.fixture(autouse=True)
def _no_daemon(monkeypatch, tmp_path):
    monkeypatch.setattr(own_node, "DAEMON_ENV_FILE", tmp_path / "no-daemon.env")
    monkeypatch.setattr(own_node, "FAREWELL", 0.0)
    monkeypatch.setattr(own_node, "_log_to_stderr", lambda _level: None)  # the log is pytest's here
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def none(_parts):
    return []


async def at_once(_daemon):
    await trio.lowlevel.checkpoint()
    return 4


# --- the network -------------------------------------------------------------------------------------------------------


def test_the_daemons_file_stands_for_its_network_and_nothing_else_of_it(tmp_path, monkeypatch, capsys):
    file = tmp_path / "daemon.env"
    daemon = {
        "EDGEVPNTOKEN": TOKEN,
        "EDGEVPNOWNERSHIP": "off",
        "EDGEVPNPRIVKEYCACHE": "true",
        "EDGEVPNPRIVKEYCACHEDIR": "/usr/local/.kairos/key",
        "EDGEVPNLISTENMADDRS": "/ip4/0.0.0.0/tcp/4001",
        "EDGEVPNLEDGERSTATE": "/var/lib/ledger",
        "DHCP": "true",
        "API": "true",
    }
    file.write_text(systemd_env_file(daemon))
    monkeypatch.setattr(own_node, "DAEMON_ENV_FILE", file)
    variables = own_node.node_environment({"EDGEVPNOWNERSHIP": "enforce"}, None)
    settings = own_node.node_settings(variables, tmp_path, vpn=False, api=False)
    assert settings.token == codec.decode(TOKEN)
    assert settings.ownership.value == "enforce"  # ours over the file's
    assert not settings.privkey_cache
    assert settings.ledger_state is None
    assert settings.listen == ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")
    assert (settings.vpn, settings.api, settings.dhcp) == (False, False, False)
    assert settings.state_dir == tmp_path
    assert str(file) in capsys.readouterr().err
    assert TOKEN not in capsys.readouterr().err


def test_a_named_file_wins_over_the_variables_and_may_be_either_kind(tmp_path):
    other = codec.encode(codec.generate())
    (tmp_path / "env").write_text(systemd_env_file({"EDGEVPNTOKEN": other}))
    variables = own_node.node_environment({"EDGEVPNTOKEN": TOKEN}, str(tmp_path / "env"))
    assert variables["EDGEVPNTOKEN"] == other
    (tmp_path / "network.yaml").write_text("otp: {}\n")
    variables = own_node.node_environment({"EDGEVPNTOKEN": TOKEN}, str(tmp_path / "network.yaml"))
    assert variables == {"EDGEVPNCONFIG": str(tmp_path / "network.yaml")}


def test_without_any_network_the_error_says_what_to_set():
    with pytest.raises(ConfigError, match="EDGEVPNTOKEN"):
        own_node.run(at_once, services=none, environ={})
    with pytest.raises(NotFoundError):
        own_node.run(at_once, services=none, config="/no/such/file", environ={})


# --- identity ----------------------------------------------------------------------------------------------------------


def peer_of(environ):
    found = []

    async def look(daemon):
        await trio.lowlevel.checkpoint()
        found.append(daemon.mesh.peer_id)
        return 0

    assert own_node.run(look, services=none, environ=environ) == 0
    return found[0]


def test_each_run_is_another_node_and_leaves_nothing_behind(tmp_path):
    assert peer_of(ALONE) != peer_of(ALONE)
    assert not list(tmp_path.glob("kairos-p2p-*"))


def test_what_killed_commands_left_is_removed_and_nothing_else(tmp_path):
    names = ("left", "young", "held", "foreign")
    left, young, held, foreign = (tmp_path / f"{own_node.STATE_PREFIX}{name}" for name in names)
    foreign = foreign.with_name("kairos-p2p-foreign")
    for path in (left, young, held, foreign):
        path.mkdir()
        (path / "mesh.db").touch()
        if path != young:
            os.utime(path, (0, 0))
    descriptor = os.open(held, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert own_node.run(at_once, services=none, environ=ALONE) == 4
    finally:
        os.close(descriptor)
    assert [path.exists() for path in (left, young, held, foreign)] == [False, True, True, True]


def test_a_kept_key_is_edgevpns_file(tmp_path):
    keys = tmp_path / "keys"
    environ = {**ALONE, "EDGEVPNPRIVKEYCACHE": "true", "EDGEVPNPRIVKEYCACHEDIR": str(keys)}
    first = peer_of(environ)
    stored = (keys / "privkey").read_bytes()
    assert stored == encode_key(stored[4:36])
    assert first == peer_id_of_public_key(stored[36:])
    assert peer_of(environ) == first
    assert (keys / "privkey").stat().st_mode & 0o777 == 0o600


def test_two_commands_are_never_one_node(tmp_path):
    environ = {**ALONE, "EDGEVPNPRIVKEYCACHE": "true", "EDGEVPNPRIVKEYCACHEDIR": str(tmp_path / "keys")}

    async def again(_daemon):
        with pytest.raises(HostError, match="another command is the node"):
            await trio.to_thread.run_sync(lambda: own_node.run(at_once, services=none, environ=environ))
        return 0

    assert own_node.run(again, services=none, environ=environ) == 0


# --- life --------------------------------------------------------------------------------------------------------------


def test_the_works_code_is_the_commands():
    assert own_node.run(at_once, services=none, environ=ALONE) == 4


def test_an_error_of_the_work_is_raised_as_it_is():
    async def fail(_daemon):
        await trio.lowlevel.checkpoint()
        raise NotFoundError("nothing")

    with pytest.raises(NotFoundError, match="nothing"):
        own_node.run(fail, services=none, environ=ALONE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_server_in_order_and_work_with_its_number(number):
    class Killer:
        name = "killer"

        def __init__(self):
            self.counters: Counter[str] = Counter()

        def waiting(self):
            return []

        async def run(self):
            os.kill(os.getpid(), number)
            await trio.sleep_forever()

    async def for_ever(_daemon):
        await trio.Event().wait()
        return 0

    assert own_node.run(None, services=lambda _parts: [Killer()], environ=ALONE) == 0
    assert own_node.run(for_ever, services=lambda _parts: [Killer()], environ=ALONE) == 128 + number


def test_what_is_missing_is_told_once_and_when_it_is_there(monkeypatch, capsys):
    monkeypatch.setattr(own_node, "PATIENCE", 0.0)
    monkeypatch.setattr(own_node, "LOOK", 0.01)
    lines: list[str] = []
    monkeypatch.setattr(own_node, "say", lines.append)

    async def wait(daemon):
        reasons = {"now": [{"code": "a", "text": "one is missing"}]}
        daemon.backend.status = lambda: {"waiting": reasons["now"]}
        while not any("one is missing" in line for line in lines):
            await trio.lowlevel.checkpoint()
        await trio.sleep(0.05)
        reasons["now"] = []
        while "nothing is missing any more" not in lines:
            await trio.lowlevel.checkpoint()
        return 0

    assert own_node.run(wait, services=none, environ=ALONE) == 0
    assert [line for line in lines if line.startswith("waiting:")] == ["waiting: one is missing"]


def test_its_records_are_withdrawn_the_heartbeat_last(monkeypatch):
    seen = []

    async def work(daemon):
        us = daemon.mesh.peer_id
        daemon.ledger.announce("users", us, json.dumps({"PeerID": us}))
        daemon.ledger.announce("services", "web", json.dumps({"PeerID": us, "Name": "web"}))
        daemon.ledger.add("services", {"other": '{"PeerID":"somebody","Name":"other"}'})
        while us not in (daemon.ledger.ledger.bucket("healthcheck") or {}):
            await daemon.ledger.wait_changed()
        daemon.mesh.on_chain = lambda: {"somebody"}
        original = daemon.ledger.delete

        def delete(bucket, key):
            seen.append((bucket, key))
            return original(bucket, key)

        daemon.ledger.delete = delete
        return 0

    assert own_node.run(work, services=none, environ=ALONE) == 0
    buckets = [bucket for bucket, _ in seen]
    assert sorted(buckets) == ["healthcheck", "kairos-p2p.lease", "services", "users"]
    assert buckets[-1] == "healthcheck"
    assert ("services", "other") not in seen


def test_the_token_is_nowhere_in_the_environment_while_it_runs(monkeypatch):
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)

    async def look(_daemon):
        await trio.lowlevel.checkpoint()
        assert "EDGEVPNTOKEN" not in os.environ
        return 0

    assert own_node.run(look, services=none) == 0


def test_the_state_is_for_this_user_alone():
    async def look(daemon):
        await trio.lowlevel.checkpoint()
        modes.append(os.stat(daemon.settings.state_dir).st_mode & 0o777)  # noqa: PTH116 - of our own directory
        return 0

    modes: list[int] = []
    assert own_node.run(look, services=none, environ=ALONE) == 0
    assert modes == [0o700]
