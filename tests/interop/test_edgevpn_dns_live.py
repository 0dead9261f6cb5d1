"""Names on the mesh beside the real EdgeVPN: the same questions put to its name server and to ours.

Records are written through either program's API and answered by both; a forward server stands for the world outside.
Where we answer otherwise it says so here, with what each says; the reasons are in test_dns_recordings.py.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import pytest
import trio

from provider_kairos.api.client import DaemonClient
from tests.interop.network import NEW, OLD, Node, Site, until, whole

pytestmark = pytest.mark.root

PROGRAM = str(Path(sys.executable).parent / "kairos-p2p")
IGNORED = dns.flags.RA | dns.flags.AA

BY_GO = {
    r"foo\.test\.$": {"A": "10.1.0.9", "TXT": '"hello world"'},
    r"(?i)^case\.insens\.$": {"A": "10.1.0.13"},
    r"^host[0-9]+\.example\.$": {"A": "10.1.0.14", "AAAA": "fd00::14"},
    "bad[": {"A": "10.1.0.12"},
}
BY_US = {
    r".*\.wild\.$": {"A": "10.1.0.11", "CNAME": "foo.test.", "MX": "10 mail.test.", "SRV": "1 2 3 host.test."},
    r"^six\.test\.$": {"AAAA": "fd00::6"},
    "twolines": {"A": "10.1.0.15\n10.1.0.16"},
    r"^bad[[:alpha:]]+\.$": {"A": "no address"},
}
SAME = (
    ("foo.test.", "A"),
    ("foo.test.", "TXT"),
    ("foo.test.", "MX"),
    ("sub.foo.test.", "A"),
    ("FOO.test.", "A"),
    ("FOO.TEST.", "A"),
    ("CASE.insens.", "A"),
    ("host7.example.", "A"),
    ("host7.example.", "AAAA"),
    ("hostx.example.", "A"),
    ("a.wild.", "A"),
    ("a.wild.", "CNAME"),
    ("a.wild.", "MX"),
    ("a.wild.", "SRV"),
    ("six.test.", "AAAA"),
    ("twolines.", "A"),
    ("badaddress.", "A"),
    ("www.elsewhere.", "A"),
    ("WWW.elsewhere.", "A"),
    ("www.elsewhere.", "A"),
    ("www.elsewhere.", "AAAA"),
    ("www.elsewhere.", "TXT"),
    ("empty.elsewhere.", "A"),
    (".", "NS"),
)
OTHERWISE = {
    # rcode and last record: theirs, ours
    ("nx.elsewhere.", "A"): (("NOERROR", ""), ("NXDOMAIN", "")),
    ("refused.elsewhere.", "A"): (("NOERROR", ""), ("SERVFAIL", "")),
    ("big.elsewhere.", "TXT"): (("NOERROR", ""), ("NOERROR", "cut")),
    # who has an address from the mesh gets none from outside
    ("foo.test.", "AAAA"): (("NOERROR", "2001:db8::1"), ("NOERROR", "")),
    ("six.test.", "A"): (("NOERROR", "192.0.2.1"), ("NOERROR", "")),
    # an alias leads to what it names
    ("alias.test.", "A"): (("NOERROR", "192.0.2.1"), ("NOERROR", "10.1.0.9")),
}


def ask(node: Node, name: str, kind: str, place: str = "127.0.0.1") -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    with node.space.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.connect((place, 53))
        sock.send(query.to_wire())
        answer = dns.message.from_wire(sock.recv(65535))
    assert answer.id == query.id
    return answer


def over_tcp(node: Node, name: str, kind: str) -> dns.message.Message:
    query = dns.message.make_query(name, kind).to_wire()
    with node.space.entered(), socket.create_connection(("127.0.0.1", 53), 20) as connection:
        connection.sendall(len(query).to_bytes(2, "big") + query)
        length = int.from_bytes(connection.recv(2, socket.MSG_WAITALL), "big")
        return dns.message.from_wire(connection.recv(length, socket.MSG_WAITALL))


def meaning(answer: dns.message.Message) -> tuple[Any, ...]:
    records = [rrset.to_text() for rrset in answer.answer]
    return dns.rcode.to_text(answer.rcode()), answer.flags & ~IGNORED & ~15, records


def gist(answer: dns.message.Message) -> tuple[str, str]:
    last = answer.answer[-1][-1].to_text() if answer.answer else ""
    return dns.rcode.to_text(answer.rcode()), "cut" if answer.flags & dns.flags.TC else last


def write(node: Node, records: dict[str, dict[str, str]]) -> None:
    async def main() -> None:
        async with DaemonClient(f"unix://{node.socket}") as client:
            for regex, values in records.items():
                await client.post_dns(regex, values)

    trio.run(main)


def followed(site: Site, name: str, kind: str, expected: str) -> None:
    for node in site.nodes:
        until(
            lambda node=node: gist(ask(node, name, kind)) == ("NOERROR", expected),
            f"{node.name} answers {name} {kind} with {expected or 'nothing'}",
        )


@pytest.fixture(scope="module", params=[NEW, OLD])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def site(make_lasting_site, version: str) -> Iterator[Site]:
    made = make_lasting_site(1, 1, version=version, ownership="enforce" if version == NEW else "off")
    (go,), (ours,) = made.go, made.ours
    upstream = go.space.popen(
        sys.executable,
        str(Path(__file__).with_name("dns_upstream.py")),
        go.space.address,
        "5300",
        stdout=subprocess.PIPE,
        text=True,
    )
    assert upstream.stdout.readline() == "ready\n"
    for node in made.nodes:
        node.environment = {"DNSADDRESS": "127.0.0.1:53", "DNSFORWARDSERVER": f"{go.space.address}:5300"}
    made.start()
    whole(*made.nodes)
    write(go, BY_GO)
    write(ours, BY_US)
    wanted = BY_GO.keys() | BY_US.keys()
    for node in made.nodes:
        until(lambda node=node: node.bucket("dns").keys() == wanted, f"all records at {node.name}")
    assert go.bucket("dns") == ours.bucket("dns")
    yield made
    upstream.kill()


@pytest.mark.row("dns", "the same answers to the same questions, but for the listed ones", mode="-")
def test_the_same_questions_to_both(site: Site, version: str, seen) -> None:
    (go,), (ours,) = site.go, site.ours
    for name, kind in SAME:
        assert meaning(ask(ours, name, kind)) == meaning(ask(go, name, kind)), (name, kind)
    write(ours, {r"^alias\.test\.$": {"CNAME": "foo.test."}})
    followed(site, "alias.test.", "CNAME", "foo.test.")
    for (name, kind), (theirs, mine) in OTHERWISE.items():
        assert gist(ask(go, name, kind)) == theirs, (name, kind)
        assert gist(ask(ours, name, kind)) == mine, (name, kind)
    assert len(over_tcp(ours, "big.elsewhere.", "TXT").answer[0]) == 20
    assert over_tcp(ours, "foo.test.", "A").answer == ask(go, "foo.test.", "A").answer
    counters = ours.get("/api/v1/status")["counters"]
    assert counters["dns_patterns_bad"] == 1
    assert counters.get("dns_crashed", 0) == 0
    seen(f"{len(SAME)} alike, {len(OTHERWISE)} otherwise on purpose")


@pytest.mark.row("dns", "records added, changed and deleted through either API are followed by both", mode="-")
def test_records_are_followed_by_both(site: Site, version: str) -> None:
    (go,), (ours,) = site.go, site.ours
    for node, name in ((go, "bygo"), (ours, "byus")):
        key = rf"^{name}\.test\.$"
        write(node, {key: {"A": "10.1.0.21"}})
        followed(site, f"{name}.test.", "A", "10.1.0.21")
        write(node, {key: {"A": "10.1.0.22"}})
        followed(site, f"{name}.test.", "A", "10.1.0.22")
    # our command, against either API; EdgeVPN defends a write for some seconds, so the deletion is ours
    for node, name in ((go, "cligo"), (ours, "cliours")):
        api = f"unix://{node.socket}"
        subprocess.run([PROGRAM, "dns", "add", "--api", api, f"{name}.test", "A=10.1.0.23"], check=True)
        followed(site, f"{name.upper()}.test.", "A", "10.1.0.23")
        listed = subprocess.run([PROGRAM, "dns", "list", "--json", "--api", api], check=True, capture_output=True)
        assert {"A": "10.1.0.23"} in [each["records"] for each in json.loads(listed.stdout)["records"]]
    subprocess.run([PROGRAM, "dns", "remove", "--api", f"unix://{ours.socket}", "cliours.test"], check=True)
    followed(site, "cliours.test.", "A", "192.0.2.1")  # as the world outside says


@pytest.mark.row("dns", "a node of its own answers without a daemon: EdgeVPN's dns command and ours", mode="-")
def test_the_command_is_a_node_of_its_own(site: Site, version: str, tmp_path: Path) -> None:
    (go,), (ours,) = site.go, site.ours
    common = {"EDGEVPNTOKEN": site.token, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    common["EDGEVPNOWNERSHIP"] = go.ownership
    words = ("dns", "--listen", "127.0.0.3:53", "--dns-forwarder=false", "--mdns", "--dht=false")
    # ours beside their daemon and theirs beside ours; in v0.30.2 the listen address has to be TCP
    runs = (
        (go, (PROGRAM, *words)),
        (ours, (*go._go()[:1], *words, *go._go()[1:])),
    )
    for node, command in runs:
        with (tmp_path / f"{node.name}.log").open("wb") as log:
            process = node.space.popen(*command, env=common, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(
            lambda node=node: gist(ask(node, "foo.test.", "A", "127.0.0.3")) == ("NOERROR", "10.1.0.9"),
            f"{command[0]} {' '.join(words)} answers beside {node.name}",
        )
        assert gist(ask(node, "www.elsewhere.", "A", "127.0.0.3")) == ("NOERROR", "")
        process.terminate()
        assert process.wait(30) == 0
