"""The name server as a part of the daemon: follows the ledger, says what it waits for, counts."""

from __future__ import annotations

import json
import logging
import random
from contextlib import asynccontextmanager

import dns.message
import pytest
import trio

from provider_kairos.clock import SystemClock
from provider_kairos.daemon import settings_dns
from provider_kairos.daemon.daemon import Daemon
from provider_kairos.daemon.dns_service import DnsService
from provider_kairos.daemon.environment import read_fields
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.settings_dns import DnsSettings
from provider_kairos.daemon.store import Store
from provider_kairos.dns.address import Endpoint
from provider_kairos.errors import ConfigError
from provider_kairos.token.codec import generate

PATIENCE = 60


@pytest.fixture(autouse=True)
def _any_port(monkeypatch):
    monkeypatch.setattr(settings_dns, "parse_listen", lambda _text: Endpoint("127.0.0.1", 0))


@pytest.fixture
def make(tmp_path):
    stores = []

    def build(name="one", token=None, **options):
        store = Store(tmp_path / name / "mesh.db")
        stores.append(store)
        settings = DaemonSettings(
            token or generate(),
            vpn=False,
            mdns=False,
            dht=False,
            api=False,
            listen=("/ip4/127.0.0.1/tcp/0",),
            state_dir=tmp_path / name,
            **options,
        )
        return Daemon(settings, store, SystemClock(), random.Random(name))

    yield build
    for store in stores:
        store.close()


@asynccontextmanager
async def running(*daemons):
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for daemon in daemons:
                await nursery.start(daemon.run)
            yield
            nursery.cancel_scope.cancel()


async def ask(daemon, name, rdtype="A"):
    (service,) = daemon.services
    assert isinstance(service, DnsService)
    while service.server is None:
        await trio.lowlevel.checkpoint()
    await service.server.listening.wait()
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(service.server.addresses["UDP"])
        await sock.send(dns.message.make_query(name, rdtype).to_wire())
        answer = dns.message.from_wire(await sock.recv(65535))
        return [rdata.to_text() for rrset in answer.answer for rdata in rrset]


async def ask_until(daemon, name, expected):
    while await ask(daemon, name) != expected:
        await trio.lowlevel.checkpoint()


def waiting(daemon):
    return {code for reason in daemon.backend.status()["waiting"] if (code := reason["code"]).startswith("dns-")}


def write(daemon, key, **records):
    daemon.ledger.persist("dns", key, json.dumps({k.removeprefix("t"): v for k, v in records.items()}))


def test_names_follow_the_ledger(make):
    async def main():
        daemon = make(dns=DnsSettings(listen="anywhere", forward=False))
        async with running(daemon):
            assert await ask(daemon, "foo.test.") == []
            write(daemon, r"foo\.test\.$", t1="10.1.0.9")
            await ask_until(daemon, "foo.test.", ["10.1.0.9"])
            write(daemon, r"foo\.test\.$", t1="10.1.0.10")
            await ask_until(daemon, "foo.test.", ["10.1.0.10"])
            daemon.ledger.persist("other", "k", "1")
            daemon.backend.delete_key("dns", r"foo\.test\.$")
            await ask_until(daemon, "foo.test.", [])
            assert waiting(daemon) == set()
            assert daemon.backend.status()["counters"]["dns_questions"] >= 4

    trio.run(main)


def test_records_of_one_node_are_answered_by_another(make):
    async def main():
        token = generate()
        one = make("one", token, dns=DnsSettings(listen="anywhere", forward=False))
        async with running(one):
            address = f"{one.mesh.addresses()[0]}/p2p/{one.mesh.peer_id}"
            two = make("two", token, bootstrap_peers=(address,), dns=DnsSettings(listen="anywhere", forward=False))
            async with running(two):
                write(one, "foo", t1="10.1.0.9", t28="fd00::9")
                await ask_until(two, "foo.test.", ["10.1.0.9"])
                assert await ask(two, "foo.test.", "AAAA") == ["fd00::9"]

    trio.run(main)


def test_what_an_author_should_mend_is_said_once_with_the_author(make, caplog):
    async def main():
        daemon = make(dns=DnsSettings(listen="anywhere", forward=False))
        async with running(daemon):
            for number in range(5):
                write(daemon, f"bad{number}[", t1="10.1.0.9")
            write(daemon, "good", t1="10.1.0.9")
            await ask_until(daemon, "good.", ["10.1.0.9"])
            assert daemon.backend.status()["counters"]["dns_patterns_bad"] == 5
            return daemon.mesh.peer_id

    with caplog.at_level(logging.WARNING, "provider_kairos.daemon.dns_service"):
        peer = trio.run(main)
    (line,) = [record.getMessage() for record in caplog.records if "bad" in record.getMessage()]
    assert peer in line


def test_a_place_that_cannot_be_had_is_a_reason_and_nothing_else_stops(make, monkeypatch):
    monkeypatch.setattr(settings_dns, "parse_listen", lambda _text: Endpoint("192.0.2.55", 53))

    async def main():
        daemon = make(dns=DnsSettings(listen="192.0.2.55:53", forward=False))
        async with running(daemon):
            while waiting(daemon) != {"dns-not-listening"}:
                await trio.lowlevel.checkpoint()
            daemon.backend.persist("mine", "k", '"v"')
            await daemon.backend.persisted()
            assert daemon.backend.healthy()

    trio.run(main)


def test_without_an_address_there_is_no_name_server(make):
    assert make().services == []


# --- settings ---------------------------------------------------------------------------------------------------------


def read(**environ):
    return DnsSettings(**read_fields(settings_dns.VARIABLES, environ))


def test_the_environment():
    assert read() == DnsSettings("", forward=True, forward_servers=("8.8.8.8:53", "1.1.1.1:53"), cache_size=200)
    made = read(
        DNSADDRESS="127.0.0.1:53",
        DNSFORWARD="false",
        DNSFORWARDSERVER="192.168.1.1:53, 192.168.1.2",
        DNSCACHESIZE="0",
    )
    assert made == DnsSettings(
        "127.0.0.1:53", forward=False, forward_servers=("192.168.1.1:53", "192.168.1.2"), cache_size=0
    )
    assert made.servers() == (Endpoint("192.168.1.1", 53), Endpoint("192.168.1.2", 53))


def test_a_loop_is_refused_by_name(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"DNSFORWARDSERVER=127.0.0.1:53 is the name server itself"):
        read(DNSADDRESS="127.0.0.1:53", DNSFORWARDSERVER="127.0.0.1:53")
