"""The bootstrap loop: roles over the daemon's API, on events instead of passes (spec/provider.md 4.4-4.10).

Tasks: one sets up the daemon (and tries again), one watches the ledger, one the links, one steps the role engine
whenever the ledger, the machine or the engine's own timer asks for it and carries out what comes back; another is
started for the time in which a role is configured. Polling happens only while this machine waits for something that
gives no event: files that k3s writes, a service that comes up.

Decisions are the engine's (:mod:`provider_kairos.roles`); what configuring means is in
:mod:`provider_kairos.provider.configure`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import trio

from provider_kairos.api.model import ValueCodingError, plain_value
from provider_kairos.api.watching import WatchResult
from provider_kairos.clock import Clock
from provider_kairos.config.schema import Settings
from provider_kairos.errors import ConfigError, HostError, ProviderError, Waiting
from provider_kairos.kubernetes import Distribution
from provider_kairos.provider import configure, disk, plan
from provider_kairos.provider.daemon_unit import DaemonProgram, set_up_daemon
from provider_kairos.provider.last_words import forget_last_words, last_words
from provider_kairos.provider.machine import Machine
from provider_kairos.provider.reasons import DaemonSilent, Refused
from provider_kairos.provider.service import READY_POLL, ServiceWatch
from provider_kairos.provider.status import Status
from provider_kairos.roles import reasons
from provider_kairos.roles.effects import Configure, DeleteKey, PutKey, Step
from provider_kairos.roles.engine import RolesEngine
from provider_kairos.roles.model import LocalTruth, Role, View, view_of

__all__ = ["Coordinator", "LedgerClient", "Links"]

log = logging.getLogger(__name__)

HEALTHCHECK = "healthcheck"
POLL = 0.15
LINK_REST = 2.0
SHORTEST = 0.01


class LedgerClient(Protocol):
    """What the loop needs of :class:`provider_kairos.api.client.DaemonClient`."""

    async def put(self, bucket: str, key: str, value: Any) -> None:
        """Store a value."""
        ...

    async def delete(self, bucket: str, key: str) -> None:
        """Delete a record."""
        ...

    def follow(self, buckets: Sequence[str]) -> AbstractAsyncContextManager[AsyncIterator[WatchResult]]:
        """The buckets, now and after every change."""
        ...


class Links(plan.Interfaces, Protocol):
    """Addresses, and the identity of an interface."""

    def link(self, name: str) -> Any | None:
        """The link of a name (with ``index``), or None."""
        ...

    def watch(self) -> Any:
        """A context manager with ``wait(settle)``: returns after the next changes of links or addresses."""
        ...


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run what blocks beside the loop."""
    return await trio.to_thread.run_sync(function, *args)


