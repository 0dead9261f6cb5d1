"""Fixtures for tests with real network namespaces.

A namespace is held open by a child process that dies with the test run (``PR_SET_PDEATHSIG``), so that nothing is
left behind even when the run is killed: a namespace without a process or a name ceases to exist, and its links with it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_HOLD = """
import ctypes, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(1, signal.SIGKILL)
if libc.unshare(0x40000000):
    sys.exit(f"unshare: errno {ctypes.get_errno()}")
print("ready", flush=True)
sys.stdin.read()
"""
_CLONE_NEWNET = 0x40000000


def _cannot() -> str:
    if os.geteuid() != 0:
        return "needs root: network namespaces and TUN devices"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun (modprobe tun)"
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    if probe.returncode:
        return "needs network namespaces (CAP_SYS_ADMIN), which this machine refuses to root"
    return ""


@pytest.fixture(scope="session")
def needs_root() -> None:
    """Skip with a reason that the summary prints when the machine cannot do it."""
    if reason := _cannot():
        pytest.skip(reason)


@dataclass
class Namespace:
    """One network namespace, held by ``holder``. ``address`` is its address on the shared link, without prefix."""

    name: str
    holder: subprocess.Popen[bytes]
    address: str = ""
    children: list[subprocess.Popen[Any]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.holder.pid

    def argv(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", "--", *command]

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(self.argv(command), capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def python(self, code: str, *args: str) -> str:
        return self.run(sys.executable, "-c", code, *args)

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        child: subprocess.Popen[Any] = subprocess.Popen(self.argv(command), **options)
        self.children.append(child)
        return child

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in this namespace; sockets opened meanwhile stay in it."""
        libc = ctypes.CDLL(None, use_errno=True)
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        inside = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert libc.setns(inside, _CLONE_NEWNET) == 0, ctypes.get_errno()
            try:
                yield
            finally:
                assert libc.setns(before, _CLONE_NEWNET) == 0, ctypes.get_errno()
        finally:
            os.close(before)
            os.close(inside)

    def close(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.wait()
            for pipe in (child.stdin, child.stdout, child.stderr):
                if pipe:
                    pipe.close()
        self.holder.kill()
        self.holder.wait()
        for pipe in (self.holder.stdin, self.holder.stdout):
            if pipe:
                pipe.close()


def _make(name: str) -> Namespace:
    holder = subprocess.Popen([sys.executable, "-c", _HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    ready, _, _ = select.select([holder.stdout], [], [], 30)
    if not ready or holder.stdout.readline() != b"ready\n":
        holder.kill()
        holder.wait()
        raise AssertionError(f"namespace {name} did not come up")
    space = Namespace(name, holder)
    space.run("ip", "link", "set", "lo", "up")
    return space


MakeNamespaces = Callable[..., list[Namespace]]


@contextmanager
def namespaces() -> Iterator[MakeNamespaces]:
    """``make(n, network="10.77.0")`` → n namespaces, each with ``eth0`` on one bridge in a switch namespace.

    Addresses are ``<network>.1`` and so on, /24, with IPv6 link-local addresses that are usable at once. All of them
    are gone when the context is left.
    """
    made: list[Namespace] = []

    def build(count: int, network: str = "10.77.0") -> list[Namespace]:
        switch = _make("switch")
        made.append(switch)
        switch.run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        switch.run("ip", "link", "set", "br0", "up")
        boxes = []
        for number in range(1, count + 1):
            box = _make(f"box{number}")
            made.append(box)
            box.address = f"{network}.{number}"
            switch.run(
                "ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", str(box.pid)
            )
            switch.run("ip", "link", "set", f"port{number}", "master", "br0", "up")
            # Duplicate address detection would hold IPv6 back for a second; nobody else is on this link.
            box.run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad 2>/dev/null || true")
            box.run("ip", "addr", "add", f"{box.address}/24", "dev", "eth0")
            box.run("ip", "link", "set", "eth0", "up")
            boxes.append(box)
        return boxes

    try:
        yield build
    finally:
        for space in reversed(made):
            space.close()


@pytest.fixture
def make_namespaces(needs_root) -> Iterator[MakeNamespaces]:
    """Namespaces for one test; see :func:`namespaces`."""
    with namespaces() as make:
        yield make


@pytest.fixture
def netns_pair(make_namespaces: MakeNamespaces) -> list[Namespace]:
    """Two namespaces on one bridge."""
    return make_namespaces(2)


@pytest.fixture
def netns(make_namespaces: MakeNamespaces) -> Namespace:
    """One namespace with an ``eth0``."""
    return make_namespaces(1)[0]


@contextmanager
def internet() -> Iterator[MakeNamespaces]:
    """``make(n)`` → n boxes that share no link, each behind a router of its own; the routers share a backbone.

    Box number k has 10.91.k.2 and its ``eth0`` leads to its router, which forwards and hides nothing.
    """
    made: list[Namespace] = []

    def build(count: int) -> list[Namespace]:
        switch = _make("backbone")
        made.append(switch)
        switch.run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        switch.run("ip", "link", "set", "br0", "up")
        boxes = []
        for number in range(1, count + 1):
            router, box = _make(f"router{number}"), _make(f"box{number}")
            made.extend((router, box))
            port = f"port{number}"
            switch.run("ip", "link", "add", port, "type", "veth", "peer", "name", "wan", "netns", str(router.pid))
            switch.run("ip", "link", "set", port, "master", "br0", "up")
            router.run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", str(box.pid))
            router.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
            router.run("ip", "addr", "add", f"10.90.0.{number}/24", "dev", "wan")
            router.run("ip", "addr", "add", f"10.91.{number}.1/24", "dev", "lan")
            router.run("ip", "link", "set", "wan", "up")
            router.run("ip", "link", "set", "lan", "up")
            for other in range(1, count + 1):
                if other != number:
                    router.run("ip", "route", "add", f"10.91.{other}.0/24", "via", f"10.90.0.{other}", "dev", "wan")
            box.address = f"10.91.{number}.2"
            box.run("ip", "addr", "add", f"{box.address}/24", "dev", "eth0")
            box.run("ip", "link", "set", "eth0", "up")
            box.run("ip", "route", "add", "default", "via", f"10.91.{number}.1")
            boxes.append(box)
        return boxes

    try:
        yield build
    finally:
        for space in reversed(made):
            space.close()


@pytest.fixture
def make_internet(needs_root) -> Iterator[MakeNamespaces]:
    """A small internet for one test; see :func:`internet`."""
    with internet() as make:
        yield make
