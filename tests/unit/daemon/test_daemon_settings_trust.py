"""The trust zone's settings, and the lists of peers: what is read, what is refused, what is never shown."""

from __future__ import annotations

import ipaddress
import json
import logging
import traceback

import pytest

from provider_kairos.daemon import main as daemon_main
from provider_kairos.daemon.flags import split
from provider_kairos.daemon.peer_lists import parse_blacklist, parse_static_peers, parse_whitelist
from provider_kairos.daemon.settings import read_settings
from provider_kairos.errors import ConfigError, PeerError, UsageError
from provider_kairos.ids import parse_peer_id
from provider_kairos.token.codec import encode, generate
from provider_kairos.trustzone import keys

TOKEN = encode(generate())
PAIR = keys.generate()
AUTH = json.dumps({"ecdsa": {"private_key": PAIR.private}})
PEER = "12D3KooWNWuDzGHoPQ9hj3H8wHX4coee9wVbzVJ8Gk6LMnhWeyLP"
OTHER = "12D3KooWF5z7KEyngVYMJ54PFVX2LokXmwNM7y51K5Dr9nNNhsuU"
RSA = "QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ"


def read(**variables: str):
    return read_settings({"EDGEVPNTOKEN": TOKEN, **variables})


# --- the trust zone --------------------------------------------------------------------------------------------------


def test_it_is_off_by_default():
    trust = read().trust
    assert (trust.guard, trust.gate, trust.private_key, trust.interval) == (False, False, "", 120)


def test_every_variable_is_read():
    trust = read(
        PEERGUARD="true",
        PEERGATE="1",
        PEERGATE_RELAXED="true",
        PEERGATE_AUTOCLEAN="t",
        PEERGATE_AUTH=AUTH,
        EDGEVPNPEERGATEINTERVAL="10",
        KAIROS_P2P_TRUST_STRICT="true",
    ).trust
    assert (trust.guard, trust.gate, trust.relaxed, trust.autoclean, trust.strict) == (True,) * 5
    assert (trust.interval, trust.private_key) == (10, PAIR.private)


@pytest.mark.parametrize("name", ["PEERGATE", "PEERGATE_AUTOCLEAN"])
def test_a_gate_without_a_guard_is_refused_because_it_protects_nothing(name):
    with pytest.raises(ConfigError, match=f"{name} needs PEERGUARD"):
        read(**{name: "true"})
    assert not read(**{name: "false"}).trust.guard


def test_the_key_shows_nowhere_in_the_settings():
    settings = read(PEERGUARD="true", PEERGATE_AUTH=AUTH)
    assert PAIR.private not in repr(settings)
    assert PAIR.private not in str(settings.trust)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PAIR.private, "is not JSON"),
        ("{" + PAIR.private, "is not JSON"),
        (json.dumps(PAIR.private), "no JSON object"),
        (json.dumps({"ecdsa": PAIR.private}), "no JSON object"),
        (json.dumps({PAIR.private: {}}), "names a provider that there is none of"),
        (json.dumps({"rsa": {"private_key": PAIR.private}}), "names a provider 'rsa' that there is none of"),
        (json.dumps({"ecdsa": {}}), "has no private_key"),
        (json.dumps({"ecdsa": {"private_key": 1}}), "has no private_key"),
        (json.dumps({"ecdsa": {"private_key": PAIR.public}}), "the private key is damaged, or it is a public one"),
        (json.dumps({"ecdsa": {"private_key": PAIR.private[:-40]}}), "the private key"),
        (json.dumps({"ecdsa": {"private_key": PAIR.private}, "ECDSA": {}}), "ecdsa twice"),
    ],
)
def test_a_bad_key_is_refused_by_name_and_never_shown(text, words):
    with pytest.raises(ConfigError, match="PEERGATE_AUTH") as refused:
        read(PEERGUARD="true", PEERGATE_AUTH=text)
    assert words in str(refused.value)
    shown = "".join(traceback.format_exception(refused.value))
    assert PAIR.private[:24] not in shown
    assert PAIR.private[200:224] not in shown


def test_no_provider_is_no_key_as_with_edgevpn():
    assert read(PEERGUARD="true", PEERGATE_AUTH="{}").trust.private_key == ""
    assert read(PEERGUARD="true", PEERGATE_AUTH=AUTH.replace("ecdsa", "ECDSA")).trust.private_key == PAIR.private


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="EDGEVPNPEERGATEINTERVAL"):
        read(EDGEVPNPEERGATEINTERVAL="0")


