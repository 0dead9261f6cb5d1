"""The ledger room: which topic and which key, through rotations (spec/edgevpn.md 2.2, 3.3, 4.6, 15.3).

EdgeVPN derives topic and seal key from the clock and changes both at a boundary, without any overlap. We publish as it
does, with the current key on the current topic only, but are in more rooms than that: the next one from ``lead``
seconds before the boundary, the previous one for ``overlap`` seconds after it. Opening tries the keys of all of them.
So nothing in flight is lost, and clocks may differ by a few seconds. A larger difference shows as peers that are in
the room of an epoch that is not ours; :meth:`Room.skews` names them.

The public room, where challenges are said (4.9), has a topic of its own per epoch, the same key, and goes the same way.

Sans-IO: ``join``, ``leave`` and ``publish`` are a gossip's; the room decides when. What a message means is the
ledger's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, Protocol

from provider_kairos.clock import Now
from provider_kairos.errors import LocalError, PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.gossip_wire import GossipMessage
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.mesh.views import ClockSkew, Message
from provider_kairos.token import envelope, seal
from provider_kairos.token.otp import Epoch, epoch_at, epochs_around

__all__ = ["Room", "Topics"]

SKEW_SEARCH = 128
"""Epochs on either side of ours in which a strange topic is looked for."""


class Topics(Protocol):
    """What the room needs of gossip."""

    def join(self, topic: str) -> None:
        """Subscribe."""

    def leave(self, topic: str) -> None:
        """Unsubscribe."""

    def publish(self, topic: str, data: bytes) -> int:
        """Send; how many peers it goes to."""


class Room:
    """Topic and key state of one host."""

    def __init__(self, settings: MeshSettings, topics: Topics) -> None:
        self.counters: Counter[str] = Counter()
        self._settings = settings
        self._token = settings.token
        self._topics = topics
        self._joined: dict[str, Epoch] = {}
        self._public: dict[str, Epoch] = {}
        self._current: Epoch | None = None
        self._told: int | None = None
        self._strange: dict[int, dict[str, int]] = {}

    @property
    def current(self) -> Epoch:
        """The epoch that we publish in. Raises LocalError before the first :meth:`tick`."""
        if self._current is None:
            raise LocalError("the room has not been entered yet")
        return self._current

    def tick(self, now: Now) -> Epoch | None:
        """Join and leave what the clock asks for; returns the new epoch, once, when it changed."""
        self._follow(now)
        if self._told == self.current.counter:
            return None
        self._told = self.current.counter
        return self.current

    def _follow(self, now: Now) -> None:
        unix = now.unix_float
        current = epoch_at(self._token, unix)
        period = max(current.ends - current.starts, 1)
        # With a short interval (tests) the rooms of three epochs are enough.
        previous, _, _ = epochs_around(self._token, unix, min(self._settings.overlap, period))
        _, _, following = epochs_around(self._token, unix, min(self._settings.lead, period))
        epochs = [epoch for epoch in (previous, current, following) if epoch is not None]
        self._joined = self._move(self._joined, {epoch.topic: epoch for epoch in epochs})
        if self._settings.public_room:
            self._public = self._move(self._public, {epoch.public_topic: epoch for epoch in epochs})
        self._current = current

    def _move(self, joined: dict[str, Epoch], wanted: dict[str, Epoch]) -> dict[str, Epoch]:
        for topic in wanted:
            if topic not in joined:
                self._topics.join(topic)
        for topic in joined:
            if topic not in wanted:
                self._topics.leave(topic)
        return wanted

    def wait(self, now: Now) -> float:
        """Seconds until :meth:`tick` has something to do; at most 60, because clocks are set."""
        unix = now.unix_float
        current = self.current
        if current.ends - unix > 2**40:
            return 60.0
        moments = (
            current.ends,
            current.ends - self._settings.lead,
            current.starts + self._settings.overlap,
        )
        return min([60.0, *(moment - unix + 0.001 for moment in moments if moment > unix)])

    def publish(self, data: bytes, now: Now) -> int:
        """Seal and send with the current key on the current topic; returns how many peers it goes to."""
        self._follow(now)
        epoch = self.current
        count = self._topics.publish(epoch.topic, envelope.encode(envelope.Envelope(seal.seal(epoch.seal_key, data))))
        if not count:
            self.counters["published_to_nobody"] += 1
        return count

    def publish_public(self, data: bytes, annotations: dict[str, Any] | None, now: Now) -> int:
        """The same for the public room; ``annotations`` are not sealed. Nobody is told when we are not in it."""
        self._follow(now)
        if not self._public:
            return 0
        epoch = self.current
        sealed = envelope.Envelope(seal.seal(epoch.seal_key, data), annotations=annotations)
        return self._topics.publish(epoch.public_topic, envelope.encode(sealed))

    def is_public(self, topic: str) -> bool:
        """Whether it is the topic of a public room that we are in."""
        return topic in self._public

    def open(self, message: GossipMessage, via: PeerId) -> Message:
        """Open a message. Raises PeerError (EnvelopeError, SealError) when it is none of ours."""
        outer = envelope.decode(message.data)
        public = self._public.get(message.topic)
        first = public or self._joined.get(message.topic)
        # Go's key changes at the boundary, its topic up to a second later: the topic's own key is only the best guess.
        epochs = [each for each in (first, self._current, *self._joined.values()) if each is not None]
        failure: PeerError | None = None
        for epoch in dict.fromkeys(epochs):
            try:
                plain = seal.unseal(epoch.seal_key, outer.message)
            except seal.SealError as error:
                failure = error
                continue
            if epoch is not self._current:
                self.counters["opened_with_other_epoch"] += 1
            room: Literal["ledger", "public"] = "ledger" if public is None else "public"
            return Message(message.author, via, plain, outer.annotations, room)
        raise failure or seal.SealError("no key")

    def is_ours(self, topics: Iterable[str]) -> bool:
        """Whether a peer in ``topics`` is in the current room, or at a boundary in the one beside it."""
        return any(topic in self._joined for topic in topics)

    def skews(self, subscriptions: Iterable[tuple[PeerId, frozenset[str]]]) -> list[ClockSkew]:
        """Peers that share no room with us but are in the room of another epoch."""
        current = self.current
        period = current.ends - current.starts
        if period > 2**40:
            return []
        found = []
        for peer, topics in subscriptions:
            if not topics or self.is_ours(topics):
                continue
            table = self._strange_topics(current, period)
            counters = [table[topic] for topic in topics if topic in table]
            if counters:
                off = current.counter - max(counters)
                found.append(ClockSkew(peer, off * period))
        return found

    def _strange_topics(self, current: Epoch, period: int) -> dict[str, int]:
        if current.counter not in self._strange:
            counters = range(max(current.counter - SKEW_SEARCH, 0), current.counter + SKEW_SEARCH)
            epochs = (epoch_at(self._token, counter * period) for counter in counters)
            self._strange = {current.counter: {epoch.topic: epoch.counter for epoch in epochs}}
        return self._strange[current.counter]
