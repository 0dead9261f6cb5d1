"""Where requests go, and where others may not get to through an egress."""

from __future__ import annotations

import ipaddress

import h11
import pytest

from provider_kairos.services.egress import TargetError, target_of
from provider_kairos.services.egress_policy import EgressPolicy

OWN = frozenset({ipaddress.ip_address("192.0.2.7"), ipaddress.ip_address("2001:db8::7")})


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "255.255.255.255",
        "ff02::1",
        "192.0.2.7",
        "::ffff:192.0.2.7",
        "2001:db8::7",
        "10.1.0.9",
    ],
)
def test_what_is_closed(text):
    policy = EgressPolicy(lambda: OWN, closed=[ipaddress.ip_network("10.1.0.0/24")])
    assert policy.refusal(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["192.0.2.8", "10.2.0.1", "2001:db8::8", "64:ff9b::c000:208"])
def test_what_is_open(text):
    policy = EgressPolicy(lambda: OWN, closed=[ipaddress.ip_network("10.1.0.0/24")])
    assert policy.refusal(ipaddress.ip_address(text)) == ""


def test_what_is_allowed_is_open_and_nothing_beside_it():
    policy = EgressPolicy(lambda: OWN, allowed=[ipaddress.ip_network("127.0.0.1/32")])
    addresses = [ipaddress.ip_address(text) for text in ("127.0.0.1", "127.0.0.2", "::ffff:127.0.0.1")]
    good, why = policy.pick(addresses)
    assert good == [addresses[0], addresses[2]]
    assert why.startswith("127.0.0.2: ")


# --- where requests go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        ("/a?b", "h", (False, "h:80", b"/a?b")),
        ("/", "h:443", (True, "h:443", b"/")),
        ("http://h/a?b#c", "other", (False, "h:80", b"/a?b")),
        ("https://h/a", "h", (True, "h:443", b"/a")),
        ("http://h?q", "h", (False, "h:80", b"/?q")),
        ("http://[2001:db8::1]:81/", "h", (False, "[2001:db8::1]:81", b"/")),
        ("http://user:secret@h/", "h", (False, "h:80", b"/")),
        ("/http://x/", "h", (False, "h:80", b"/http://x/")),
        ("*", "h", (False, "h:80", b"*")),
    ],
)
def test_targets(target, host, expected):
    secure, endpoint, path = target_of(h11.Request(method="GET", target=target, headers=[("Host", host)]))
    assert (secure, str(endpoint), path) == expected


@pytest.mark.parametrize("host", ["", "a b", "h:0", "h:99999", "h:x", "h/x", "[::1", "a@b@c"])
def test_bad_targets(host):
    with pytest.raises(TargetError):
        target_of(h11.Request(method="GET", target="/", headers=[("Host", host)]))
