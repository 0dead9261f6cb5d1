"""A cluster of coordinators in one process: shared ledger, fake machines, virtual time."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from provider_kairos.api.client import WatchCursor, WatchResult
from provider_kairos.api.model import ledger_text
from provider_kairos.clock import NANO, Now
from provider_kairos.config import load
from provider_kairos.errors import UnreachableError
from provider_kairos.ids import NodeUuid
from provider_kairos.provider.configure import KUBECONFIG_FILE, TOKEN_FILE
from provider_kairos.provider.daemon_unit import DaemonProgram
from provider_kairos.provider.loop import Coordinator
from provider_kairos.provider.machine import FakeMachine
from provider_kairos.provider.wiring import role_settings
from provider_kairos.roles.engine import RolesEngine
from provider_kairos.roles.model import format_time
from provider_kairos.token.codec import encode, generate

TOKEN = encode(generate())


class TrioClock:
    """Wall and monotonic time on trio's clock, which jumps in tests."""

    def now(self):
        return Now(1_700_000_000 * NANO + round(trio.current_time() * NANO), trio.current_time())


class SharedLedger:
    """What all daemons hold, with every write and its author."""

    def __init__(self):
        self.texts = {}
        self.revision = 0
        self.writes = []
        self.changed = trio.Event()

    def put_plain(self, bucket, key, text):
        self.texts.setdefault(bucket, {})[key] = text
        self.revision += 1
        self.changed.set()
        self.changed = trio.Event()


class FakeFollower:
    """The state of buckets, now and after every change."""

    def __init__(self, client, buckets):
        self.client = client
        self.buckets = buckets
        self.cursor = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    def __aiter__(self):
        return self

    async def __anext__(self):
        result = await self.client.watch(self.buckets, self.cursor)
        self.cursor = result.cursor
        return result


class FakeClient:
    """One daemon's API over the shared ledger; ``silent`` while the daemon is down."""

    def __init__(self, ledger, name):
        self.ledger = ledger
        self.name = name
        self.silent = False
        self.refused = 0

    async def put(self, bucket, key, value):
        await trio.lowlevel.checkpoint()
        if self.silent:
            raise UnreachableError("no daemon answers")
        if self.refused:
            self.refused -= 1
            raise UnreachableError("the daemon went away")
        self.ledger.writes.append((self.name, key, value))
        self.ledger.put_plain(bucket, key, ledger_text(value))

    async def delete(self, bucket, key):
        self.ledger.texts.get(bucket, {}).pop(key, None)

    def follow(self, buckets):
        return FakeFollower(self, buckets)

    async def watch(self, buckets, since=None, timeout=25.0):
        await trio.lowlevel.checkpoint()
        if self.silent:
            raise UnreachableError("no daemon answers")
        ledger = self.ledger
        if since is not None and since.revision == ledger.revision:
            with trio.move_on_after(timeout):
                await ledger.changed.wait()
            if self.silent:
                raise UnreachableError("no daemon answers")
        texts = {name: dict(ledger.texts[name]) if name in ledger.texts else None for name in buckets}
        return WatchResult(WatchCursor("x", ledger.revision), texts)


class FakeLink:
    def __init__(self, index):
        self.index = index


class FakeChanges:
    def __init__(self, links):
        self.links = links

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    async def wait(self, settle=0.05):
        await self.links.event.wait()
        self.links.event = trio.Event()


class FakeLinks:
    def __init__(self):
        self.ips = {}
        self.index = 7
        self.default = None
        self.event = trio.Event()

    def watch(self):
        return FakeChanges(self)

    def renew(self):
        self.index += 1
        self.event.set()

    def first_address(self, interface, *, version=0):
        return self.ips.get(interface)

    def default_route_interface(self):
        return self.default

    def link(self, name):
        return FakeLink(self.index) if name in self.ips else None


class K3sMachine(FakeMachine):
    """A machine whose k3s server writes token and kubeconfig ``wait`` seconds after it was started."""

    wait = 1.3

    def __init__(self, name):
        super().__init__({"/usr/bin/k3s": "", "/usr/bin/systemctl": ""})
        self.name = name
        self.nursery = None

    def start(self, service):
        super().start(service)
        if service == "k3s" and self.nursery is not None and TOKEN_FILE not in self.files:
            try:
                trio.lowlevel.current_task()
            except RuntimeError:  # the loop called us in a thread
                trio.from_thread.run_sync(self.nursery.start_soon, self._writes)
            else:
                self.nursery.start_soon(self._writes)

    def restart(self, service):
        super().restart(service)
        self.active.add(service)

    async def _writes(self):
        await trio.sleep(self.wait)
        self.files[TOKEN_FILE] = f"K10token-of-{self.name}\n"
        self.files[KUBECONFIG_FILE] = f"server: https://127.0.0.1:6443 # {self.name}\n"


async def inline(function, *args):
    await trio.lowlevel.checkpoint()
    return function(*args)


class Box:
    def __init__(self, ledger, name, config, *, ip_after=1.0, seed=0):
        self.name = name
        self.uuid = f"{int.from_bytes(name.encode(), 'big'):032x}-{name}"
        self.ledger = ledger
        self.config = config
        self.machine = K3sMachine(name)
        self.links = FakeLinks()
        self.client = FakeClient(ledger, name)
        self.ip_after = ip_after
        self.seed = seed
        self.coordinator = None
        self.error = None

    async def run(self, nursery, **other):
        """One life of the provider; nothing but the machine survives it. ``other`` replaces its surroundings."""
        self.machine.nursery = nursery
        settings = load(self.config).settings
        self.ledger.put_plain("healthcheck", f"peer-{self.name}", f'"{format_time(TrioClock().now().unix_ns)}"')
        roles = replace(role_settings(settings, NodeUuid(self.uuid)), settle=other.pop("settle", 1.0))
        surroundings: dict[str, Any] = {"clock": TrioClock(), "blocking": inline} | other
        self.coordinator = Coordinator(
            self.machine,
            settings,
            self.client,
            self.links,
            engine=RolesEngine(roles, random.Random(self.seed)),
            api="unix:///run/edgevpn-kairos.sock",
            program=lambda: DaemonProgram("/usr/bin/kairos-p2p"),
            **surroundings,
        )
        nursery.start_soon(self._lease)
        await self.coordinator.run()

    async def _lease(self):
        await trio.sleep(self.ip_after)
        self.links.event.set()
        self.links.ips.setdefault("edgevpn0", f"10.1.0.{sum(self.name.encode()) % 200 + 1}")


@pytest.fixture
def p2p():
    """A cloud-config with a token and further keys of the p2p block."""

    def make(extra=""):
        return f"#cloud-config\np2p:\n  network_token: {TOKEN}\n{extra}"

    return make


@pytest.fixture
def boxes(p2p):
    """Make boxes that share one ledger."""

    def make(count, config=None, **options):
        ledger = SharedLedger()
        return [Box(ledger, f"box{n + 1}", config or p2p(), seed=n, **options) for n in range(count)]

    return make


@pytest.fixture
def in_time():
    """Run a coroutine function on a clock that jumps while everybody waits."""

    def run(function):
        clock = trio.testing.MockClock(autojump_threshold=0)
        return trio.run(function, clock=clock)

    return run
