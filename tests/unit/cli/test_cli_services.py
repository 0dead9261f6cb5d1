"""service, file and egress on the command line: both spellings, EdgeVPN's flags, what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from provider_kairos.cli import node_flags, own_node, services_work
from provider_kairos.cli.app import app
from provider_kairos.cli.main import run
from provider_kairos.errors import ConfigError, ExitCode, UsageError
from provider_kairos.services.endpoints import Endpoint

FIRST = "/ip4/192.0.2.1/tcp/1/p2p/12D3KooWG9pwqZERRF4AfZ6TrgdEYipkuz17D4PZEoqCpCTCcCo2"
SECOND = "/ip4/192.0.2.1/tcp/2/p2p/12D3KooWRGqQVft6hZH45WfcovnVhtV8Yd5JQoJTyQhJRJJ3JeYq"
ROOT = typer.main.get_command(app)


class Asked:
    """Stands in for a node: keeps what a command asked for."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(own_node, "run", self)

    def __call__(self, work, *, services, config=None, api=False, adapt=None):
        self.calls.append((work, services, config, api, adapt))
        return 0


@pytest.fixture
def asked(monkeypatch):
    return Asked(monkeypatch)


def wanted(asked, monkeypatch, name):
    """What the service of the last call is made of."""
    made = []
    monkeypatch.setattr(services_work, name, lambda *args, **options: made.append((args, options)))

    class Parts:
        ledger = mesh = clock = rng = None

    asked.calls[-1][1](Parts())
    return made[0]


@pytest.mark.parametrize(
    "line",
    [
        "service add web 127.0.0.1:80",
        "service-add web 127.0.0.1:80",
        "sa web 127.0.0.1:80",
        "service-add --name web --address 127.0.0.1:80",
        "service-add -name web -address=127.0.0.1:80",
        "sa --name=web 127.0.0.1:80",
        "sa --address 127.0.0.1:80 web",
    ],
)
def test_every_spelling_of_service_add(asked, monkeypatch, line):
    assert run(line.split()) == 0
    args, options = wanted(asked, monkeypatch, "ServiceExposer")
    assert args[3] == {"web": Endpoint("127.0.0.1", 80)}
    assert options == {"for_edgevpn": None}


def test_many_services_and_the_one_for_edgevpn(asked, monkeypatch):
    assert run(["service", "add", "--edgevpn", "db", "web", "127.0.0.1:80", "db", "127.0.0.1:5432"]) == 0
    args, options = wanted(asked, monkeypatch, "ServiceExposer")
    assert args[3] == {"web": Endpoint("127.0.0.1", 80), "db": Endpoint("127.0.0.1", 5432)}
    assert options == {"for_edgevpn": "db"}


@pytest.mark.parametrize("line", ["service connect web :8080", "sc --name web --address :8080"])
def test_service_connect(asked, monkeypatch, line):
    assert run(line.split()) == 0
    args, _ = wanted(asked, monkeypatch, "ServiceConnector")
    assert args[3] == {"web": Endpoint("", 8080)}


@pytest.mark.parametrize("line", ["file send image /x/y", "fs --name image --path /x/y", "file-send image /x/y"])
def test_file_send(asked, monkeypatch, line):
    assert run(line.split()) == 0
    args, _ = wanted(asked, monkeypatch, "FileSender")
    assert args[3] == {"image": Path("/x/y")}


@pytest.mark.parametrize("line", ["file receive image {}", "fr --name image --path {}", "file-receive image {}"])
def test_file_receive(asked, monkeypatch, tmp_path, line):
    assert run(line.format(tmp_path).split()) == 0
    args, _ = wanted(asked, monkeypatch, "FileReceiver")
    assert args[3:] == ("image", tmp_path / "image")


