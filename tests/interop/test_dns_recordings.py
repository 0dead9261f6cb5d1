"""Our name server held against what EdgeVPN's v0.35.4 and v0.30.2 answered (recordings/dns-035.jsonl, dns-030.jsonl).

Each recorded question is put to our server over UDP or TCP, with the recorded records and a forward server that says
what the recorder's said. Answers are the same bytes, but for two bits of the header and for what is listed:

==========================  ==========================================================================================
difference                  reason
==========================  ==========================================================================================
RA, AA                      RA is set where we forward, AA where we do not: EdgeVPN sets neither, and a Go program takes
                            an empty answer with neither for that of a broken server
NXDOMAIN stays NXDOMAIN     EdgeVPN makes an empty success of it, which says that the name exists
SERVFAIL                    where no forward server says anything (REFUSED, cut and not to be had over TCP, silent);
                            EdgeVPN makes an empty success of that too, for the silent one after 30 s
AD                          not copied from the question: nothing was verified, and a stub may believe it
class CH                    REFUSED; EdgeVPN answers with a record of class IN
NOTIFY                      NOTIMP; one such packet ends an EdgeVPN process
TCP                         served; EdgeVPN listens on UDP only
order of several records    as the forward server gives it; what was recorded was shuffled by the recorder's
cache size 0                no cache; EdgeVPN does not start
a place not to be had       named in status and tried again; EdgeVPN prints a line and goes on without a name server
==========================  ==========================================================================================
"""

from __future__ import annotations

import json
import struct
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import pytest
import trio

from provider_kairos.api.testing import FakeBackend, ask, serving
from provider_kairos.daemon.settings_dns import DnsSettings
from provider_kairos.dns import forward, server
from provider_kairos.dns.address import Endpoint
from provider_kairos.dns.cache import Cache
from provider_kairos.dns.forward import Forwarder
from provider_kairos.dns.records import Row, Zone, build
from provider_kairos.dns.server import NameServer

FILES = ("dns-035.jsonl", "dns-030.jsonl")
RECORDINGS = {
    name: [json.loads(line) for line in (Path(__file__).parent / "recordings" / name).read_text().splitlines()]
    for name in FILES
}
RA_AA = dns.flags.RA | dns.flags.AA
AD_ASKED = "AD and CD set"

# label to the rcode of ours where it is not what was recorded
OTHER_RCODE = {
    "class CH": dns.rcode.REFUSED,
    "NOTIFY": dns.rcode.NOTIMP,
}
OTHER_RCODE_FORWARDING = {
    "nx.example. A": dns.rcode.NXDOMAIN,
    "refused.example. A": dns.rcode.SERVFAIL,
    "trunc.example. A": dns.rcode.SERVFAIL,
    "silent forward server (30 s limit)": dns.rcode.SERVFAIL,
}
NOT_ANSWERED = {"response bit set", "5 bytes"}
recording = pytest.mark.parametrize("name", FILES)


def of_kind(name: str, kind: str) -> list[dict[str, Any]]:
    return [record for record in RECORDINGS[name] if record["record"] == kind]


def test_every_record_is_looked_at() -> None:
    for name in FILES:
        kinds = {record["record"] for record in RECORDINGS[name]}
        assert kinds == {"header", "post", "ledger", "query", "after-notify", "cannot-listen", "cache-size-0"}
        phases = {record["phase"] for record in of_kind(name, "query")}
        assert phases == {"forwarding off", "forwarding on", "dns command, own peer, forwarding off"}


@recording
def test_posted_entries_become_the_recorded_records(name: str, tmp_path: Path) -> None:
    async def main() -> None:
        backend = FakeBackend()
        async with serving(backend, f"unix://{tmp_path}/api.sock") as place:
            for record in of_kind(name, "post"):
                body = json.dumps(record["body"]).encode()
                kind = "Content-Type: application/json\r\n"
                status, _, reply = await ask(place, "POST", "/api/dns", body=body, headers=kind)
                assert (status, reply) == (record["status"], record["reply"])
        for record in of_kind(name, "ledger"):
            assert backend.data["dns"] == record["dns"]

    trio.run(main)


def zone_of(name: str) -> Zone:
    records = of_kind(name, "ledger")[0]["dns"]
    (zone,) = [each for each in build([Row(key, text) for key, text in records.items()], Zone()) if each is not None]
    assert zone.counters == {"dns_patterns_bad": 1}  # bad[
    return zone


@asynccontextmanager
async def recorded_server(name: str):
    """The recorder's forward server: over UDP, with its recorded words; it has no TCP."""
    said: dict[str, str | None] = {}
    for record in of_kind(name, "query"):
        for each in record.get("forwarded", ()):
            said.setdefault(each["query"][4:].lower(), each["answer"])
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))

        async def serve() -> None:
            while True:
                data, client = await sock.recvfrom(4096)
                if b"loop-check" in data:
                    continue
                # a question that EdgeVPN did not pass on would be missing here
                if answer := said[data[2:].hex().lower()]:
                    await sock.sendto(data[:12][:2] + bytes.fromhex(answer)[2:], client)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield Endpoint("127.0.0.1", sock.getsockname()[1])
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def running(zone: Zone, upstream: Endpoint | None):
    forwarder = Forwarder([upstream], Cache(200), zone.counters) if upstream else None
    ours = NameServer(Endpoint("127.0.0.1", 0), forwarder, zone)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.run)
        await ours.listening.wait()
        yield ours
        nursery.cancel_scope.cancel()


