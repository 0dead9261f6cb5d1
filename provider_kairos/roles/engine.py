"""The role engine of one node: what the ledger shows and what the machine knows in, effects and reasons out.

Follows spec/provider.md 4.4-4.10 and 4.12 with the remedies of section 13. It is stepped whenever the watched ledger
or the machine changed and at the wake-up that it asked for; it keeps no task and reads no clock.

Rules that hold here:

* a role on this machine's disk is never changed by the ledger; it is written back when the ledger says otherwise;
* what a node holds is written before its advertisement, so that nobody chooses a node that is not free;
* a joiner is configured only with both a join token and an address (a k3s server without token founds a cluster);
* every write is checked against what the ledger shows and repeated while it does not show.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from provider_kairos.clock import Now
from provider_kairos.errors import Waiting
from provider_kairos.ids import NodeUuid
from provider_kairos.roles import reasons
from provider_kairos.roles.assignment import assign
from provider_kairos.roles.clocks import Clocks
from provider_kairos.roles.effects import Configure, Effect, PutKey, Step
from provider_kairos.roles.founding import Decision, Founding, LeaderFounding, first_master, stranger_of
from provider_kairos.roles.leader import Leadership, Leading
from provider_kairos.roles.model import (
    IP_MASTER,
    KUBECONFIG,
    NODE_TOKEN,
    LocalTruth,
    Meta,
    Role,
    View,
    advertisement,
    ip_key,
    meta_key,
    role_key,
    uuid_key,
    view_of,
)

__all__ = ["RoleSettings", "RolesEngine"]


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """What the configuration says. Times in seconds.

    ``forced`` is ``p2p.role`` when set; ``additional_masters`` the number beside the first, 0 without HA; ``ha``
    says which word a first master gets.
    """

    uuid: NodeUuid
    network_id: str = "kairos"
    forced: Role | None = None
    minimum_nodes: int = 2
    ha: bool = False
    additional_masters: int = 0
    settle: float = 1.0
    patience: float = 4.0
    advertise_interval: float = 60.0
    repeat_after: float = 5.0

    @property
    def first_role(self) -> Role:
        """The word for a first master."""
        return Role.CLUSTER_INIT if self.ha else Role.MASTER

    @property
    def fixed_role(self) -> Role | None:
        """The role of ``p2p.role`` as it is carried out and published (13 #6); ``auto`` fixes nothing."""
        if self.forced is Role.MASTER:
            return self.first_role
        return None if self.forced is Role.AUTO else self.forced


@dataclass(slots=True)
class _Pending:
    value: object
    before: object
    at: float


class RolesEngine:
    """One node's roles. ``founding`` replaces the leader's choice of a first master when given."""

    def __init__(self, settings: RoleSettings, rng: random.Random, founding: Founding | None = None) -> None:
        self.settings = settings
        self.rng = rng
        self.leadership = Leadership(
            settings.uuid, settings.minimum_nodes, settle=settings.settle, patience=settings.patience
        )
        self.founding: Founding = founding or LeaderFounding(
            settings.uuid,
            role=settings.first_role,
            forced=settings.fixed_role,
            rng=rng,
            minimum_nodes=settings.minimum_nodes,
            settle=settings.settle,
        )
        self.clocks = Clocks(settings.uuid)
        self._pending: dict[str, _Pending] = {}
        self._advertised: float | None = None

    def step(self, view: View, local: LocalTruth, now: Now) -> Step:
        """Decide what is to be done now. ``view`` is the ledger as the daemon shows it."""
        settings = self.settings
        held = local.held
        if held is not None and held.network_id != settings.network_id:
            return Step(waiting=(reasons.OtherNetwork(held.network_id),), role=held.role)
        view = self._overlay(view)
        leading = self.leadership.step(view, now)
        decision = self.founding.decide(view, local, leading, now)
        role = self._role(view, local)

        wanted: list[PutKey] = list(self._own_records(view, local, role))
        waiting: list[Waiting] = []
        wakes = [leading.wake, decision.wake]
        effects: list[Effect] = []

        wanted += leading.writes
        wanted += decision.writes
        if leading.mine:
            given = assign(view, decision, additional_masters=settings.additional_masters, now=now)
            wanted += given.writes
            waiting += given.waiting
        wanted += self._publication(view, local, role, now)

        if held is not None and (stranger := stranger_of(view, held.generation, now)):
            waiting.append(reasons.TwoClusters(stranger))
        if not (held and local.deployed):
            configure, why = self._configuration(view, local, role, leading, decision)
            if configure is not None and configure.role.first and not configure.generation:
                configure = replace(configure, generation=self._generation(now))
            waiting = [*why, *waiting, *self.clocks.differ(view, now)]
            if configure is not None and not local.busy:
                effects.append(configure)

        writes = [put for put in wanted if self._due(put, view, now)]
        for key in [k for k, p in self._pending.items() if now.mono >= p.at + settings.repeat_after]:
            del self._pending[key]  # no longer wanted
        wakes.extend(p.at + settings.repeat_after for p in self._pending.values())
        # The advertisement goes last: whoever sees it also sees what the node holds.
        if self._advertisement_due(view, now):
            writes.append(PutKey(uuid_key(settings.uuid), advertisement(now)))
            self._advertised = now.mono
        assert self._advertised is not None
        wakes.append(self._advertised + settings.advertise_interval)
        return Step(
            effects=(*writes, *effects),
            waiting=tuple(waiting),
            wake=min(w for w in wakes if w is not None),
            role=role,
            leader=leading.leader,
            first=decision.first or "",
        )

    def lost(self, key: str) -> None:
        """A write failed: it is due again at the next step."""
        self._pending.pop(key, None)
        if key == uuid_key(self.settings.uuid):
            self._advertised = None

    # -- what this node is ------------------------------------------------------------------------------------

    def _role(self, view: View, local: LocalTruth) -> Role | None:
        """Disk, then the own configuration, then the ledger."""
        if local.held is not None:
            return local.held.role
        if self.settings.fixed_role is not None:
            return self.settings.fixed_role
        node = view.nodes.get(self.settings.uuid)
        named = node.ledger_role if node else None
        return None if named is Role.AUTO else named

    def _own_records(self, view: View, local: LocalTruth, role: Role | None) -> Iterator[PutKey]:
        settings = self.settings
        held = local.held
        published = (
            held is not None
            and held.role.first
            and local.node_token is not None
            and view.node_token == local.node_token
            and bool(view.ip_master)
        )
        meta = Meta(
            held=held.role if held else None,
            deployed=local.deployed,
            forced=settings.fixed_role is not None,
            published=published,
            generation=held.generation if held else "",
        )
        yield PutKey(meta_key(settings.uuid), meta.value())
        if role is not None and (held is not None or settings.fixed_role is not None):
            yield PutKey(role_key(settings.uuid), str(role))
        if local.ip:
            yield PutKey(ip_key(settings.uuid), local.ip)

    def _publication(self, view: View, local: LocalTruth, role: Role | None, now: Now) -> Iterator[PutKey]:
        """Join token, kubeconfig and address, by the one that may (spec 4.8, 13 #10)."""
        if local.held is None or local.node_token is None or not local.master_ip or role is None:
            return
        first = first_master(view, now)
        if role.first:
            if first not in {None, self.settings.uuid}:
                return
        elif role is Role.HA:
            # An additional master speaks only where nobody has spoken: the address that joiners know stays (#9).
            if (view.node_token and view.ip_master) or (first and view.nodes[first].advertises(now)):
                return
        else:
            return
        yield PutKey(NODE_TOKEN, local.node_token)
        if local.kubeconfig is not None:
            coded = base64.urlsafe_b64encode(local.kubeconfig.encode("utf-8")).decode("ascii").rstrip("=")
            yield PutKey(KUBECONFIG, coded)
        yield PutKey(IP_MASTER, local.master_ip)

    # -- what is to be configured -----------------------------------------------------------------------------

    def _configuration(
        self,
        view: View,
        local: LocalTruth,
        role: Role | None,
        leading: Leading,
        decision: Decision,
    ) -> tuple[Configure | None, list[Waiting]]:
        held = local.held
        if role is None:
            why: list[Waiting] = [*leading.waiting, *decision.waiting]
            if not why and leading.leader:
                why.append(reasons.NoRoleYet(leading.leader))
            return None, why
        if role is Role.NONE:
            return None, [reasons.RoleNone()]
        if role.first:
            if held is None and not decision.certain:
                return None, list(decision.waiting)
            if not local.ip or not local.master_ip:
                return None, [reasons.NoVirtualIp()]
            return Configure(role, held.generation if held else ""), []
        first = view.nodes.get(decision.first) if decision.first else None
        if not view.node_token or (first is not None and first.meta is not None and not first.meta.published):
            return None, [reasons.NoJoinToken(decision.first or "")]
        if not view.ip_master:
            return None, [reasons.NoMasterAddress()]
        if not local.ip:
            return None, [reasons.NoVirtualIp()]
        generation = held.generation if held else (first.meta.generation if first and first.meta else "")
        return Configure(role, generation, view.ip_master, view.node_token), []

    def _generation(self, now: Now) -> str:
        """Names one founding; sorts by time."""
        return f"{now.unix_ns:020d}-{self.rng.getrandbits(32):08x}"

    # -- writes -----------------------------------------------------------------------------------------------

    def _overlay(self, view: View) -> View:
        """The ledger with our own writes that it does not show yet; whatever it shows by now wins."""
        shown = view.values
        for key, pending in list(self._pending.items()):
            if shown.get(key) != pending.before:
                del self._pending[key]
        if not self._pending:
            return view
        merged = view_of({**shown, **{key: pending.value for key, pending in self._pending.items()}})
        return View(
            nodes=merged.nodes,
            heartbeats=view.heartbeats,
            leader=merged.leader,
            ip_master=merged.ip_master,
            node_token=merged.node_token,
            values=merged.values,
        )

    def _due(self, put: PutKey, view: View, now: Now) -> bool:
        pending = self._pending.get(put.key)
        if pending is not None and pending.value == put.value:
            if now.mono < pending.at + self.settings.repeat_after:
                return False
            pending.at = now.mono
            return True
        if view.values.get(put.key) == put.value:
            return False
        before = pending.before if pending is not None else view.values.get(put.key)
        self._pending[put.key] = _Pending(put.value, before, now.mono)
        return True

    def _advertisement_due(self, view: View, now: Now) -> bool:
        if self._advertised is None or now.mono >= self._advertised + self.settings.advertise_interval:
            return True
        missing = uuid_key(self.settings.uuid) not in view.values
        return missing and now.mono >= self._advertised + self.settings.repeat_after
