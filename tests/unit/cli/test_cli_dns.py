"""dns add, list, remove against a daemon's API; the words of ``dns serve``."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from provider_kairos.api.testing import FakeBackend, serving
from provider_kairos.cli import dns_work, own_node
from provider_kairos.cli.dns_app import spell_out
from provider_kairos.cli.main import run
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.settings_dns import DnsSettings
from provider_kairos.errors import ExitCode
from provider_kairos.token.codec import encode, generate

KEY = r"(?i)^web\.example\.$"


class Daemon:
    """A daemon's API in a thread of its own; ``deaf`` takes writes and forgets them, as for records of others."""

    def __init__(self, listen: str) -> None:
        self.listen = listen
        self.backend = FakeBackend()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=trio.run, args=(self._serve,), daemon=True)

    async def _serve(self) -> None:
        self.token, self.scope = trio.lowlevel.current_trio_token(), trio.CancelScope()
        with self.scope:
            async with serving(self.backend, self.listen):
                self.ready.set()
                await trio.sleep_forever()

    def become_deaf(self) -> None:
        self.backend.persist = lambda *_: None  # type: ignore[assignment, method-assign]
        self.backend.delete_key = lambda *_: None  # type: ignore[assignment, method-assign]

    @property
    def records(self) -> dict[str, dict[str, str]]:
        return {key: json.loads(text) for key, text in self.backend.data.get("dns", {}).items()}


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    made = Daemon(f"unix://{tmp_path}/api.sock")
    monkeypatch.setenv("EDGEVPN_API", made.listen)
    made.thread.start()
    assert made.ready.wait(60)
    yield made
    made.token.run_sync_soon(made.scope.cancel)
    made.thread.join(60)


def test_a_name_is_added_replaced_and_removed(daemon, capsys):
    assert run(["dns", "add", "Web.Example", "A=10.1.0.9", "txt=hello world"]) == 0
    assert daemon.records == {KEY: {"1": "10.1.0.9", "16": "hello world"}}
    assert run(["dns", "add", "web.example.", "AAAA=fd00::9"]) == 0
    assert daemon.records == {KEY: {"28": "fd00::9"}}
    assert run(["dns", "remove", "web.example"]) == 0
    assert daemon.records == {}
    assert run(["dns", "remove", "web.example"]) == ExitCode.NOT_FOUND
    assert "no records" in capsys.readouterr().err


def test_a_pattern(daemon):
    assert run(["dns", "add", "--regex", r".*\.wild\.$", "A=10.1.0.9"]) == 0
    assert daemon.records == {r".*\.wild\.$": {"1": "10.1.0.9"}}
    assert run(["dns", "remove", "--regex", r".*\.wild\.$"]) == 0
    assert daemon.records == {}


