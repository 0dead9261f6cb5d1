"""Seeded clusters in virtual time: role engines over a gossiped last-writer-wins ledger, with Go-like pollers.

A run is a pure function of its :class:`Scenario`, so a failing seed replays. The ledger here is a model of the real
one (spec/provider.md 4.1: higher version wins per key, whole state gossiped, lossy, repeated); sockets, leases and
k3s are delays. The Go-like node follows spec/provider.md 4.4, 4.5, 4.8, 4.9 with its 10 s passes and its defects.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from provider_kairos.clock import NANO, Now
from provider_kairos.ids import NodeUuid
from provider_kairos.ledger.leader import leader as highest
from provider_kairos.roles.effects import Configure, DeleteKey, PutKey, Step
from provider_kairos.roles.engine import RolesEngine, RoleSettings
from provider_kairos.roles.model import (
    IP_MASTER,
    KUBECONFIG,
    LEADER,
    NODE_TOKEN,
    Held,
    LocalTruth,
    Role,
    View,
    advertisement,
    format_time,
    ip_key,
    role_key,
    uuid_key,
    view_of,
)

__all__ = ["Box", "GoBox", "OurBox", "Scenario", "World"]

_START_UNIX = 1_700_000_000
Key = tuple[str, str]
Record = tuple[int, str, object]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens. Times in seconds, probabilities from 0 to 1. The last ``late`` boxes are started by hand."""

    seed: int
    nodes: int = 3
    go_nodes: int = 0
    minimum_nodes: int = 2
    ha: bool = False
    additional_masters: int = 0
    spread: float = 3.0
    meet: float = 1.2
    delay: float = 0.25
    loss: float = 0.1
    resync: float = 1.5
    skew: float = 2.0
    restarts: int = 0
    keep_ledger: bool = True
    late: int = 0


class World:
    """Virtual time, boxes and what travels between them."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.rng = random.Random(scenario.seed)
        self.time = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.boxes: list[Box] = []
        self.founded: list[tuple[float, str, str]] = []
        total = scenario.nodes + scenario.go_nodes
        kinds = [True] * scenario.nodes + [False] * scenario.go_nodes
        for number in range(total):
            uuid = NodeUuid(f"{self.rng.getrandbits(64):016x}-box{number}")
            box: Box = OurBox(self, uuid) if kinds[number] else GoBox(self, uuid)
            self.boxes.append(box)
            if number < total - scenario.late:
                self.at(self.rng.uniform(0, scenario.spread), box.power_on)
        for _ in range(scenario.restarts):
            victim = self.rng.choice(self.boxes)
            self.at(self.rng.uniform(0, scenario.spread + 15), victim.bounce)

    def at(self, moment: float, action: Callable[[], None]) -> None:
        """Do something at a moment, never before now."""
        heapq.heappush(self._queue, (max(moment, self.time), next(self._count), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after a while."""
        self.at(self.time + seconds, action)

    def run_until(self, moment: float) -> None:
        """Let virtual time pass."""
        while self._queue and self._queue[0][0] <= moment:
            self.time, _, action = heapq.heappop(self._queue)
            action()
        self.time = moment

    def now(self, skew: float = 0.0) -> Now:
        """The present instant on a clock that is ``skew`` seconds ahead."""
        return Now(round((_START_UNIX + self.time + skew) * NANO), self.time)

    def run_until_formed(self, limit: float, more: float = 15.0) -> bool:
        """Until every box is configured, then ``more`` seconds; False when that does not happen by ``limit``."""
        while not all(box.deployed for box in self.boxes[: len(self.boxes) - self.scenario.late]):
            if self.time >= limit:
                return False
            self.run_until(self.time + 1)
        self.run_until(self.time + more)
        return True

    def power_cut(self) -> None:
        """Everything off at once, and on again within a few seconds."""
        for box in self.boxes:
            box.power_off()
        for box in self.boxes:
            self.after(2 + self.rng.uniform(0, self.scenario.spread), box.power_on)

    def roles(self) -> dict[str, Role | None]:
        """What each box holds on its disk."""
        return {box.uuid: box.held.role if box.held else None for box in self.boxes}


