"""When to ask, announce and answer on the local network; sans-IO.

Follows spec/edgevpn.md 6.1 and 17. Nothing is probed (instance names are random), so an announcement leaves at once:
at start, on a new interface, when our addresses change, and when a peer appears that we did not know. Questions leave
at once and then after 1, 2, 4 ... 60 s. A node that hears somebody else ask the same question without known answers
lets its own turn pass, so that a large quiet network asks about once a minute in all.

Packets go out once per interface; on which IP versions is the sender's business (``mdns_sockets``).
"""

from __future__ import annotations

import string
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import dns.rdatatype

from provider_kairos.clock import Now
from provider_kairos.mesh.mdns_wire import (
    SERVICE_TTL,
    Find,
    MalformedPacketError,
    Network,
    Query,
    announceable,
    build_announcement,
    build_query,
    instance_name,
    parse,
    service_name,
)
from provider_kairos.system.links import MulticastInterface

__all__ = ["Arrival", "Engine", "Send"]

_FIRST_GAP, _LAST_GAP = 1.0, 60.0
_SECOND_ANNOUNCEMENT = 1.0  # the first may have been lost
_ANSWER_GAP = 0.25  # between two multicast answers on one interface
_ANSWER_JITTER = 0.03
_MOST_INSTANCES = 1024
_MOST_UNICASTS = 16
_STEADY = 8.0  # a gap from which on a question heard from another node stands for our own
_ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True)
class Arrival:
    """A packet from the link: where it came in, from whom (address text, port), whether it went to the group."""

    data: bytes
    interface: int
    source: str
    port: int
    to_group: bool = True


@dataclass(frozen=True, slots=True)
class Send:
    """A packet to be sent: to the group on an interface, or to one address there when ``to`` is set."""

    interface: int
    data: bytes
    to: tuple[str, int] | None = None


@dataclass(slots=True)
class _Interface:
    link: MulticastInterface
    announce: list[float] = field(default_factory=list)  # due times, ascending
    announced: float = float("-inf")
    query_at: float = 0.0
    gap: float = _FIRST_GAP
    unicast: list[tuple[str, int]] = field(default_factory=list)