def test_the_list_is_in_the_order_of_trying(daemon, capsys):
    daemon.backend.data["dns"] = {
        "bad[": '{"1":"10.1.0.1"}',
        ".*": '{"1":"10.1.0.2"}',
        r"foo\.test\.$": '{"1":"10.1.0.3","28":"fd00::3"}',
        "two": '{"1":"10.1.0.4\\n10.1.0.5"}',
    }
    assert run(["dns", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [r"foo\.test\.$", r"foo\.test\.$", "two", ".*", "bad["]
    assert lines[4].endswith("10.1.0.4 10.1.0.5")
    assert run(["dns", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["records"][0] == {"regex": r"foo\.test\.$", "records": {"A": "10.1.0.3", "AAAA": "fd00::3"}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no name", "A=10.1.0.9"], "host name"),
        (["-x.example", "A=10.1.0.9"], ""),
        (["--regex", "bad[", "A=10.1.0.9"], "regular expression"),
        (["web.example", "A"], "TYPE=VALUE"),
        (["web.example", "A="], "TYPE=VALUE"),
        (["web.example", "A=10.1.0"], "no value of type A"),
        (["web.example", "A=10.1.0.1\n10.1.0.2"], "no value of type A"),
        (["web.example", "BAD=10.1.0.1"], "no record type BAD"),
        (["web.example", 'TXT="unbalanced'], "no value of type TXT"),
    ],
)
def test_what_could_not_be_answered_is_not_written(daemon, capsys, arguments, words):
    assert run(["dns", "add", *arguments]) == ExitCode.USAGE
    assert words in capsys.readouterr().err
    assert daemon.records == {}


def test_records_of_another_node_are_told_of(daemon, capsys, monkeypatch):
    monkeypatch.setattr(dns_work, "PATIENCE", 0.1)
    daemon.backend.data["dns"] = {KEY: '{"1":"10.1.0.1"}'}
    daemon.become_deaf()
    assert run(["dns", "add", "web.example", "A=10.1.0.9"]) == ExitCode.HOST
    assert run(["dns", "remove", "web.example"]) == ExitCode.HOST
    assert capsys.readouterr().err.count("belong to another node") == 2


def test_no_daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEVPN_API", f"unix://{tmp_path}/nobody.sock")
    assert run(["dns", "list"]) == ExitCode.UNREACHABLE


# --- serve ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "spelt"),
    [
        ("dns", "dns serve"),
        ("dns --listen :53", "dns serve --listen :53"),
        ("dns -listen=:53 --dns-forwarder=false", "dns serve -listen=:53 --no-dns-forwarder"),
        ("dns serve --dns-forwarder=true", "dns serve --dns-forwarder=true"),
        ("dns list --json", "dns list --json"),
        ("dns --help", "dns --help"),
        ("status --json", "status --json"),
        ("", ""),
    ],
)
def test_edgevpns_form(words, spelt):
    assert spell_out(words.split()) == spelt.split()


@pytest.fixture
def told(monkeypatch) -> list[DaemonSettings]:
    """Settings of the nodes that would have run."""
    seen: list[DaemonSettings] = []

    def fake(_work, *, services, config, adapt):
        assert services is not None
        assert config is None
        variables = own_node.node_environment(os.environ, None)
        seen.append(adapt(own_node.node_settings(variables, Path("/nowhere"), vpn=False, api=False)))
        return 0

    monkeypatch.setattr(own_node, "run", fake)
    monkeypatch.setenv("EDGEVPNTOKEN", encode(generate()))
    monkeypatch.setenv("EDGEVPNMDNS", "true")  # a flag sets it for the process
    return seen


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ([], {}, DnsSettings("127.0.0.1:53")),
        (["--listen", ":5353"], {}, DnsSettings(":5353")),
        (["-listen=:5353", "-dns-forwarder=0"], {}, DnsSettings(":5353", forward=False)),
        (["--dns-forwarder"], {"DNSFORWARD": "false"}, DnsSettings("127.0.0.1:53")),
        ([], {"DNSFORWARD": "false", "DNSADDRESS": ":54"}, DnsSettings(":54", forward=False)),
        (
            ["--dns-forward-server", "192.0.2.1:53,192.0.2.2", "--dns-forward-server=192.0.2.3", "--dns-cache-size=7"],
            {"DNSCACHESIZE": "5"},
            DnsSettings("127.0.0.1:53", forward_servers=("192.0.2.1:53", "192.0.2.2", "192.0.2.3"), cache_size=7),
        ),
        (
            ["serve", "--mdns=false"],
            {"DNSFORWARDSERVER": "192.0.2.1"},
            DnsSettings("127.0.0.1:53", forward_servers=("192.0.2.1",)),
        ),
    ],
)
def test_what_serve_is_told(told, monkeypatch, arguments, environ, expected):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert run(["dns", *arguments]) == 0
    (settings,) = told
    assert settings.dns == expected
    assert settings.mdns is ("--mdns=false" not in arguments)


def test_a_loop_is_refused(told, capsys):
    assert run(["dns", "--listen", "127.0.0.1:53", "--dns-forward-server", "127.0.0.1:53"]) == ExitCode.CONFIG
    assert "is the name server itself" in capsys.readouterr().err
    assert told == []
