"""Networks of gossip routers in virtual time: whatever breaks and heals, what is said is heard by all, once."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.ids import PeerId
from provider_kairos.mesh.gossip_router import Deliver, GossipRouter, Send
from provider_kairos.mesh.gossip_wire import GossipMessage


class Net:
    """Routers joined by lines that carry RPCs in order. Signatures are taken as good."""

    def __init__(self, size: int, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0.0
        self.names = [PeerId(f"n{number:02}") for number in range(size)]
        self.routers = {name: GossipRouter(name, rng, verify=lambda _message: True) for name in self.names}
        self.links: set[frozenset[PeerId]] = set()
        self.heard: dict[PeerId, Counter[int]] = {name: Counter() for name in self.names}
        self.sends = 0
        for router in self.routers.values():
            router.join("t", 0)

    def link(self, one: PeerId, two: PeerId) -> None:
        pair = frozenset((one, two))
        if one == two or pair in self.links:
            return
        self.links.add(pair)
        for here, there in ((one, two), (two, one)):
            self.do(there, self.routers[there].handle(here, self.routers[here].hello(), self.now))
            self.do(here, self.routers[here].add_peer(there, (1, 2), self.now, outbound=here == one))

    def cut(self, one: PeerId, two: PeerId) -> None:
        self.links.discard(frozenset((one, two)))
        for here, there in ((one, two), (two, one)):
            self.routers[here].remove_peer(there)
            self.routers[here].forget_subscriptions(there)

    def do(self, here, effects) -> None:
        todo = [(here, effect) for effect in effects]
        while todo:
            at, effect = todo.pop(0)
            if isinstance(effect, Deliver):
                self.heard[at][effect.message.seqno] += 1
                continue
            assert isinstance(effect, Send)
            if frozenset((at, effect.peer)) in self.links:
                self.sends += 1
                more = self.routers[effect.peer].handle(at, effect.rpc, self.now)
                todo += [(effect.peer, each) for each in more]

    def beat(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1
            for name in self.names:
                self.do(name, self.routers[name].heartbeat(self.now))

    def say(self, name: PeerId, number: int) -> None:
        message = GossipMessage(name, number, "t", b"x" * 2000, b"", b"%s-%d" % (name.encode(), number))
        self.do(name, self.routers[name].publish(message, self.now))

    def is_connected(self) -> bool:
        seen, todo = set(), [self.names[0]]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += [other for pair in self.links if name in pair for other in pair]
        return len(seen) == len(self.names)


@given(st.integers(2, 40), st.integers(0, 2**32))
def test_in_a_connected_network_everybody_hears_everything_once(size, seed):
    rng = random.Random(seed)
    net = Net(size, rng)
    for index in range(1, size):  # a random tree, and some more lines
        net.link(net.names[index], net.names[rng.randrange(index)])
    for _ in range(rng.randrange(size * 2)):
        net.link(rng.choice(net.names), rng.choice(net.names))
    net.beat(3)
    authors = [rng.choice(net.names) for _ in range(5)]
    for number, author in enumerate(authors):
        net.say(author, number)
        net.beat()
    net.beat(6)
    for name in net.names:
        expected = {number: 1 for number, author in enumerate(authors) if author != name}
        assert dict(net.heard[name]) == expected, f"seed {seed}, {size} nodes, {name}"


@given(st.integers(3, 15), st.integers(0, 2**32))
def test_lines_that_break_and_heal_leave_no_one_deaf(size, seed):
    rng = random.Random(seed)
    net = Net(size, rng)
    for index in range(1, size):
        net.link(net.names[index], net.names[rng.randrange(index)])
    number = 0
    for _ in range(20):
        pair = tuple(rng.choice(sorted(net.links, key=sorted)))
        net.cut(*pair)
        net.say(rng.choice(net.names), number := number + 1)
        net.beat(rng.randrange(3))
        net.link(*pair)
    assert net.is_connected()
    net.beat(70)  # longer than any pause after a prune
    for name in net.names:
        net.say(name, number := number + 1)
        for other in net.names:
            assert other == name or net.heard[other][number] == 1, f"seed {seed}, {size} nodes, {name} to {other}"


@given(st.integers(0, 2**32))
def test_a_large_network_does_not_drown_in_copies(seed):
    rng = random.Random(seed)
    net = Net(30, rng)
    for one in net.names:
        for two in net.names:
            net.link(one, two)
    net.beat(70)
    assert all(len(router.mesh["t"]) <= 12 for router in net.routers.values())
    net.sends = 0
    net.say(net.names[0], 1)
    assert net.sends <= 30 * (12 + 12) + 30  # a message and a note that it is here, for every line of a mesh
