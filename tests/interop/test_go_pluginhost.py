"""Our plugin called by a Go host as the Kairos agent calls it: SDK bus, go-pluggable, side file (spec/provider.md 1)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from provider_kairos.provider.events import BOOTSTRAP, EVENTS
from provider_kairos.provider.plugin import HANDLERS
from tests.net.conftest import _cannot as cannot_make_namespaces

PLUGIN = Path(sys.executable).parent / "agent-provider-kairos-p2p"
EMPTY = {"state": "", "data": "", "error": "", "log": ""}
NOTHING_TO_DO = EMPTY | {"state": "no P2P or kubernetes configured"}
HIDDEN = 'mount -t tmpfs none /run && mount -t tmpfs none /var/log && exec "$0"'
"""What the provider writes about itself stays in the test."""


@pytest.fixture
def host(go_programs, tmp_path):
    """``host(event, payload)`` → the plugin's answer as the host got it; ``data=`` is a payload as it stands."""
    providers = tmp_path / "system" / "providers"
    providers.mkdir(parents=True)
    (providers / "agent-provider-kairos").symlink_to(PLUGIN)
    side = tmp_path / "tmp"
    side.mkdir()

    def call(event, payload=None, *, hidden=False, **order):
        program = str(go_programs / "pluginhost")
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", HIDDEN, program] if hidden else [program],
            input=json.dumps({"event": event, "payload": payload, "paths": [str(providers)], **order}),
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(side)},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert list(side.iterdir()) == [], "the host deletes its side file"
        (answer,) = [json.loads(line) for line in done.stdout.splitlines()]
        if not order.get("listed"):
            assert answer.pop("plugin") == "kairos"
            assert answer.pop("executable") == str(providers / "agent-provider-kairos")
        return answer

    return call


def needs_root():
    """The provider writes to /run what it refused; that stays in a mount namespace."""
    if reason := cannot_make_namespaces():
        pytest.skip(reason)


def test_pluginhost_the_sdk_knows_our_events(host):
    assert set(host("", listed=True)) == EVENTS


@pytest.mark.parametrize("event", sorted(EVENTS - HANDLERS.keys()))
@pytest.mark.parametrize("payload", [None, {"config": "#cloud-config\nhostname: box\n"}])
def test_pluginhost_events_without_a_handler_get_four_empty_texts(host, event, payload):
    assert host(event, payload) == EMPTY


def test_pluginhost_bootstrap_with_nothing_to_do(host):
    payload = {"api": "http://127.0.0.1:8080", "config": "#cloud-config\nhostname: box\n", "logfile": "/var/log/x"}
    assert host(BOOTSTRAP, payload) == NOTHING_TO_DO


@pytest.mark.parametrize("size", [8_100, 8_192, 8_300, 6_000_000])
def test_pluginhost_big_payloads_come_through_the_side_file(host, size):
    """Around the host's threshold of 8192 bytes, and several megabytes."""
    filler = "# " + "x" * 76 + "\n"
    config = "#cloud-config\n" + filler * (size // len(filler)) + "hostname: box\n"
    assert host(BOOTSTRAP, {"config": config}) == NOTHING_TO_DO


def test_pluginhost_a_big_payload_is_read_to_its_end(host):
    """The mistake stands behind five megabytes, and the answer names its line."""
    needs_root()
    lines = 70_000
    config = "#cloud-config\n" + ("# " + "x" * 76 + "\n") * lines + "p2p: {network_token: no token}\n  wrong: [\n"
    answer = host(BOOTSTRAP, {"config": config}, hidden=True)
    assert answer["error"].startswith("Failed reading JSON input")
    assert f"{lines + 3}" in answer["error"]
    assert len(answer["error"]) < 2000


def test_pluginhost_a_wrong_configuration_is_an_error(host):
    needs_root()
    config = "#cloud-config\np2p:\n  network_token: b3RwOgo=\nk3s:\n  enabled: true\n"
    answer = host(BOOTSTRAP, {"config": config}, hidden=True)
    assert answer["error"]
    assert "Traceback" not in answer["error"] + answer["log"]
    assert "b3RwOgo=" not in answer["error"] + answer["log"]


@pytest.mark.parametrize("data", ["{bad json", "", "null", "[]", '"text"', "3", "\x00\xff", "{" * 100_000])
def test_pluginhost_payloads_that_are_no_object(host, data):
    """Bad JSON is said for what needs a payload, and no event is broken by it."""
    assert host("agent.boot", data=data) == EMPTY
    answer = host(BOOTSTRAP, data=data)
    if data in {"", "null", "[]", '"text"', "3"}:
        assert answer == NOTHING_TO_DO
    else:
        assert answer == EMPTY | {"error": "Failed reading JSON input: the payload is not JSON"}


@pytest.mark.parametrize("event", ["agent.installprompt", "agent.unheard-of", "cluster.reset"])
def test_pluginhost_an_unknown_event_is_an_error_and_no_hang(host, event):
    """The original takes these for words of its command line as well (spec 1.7)."""
    answer = host(event, {"config": ""})
    assert answer["error"].startswith("error while executing plugin: exit status 2")
    assert "No such command" in answer["error"]
