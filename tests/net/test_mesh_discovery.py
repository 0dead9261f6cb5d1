"""Nodes in namespaces of their own that know nothing but the token: found by mDNS, cut off, powered off, found again."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from typing import Any

import pytest

from provider_kairos.token.codec import encode, generate

pytestmark = pytest.mark.root

PATIENCE = 60.0

_NODE = """
import json, random, sys, time, trio
from provider_kairos.clock import SystemClock
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.token.codec import decode
token, seed = sys.argv[1:]
def say(**what):
    print(json.dumps(what), flush=True)
async def main():
    mesh = Mesh(MeshSettings(seed=seed.encode() * 32, token=decode(token)), SystemClock(), random.Random(seed))
    async def events():
        async for event in mesh.events:
            say(event=type(event).__name__, on_chain=sorted(mesh.on_chain()), at=round(time.monotonic(), 3))
    async def messages():
        async for message in mesh.messages:
            say(message=message.data.decode(), author=message.author)
    async def commands():
        async for line in trio.lowlevel.FdStream(0):
            await mesh.publish(line.strip())
    async with trio.open_nursery() as nursery:
        started = time.monotonic()
        await nursery.start(mesh.run)
        say(peer=mesh.peer_id, addresses=mesh.addresses(), at=round(started, 3))
        for each in (events, messages, commands):
            nursery.start_soon(each)
trio.run(main)
"""


class Node:
    def __init__(self, space: Any, token: str, seed: str) -> None:
        self.process = space.popen(
            sys.executable, "-c", _NODE, token, seed, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.on_chain: set[str] = set()
        self.messages: set[str] = set()
        first = self._next()
        self.peer = first["peer"]
        self.addresses = first["addresses"]
        self.started = first["at"]
        self.last = 0.0

    def _next(self) -> dict[str, Any]:
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, "said nothing"
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def until(self, true) -> None:
        while not true():
            said = self._next()
            if "on_chain" in said:
                self.on_chain = set(said["on_chain"])
                self.last = said["at"]
            if "message" in said:
                self.messages.add(said["message"])

    def say(self, text: str) -> None:
        self.process.stdin.write(text.encode() + b"\n")


def everybody_sees_everybody(nodes):
    everybody = {node.peer for node in nodes}
    for node in nodes:
        node.until(lambda node=node: node.on_chain == everybody - {node.peer})


def test_nodes_that_hold_only_a_token_find_each_other_lose_each_other_and_come_back(make_namespaces):
    boxes = make_namespaces(3)
    token = encode(generate())
    nodes = [Node(box, token, seed) for box, seed in zip(boxes, "abc", strict=True)]
    for box, node in zip(boxes, nodes, strict=True):
        assert [address.rpartition("/tcp/")[0] for address in node.addresses] == [f"/ip4/{box.address}"]
    everybody_sees_everybody(nodes)
    print("seconds to see all:", [round(node.last - node.started, 3) for node in nodes])
    nodes[0].say("hello from a")
    for node in nodes[1:]:
        node.until(lambda node=node: "hello from a" in node.messages)

    # A cable is pulled: nobody closes anything, everybody notices; it is put back.
    boxes[2].run("ip", "link", "set", "eth0", "down")
    for node in nodes[:2]:
        node.until(lambda node=node: nodes[2].peer not in node.on_chain)
    nodes[2].until(lambda: not nodes[2].on_chain)
    boxes[2].run("ip", "link", "set", "eth0", "up")
    everybody_sees_everybody(nodes)
    nodes[2].say("back")
    for node in nodes[:2]:
        node.until(lambda node=node: "back" in node.messages)

    # Power cut: the link goes first, then the process; the box starts again at once, with the same identity.
    boxes[1].run("ip", "link", "set", "eth0", "down")
    nodes[1].process.kill()
    nodes[1].process.wait()
    boxes[1].run("ip", "link", "set", "eth0", "up")
    again = Node(boxes[1], token, "b")
    again.until(lambda: again.on_chain == {nodes[0].peer, nodes[2].peer})
    print("seconds to see all after a power cut:", round(again.last - again.started, 3))
    again.say("powered on")
    for node in (nodes[0], nodes[2]):
        node.until(lambda node=node: "powered on" in node.messages)
        node.say(f"welcome from {node.peer}")
    again.until(lambda: {f"welcome from {nodes[0].peer}", f"welcome from {nodes[2].peer}"} <= again.messages)