class Engine:
    """One node's mDNS on all interfaces. ``counters`` count packets, answers and what was dropped.

    Raises TokenError when the tag cannot be a DNS name.
    """

    def __init__(self, tag: str, peer_id: str, rng: Random, blocked: Sequence[Network] = ()) -> None:
        self.service = service_name(tag)
        self.peer_id = peer_id
        self.instance = "".join(rng.choices(_ALPHABET, k=40)).encode()
        self.counters: Counter[str] = Counter()
        self._rng = rng
        self._blocked = tuple(blocked)
        self._name = instance_name(self.instance, self.service).labels
        self._addresses: list[str] = []
        self._interfaces: dict[int, _Interface] = {}
        self._instances: OrderedDict[bytes, None] = OrderedDict()
        self._own_ids: OrderedDict[int, None] = OrderedDict()

    @property
    def interfaces(self) -> tuple[MulticastInterface, ...]:
        """The interfaces in use."""
        return tuple(interface.link for interface in self._interfaces.values())

    def set_interfaces(self, links: Sequence[MulticastInterface], now: Now) -> bool:
        """What there is now. New ones, and ones with other addresses, are announced on and asked at once."""
        before = {index: interface.link for index, interface in self._interfaces.items()}
        after = {link.index: link for link in links}
        if before == after:
            return False
        self._interfaces = {index: self._interfaces[index] for index in before if after.get(index) == before[index]}
        for index, link in after.items():
            if index not in self._interfaces:
                self._interfaces[index] = _Interface(link, query_at=now.mono)
                self._announce_twice(self._interfaces[index], now)
        return True

    def set_addresses(self, addresses: Sequence[str], now: Now) -> bool:
        """Our listen addresses as multiaddrs without peer ID; a change is announced at once."""
        usable = announceable(addresses, self._blocked)
        if usable == self._addresses:
            return False
        self._addresses = usable
        for interface in self._interfaces.values():
            self._announce_twice(interface, now)
        return True

    def ask_again(self, now: Now) -> None:
        """Ask now and start over with short gaps (somebody lost its peers)."""
        for interface in self._interfaces.values():
            interface.query_at, interface.gap = now.mono, _FIRST_GAP

    def _announce_twice(self, interface: _Interface, now: Now) -> None:
        interface.announce = [now.mono, now.mono + _SECOND_ANNOUNCEMENT]

    def _answer_soon(self, interface: _Interface, now: Now) -> None:
        """One multicast answer for all who ask within a short while."""
        earliest = max(now.mono, interface.announced + _ANSWER_GAP)
        if not interface.announce or interface.announce[0] > earliest + _ANSWER_JITTER:
            interface.announce.insert(0, earliest + self._rng.uniform(0.0, _ANSWER_JITTER))

    # ---------------------------------------------------------------- in

    def receive(self, arrival: Arrival, now: Now) -> tuple[Find, ...]:
        """A packet came in. Returns the peers that it announces; repeats too, so that a dialer may try again."""
        interface = self._interfaces.get(arrival.interface)
        if interface is None:
            self.counters["other_interface"] += 1
            return ()
        try:
            message = parse(arrival.data, self.service)
        except MalformedPacketError:
            self.counters["malformed"] += 1
            return ()
        if isinstance(message, Query):
            self._query(message, arrival, interface, now)
            return ()
        finds = tuple(find for find in message.finds if find.instance != self.instance and find.peer_id != self.peer_id)
        for find in finds:
            self.counters["announcements_in"] += 1
            if find.instance not in self._instances:
                # It may have started after our last announcement, and it may never ask (spec: some Go peers do not).
                self._answer_soon(interface, now)
            self._instances[find.instance] = None
            self._instances.move_to_end(find.instance)
            if len(self._instances) > _MOST_INSTANCES:
                self._instances.popitem(last=False)
        return finds

    def _query(self, query: Query, arrival: Arrival, interface: _Interface, now: Now) -> None:
        if query.id in self._own_ids and query.id:
            return  # our own question, looped back
        # Only what was sent to the group by another mDNS node: a unicast question may come from beyond the link.
        if not arrival.to_group or arrival.port != 5353 or query.authority:
            self.counters["queries_ignored"] += 1
            return
        asked = [question for question in query.questions if self._is_ours(question.labels, question.kind)]
        if not asked:
            return
        self.counters["queries_in"] += 1
        if interface.gap >= _STEADY and not query.known:
            # Everybody's answers reach us too.
            interface.query_at = max(interface.query_at, now.mono + interface.gap * self._rng.uniform(1.0, 1.2))
        if query.known.get(self._name, 0) * 2 >= SERVICE_TTL:
            self.counters["suppressed"] += 1
        elif all(question.unicast for question in asked) and now.mono - interface.announced < SERVICE_TTL / 4:
            if len(interface.unicast) < _MOST_UNICASTS and (arrival.source, arrival.port) not in interface.unicast:
                interface.unicast.append((arrival.source, arrival.port))
        else:
            self._answer_soon(interface, now)

    def _is_ours(self, labels: tuple[bytes, ...], kind: int) -> bool:
        if labels == self.service.labels:
            return kind in {dns.rdatatype.PTR, dns.rdatatype.ANY}
        return labels == self._name and kind in {dns.rdatatype.SRV, dns.rdatatype.TXT, dns.rdatatype.ANY}

    # ---------------------------------------------------------------- out

    def poll(self, now: Now) -> list[Send]:
        """Everything that is due."""
        sends: list[Send] = []
        for interface in self._interfaces.values():
            index = interface.link.index
            due = bool(interface.announce) and interface.announce[0] <= now.mono
            packet = self._announcement(interface) if due or interface.unicast else b""
            if due:
                interface.announce = [at for at in interface.announce if at > now.mono]
                if packet:
                    interface.announced = now.mono
                    self.counters["announcements_out"] += 1
                    sends.append(Send(index, packet))
            for to in interface.unicast if packet else ():
                self.counters["announcements_out"] += 1
                sends.append(Send(index, packet, to))
            interface.unicast.clear()
            if interface.query_at <= now.mono:
                self.counters["queries_out"] += 1
                sends.append(Send(index, build_query(self.service, self._fresh_id())))
                interface.query_at = now.mono + interface.gap * self._rng.uniform(0.95, 1.05)
                interface.gap = min(interface.gap * 2, _LAST_GAP)
        return sends

    def next_wakeup(self) -> float | None:
        """Monotonic time of the next packet that is due; None when there is no interface."""
        times = [interface.query_at for interface in self._interfaces.values()]
        times += [interface.announce[0] for interface in self._interfaces.values() if interface.announce]
        times += [0.0 for interface in self._interfaces.values() if interface.unicast]
        return min(times, default=None)

    def _announcement(self, interface: _Interface) -> bytes:
        if not self._addresses:  # nothing to dial: an announcement without addresses tells nobody anything
            return b""
        link = interface.link
        return build_announcement(self.service, self.instance, self.peer_id, self._addresses, (*link.ipv4, *link.ipv6))

    def _fresh_id(self) -> int:
        """A new id for each question, so that our own is known when it comes back (and others' hardly mistaken)."""
        message_id = self._rng.randrange(1, 0x10000)
        self._own_ids[message_id] = None
        if len(self._own_ids) > 32:
            self._own_ids.popitem(last=False)
        return message_id
