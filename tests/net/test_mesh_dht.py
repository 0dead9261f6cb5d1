"""Whole daemons in a small internet: no common link, no multicast between them; they meet through a DHT of their own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.token.codec import encode, generate

pytestmark = pytest.mark.root

_SPEC = importlib.util.spec_from_file_location("daemon_process", Path(__file__).parent / "daemon_process.py")
assert _SPEC
assert _SPEC.loader
daemon_process = importlib.util.module_from_spec(_SPEC)
sys.modules["daemon_process"] = daemon_process
_SPEC.loader.exec_module(daemon_process)

PORT = 4001
SERVER = {"KAIROS_P2P_DHT_MODE": "server", "EDGEVPNLISTENMADDRS": f"/ip4/0.0.0.0/tcp/{PORT}"}


@pytest.fixture
def start(tmp_path):
    """``start(box, token, **environ)`` → a daemon without VPN in that box, looking into a DHT."""
    made: list[Any] = []

    def begin(box, token, prefix=(), **environ):
        daemon = daemon_process.DaemonProcess(
            tmp_path / f"node{len(made)}",
            token,
            [*box.argv([]), *prefix],
            **{"EDGEVPNDHT": "true", "KAIROS_P2P_VPN": "false", "DHCP": "false", **environ},
        )
        daemon.box = box
        made.append(daemon.start())
        return daemon.answers()

    yield begin
    for daemon in made:
        daemon.kill()


def peer_id(daemon):
    return daemon.status()["peer_id"]


def room(daemon):
    """Peer to how it was found, of those in the ledger room."""
    return {each["peer_id"]: each["found_by"] for each in daemon.status()["peers"] if each["on_topic"]}


def address(daemon):
    return f"/ip4/{daemon.box.address}/tcp/{PORT}/p2p/{peer_id(daemon)}"


def together(*daemons):
    everybody = {peer_id(daemon) for daemon in daemons}
    for daemon in daemons:
        daemon.until(lambda daemon=daemon: room(daemon).keys() == everybody - {peer_id(daemon)}, "all in the room")


def test_nodes_that_share_no_link_meet_through_a_plain_dht_server(make_internet, start):
    """The server is of another network; it forgets everything, and a newcomer is found all the same."""
    box, *others = make_internet(4)
    server = start(box, encode(generate()), **SERVER)
    server.until(lambda: server.codes().keys() == {"mesh-no-peers", "dht-no-bootstrap"}, "nobody to ask")
    boot = address(server)
    token = encode(generate(interval=60))
    one = start(others[0], token, EDGEVPNBOOTSTRAPPEERS=boot)
    one.until(lambda: "dht-nobody-found" in one.codes(), "the DHT is reached")
    assert one.codes().keys() == {"mesh-no-peers", "dht-nobody-found"}
    two = start(others[1], token, EDGEVPNBOOTSTRAPPEERS=boot)
    together(one, two)
    assert "dht" in {*room(one).values(), *room(two).values()}
    for each in (one, two):
        each.until(lambda each=each: each.codes() == {}, "nothing to wait for")
    one.put("kairos", "said", "through the internet")
    two.until(lambda: two.bucket("kairos").get("said"), "the record")
    # of the server they know that it is there, and that it is none of theirs
    (seen,) = [each for each in one.status()["peers"] if each["peer_id"] == peer_id(server)]
    assert (seen["found_by"], seen["on_topic"]) == ("bootstrap", False)
    assert one.box.address in str(two.status()["peers"])

    server.kill()
    server.start().answers()
    three = start(others[2], token, EDGEVPNBOOTSTRAPPEERS=boot)
    together(one, two, three)
    assert server.status()["counters"]["dht_requests"] > 0


def test_one_environment_for_all_makes_the_first_node_the_way_in(make_internet, start):
    """Every node, the server too, names the server as its bootstrap peer; all are of one network."""
    box, *others = make_internet(3)
    token = encode(generate())
    first = start(box, token, **SERVER)
    boot = address(first)
    first.stop()
    first.environ["EDGEVPNBOOTSTRAPPEERS"] = boot
    first.start().answers()
    nodes = [first, *(start(each, token, EDGEVPNBOOTSTRAPPEERS=boot) for each in others)]
    together(*nodes)
    for node in nodes:
        node.until(lambda node=node: node.codes() == {}, "nothing to wait for")


_FORWARD = """
import socket, sys, threading
listen, to = sys.argv[1:]
def copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass
server = socket.create_server((listen, 5001))
print("ready", flush=True)
while True:
    one, _ = server.accept()
    other = socket.create_connection((to, 4001))
    for pair in ((one, other), (other, one)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


def test_a_node_behind_a_forwarded_port_is_found_by_what_it_announces(make_internet, start):
    """The two have no way to each other's own address; a port on the first box leads to the hidden one."""
    box, hidden, other = make_internet(3)
    for one, two in ((hidden, other), (other, hidden)):
        one.run("ip", "route", "add", "unreachable", f"{two.address}/32")
    forward = box.popen(sys.executable, "-c", _FORWARD, box.address, hidden.address, stdout=subprocess.PIPE)
    assert forward.stdout.readline() == b"ready\n"
    server = start(box, encode(generate()), **SERVER)
    token = encode(generate())
    inside = start(
        hidden,
        token,
        EDGEVPNBOOTSTRAPPEERS=address(server),
        EDGEVPNLISTENMADDRS=f"/ip4/0.0.0.0/tcp/{PORT}",
        EDGEVPNDHTANNOUNCEMADDRS=f"/ip4/{box.address}/tcp/5001",
    )
    outside = start(other, token, EDGEVPNBOOTSTRAPPEERS=address(server))
    together(inside, outside)
    (seen,) = [each for each in outside.status()["peers"] if each["on_topic"]]
    assert (seen["found_by"], seen["direction"]) == ("dht", "outbound")


def test_bootstrap_peers_behind_names(make_internet, start, tmp_path):
    """/dnsaddr and /dns4, by the machine's resolver, which leads to a name server in the first box."""
    box, *others = make_internet(3)
    server = start(box, encode(generate()), **SERVER)
    name_server = box.popen(
        sys.executable, "-c", _NAMES, box.address, address(server), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert name_server.stdout.readline() == b"ready\n"
    (tmp_path / "resolv.conf").write_text(f"nameserver {box.address}\noptions timeout:2\n")
    bind = f'mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec "$@"'
    own_resolver = ("unshare", "-m", "sh", "-c", bind, "sh")
    token = encode(generate())
    one = start(others[0], token, own_resolver, EDGEVPNBOOTSTRAPPEERS=f"/dnsaddr/boot.example/p2p/{peer_id(server)}")
    two = start(
        others[1], token, own_resolver, EDGEVPNBOOTSTRAPPEERS=f"/dns4/node.example/tcp/{PORT}/p2p/{peer_id(server)}"
    )
    together(one, two)


_NAMES = """
import socket, sys
import dns.message, dns.rrset, dns.flags
address, boot = sys.argv[1:]
records = {
    ("_dnsaddr.boot.example.", "TXT"): '"dnsaddr=/dnsaddr/deeper.example/p2p/%s"' % boot.rpartition("/")[2],
    ("_dnsaddr.deeper.example.", "TXT"): '"dnsaddr=%s"' % boot,
    ("node.example.", "A"): address,
}
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((address, 53))
print("ready", flush=True)
while True:
    data, asker = server.recvfrom(4096)
    query = dns.message.from_wire(data)
    answer = dns.message.make_response(query)
    answer.flags |= dns.flags.RA
    (question,) = query.question
    kind = dns.rdatatype.to_text(question.rdtype)
    found = records.get((question.name.to_text().lower(), kind))
    if found:
        answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, found))
    server.sendto(answer.to_wire(), asker)
"""


def test_without_any_way_in_it_says_so_and_stays_quiet(make_internet, start):
    (box,) = make_internet(1)
    alone = start(box, encode(generate()))
    alone.until(lambda: "dht-no-bootstrap" in alone.codes(), "the reason")
    assert alone.codes()["dht-no-bootstrap"] == "no bootstrap peer answers: 5 tried"
    assert alone.status()["ready"]
    assert len(alone.lines("bootstrap peer")) == 1
    listed = [each for each in alone.status()["peers"] if each["connected"]]
    assert listed == []


def test_bootstrap_peers_that_serve_no_dht_are_named(make_internet, start):
    box, other = make_internet(2)
    plain = start(box, encode(generate()), EDGEVPNLISTENMADDRS=f"/ip4/0.0.0.0/tcp/{PORT}")
    node = start(other, encode(generate()), EDGEVPNBOOTSTRAPPEERS=address(plain))
    node.until(
        lambda: node.codes().get("dht-no-bootstrap") == "no bootstrap peer serves the DHT: 1 tried, 1 answer without",
        "the reason",
    )


def test_a_bootstrap_address_without_a_peer_is_refused_by_name(make_internet, tmp_path):
    (box,) = make_internet(1)
    daemon = daemon_process.DaemonProcess(
        tmp_path / "node", encode(generate()), box.argv([]), EDGEVPNBOOTSTRAPPEERS="/ip4/10.91.1.2/tcp/4001"
    )
    assert daemon.start().wait() == 3
    assert "EDGEVPNBOOTSTRAPPEERS: '/ip4/10.91.1.2/tcp/4001' does not end in /p2p/ID" in daemon.tail()
