"""Everything that a running daemon listens to gets garbage; the daemon lives, keeps its records, and stays small.

A few hundred pieces by default; ``KAIROS_P2P_FUZZ=10000`` (``make fuzz``) is the whole. A friend in a third namespace
holds on to the victim meanwhile.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from provider_kairos.token.codec import encode, generate

HERE = Path(__file__).parent
pytestmark = pytest.mark.root

MOST_GROWTH_MB = 110.0
"""What the victim may grow by in all: once, for a ledger that is filled to its limit and what is remembered of it."""

MOST_LEAK_MB = 25.0
"""What the second attack of a kind on the room may add to the first."""


def beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mesh_fuzz = beside("mesh_fuzz")
daemon_process = beside("daemon_process")
KINDS = (*mesh_fuzz.KINDS, mesh_fuzz.PACKETS, "http", "mdns", "dns", "room", "room again")


def test_daemon_fuzz(make_namespaces, tmp_path, capsys):
    count = int(os.environ.get("KAIROS_P2P_FUZZ") or 150)
    victim_box, friend_box, attacker = make_namespaces(3)
    token = encode(generate())
    options = {
        "EDGEVPNLISTENMADDRS": "/ip4/0.0.0.0/tcp/4001",
        "DNSADDRESS": ":53",
        "DNSFORWARD": "false",
        "EDGEVPNDHT": "true",
        "KAIROS_P2P_DHT_MODE": "server",
    }
    victim = daemon_process.DaemonProcess(tmp_path / "victim", token, victim_box.argv([]), **options)
    friend = daemon_process.DaemonProcess(tmp_path / "friend", token, friend_box.argv([]), **options)
    with victim, friend:
        victim.answers()
        friend.answers()
        name, other = victim.status()["peer_id"], friend.status()["peer_id"]
        address = victim.address().split("/")[0]
        friend.address()
        victim.put("mine", "kept", "a record")
        victim.until(lambda: friend.bucket("mine").get("kept"), "the friend's copy")
        kept = victim.bucket("mine")["kept"]
        endpoint = f"/ip4/{victim_box.address}/tcp/4001/p2p/{name}"
        began, start_mb, start_fds = time.monotonic(), victim.rss_mb, victim.descriptors

        def attack(kind: str, seed: int) -> int:
            kind = kind.partition(" ")[0]
            program = [sys.executable, str(HERE / "mesh_fuzz.py"), endpoint, "--kind", kind]
            if kind in {"http", "mdns", "dns", "room"}:
                program = [sys.executable, str(HERE / "daemon_fuzz.py"), kind]
                program += {
                    "http": ["--socket", str(victim.socket)],
                    "mdns": ["--token", token, "--address", attacker.address],
                    "dns": ["--address", victim_box.address],
                    "room": ["--token", token, "--bootstrap", endpoint, "--victim", name]
                    + [f"--record={each}" for each in (f"healthcheck/{name}", f"machines/{address}")]
                    + [f"--record=kairos-p2p.lease/{name}"],
                }[kind]
            report = json.loads(attacker.run(*program, "--count", str(count), "--seed", str(seed)))
            assert all(report.get("alive", {}).values()), report
            return int(sum(report["sent"].values()))

        def say(line: str) -> None:
            with capsys.disabled():
                print(line, flush=True)

        say(f"\n{'protocol':26} {'sent':>6}  {'seconds':>7}  {'memory':>8}  sockets  victim")
        memory: dict[str, float] = {}
        for kind in KINDS:
            seed, before = random.SystemRandom().randrange(2**32), time.monotonic()
            try:
                sent = attack(kind, seed)
                assert victim.alive
                victim.answers()
            except BaseException:
                say(f"{kind}: seed {seed}\n{victim.tail()}")
                raise
            seconds = time.monotonic() - before
            memory[kind] = victim.rss_mb
            say(f"{kind:26} {sent:6}  {seconds:7.1f}  {victim.rss_mb:5.1f} MB  {victim.descriptors:7}  lives")
            assert sent >= count

        # nothing was lost, nothing broke on the way, and the friend noticed nothing
        assert victim.bucket("mine")["kept"] == kept
        assert name in json.dumps(victim.bucket("machines")[address])
        assert name in victim.bucket("healthcheck")
        assert name in victim.bucket("kairos-p2p.lease")
        assert victim.status()["peer_id"] == name
        counters = victim.status()["counters"]
        say(f"counters of the victim: {json.dumps(counters)}")
        for bug in (
            "host_restarts",
            "connection_crashed",
            "handler_crashed",
            "packet_handler_crashed",
            "blocks_crashed",
            "dns_crashed",
        ):
            assert not counters.get(bug), (bug, victim.tail())
        assert not victim.lines("Traceback")
        assert not victim.lines("started again")
        victim.put("mine", "after", "the storm")
        victim.until(lambda: friend.bucket("mine").get("after"), "the friend's copy after the storm")
        victim.until(lambda: other in {p["peer_id"] for p in victim.status()["peers"] if p["connected"]}, "the friend")
        victim.until(lambda: victim.descriptors <= start_fds + 8, "the sockets of the attackers to be closed")
        growth = victim.rss_mb - start_mb
        lines = len(victim.log.read_text(errors="replace").splitlines())
        say(
            f"{len(KINDS)} x {count} pieces in {time.monotonic() - began:.0f} s; memory {start_mb:.1f} -> "
            f"{victim.rss_mb:.1f} MB, friend {friend.rss_mb:.1f} MB; {lines} lines of log; the daemon lived"
        )
        assert growth < MOST_GROWTH_MB
        assert memory["room again"] < memory["room"] + MOST_LEAK_MB
