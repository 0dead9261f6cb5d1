"""EdgeVPN's flags on our command line: forms, lists, and what is refused instead of ignored."""

from __future__ import annotations

import pytest

from provider_kairos.cli.main import run
from provider_kairos.daemon.environment import parse_bool
from provider_kairos.daemon.flags import daemon_environ, split
from provider_kairos.daemon.settings import all_refused, all_without_effect, read_settings
from provider_kairos.errors import ConfigError, ExitCode, UsageError
from provider_kairos.token.codec import encode, generate


def test_flags_become_variables():
    arguments = (
        "--dhcp -address 10.1.0.1/24 --mtu=1300 --dht=false --mdns=T --config net.yaml "
        "--listen-maddrs a --listen-maddrs b,c --mtu 1400"
    )
    assert split(arguments.split(), main=True) == (
        {
            "DHCP": "true",
            "ADDRESS": "10.1.0.1/24",
            "EDGEVPNMTU": "1400",
            "EDGEVPNDHT": "false",
            "EDGEVPNMDNS": "T",
            "EDGEVPNCONFIG": "net.yaml",
            "EDGEVPNLISTENMADDRS": "a,b,c",
        },
        [],
    )


def test_a_flag_wins_over_its_variable_also_with_nothing():
    environ = {
        "EDGEVPNMTU": "1300",
        "EDGEVPNBOOTSTRAPPEERS": "/ip4/192.0.2.1/tcp/1",
        "EDGEVPNTOKEN": encode(generate()),
    }
    settings = read_settings(daemon_environ(["--mtu", "1400", "--discovery-bootstrap-peers="], environ))
    assert settings.mtu == 1400
    assert settings.bootstrap_peers == ()


def test_a_flag_without_variable_is_told_of_under_its_own_name():
    environ = daemon_environ(["--concurrency", "8"], {"EDGEVPNTOKEN": encode(generate())})
    assert [name for name, _ in read_settings(environ).not_acted_on] == ["--concurrency"]


def test_a_command_keeps_its_own_flags_and_arguments():
    own = {"--name": True, "--json": False, "--address": True}
    assert split(["--name", "x", "--json", "--dht=false", "--address=1", "a", "--name", "y", "--", "-z"], own=own) == (
        {"EDGEVPNDHT": "false"},
        ["--name", "x", "--json", "--address=1", "--name", "y", "a", "-z"],
    )


def test_flags_of_the_main_command_are_not_everybodys():
    with pytest.raises(UsageError, match="there is no flag --dhcp"):
        split(["--dhcp"])


def test_a_negative_number_is_a_value_as_with_go():
    with pytest.raises(ConfigError, match="--mtu='-1' is negative"):
        split(["--mtu", "-1"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dhtt"], r"no flag --dhtt \(the nearest is --dht\)"),
        (["-nonsense=secret"], r"^there is no flag -nonsense$"),
        (["--mtu"], "--mtu needs a value"),
        (["x", "--mtu=1300"], "--mtu stands behind an argument"),
        (["--token", "b3Rw"], "--token is refused: .* EDGEVPNTOKEN"),
        (["--token=b3Rw"], "--token is refused: .* EDGEVPNTOKEN"),
        (["-g", "-b"], "-g is refused: .* generate-token"),
        (["-b"], "-b is refused: .* generate-token"),
        (["--key-otp-interval", "60"], "--key-otp-interval is refused: .* generate-token"),
        (["--limit-file", "x"], "--limit-file is refused: .* EDGEVPNMAXCONNS"),
        (["--network-token", "x"], "there is no flag --network-token .*EDGEVPNTOKEN"),
    ],
)
def test_what_is_not_understood_is_refused_with_a_remedy(arguments, words):
    with pytest.raises(UsageError, match=words) as caught:
        split(arguments, main=True)
    assert "b3Rw" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_is_an_answer_to_a_refused_flag():
    assert split(["-g=false", "-b=0"], main=True) == ({}, [])


def test_the_daemon_takes_no_arguments(capsys):
    assert run(["daemon", "--dht=false", "b3RwOgo"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "flags only" in said
    assert "b3RwOgo" not in said


def test_help_of_the_daemon_starts_nothing(capsys):
    assert run(["daemon", "--mtu", "1300", "--help"]) == ExitCode.OK
    assert "EDGEVPNTOKEN" in capsys.readouterr().out


@pytest.mark.parametrize("row", [row for row in all_refused() if row.name])
def test_a_refused_variable_stops_the_daemon_with_its_remedy(row):
    with pytest.raises(ConfigError, match=f"{row.name} is refused") as caught:
        read_settings({"EDGEVPNTOKEN": encode(generate()), row.name: "x"})
    assert row.instead in str(caught.value)


def test_what_is_done_anyway_needs_no_word():
    token = {"EDGEVPNTOKEN": encode(generate())}
    asked = {row.name: str(row.anyway).lower() for row in all_without_effect() if row.name and row.anyway is not None}
    assert "EDGEVPNAUTORELAY" in asked
    assert read_settings({**token, **asked}).not_acted_on == ()
    against = {name: str(text != "true").lower() for name, text in asked.items()}
    assert [name for name, _ in read_settings({**token, **against}).not_acted_on] == list(against)


def test_a_value_without_effect_is_still_read():
    with pytest.raises(ConfigError, match="EDGEVPNAUTORELAY='perhaps'"):
        read_settings({"EDGEVPNTOKEN": encode(generate()), "EDGEVPNAUTORELAY": "perhaps"})


def test_booleans_without_effect_are_known_as_such():
    assert all(row.parse is parse_bool for row in all_without_effect() if isinstance(row.anyway, bool))
