"""Gossipsub's decisions, sans-IO: who gets what (spec/edgevpn.md 4.4 to 4.6; gossipsub 1.0 to 1.2).

RPCs and a ``now`` in, :class:`Send` and :class:`Deliver` out. Rules that differ from other routers, and why:

* subscriptions belong to the caller's newest inbound stream, sending to an outbound queue of its own; losing one never
  touches the other (a Go peer re-opens its streams one by one when its topic rotates);
* what we author goes to every subscriber (flood publish), and again to a peer that subscribes within a few seconds
  after, because that peer was rotating or reconnecting while we published;
* a pruned peer is left alone two seconds longer than it asked for: grafting early costs another minute;
* mesh members that left are dropped, PX is neither sent nor followed;
* a message that is older than the seen cache remembers is a replay unless its author delivers it in person.

Streams and queues are :mod:`provider_kairos.mesh.gossip`'s, what a message means :mod:`provider_kairos.mesh.room`'s.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from provider_kairos.ids import PeerId
from provider_kairos.mesh.gossip_wire import GossipMessage, Prune, Rpc, verify_message

__all__ = ["Deliver", "Effect", "GossipRouter", "Send", "everybody"]

D, D_LOW, D_HIGH, D_LAZY = 6, 5, 12, 6
GOSSIP_FACTOR = 0.25
HISTORY, HISTORY_GOSSIP = 5, 3
SEEN_TTL = 120.0
MAX_SEEN = 20_000
MAX_FLOORS = 4096
MAX_CACHED_BYTES = 24 * 1024 * 1024
PRUNE_BACKOFF, UNSUBSCRIBE_BACKOFF = 60, 10
BACKOFF_SLACK = 2.0
MAX_IHAVE_PER_HEARTBEAT = 10
MAX_RETRANSMISSIONS = 3
MAX_TOPICS_PER_PEER = 64
IDONTWANT_THRESHOLD = 1024
IDONTWANT_TTL = 3.0
MAX_IDONTWANT = 10_000
REPEAT_WITHIN = 4.0
"""Seconds for which what we authored is sent to late subscribers too."""


@dataclass(frozen=True, slots=True)
class Send:
    """Put an RPC into the queue of a peer."""

    peer: PeerId
    rpc: Rpc


@dataclass(frozen=True, slots=True)
class Deliver:
    """A verified message of a topic that we joined; ``via`` is the neighbour that sent it."""

    message: GossipMessage
    via: PeerId


Effect = Send | Deliver


def everybody(_topic: str, _via: PeerId, _author: PeerId | None) -> bool:
    """The rule that admits all."""
    return True


@dataclass(slots=True)
class _Peer:
    """A peer that we can send to."""

    version: tuple[int, int]
    outbound: bool
    ihaves: int = 0
    wanted: int = 0
    retransmitted: Counter[bytes] = field(default_factory=Counter)
    dont_want: OrderedDict[bytes, float] = field(default_factory=OrderedDict)


class GossipRouter:
    """The state of one host's gossip."""

    def __init__(
        self,
        me: PeerId,
        rng: random.Random,
        verify: Callable[[GossipMessage], bool] = verify_message,
        admits: Callable[[str, PeerId, PeerId | None], bool] = everybody,
    ) -> None:
        """``admits`` says whether messages of a topic are taken from a neighbour; the last is the author, if known."""
        self.me = me
        self.topics: set[str] = set()
        self.mesh: dict[str, set[PeerId]] = {}
        self.counters: Counter[str] = Counter()
        self._rng = rng
        self._verify = verify
        self._admits = admits
        self._peers: dict[PeerId, _Peer] = {}
        self._subscriptions: dict[PeerId, set[str]] = {}
        self._early_grafts: dict[PeerId, set[str]] = {}
        self._backoff: dict[tuple[str, PeerId], float] = {}
        self._seen: OrderedDict[bytes, tuple[float, PeerId, int]] = OrderedDict()
        self._floors: OrderedDict[PeerId, int] = OrderedDict()
        self._cache: dict[bytes, GossipMessage] = {}
        self._cached_bytes = 0
        self._windows: deque[list[bytes]] = deque([[]])
        self._own: deque[tuple[float, GossipMessage]] = deque()

    # --- peers and subscriptions ------------------------------------------------------------------------------------

    def subscribers(self, topic: str) -> set[PeerId]:
        """Peers that said that they are in ``topic``."""
        return {peer for peer, topics in self._subscriptions.items() if topic in topics}

    def topics_of(self, peer: PeerId) -> set[str]:
        """What a peer said that it is in."""
        return self._subscriptions.get(peer, set())

    def hello(self) -> Rpc:
        """First RPC on every new outbound stream: all our subscriptions."""
        return Rpc(subscriptions=tuple((True, topic) for topic in sorted(self.topics)))

    def add_peer(self, peer: PeerId, version: tuple[int, int], now: float, *, outbound: bool) -> list[Effect]:
        """An outbound stream to ``peer`` is open and :meth:`hello` queued on it."""
        self._peers[peer] = state = _Peer(version, outbound)
        effects: list[Effect] = []
        for topic in self._early_grafts.pop(peer, ()):
            effects += self._grafted(peer, state, topic, now)
        for topic in self.topics & self.topics_of(peer):
            effects += self._reached(peer, topic, now)
        return effects

    def remove_peer(self, peer: PeerId) -> None:
        """The outbound stream is gone; subscriptions stay."""
        self._peers.pop(peer, None)
        for members in self.mesh.values():
            members.discard(peer)

    def forget_subscriptions(self, peer: PeerId) -> None:
        """The newest inbound stream of ``peer`` ended, or a newer one starts."""
        self._subscriptions.pop(peer, None)
        self._early_grafts.pop(peer, None)
        for members in self.mesh.values():
            members.discard(peer)

    # --- our own doing ----------------------------------------------------------------------------------------------

    def join(self, topic: str, now: float) -> list[Effect]:
        """Subscribe: announced on the existing streams."""
        if topic in self.topics:
            return []
        self.topics.add(topic)
        self.mesh[topic] = set()
        announcement = Rpc(subscriptions=((True, topic),))
        effects: list[Effect] = [Send(peer, announcement) for peer in self._peers]
        effects += [self._graft(peer, topic) for peer in self._eligible(topic, now)[:D]]
        return effects

    def leave(self, topic: str, now: float) -> list[Effect]:
        """Unsubscribe."""
        if topic not in self.topics:
            return []
        self.topics.discard(topic)
        members = self.mesh.pop(topic, set())
        effects: list[Effect] = []
        for peer, state in self._peers.items():
            prune = (self._prune(topic, state, UNSUBSCRIBE_BACKOFF),) if peer in members else ()
            if prune:
                self._back_off(topic, peer, UNSUBSCRIBE_BACKOFF, now)
            effects.append(Send(peer, Rpc(subscriptions=((False, topic),), prune=prune)))
        return effects

    def publish(self, message: GossipMessage, now: float) -> list[Effect]:
        """Send a message of ours to every subscriber that we can send to."""
        self._remember(message, now)
        self._own.append((now, message))
        rpc = Rpc(messages=(message,))
        return [Send(peer, rpc) for peer in self.subscribers(message.topic) if peer in self._peers]

    # --- what peers say ---------------------------------------------------------------------------------------------

    def handle(self, peer: PeerId, rpc: Rpc, now: float) -> list[Effect]:
        """Take an RPC that came on the newest inbound stream of ``peer``."""
        effects: list[Effect] = []
        if rpc.refused:
            self.counters["malformed_message"] += rpc.refused
        for subscribe, topic in rpc.subscriptions:
            effects += self._subscription(peer, topic, now, subscribe=subscribe)
        for message in rpc.messages:
            effects += self._message(peer, message, now)
        state = self._peers.get(peer)
        if state is None:
            # It was quicker than our own stream to it: a graft is for later, the rest needs an answer and is lost.
            early = {topic for topic in rpc.graft if topic in self.topics}
            self._early_grafts[peer] = self._early_grafts.get(peer, set()) | early
            return effects
        for topic in rpc.graft:
            effects += self._grafted(peer, state, topic, now)
        for prune in rpc.prune:
            self._pruned(peer, prune, now)
        for topic, ids in rpc.ihave:
            effects += self._offered(peer, state, topic, ids)
        if rpc.iwant:
            effects += self._asked(peer, state, rpc.iwant)
        for message_id in rpc.idontwant:
            if len(state.dont_want) < MAX_IDONTWANT:
                state.dont_want[message_id] = now + IDONTWANT_TTL
        return effects

    def _subscription(self, peer: PeerId, topic: str, now: float, *, subscribe: bool) -> list[Effect]:
        topics = self._subscriptions.setdefault(peer, set())
        if not subscribe:
            topics.discard(topic)
            self.mesh.get(topic, set()).discard(peer)
            return []
        if topic in topics:
            return []
        if len(topics) >= MAX_TOPICS_PER_PEER:
            self.counters["subscriptions_over_limit"] += 1
            return []
        topics.add(topic)
        return self._reached(peer, topic, now) if topic in self.topics and peer in self._peers else []

    def _reached(self, peer: PeerId, topic: str, now: float) -> list[Effect]:
        """``peer`` is in ``topic`` and can be sent to, since now: what we just said to others is news to it."""
        effects: list[Effect] = [
            Send(peer, Rpc(messages=(message,)))
            for said, message in self._own
            if message.topic == topic and now - said <= REPEAT_WITHIN
        ]
        if len(self.mesh[topic]) < D and peer in self._eligible(topic, now):
            effects.append(self._graft(peer, topic))
        return effects

    def _message(self, via: PeerId, message: GossipMessage, now: float) -> list[Effect]:
        if message.topic not in self.topics:
            self.counters["other_topic"] += 1
            return []
        if message.author == self.me:
            self.counters["own_returned"] += 1
            return []
        if message.message_id in self._seen:
            self.counters["duplicate"] += 1
            return []
        if not self._admits(message.topic, via, message.author):
            self.counters["gated"] += 1  # neither passed on nor remembered: somebody who is heard may bring it too
            return []
        floor = self._floors.get(message.author)
        if floor is not None and message.seqno <= floor and message.author != via:
            self.counters["replayed"] += 1
            return []
        if not self._verify(message):
            self.counters["bad_signature"] += 1
            return []
        if floor is not None and message.seqno <= floor:
            del self._floors[message.author]  # the author itself counts anew: its clock was set back
        self._remember(message, now)
        rpc = Rpc(messages=(message,))
        effects: list[Effect] = [Deliver(message, via)]
        members = [peer for peer in self.mesh.get(message.topic, ()) if peer not in {via, message.author}]
        if len(message.data) > IDONTWANT_THRESHOLD:
            unwanted = Rpc(idontwant=(message.message_id,))
            effects += [Send(peer, unwanted) for peer in members if self._peers[peer].version >= (1, 2)]
        effects += [Send(peer, rpc) for peer in members if message.message_id not in self._peers[peer].dont_want]
        return effects

    def _grafted(self, peer: PeerId, state: _Peer, topic: str, now: float) -> list[Effect]:
        members = self.mesh.get(topic)
        if members is None or peer in members:
            return []
        waiting = self._backoff.get((topic, peer), 0.0) - BACKOFF_SLACK > now
        if waiting or (len(members) >= D_HIGH and not state.outbound):
            self._back_off(topic, peer, PRUNE_BACKOFF, now)
            return [Send(peer, Rpc(prune=(self._prune(topic, state, PRUNE_BACKOFF),)))]
        if topic in self.topics_of(peer):
            members.add(peer)
        return []

    def _pruned(self, peer: PeerId, prune: Prune, now: float) -> None:
        self.mesh.get(prune.topic, set()).discard(peer)
        if prune.topic in self.topics:
            self._back_off(prune.topic, peer, prune.backoff or PRUNE_BACKOFF, now)

    def _offered(self, peer: PeerId, state: _Peer, topic: str, ids: Iterable[bytes]) -> list[Effect]:
        state.ihaves += 1
        if topic not in self.topics or state.ihaves > MAX_IHAVE_PER_HEARTBEAT or not self._admits(topic, peer, None):
            return []
        wanted = tuple(each for each in dict.fromkeys(ids) if each not in self._seen)[: 5000 - state.wanted]
        state.wanted += len(wanted)
        return [Send(peer, Rpc(iwant=wanted))] if wanted else []

    def _asked(self, peer: PeerId, state: _Peer, ids: Iterable[bytes]) -> list[Effect]:
        effects: list[Effect] = []
        for message_id in dict.fromkeys(ids):
            message = self._cache.get(message_id)
            if message is None or state.retransmitted[message_id] >= MAX_RETRANSMISSIONS:
                continue
            state.retransmitted[message_id] += 1
            effects.append(Send(peer, Rpc(messages=(message,))))
        return effects

    # --- time -------------------------------------------------------------------------------------------------------

    def heartbeat(self, now: float) -> list[Effect]:
        """Once a second: mend meshes, offer what is cached, forget what is old."""
        effects: list[Effect] = []
        for topic, members in self.mesh.items():
            members.intersection_update(self.subscribers(topic), self._peers)
            if len(members) < D_LOW:
                missing = D - len(members)
                effects += [self._graft(peer, topic) for peer in self._eligible(topic, now)[:missing]]
            elif len(members) > D_HIGH:
                effects += self._shrink(topic, members, now)
            effects += self._offer(topic, members)
        self._forget(now)
        return effects

    def _shrink(self, topic: str, members: set[PeerId], now: float) -> list[Effect]:
        """Keep D members, those that we dialled before others: they are the hardest to fake."""
        order = sorted(members)
        self._rng.shuffle(order)
        order.sort(key=lambda peer: not self._peers[peer].outbound)
        effects: list[Effect] = []
        for peer in order[D:]:
            members.discard(peer)
            self._back_off(topic, peer, PRUNE_BACKOFF, now)
            effects.append(Send(peer, Rpc(prune=(self._prune(topic, self._peers[peer], PRUNE_BACKOFF),))))
        return effects

    def _offer(self, topic: str, members: set[PeerId]) -> list[Effect]:
        windows = list(self._windows)[-HISTORY_GOSSIP:]
        ids = [each for window in windows for each in window if (m := self._cache.get(each)) and m.topic == topic]
        if not ids:
            return []
        others = sorted(peer for peer in self.subscribers(topic) if peer in self._peers and peer not in members)
        self._rng.shuffle(others)
        offer = Rpc(ihave=((topic, tuple(ids[-5000:])),))
        return [Send(peer, offer) for peer in others[: max(D_LAZY, int(GOSSIP_FACTOR * len(others)))]]

    def _forget(self, now: float) -> None:
        for state in self._peers.values():
            state.ihaves = state.wanted = 0
            while state.dont_want and next(iter(state.dont_want.values())) <= now:
                state.dont_want.popitem(last=False)
        if any(self._windows):
            self._windows.append([])
        while len(self._windows) > HISTORY:
            for message_id in self._windows.popleft():
                self._drop_cached(message_id)
        while self._own and now - self._own[0][0] > REPEAT_WITHIN:
            self._own.popleft()
        self._backoff = {key: until for key, until in self._backoff.items() if until > now and key[0] in self.topics}
        while self._seen:
            message_id, (expires, author, seqno) = next(iter(self._seen.items()))
            if expires > now and len(self._seen) <= MAX_SEEN:
                break
            del self._seen[message_id]
            if author != self.me:
                self._floors[author] = max(seqno, self._floors.pop(author, 0))
                if len(self._floors) > MAX_FLOORS:
                    self._floors.popitem(last=False)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _eligible(self, topic: str, now: float) -> list[PeerId]:
        """Peers that may be grafted, in random order."""
        members = self.mesh[topic]
        found = sorted(
            peer
            for peer in self.subscribers(topic)
            if peer in self._peers and peer not in members and self._backoff.get((topic, peer), 0.0) <= now
        )
        self._rng.shuffle(found)
        return found

    def _graft(self, peer: PeerId, topic: str) -> Send:
        self.mesh[topic].add(peer)
        return Send(peer, Rpc(graft=(topic,)))

    def _prune(self, topic: str, state: _Peer, backoff: int) -> Prune:
        return Prune(topic, backoff if state.version >= (1, 1) else 0)

    def _back_off(self, topic: str, peer: PeerId, seconds: int, now: float) -> None:
        self._backoff[topic, peer] = max(self._backoff.get((topic, peer), 0.0), now + seconds + BACKOFF_SLACK)

    def _remember(self, message: GossipMessage, now: float) -> None:
        self._seen[message.message_id] = (now + SEEN_TTL, message.author, message.seqno)
        self._cache[message.message_id] = message
        self._cached_bytes += len(message.encoded)
        self._windows[-1].append(message.message_id)
        while self._cached_bytes > MAX_CACHED_BYTES:
            self._drop_cached(next(iter(self._cache)))

    def _drop_cached(self, message_id: bytes) -> None:
        message = self._cache.pop(message_id, None)
        if message is not None:
            self._cached_bytes -= len(message.encoded)
            for state in self._peers.values():
                state.retransmitted.pop(message_id, None)