class Coordinator:
    """One node's way to its role.

    ``age`` is how old the process was when ``clock`` showed now; ``daemon_ready`` that the daemon was set up before;
    ``explain`` adds the place in the user's file to an error.
    """

    def __init__(
        self,
        machine: Machine,
        settings: Settings,
        client: LedgerClient,
        links: Links,
        *,
        engine: RolesEngine,
        clock: Clock,
        api: str = "",
        program: Callable[[], DaemonProgram],
        daemon_ready: bool = False,
        age: float = 0.0,
        blocking: Callable[..., Awaitable[Any]] = in_thread,
        explain: Callable[[ConfigError], str] = str,
    ) -> None:
        self.machine = machine
        self.settings = settings
        self.client = client
        self.links = links
        self.engine = engine
        self.clock = clock
        self.program = program
        self._daemon_ready = daemon_ready
        self.api = api
        self.status = Status(
            uuid=str(engine.settings.uuid),
            network_id=settings.network_id(),
            api=api,
            minimum_nodes=engine.settings.minimum_nodes,
        )
        self._blocking = blocking
        self._explain = explain
        self._began = clock.now().mono - age
        self._changed = trio.Event()
        self._view: View | None = None
        self._silent: Waiting | None = DaemonSilent("it was asked to start")
        self._setup: Waiting | None = None
        self._refusal: Waiting | None = None
        self._distribution: Distribution | None = None
        self._busy = False
        self._published = trio.Event()
        self._addresses = plan.Addresses()
        self._service = ServiceWatch(machine, plan.vpn_interface(settings))
        self._said: tuple[str, ...] = ()

    async def run(self) -> None:
        """Until cancelled, or until the configuration turns out to be wrong (a group of ConfigError)."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._prepare)
                nursery.start_soon(self._watch)
                nursery.start_soon(self._watch_links)
                while True:
                    self._changed = trio.Event()
                    pause = await self._step(nursery)
                    with trio.move_on_after(max(pause, SHORTEST)):
                        await self._changed.wait()
                    # What comes in bursts (a merged block, our own writes) is one step.
                    await trio.sleep(SHORTEST)
        except* ConfigError as group:
            self.status.error = "; ".join(self._explain(error) for error in _leaves(group))
            self.status.waiting = ()
            with contextlib.suppress(HostError):  # the answer to the agent says it too
                self.status.write(self.machine, self.clock.now(), self._seconds())
            raise

    # -- tasks ------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """The daemon's unit (unless that is done), then the distribution: tried again until the machine agrees."""
        pause = 1.0
        while not self._daemon_ready or self._distribution is None:
            try:
                if not self._daemon_ready:
                    await self._blocking(self._set_up)
                    self._daemon_ready = True
                self._distribution = await self._blocking(plan.check, self.machine, self.settings)
                self.status.distribution = str(self._distribution)
                self._setup = None
            except HostError as error:
                self._setup = Refused(
                    "cannot choose a distribution" if self._daemon_ready else "cannot set up the daemon", str(error)
                )
                self._changed.set()
                await trio.sleep(pause)
                pause = min(pause * 2, 10.0)
        self._changed.set()

    def _set_up(self) -> None:
        set_up_daemon(self.machine, self.settings, self.api, self.program())

    async def _watch(self) -> None:
        """Keep the view of the ledger; ask again soon when the daemon is silent."""
        bucket = self.settings.network_id()
        pause = 0.1
        while True:
            try:
                async with self.client.follow((bucket, HEALTHCHECK)) as states:
                    async for result in states:
                        pause = 0.1
                        if self._silent is not None:
                            await self._blocking(forget_last_words, self.machine)
                        self._view = view_of(result.values(bucket), _plain(result, HEALTHCHECK))
                        self._silent = None
                        self._reach("daemon")
                        self._changed.set()
            except ProviderError as error:
                self._silent = DaemonSilent(
                    error.message, await self._blocking(last_words, self.machine, self.clock.now())
                )
                self._changed.set()
                await trio.sleep(pause)
                pause = min(pause * 1.2, 1.0)

    async def _watch_links(self) -> None:
        """Step when the address or the interface that counts has changed; other links come and go with every pod."""
        seen: object = None
        while True:
            try:
                with self.links.watch() as changes:
                    while True:
                        now = await self._blocking(lambda: (plan.where(self.settings, self.links), self._interface()))
                        if now != seen:
                            seen = now
                            self._changed.set()
                        await changes.wait()
                        if self.status.configured:
                            await trio.sleep(LINK_REST)
            except HostError as error:
                log.warning("links cannot be watched: %s", error)
                await trio.sleep(LINK_REST)

    async def _configure(self, effect: Configure) -> None:
        """Carry a role out; on refusal wait a little and let the engine ask again."""
        assert self._distribution is not None
        pause = 2.0
        unique = plan.hostnames_differ(self._view.nodes if self._view else ())
        try:
            self.status.service = await self._blocking(
                lambda: configure.begin(
                    self.machine,
                    self.settings,
                    self._distribution,
                    effect,
                    self._addresses,
                    unique=unique,
                )
            )
            self._reach("service")
            self._refusal = None
            self._changed.set()
            if effect.role.first:
                await self._published.wait()
            await self._blocking(configure.finish, self.machine, effect.role)
            self._reach("joined")
        except ConfigError:
            raise
        except ProviderError as error:
            self._refusal = Refused(f"cannot configure {effect.role}", str(error))
            self._changed.set()
            await trio.sleep(pause)
        self._busy = False
        self._changed.set()

    # -- one step ---------------------------------------------------------------------------------------------

    def _look(self) -> LocalTruth:
        """What this machine knows, read anew."""
        held = disk.held_role(self.machine, self.settings.network_id())
        deployed = disk.deployed(self.machine)
        self._addresses = plan.where(self.settings, self.links)
        started = held is not None and (deployed or self.status.service != "")
        service = _service_of(held.role) if held is not None and started else ""
        self._service.look(service, self._interface() if self.settings.vpn_used() else None, self.clock.now().mono)
        token, kubeconfig = configure.published_secrets(self.machine, held.role if held else None)
        return LocalTruth(
            held=held,
            deployed=deployed,
            busy=self._busy,
            ip=self._addresses.own,
            master_ip=self._addresses.told,
            node_token=token,
            kubeconfig=kubeconfig,
        )

    def _interface(self) -> int | None:
        """The index of the VPN interface; another one when it was made anew."""
        link = self.links.link(plan.vpn_interface(self.settings))
        return None if link is None else int(link.index)

    async def _step(self, nursery: trio.Nursery) -> float:
        """Look, decide, act; seconds until the next step is due without an event."""
        try:
            truth: LocalTruth = await self._blocking(self._look)
        except HostError as error:
            await self._report((Refused("cannot read this machine's state", str(error)),), LocalTruth())
            return 1.0
        self._note(truth)
        if self._view is None or self._silent is not None or self._distribution is None:
            found = [reason for reason in (self._setup, self._silent) if reason is not None]
            await self._report((*found, *self._service.waiting()), truth)
            return min(5.0, self._service.pause)
        now = self.clock.now()
        step = self.engine.step(self._view, truth, now)
        failed = await self._carry_out(step, nursery)
        view = self._view
        if truth.node_token is not None and view.node_token == truth.node_token and view.ip_master:
            self._published.set()
        await self._report(self._reasons(step, truth), truth, step)
        polls = self._busy and truth.node_token is None
        pause = 60.0 if step.wake is None else step.wake - self.clock.now().mono
        return min(pause, POLL if polls else pause, READY_POLL if failed else pause, self._service.pause)

    async def _carry_out(self, step: Step, nursery: trio.Nursery) -> bool:
        """Effects in order; True when a write failed (it is due again then)."""
        bucket = self.settings.network_id()
        failed = False
        for effect in step.effects:
            match effect:
                case PutKey(key, value):
                    try:
                        await self.client.put(bucket, key, value)
                    except ProviderError as error:
                        log.warning("cannot write %s: %s", key, error)
                        self.engine.lost(key)
                        failed = True
                case DeleteKey(key):
                    try:
                        await self.client.delete(bucket, key)
                    except ProviderError as error:
                        log.warning("cannot delete %s: %s", key, error)
                        failed = True
                case Configure():
                    self._busy = True
                    nursery.start_soon(self._configure, effect)
        return failed

    # -- what is said -----------------------------------------------------------------------------------------

    def _seconds(self) -> float:
        return self.clock.now().mono - self._began

    def _reach(self, phase: str) -> None:
        if self.status.reach(phase, self._seconds()):
            log.info("%s after %.1f s", phase, self._seconds())

    def _note(self, truth: LocalTruth) -> None:
        if truth.ip:
            self._reach("address")
        if truth.held is not None and truth.deployed:
            self.status.service = _service_of(truth.held.role)
            self._reach("service")
            self._reach("joined")
            if self._service.ready:
                self._reach("ready")
        self.status.ready = self._service.ready
        self.status.configured = truth.deployed
        self.status.address = truth.ip

    def _reasons(self, step: Step, truth: LocalTruth) -> tuple[Waiting, ...]:
        found = list(step.waiting)
        if self._refusal is not None:
            found.insert(0, self._refusal)
        elif self._busy and truth.held is not None and truth.held.role.first and truth.node_token is None:
            found.append(reasons.TokenNotWritten())
        return (*found, *self._service.waiting())

    async def _report(self, waiting: tuple[Waiting, ...], truth: LocalTruth, step: Step | None = None) -> None:
        status = self.status
        status.waiting = waiting
        if step is not None:
            if step.role is not None:
                if step.role.executable:
                    self._reach("role")
                if status.role != str(step.role):
                    log.info("role: %s", step.role)
            status.role = str(step.role or "")
            if step.leader and step.leader != status.leader:
                log.info("leader: %s", step.leader)
            status.leader = step.leader
            status.first_master = step.first
            if step.role is Role.NONE:
                status.ready = True
        elif truth.held is not None:
            status.role = str(truth.held.role)
        self._say(waiting)
        try:
            await self._blocking(status.write, self.machine, self.clock.now(), self._seconds())
        except HostError as error:
            log.warning("%s", error)

    def _say(self, waiting: tuple[Waiting, ...]) -> None:
        """Log reasons when they change."""
        texts = tuple(reason.text() for reason in waiting)
        if texts != self._said:
            for text in texts:
                if text not in self._said:
                    log.info("%s", text)
            self._said = texts


def _leaves(group: BaseExceptionGroup[ConfigError]) -> list[ConfigError]:
    found: list[ConfigError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _service_of(role: Role) -> str:
    return "k3s" if role.control_plane else "k3s-agent"


def _plain(result: WatchResult, bucket: str) -> dict[str, object]:
    """Values of a bucket that daemons write themselves."""
    found: dict[str, object] = {}
    for key, text in (result.texts.get(bucket) or {}).items():
        try:
            found[key] = plain_value(text)
        except ValueCodingError:
            continue
    return found