@dataclass(eq=False)
class Box:
    """A machine with a daemon: disk, replica of the ledger, links. Subclasses are the provider on it."""

    world: World
    uuid: NodeUuid
    up: bool = False
    boot: int = 0
    skew: float = 0.0
    held: Held | None = None
    deployed: bool = False
    ip: str = ""
    secret: str | None = None
    taken: list[Held] = field(default_factory=list)
    replica: dict[Key, Record] = field(default_factory=dict)
    links: set[NodeUuid] = field(default_factory=set)
    since: float = 0.0
    role_at: float | None = None

    def __post_init__(self) -> None:
        scenario = self.world.scenario
        self.skew = self.world.rng.uniform(-scenario.skew, scenario.skew)

    # -- power ------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Start the daemon, meet the others, start the provider."""
        if self.up:
            return
        world, rng = self.world, self.world.rng
        self.up = True
        self.boot += 1
        self.since = world.time
        self.links = set()
        if not world.scenario.keep_ledger:
            self.replica = {}
        boot = self.boot
        for other in world.boxes:
            if other is not self:
                self.later(rng.uniform(0.05, world.scenario.meet), lambda o=other: self._meet(o), boot)  # type: ignore[misc]
        if not self.ip or not self.held:
            self.later(rng.uniform(1.0, 4.0), self._lease, boot)
        self.put("healthcheck", f"peer-{self.uuid}", format_time(world.now(self.skew).unix_ns))
        self.later(rng.uniform(0.5, world.scenario.resync), self._resync, boot)
        self.start_provider()

    def power_off(self) -> None:
        """Off: what is not on disk is gone."""
        self.up = False
        for other in self.world.boxes:
            other.links.discard(self.uuid)

    def bounce(self) -> None:
        """Off and soon on again."""
        if self.up:
            self.power_off()
            self.world.after(self.world.rng.uniform(0.5, 4), self.power_on)

    def later(self, seconds: float, action: Callable[[], None], boot: int) -> None:
        """Do something unless the machine went down in between."""

        def guarded() -> None:
            if self.up and self.boot == boot:
                action()

        self.world.after(seconds, guarded)

    def _meet(self, other: Box) -> None:
        if other.up:
            self.links.add(other.uuid)
            other.links.add(self.uuid)
            self.gossip()
            other.gossip()

    def _lease(self) -> None:
        self.ip = f"10.1.0.{self.world.boxes.index(self) + 1}"
        self.changed()

    # -- ledger -----------------------------------------------------------------------------------------------

    def put(self, bucket: str, key: str, value: object) -> None:
        """Write to the own replica and tell the others."""
        old = self.replica.get((bucket, key))
        version = max((old[0] if old else 0) + 1, self.world.now(self.skew).unix_ns)
        self.replica[bucket, key] = (version, self.uuid, value)
        self.changed()
        self.gossip()

    def gossip(self) -> None:
        """The whole state to every neighbour, some of it lost."""
        world, rng = self.world, self.world.rng
        state = dict(self.replica)
        for other in world.boxes:
            if other.uuid in self.links and rng.random() >= world.scenario.loss:
                other.later(rng.uniform(0.005, world.scenario.delay), lambda o=other: o.receive(state), other.boot)  # type: ignore[misc]

    def receive(self, state: dict[Key, Record]) -> None:
        """Merge; pass news on."""
        news = False
        for key, record in state.items():
            mine = self.replica.get(key)
            if mine is None or record[:2] > mine[:2]:
                self.replica[key] = record
                news = True
        if news:
            self.changed()
            self.gossip()

    def _resync(self) -> None:
        self.gossip()
        self.later(self.world.rng.uniform(0.5, 1.0) * self.world.scenario.resync, self._resync, self.boot)

    def bucket(self, name: str) -> dict[str, object]:
        """Plain values of one bucket."""
        return {key: record[2] for (bucket, key), record in self.replica.items() if bucket == name}

    def view(self) -> View:
        """The typed view of the own replica."""
        return view_of(self.bucket("kairos"), self.bucket("healthcheck"))

    # -- provider ---------------------------------------------------------------------------------------------

    def start_provider(self) -> None:
        """The provider's process begins."""
        raise NotImplementedError

    def changed(self) -> None:
        """The replica or the machine changed."""

    def take(self, held: Held) -> None:
        """A role is on disk now."""
        self.taken.append(held)
        self.held = held
        if held.role.first:
            self.world.founded.append((self.world.time, self.uuid, held.generation))