@pytest.mark.parametrize(("line", "listen"), [("egress", Endpoint("127.0.0.1", 8080)), ("proxy", Endpoint("", 8080))])
def test_the_proxys_place(asked, monkeypatch, line, listen):
    monkeypatch.delenv("PROXYLISTEN", raising=False)
    assert run([line]) == 0
    args, options = wanted(asked, monkeypatch, "EgressProxy")
    assert args[4] == listen
    assert options == {"dead_interval": 600}
    assert asked.calls[0][3] is False


def test_the_proxys_variables_are_edgevpns(asked, monkeypatch):
    monkeypatch.setenv("PROXYLISTEN", "127.0.0.1:3128")
    monkeypatch.setenv("PROXYDEADINTERVAL", "900")
    monkeypatch.setenv("PROXYINTERVAL", "60")
    assert run(["proxy", "--api"]) == 0
    args, options = wanted(asked, monkeypatch, "EgressProxy")
    assert args[4] == Endpoint("127.0.0.1", 3128)
    assert options == {"dead_interval": 900}
    assert asked.calls[0][3] is True


def test_proxy_and_api_do_not_share_a_place(asked, capsys):
    assert run(["egress", "--api", "--api-listen", "127.0.0.1:8080"]) == ExitCode.USAGE
    assert "cannot both listen" in capsys.readouterr().err
    assert not asked.calls


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("service add", "needs NAME and ADDRESS"),
        ("service add web", "needs NAME and ADDRESS"),
        ("service add web 127.0.0.1:80 web 127.0.0.1:81", "stands for two"),
        ("service add web 127.0.0.1:0", "port 0"),
        ("service add --edgevpn other web 127.0.0.1:80", "none of the services"),
        ("file send --edgevpn other image /x", "none of the files"),
        ("file receive a /tmp b /tmp", "one file at a time"),
        ("service add --nonsense web 127.0.0.1:80", "no flag --nonsense"),
        ("service add --token x web 127.0.0.1:80", "--token is refused"),
        ("service add web 127.0.0.1:80 --mdns=false", "stands behind an argument"),
    ],
)
def test_what_is_wrong_is_told_with_the_usage_code(asked, capsys, line, words):
    assert run(line.split()) == ExitCode.USAGE
    assert words in capsys.readouterr().err
    assert not asked.calls


@pytest.mark.parametrize("line", ["service add web 80", "service connect web nowhere"])
def test_what_is_no_address(asked, capsys, line):
    assert run(line.split()) == ExitCode.CONFIG
    assert "has no port" in capsys.readouterr().err


# --- EdgeVPN's flags ----------------------------------------------------------------------------------------------------


def take(line):
    return node_flags.take(line.split(), ROOT)


def test_common_flags_become_variables():
    variables, rest = take(
        f"service-add --discovery-bootstrap-peers {FIRST} --discovery-bootstrap-peers={SECOND} "
        "--mdns=false -dht=false --ownership off --privkey-cache --privkey-cache-dir /k --name web --address h:1"
    )
    assert variables == {
        "EDGEVPNBOOTSTRAPPEERS": f"{FIRST},{SECOND}",
        "EDGEVPNMDNS": "false",
        "EDGEVPNDHT": "false",
        "EDGEVPNOWNERSHIP": "off",
        "EDGEVPNPRIVKEYCACHE": "true",
        "EDGEVPNPRIVKEYCACHEDIR": "/k",
    }
    assert rest == ["service-add", "--name", "web", "--address", "h:1", "--"]


def test_a_commands_own_flag_wins_over_the_daemons():
    assert take("sa --address h:1 web") == ({}, ["sa", "--address", "h:1", "--", "web"])
    with pytest.raises(UsageError):
        take("file send --address 10.1.0.1/24 x y")


def test_booleans_take_gos_forms():
    assert take("egress --api=true")[1] == ["egress", "--api", "--"]
    assert take("egress --api=false")[1] == ["egress", "--"]
    with pytest.raises(ConfigError):
        take("egress --api=maybe")


def test_help_and_groups_are_left_alone():
    for line in ("service", "service add --help", "service add x -h", "sa --nonsense --help"):
        assert take(line) == ({}, line.split())
