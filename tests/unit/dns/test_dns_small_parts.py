"""Addresses, the cache and the allowance."""

from __future__ import annotations

import pytest

from provider_kairos.daemon.settings_dns import DnsSettings
from provider_kairos.dns.address import Endpoint, parse_listen, parse_server, reaches
from provider_kairos.dns.cache import MAX_BYTES, MAX_SECONDS, Cache
from provider_kairos.dns.rate import MAX_ASKERS, Allowance
from provider_kairos.errors import ConfigError

# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:53", "127.0.0.1", 53),
        (":53", "", 53),
        ("[::1]:5353", "::1", 5353),
        ("[::1]", "::1", 53),
        ("::1", "::1", 53),
        ("10.1.0.1", "10.1.0.1", 53),
        ("localhost:53", "localhost", 53),
        (" 127.0.0.1:53 ", "127.0.0.1", 53),
    ],
)
def test_where_to_listen(text, host, port):
    assert parse_listen(text) == Endpoint(host, port)


@pytest.mark.parametrize(
    "text", ["127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:dns", "udp://1.1.1.1:53", "a b:53"]
)
def test_no_place(text):
    with pytest.raises(ConfigError, match="DNSADDRESS="):
        parse_listen(text)


@pytest.mark.parametrize("text", ["8.8.8.8:53", "8.8.8.8", "2001:db8::1", "[2001:db8::1]:53", "[fe80::1%eth0]:53"])
def test_servers(text):
    assert parse_server(text).port == 53


@pytest.mark.parametrize("text", ["dns.example:53", "dns.example", "", "8.8.8:53"])
def test_a_server_is_an_address(text):
    with pytest.raises(ConfigError, match="DNSFORWARDSERVER="):
        parse_server(text)


@pytest.mark.parametrize(
    ("server", "listen", "loop"),
    [
        ("127.0.0.1:53", "127.0.0.1:53", True),
        ("127.0.0.2:53", "127.0.0.1:53", False),
        ("127.0.0.53:53", "127.0.0.1:53", False),
        ("127.0.0.1:54", "127.0.0.1:53", False),
        ("127.0.0.1:53", ":53", True),
        ("[::1]:53", ":53", True),
        ("192.168.1.1:53", ":53", False),
        ("0.0.0.0:53", "127.0.0.1:53", True),
        ("127.0.0.1:53", "localhost:53", True),
        ("10.1.0.1:53", "10.1.0.1:53", True),
    ],
)
def test_loops_that_can_be_seen(server, listen, loop):
    assert reaches(parse_server(server), parse_listen(listen)) is loop
    if loop:
        with pytest.raises(ConfigError, match="is the name server itself"):
            DnsSettings(listen=listen, forward_servers=("8.8.8.8:53", server))
        DnsSettings(listen=listen, forward=False, forward_servers=(server,))
        DnsSettings(forward_servers=(server,))
    else:
        DnsSettings(listen=listen, forward_servers=(server,))


def test_an_absurd_cache():
    with pytest.raises(ConfigError, match="DNSCACHESIZE"):
        DnsSettings(cache_size=10**9)


# --- cache ------------------------------------------------------------------------------------------------------------


def key(name):
    return (name, 1, 1, 0x100, False)


def test_an_answer_is_kept_for_as_long_as_it_says():
    cache = Cache(10)
    cache.put(key(b"a"), b"answer", 60, 1000.0)
    kept = cache.get(key(b"a"), 1059.9)
    assert kept is not None
    assert (kept.message, kept.since) == (b"answer", 1000.0)
    assert cache.get(key(b"a"), 1060.0) is None
    assert len(cache) == 0


def test_the_cache_is_bounded_and_keeps_what_is_used():
    cache = Cache(2)
    for name in (b"a", b"b"):
        cache.put(key(name), name, 60, 0.0)
    cache.get(key(b"a"), 1.0)
    cache.put(key(b"c"), b"c", 60, 2.0)
    assert cache.get(key(b"b"), 3.0) is None
    assert cache.get(key(b"a"), 3.0) is not None
    assert len(cache) == 2


@pytest.mark.parametrize(("size", "message", "seconds"), [(0, b"x", 60), (10, b"x", 0), (10, bytes(MAX_BYTES + 1), 60)])
def test_what_is_not_kept(size, message, seconds):
    cache = Cache(size)
    cache.put(key(b"a"), message, seconds, 0.0)
    assert len(cache) == 0


def test_nothing_is_kept_longer_than_a_day():
    cache = Cache(1)
    cache.put(key(b"a"), b"x", 2**31, 0.0)
    assert cache.get(key(b"a"), MAX_SECONDS) is None


# --- allowance --------------------------------------------------------------------------------------------------------


def test_an_asker_is_held_to_its_allowance_and_others_are_not():
    allowance = Allowance(per_second=10, burst=20)
    assert [allowance.allows("192.0.2.1", 0.0) for _ in range(25)] == [True] * 20 + [False] * 5
    assert allowance.allows("192.0.2.2", 0.0)
    assert [allowance.allows("192.0.2.1", 1.0) for _ in range(12)] == [True] * 10 + [False] * 2


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_not_counted(host):
    allowance = Allowance(per_second=1, burst=1)
    assert all(allowance.allows(host, 0.0) for _ in range(10))


@pytest.mark.parametrize(
    ("one", "other"),
    [("2001:db8::1", "2001:db8::2"), ("::ffff:192.0.2.1", "192.0.2.1"), ("fe80::1%eth0", "fe80::2%eth0")],
)
def test_who_is_the_same_asker(one, other):
    allowance = Allowance(per_second=1, burst=1)
    assert allowance.allows(one, 0.0)
    assert not allowance.allows(other, 0.0)


def test_askers_are_bounded():
    allowance = Allowance()
    for number in range(MAX_ASKERS + 100):
        allowance.allows(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0.0)
    assert len(allowance._askers) == MAX_ASKERS