def test_the_key_is_no_argument():
    with pytest.raises(UsageError, match="--peergate-auth is refused") as refused:
        split(["--peergate-auth", AUTH])
    assert PAIR.private[:24] not in str(refused.value)
    assert split(["--peerguard", "--peergate-interval", "7"])[0] == {
        "PEERGUARD": "true",
        "EDGEVPNPEERGATEINTERVAL": "7",
    }


def test_the_log_of_a_daemon_that_refuses_its_key_does_not_show_it(tmp_path, caplog, capsys):
    environ = {
        "EDGEVPNTOKEN": TOKEN,
        "KAIROS_P2P_STATE_DIR": str(tmp_path),
        "PEERGUARD": "true",
        "PEERGATE_AUTH": json.dumps({PAIR.private: {}}),
    }
    root, ours = logging.getLogger(), logging.getLogger("provider_kairos")
    before = root.handlers[:], root.level, ours.level
    try:
        assert daemon_main.main(environ) == 3
    finally:
        root.handlers[:], root.level, ours.level = before
    said = caplog.text + "".join(capsys.readouterr())
    assert PAIR.private[:24] not in said


# --- peers and networks ----------------------------------------------------------------------------------------------


def test_the_static_table_takes_both_families():
    table = parse_static_peers("T", f"10.1.0.1:{PEER}, [fd00::1]:{OTHER},[10.1.0.2]:{RSA},10.1.0.1:{PEER}")
    assert table == (("10.1.0.1", PEER), ("fd00::1", OTHER), ("10.1.0.2", RSA))


@pytest.mark.parametrize(
    "item",
    [
        "10.1.0.1",
        f"10.1.0.1:{PEER}:",
        f"fd00::1:{PEER}",
        f"[fd00::1]{PEER}",
        f"10.1.0.300:{PEER}",
        f"10.1.0.0/24:{PEER}",
        "10.1.0.1:nobody",
        "10.1.0.1:",
        f":{PEER}",
        f"10.1.0.1:{PEER[:-1]}",
        f"10.1.0.1:{PEER},10.1.0.1:{OTHER}",
    ],
)
def test_a_bad_item_of_the_static_table_stops_the_start(item):
    with pytest.raises(ConfigError, match="EDGEVPNSTATICPEERTABLE"):
        read(EDGEVPNSTATICPEERTABLE=item)


def test_the_settings_say_who_is_heard_and_who_is_blocked():
    limits = read(
        EDGEVPNSTATICPEERTABLE=f"10.1.0.1:{PEER}",
        EDGEVPNBLACKLIST=f"192.0.2.0/24, {OTHER}, 2001:db8::/32,192.0.2.7,{OTHER}",
        EDGEVPNWHITELIST=f"/ip4/192.0.2.7,/ip4/198.51.100.0/ipcidr/24/p2p/{PEER},/ip6/2001:db8::1/tcp/4001",
    ).limits
    assert limits.only_peers == {PEER}
    assert limits.blocked_networks == ("192.0.2.0/24", "2001:db8::/32", "192.0.2.7/32")
    assert limits.blocked_peers == {OTHER}
    assert limits.whitelist == ("192.0.2.7/32", "198.51.100.0/24", "2001:db8::1/128")


@pytest.mark.parametrize("item", ["192.0.2.0/33", "192.0.2", "nobody", "2001:db8::/129", PEER[:-2], PEER + "x", "a/b"])
def test_a_bad_item_of_the_block_list_stops_the_start_where_edgevpn_blocks_nobody(item):
    with pytest.raises(ConfigError, match="EDGEVPNBLACKLIST"):
        read(EDGEVPNBLACKLIST=f"192.0.2.0/24,{item}")


@pytest.mark.parametrize(
    "item",
    ["192.0.2.7", "/ip4/192.0.2.300", "/ip4/192.0.2.7/ipcidr/33", f"/p2p/{PEER}", "/ip4/192.0.2.7/p2p/x", "/dns/a"],
)
def test_a_bad_exemption_stops_the_start(item):
    with pytest.raises(ConfigError, match="EDGEVPNWHITELIST"):
        read(EDGEVPNWHITELIST=item)


def test_nothing_is_a_list_of_nothing():
    assert parse_static_peers("T", " , ") == ()
    assert parse_blacklist("B", "") == ()
    assert parse_whitelist("W", ",") == ()


def test_peer_ids_of_every_kind_are_read_and_others_are_not():
    for text in (PEER, OTHER, RSA):
        assert parse_peer_id(text) == text
    for text in ("", "x", "0OIl", PEER + "1", "1" * 40, "é", RSA[:-1], str(ipaddress.ip_address("::1")), "z" * 5000):
        with pytest.raises(PeerError):
            parse_peer_id(text)
