"""mDNS between real network namespaces."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.root

_NODE = """
import json, sys, trio
from provider_kairos.mesh.mdns import Mdns, MdnsSettings
tag, peer, address = sys.argv[1:4]
seen = set()
def on_peer(who, addresses):
    if (who, *addresses) not in seen:
        seen.add((who, *addresses))
        print(json.dumps({"peer": who, "addresses": addresses}), flush=True)
listen = [f"/ip4/{address}/tcp/4001", "/ip4/10.1.0.9/tcp/4001"] if address != "-" else []
async def main():
    mdns = Mdns(MdnsSettings(tag, peer), lambda: listen, on_peer)
    async def commands():
        async for line in trio.lowlevel.FdStream(0) if sys.stdin else ():
            listen[:] = [line.decode().strip()]
            mdns.announce()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commands)
        await nursery.start(mdns.run)
        print(json.dumps({"ready": True}), flush=True)
trio.run(main)
"""
TAG = "Raq7rHlFwjuybfftIYj5hH5yCjZ3cIek1IRtoHNRNdf"
PEERS = [f"12D3KooW{letter}HufrTxcMXvoic9xvD9q2dbDSZ7xzQHDHULRy6oEoDYi" for letter in "ABCDE"]


class Node:
    def __init__(self, space: Any, number: int, address: str | None = None) -> None:
        self.peer = PEERS[number]
        self.process = space.popen(
            sys.executable,
            "-c",
            _NODE,
            TAG,
            self.peer,
            address or space.address,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self.next() == {"ready": True}

    def next(self, within: float = 30) -> Any:
        ready, _, _ = select.select([self.process.stdout], [], [], within)
        assert ready, f"{self.peer} said nothing within {within} s"
        return json.loads(self.process.stdout.readline())

    def silent(self, seconds: float) -> bool:
        return not select.select([self.process.stdout], [], [], seconds)[0]

    def say(self, line: str) -> None:
        self.process.stdin.write(line.encode() + b"\n")


def test_two_find_each_other(netns_pair):
    one, two = netns_pair
    first = Node(one, 0)
    second = Node(two, 1)
    assert second.next() == {"peer": first.peer, "addresses": [f"/ip4/{one.address}/tcp/4001"]}, (
        "and not the VPN's address"
    )
    assert first.next() == {"peer": second.peer, "addresses": [f"/ip4/{two.address}/tcp/4001"]}


def test_changed_listen_addresses_reach_the_other(netns_pair):
    one, two = netns_pair
    first, second = Node(one, 0), Node(two, 1)
    second.next()
    first.say(f"/ip4/{one.address}/tcp/4999")
    assert second.next() == {"peer": first.peer, "addresses": [f"/ip4/{one.address}/tcp/4999"]}


def test_interface_that_comes_later_and_goes(make_namespaces):
    one, two = make_namespaces(2)
    one.run("ip", "link", "set", "eth0", "down")
    one.run("ip", "addr", "flush", "dev", "eth0")
    first, second = Node(one, 0), Node(two, 1)
    one.run("ip", "addr", "add", f"{one.address}/24", "dev", "eth0")
    one.run("ip", "link", "set", "eth0", "up")
    assert first.next()["peer"] == second.peer
    assert second.next()["peer"] == first.peer
    one.run("ip", "link", "del", "eth0")
    assert first.process.poll() is None


@pytest.mark.parametrize("version", [4, 6])
def test_one_ip_version_is_enough(make_namespaces, version):
    one, two = make_namespaces(2)
    for space in (one, two):
        if version == 4:
            space.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
        else:
            space.run("ip", "addr", "flush", "dev", "eth0", "scope", "global")
    first, second = Node(one, 0), Node(two, 1)
    assert second.next()["peer"] == first.peer
    assert first.next()["peer"] == second.peer


def test_two_nodes_on_one_machine(netns):
    first = Node(netns, 0)
    second = Node(netns, 1)
    assert second.next()["peer"] == first.peer
    assert first.next()["peer"] == second.peer


def test_never_on_the_vpn(netns_pair):
    """Two boxes whose only common link carries the VPN's subnet do not find each other there."""
    one, two = netns_pair
    for number, space in enumerate(netns_pair, 1):
        space.run("ip", "addr", "add", f"10.1.0.{number}/24", "dev", "eth0")
    first = Node(one, 0)
    Node(two, 1)
    assert first.silent(1.5)


def test_no_socket_is_said_once_and_tried_again(netns):
    """Port 5353 is held by a program that does not share it; when it goes, mDNS works."""
    holder = netns.popen(
        sys.executable,
        "-c",
        "import socket\nfor f,a in ((socket.AF_INET,'0.0.0.0'),(socket.AF_INET6,'::')):\n"
        " s=socket.socket(f,socket.SOCK_DGRAM); f==socket.AF_INET6 and s.setsockopt(41,26,1); s.bind((a,5353)); globals()[a]=s\n"
        "print('held',flush=True)\ninput()",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"held\n"
    code = """
import logging, sys, trio
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s", level=logging.INFO)
from provider_kairos.mesh.mdns import Mdns, MdnsSettings
mdns = Mdns(MdnsSettings("tag", "12D3KooWCHufrTxcMXvoic9xvD9q2dbDSZ7xzQHDHULRy6oEoDYi"), list, print)
trio.run(mdns.run)
"""
    node = netns.popen(sys.executable, "-u", "-c", code, stdout=subprocess.PIPE, text=True)
    first = node.stdout.readline()
    assert first.startswith("WARNING no discovery on the local network for now: UDP port 5353")
    assert "Address already in use" in first
    holder.kill()
    assert node.stdout.readline() == "INFO discovery on the local network works again\n", "said once only"
