"""The daemon's name server on a real network: other machines ask, forward servers fail, loops, an address that comes late."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest

from provider_kairos.token.codec import encode, generate

pytestmark = pytest.mark.root

_SPEC = importlib.util.spec_from_file_location("daemon_process", Path(__file__).parent / "daemon_process.py")
assert _SPEC
assert _SPEC.loader
daemon_process = importlib.util.module_from_spec(_SPEC)
sys.modules["daemon_process"] = daemon_process
_SPEC.loader.exec_module(daemon_process)

UPSTREAM = Path(__file__).parents[1] / "interop" / "dns_upstream.py"
NO_VPN = {"KAIROS_P2P_VPN": "false", "EDGEVPNMDNS": "false", "EDGEVPNLISTENMADDRS": "/ip4/127.0.0.1/tcp/0"}
PATIENCE = 60

RESOLVER = """
import socket
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
here.bind(("127.0.0.53", 53))
there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("ready", flush=True)
while True:
    data, client = here.recvfrom(4096)
    there.sendto(data, ("127.0.0.1", 53))
"""
"""A machine's own resolver that asks our name server, as systemd-resolved does with DNS=127.0.0.1."""


def started(box, *command):
    process = box.popen(sys.executable, *command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def ask(box, place, name, kind="A", family=socket.AF_INET):
    query = dns.message.make_query(name, kind)
    with box.entered(), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((place, 53))
        sock.send(query.to_wire())
        answer = dns.message.from_wire(sock.recv(65535))
    assert answer.id == query.id
    return answer


def over_tcp(box, place, name, kind="A"):
    query = dns.message.make_query(name, kind).to_wire()
    with box.entered(), socket.create_connection((place, 53), PATIENCE) as connection:
        connection.sendall(len(query).to_bytes(2, "big") + query)
        length = int.from_bytes(connection.recv(2, socket.MSG_WAITALL), "big")
        return dns.message.from_wire(connection.recv(length, socket.MSG_WAITALL))


def last(answer):
    return answer.answer[-1][-1].to_text() if answer.answer else dns.rcode.to_text(answer.rcode())


def daemon_in(box, folder, **environ):
    return daemon_process.DaemonProcess(folder, encode(generate()), box.argv([]), **NO_VPN, **environ)


def add(daemon, *words):
    subprocess.run([daemon_process.PROGRAM, "dns", "add", "--api", f"unix://{daemon.socket}", *words], check=True)


def test_other_machines_ask_and_forward_servers_take_turns(make_namespaces, tmp_path):
    node, first, second, asker = make_namespaces(4)
    one, two = (started(box, str(UPSTREAM), box.address, "53") for box in (first, second))
    forward = f"{first.address}:53,{second.address}"
    with daemon_in(node, tmp_path, DNSADDRESS=":53", DNSFORWARDSERVER=forward) as daemon:
        daemon.answers()
        add(daemon, "web.mesh", "A=10.1.0.9")
        daemon.until(lambda: last(ask(node, "127.0.0.1", "web.mesh.")) == "10.1.0.9", "the answer on the node")
        for place in (node.address, "127.0.0.1", "127.0.0.2"):
            box = asker if place == node.address else node
            assert last(ask(box, place, "WEB.mesh.")) == "10.1.0.9"
            assert last(over_tcp(box, place, "web.mesh.")) == "10.1.0.9"
            assert last(ask(box, place, "www.outside.")) == "192.0.2.1"
        assert last(ask(node, "::1", "web.mesh.", family=socket.AF_INET6)) == "10.1.0.9"
        assert last(ask(asker, node.address, "nx.outside.")) == "NXDOMAIN"
        cut = ask(asker, node.address, "big.outside.", "TXT")
        assert cut.flags & dns.flags.TC
        assert len(over_tcp(asker, node.address, "big.outside.", "TXT").answer[0]) == 20

        one.kill()
        one.wait()
        assert last(ask(asker, node.address, "one.outside.")) == "192.0.2.1"
        two.kill()
        two.wait()
        assert last(ask(asker, node.address, "one.outside.")) == "192.0.2.1"  # kept
        assert last(ask(asker, node.address, "two.outside.")) == "SERVFAIL"
        assert last(ask(asker, node.address, "web.mesh.")) == "10.1.0.9"
        started(second, str(UPSTREAM), second.address, "53")
        assert last(ask(asker, node.address, "two.outside.")) == "192.0.2.1"
        counters = daemon.status()["counters"]
        assert counters["dns_cache_hits"] >= 1
        assert counters["dns_forward_failed"] >= 1
        assert counters.get("dns_crashed", 0) == 0
        assert not any(code.startswith("dns") for code in daemon.codes())


def test_a_loop_through_the_machines_own_resolver_is_named_and_left(make_namespaces, tmp_path):
    node, outside = make_namespaces(2)
    started(outside, str(UPSTREAM), outside.address, "53")
    started(node, "-c", RESOLVER)
    forward = f"127.0.0.53:53,{outside.address}:53"
    with daemon_in(node, tmp_path, DNSADDRESS="127.0.0.1:53", DNSFORWARDSERVER=forward) as daemon:
        daemon.answers()
        daemon.until(lambda: last(ask(node, "127.0.0.1", "empty.outside.", "MX")) == "NOERROR", "an answer")
        assert last(ask(node, "127.0.0.1", "www.outside.")) == "192.0.2.1"
        text = daemon.until(lambda: daemon.codes().get("dns-forward-loop"), "the loop is named")
        assert "127.0.0.53:53" in text
        before = daemon.status()["counters"]["dns_questions"]
        for number in range(20):
            assert last(ask(node, "127.0.0.1", f"n{number}.outside.")) == "192.0.2.1"
        # nothing goes round any more
        assert daemon.status()["counters"]["dns_questions"] == before + 20


def test_an_address_that_comes_late_and_a_loop_in_the_settings(make_namespaces, tmp_path):
    (node,) = make_namespaces(1)
    with daemon_in(node, tmp_path, DNSADDRESS="10.77.0.50:53", DNSFORWARD="false") as daemon:
        daemon.answers()
        text = daemon.until(lambda: daemon.codes().get("dns-not-listening"), "a reason")
        assert "10.77.0.50:53" in text
        daemon.put("mine", "k", "v")  # nothing else waits for it
        node.run("ip", "addr", "add", "10.77.0.50/24", "dev", "eth0")
        daemon.until(lambda: "dns-not-listening" not in daemon.codes(), "it listens")
        add(daemon, "web.mesh", "A=10.1.0.9")
        daemon.until(lambda: last(ask(node, "10.77.0.50", "web.mesh.")) == "10.1.0.9", "the answer")
        assert last(ask(node, "10.77.0.50", "www.outside.")) == "NOERROR"
    with daemon_in(node, tmp_path, DNSADDRESS="127.0.0.1:53", DNSFORWARDSERVER="127.0.0.1") as daemon:
        assert daemon.wait() == 3
        assert daemon.lines("is the name server itself")