MARKER = bytes.fromhex("ffff10000000000000000000")
"""A question of opcode STATUS: answered at once, and so a sign that what came before it was dealt with."""


async def put(ours: NameServer, transport: str, data: bytes, *, answered: bool = True) -> bytes | None:
    """One question to our server, and its answer."""
    place = ours.addresses[transport.upper()]
    if transport == "tcp":
        async with await trio.open_tcp_stream(*place) as stream:
            await stream.send_all(struct.pack("!H", len(data)) + data)
            return bytes(await stream.receive_some(65536))[2:]
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(place)
        await sock.send(data)
        if not answered:
            await sock.send(MARKER)
        answer = await sock.recv(65535)
        return None if answer[:2] == MARKER[:2] else answer


def compare(record: dict[str, Any], ours: bytes | None, *, forwarding: bool) -> None:
    label = record["label"]
    if label in NOT_ANSWERED:
        assert record["answer"] is None
        assert ours is None
        return
    assert ours is not None
    read = dns.message.from_wire(ours)
    assert bool(read.flags & dns.flags.RA) is (forwarding and bool(read.question))
    assert bool(read.flags & dns.flags.AA) is (not forwarding and bool(read.question))
    if label == "TCP":
        assert record["error"] == "ConnectionRefusedError"
        record = next(each for each in RECORDINGS[FILES[0]] if each.get("label") == "foo.test. A")
    rcode = OTHER_RCODE.get(label) or (OTHER_RCODE_FORWARDING.get(label) if forwarding else None)
    if rcode is not None:
        assert record["answer"] is None or dns.message.from_wire(bytes.fromhex(record["answer"])).rcode() == 0
        assert read.rcode() == rcode
        assert read.answer == []
        return
    theirs = bytes.fromhex(record["answer"])
    flags = read.flags & ~RA_AA
    if label == AD_ASKED:
        assert theirs[3] & dns.flags.AD
        flags |= dns.flags.AD
    same_flags = ours[:2] + struct.pack("!H", flags) + ours[4:]
    if read.answer and read.answer[-1].name.to_text() == "real.fwd.":
        assert same_flags[:12] == theirs[:12]
        assert read.to_text().splitlines()[4:] == _sorted_like(read, theirs)
        return
    assert same_flags == theirs, label


def _sorted_like(read: dns.message.Message, theirs: bytes) -> list[str]:
    """Their text with the records of each set in our order."""
    other = dns.message.from_wire(theirs)
    assert other.answer == read.answer  # sets compare without order
    other.answer = read.answer
    return other.to_text().splitlines()[4:]


@recording
@pytest.mark.parametrize("phase", ["forwarding off", "forwarding on", "dns command, own peer, forwarding off"])
def test_answers(name: str, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forwarding = phase == "forwarding on"
    records = [record for record in of_kind(name, "query") if record["phase"] == phase]
    assert records

    async def main() -> None:
        zone = zone_of(name)
        async with recorded_server(name) as upstream, running(zone, upstream if forwarding else None) as ours:
            for record in records:
                if record["label"].startswith("silent"):
                    monkeypatch.setattr(forward, "TRY_SECONDS", 0.01)
                with trio.fail_after(60):
                    answer = await put(
                        ours,
                        record.get("transport", "udp"),
                        bytes.fromhex(record["query"]),
                        answered=record["label"] not in NOT_ANSWERED,
                    )
                compare(record, answer, forwarding=forwarding)
                monkeypatch.undo()
            assert zone.counters["dns_crashed"] == 0
            # whatever came before, NOTIFY too: it goes on
            again = await put(ours, "udp", bytes.fromhex(records[0]["query"]))
            compare(records[0], again, forwarding=forwarding)

    trio.run(main)


@recording
def test_what_ends_or_silences_theirs_does_not_end_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (notify,) = of_kind(name, "after-notify")
    assert notify["exit_code"] == 2  # ours: the last lines of test_answers
    (size,) = of_kind(name, "cache-size-0")
    assert size["exit_code"] == 1
    assert DnsSettings(listen="127.0.0.1:53", cache_size=0).cache_size == 0

    (place,) = of_kind(name, "cannot-listen")
    assert place["exit_code"] is None
    listen = place["flag"].removeprefix("--dns ")
    monkeypatch.setattr(server, "RETRY", 0)

    async def main() -> None:
        ours = NameServer(DnsSettings(listen=listen).endpoint(), None, Zone())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.run)
            with trio.fail_after(60):
                while len(ours.waiting()) < 2:
                    await trio.lowlevel.checkpoint()
            for reason in ours.waiting():
                assert "192.0.2.55:53" in reason.text()
                assert "assign requested address" in reason.text()  # the words that EdgeVPN printed
            nursery.cancel_scope.cancel()

    trio.run(main)