class OurBox(Box):
    """Our provider: the real engine, stepped on changes."""

    engine: RolesEngine
    busy: bool = False
    last: Step = Step()
    _scheduled: float | None = None

    def start_provider(self) -> None:
        """See :class:`Box`."""
        scenario = self.world.scenario
        settings = RoleSettings(
            self.uuid,
            minimum_nodes=scenario.minimum_nodes,
            ha=scenario.ha,
            additional_masters=scenario.additional_masters,
        )
        self.engine = RolesEngine(settings, random.Random(self.world.rng.getrandbits(32)))
        self.busy = False
        self._scheduled = None
        self._wake(self.world.rng.uniform(0.01, 0.5))

    def changed(self) -> None:
        """See :class:`Box`."""
        if self.up:
            self._wake(0.01)

    def _wake(self, seconds: float) -> None:
        moment = self.world.time + seconds
        if self._scheduled is None or moment < self._scheduled:
            self._scheduled = moment
            self.later(seconds, self._step, self.boot)

    def truth(self) -> LocalTruth:
        """What the machine knows."""
        return LocalTruth(
            held=self.held,
            deployed=self.deployed,
            busy=self.busy,
            ip=self.ip,
            master_ip=self.ip,
            node_token=self.secret,
            kubeconfig=self.secret and f"kubeconfig of {self.secret}",
        )

    def _step(self) -> None:
        if not hasattr(self, "engine") or (self._scheduled is not None and self._scheduled > self.world.time):
            return
        self._scheduled = None
        step = self.last = self.engine.step(self.view(), self.truth(), self.world.now(self.skew))
        if step.role is not None and self.role_at is None:
            self.role_at = self.world.time
        for effect in step.effects:
            match effect:
                case PutKey(key, value):
                    self.put("kairos", key, value)
                case Configure():
                    self._configure(effect)
                case DeleteKey():
                    raise NotImplementedError
        if step.wake is not None:
            self._wake(max(0.001, step.wake - self.world.time))
        if self.busy and self.secret is not None and self.bucket("kairos").get(NODE_TOKEN) == self.secret:
            self._done()

    def _configure(self, effect: Configure) -> None:
        rng = self.world.rng
        self.busy = True
        if self.held is None:
            self.take(Held(effect.role, "kairos", effect.generation))
        assert effect.role.first or effect.join_token, "a joiner needs a token"
        if effect.role.first:
            self.later(rng.uniform(1.0, 3.0), self._k3s_wrote, self.boot)
        else:
            self.later(rng.uniform(0.2, 1.5), self._done, self.boot)

    def _k3s_wrote(self) -> None:
        assert self.held is not None
        self.secret = f"token-{self.uuid}-{self.held.generation}"
        self.changed()

    def _done(self) -> None:
        self.busy = False
        self.deployed = True
        self.changed()


class GoBox(Box):
    """A node that runs the original: polls, sleeps, and acts on what it reads."""

    def start_provider(self) -> None:
        """See :class:`Box`."""
        self._passes = 0
        self.later(0.5, self._first, self.boot)
        if self.deployed and self.held and self.held.role.first:
            self.later(2.0, self._k3s_wrote, self.boot)

    def _first(self) -> None:
        self._auto()
        self._advertise()
        self.later(10, self._pass, self.boot)

    def _advertise(self) -> None:
        self.put("kairos", uuid_key(self.uuid), advertisement(self.world.now(self.skew)))

    def _pass(self) -> None:
        self._passes += 1
        if self._passes % 2 == 0:
            self._advertise()
        now = self.world.now(self.skew)
        self._auto()
        rest = 10.0
        node = self.view().nodes.get(self.uuid)
        if self.view().active(now) >= self.world.scenario.minimum_nodes and node and node.ledger_role:
            rest += self._run(node.ledger_role)
        self.later(rest, self._pass, self.boot)

    def _auto(self) -> None:
        scenario = self.world.scenario
        view, now = self.view(), self.world.now(self.skew)
        nodes = view.advertising(now)
        if len(nodes) < scenario.minimum_nodes:
            return
        chosen = highest(list(nodes))
        if self.uuid not in {chosen, view.leader}:
            return
        if self.uuid == chosen and view.leader not in nodes:
            self.put("kairos", LEADER, str(self.uuid))
            return
        if self.uuid == view.leader:
            self._schedule(view, nodes)

    def _schedule(self, view: View, nodes: tuple[NodeUuid, ...]) -> None:
        scenario = self.world.scenario
        first = Role.CLUSTER_INIT if scenario.ha else Role.MASTER
        roles = {u: view.nodes[u].ledger_role for u in nodes}
        free = [u for u in nodes if roles[u] is None]
        if first not in roles.values() and free:
            pick = self.world.rng.choice(free)
            free.remove(pick)
            self.put("kairos", role_key(pick), str(first))
        have = sum(1 for r in roles.values() if r is Role.HA)
        if scenario.ha and scenario.additional_masters != have:
            if free:
                self.put("kairos", role_key(free[0]), str(Role.HA))
            return
        for uuid in free:
            self.put("kairos", role_key(uuid), str(Role.WORKER))

    def _run(self, role: Role) -> float:
        view = self.view()
        if not self.ip:
            return 0.0
        if role.control_plane:
            self.put("kairos", ip_key(self.uuid), self.ip)
            if not self.deployed:
                if role is Role.HA and not (view.node_token and view.ip_master):
                    return 0.0
                self.take(Held(role, "kairos", f"go-{self.uuid}"))
                self.deployed = True
                self.later(2.0, self._k3s_wrote, self.boot)
            self.put("kairos", role_key(self.uuid), str(role))
            if role.first:
                if self.secret:
                    self.put("kairos", NODE_TOKEN, self.secret)
                    self.put("kairos", KUBECONFIG, "kubeconfig")
                self.put("kairos", IP_MASTER, self.ip)
            return 30.0
        if role is Role.WORKER and not self.deployed and view.ip_master and view.node_token:
            self.take(Held(role, "kairos"))
            self.deployed = True
        return 0.0

    def _k3s_wrote(self) -> None:
        self.secret = f"go-token-{self.uuid}"
