"""Links, addresses and the TUN device against a real kernel, each in a namespace of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
import trio
import trio.testing

from provider_kairos.errors import HostError, NotFoundError, PermissionHostError, TimeoutHostError
from provider_kairos.system.links import LinkManager
from provider_kairos.system.tun import open_tun, remove_tun

pytestmark = pytest.mark.root


def test_reads_the_same_as_pyroute2(netns):
    code = """
import json, sys
if sys.argv[1] == "ours":
    from provider_kairos.system.links import LinkManager
    m = LinkManager()
    print(json.dumps([[l.index, l.name, l.flags, l.mtu, l.kind] for l in m.links()]))
    print(json.dumps(sorted([a.index, str(a.ip)] for a in m.addresses())))
else:
    from pyroute2 import IPRoute
    with IPRoute() as r:
        print(json.dumps([[l["index"], l.get("ifname"), l["flags"], l.get("mtu"), (l.get("linkinfo") or {}).get("kind") or ""] for l in r.get_links()]))
        print(json.dumps(sorted([a["index"], f"{a.get('address')}/{a['prefixlen']}"] for a in r.get_addr())))
"""
    ours, theirs = netns.python(code, "ours"), netns.python(code, "theirs")
    assert ours == theirs
    assert [netns.address in text for text in ours.splitlines()] == [False, True]


def test_add_list_delete_address_and_mtu(netns):
    with netns.entered():
        links = LinkManager()
        assert links.add_address("eth0", "10.1.0.5/24") is True
        assert links.add_address("eth0", "10.1.0.5/24") is False, "twice is once"
        assert "10.1.0.5/24" in {str(a.ip) for a in links.addresses("eth0")}
        assert links.first_address("eth0") == netns.address
        links.set_mtu("eth0", 1280)
        links.set_down("eth0")
        down = links.link("eth0")
        assert down is not None
        assert (down.mtu, down.up) == (1280, False)
        assert links.multicast_interfaces() == []
        links.set_up("eth0")
        assert links.delete_address("eth0", "10.1.0.5/24") is True
        assert links.delete_address("eth0", "10.1.0.5/24") is False
        with pytest.raises(NotFoundError):
            links.set_up("nothing0")
        with pytest.raises(HostError, match="cannot set MTU"):
            links.set_mtu("eth0", 1)
    shown = json.loads(netns.run("ip", "-j", "addr", "show", "eth0"))[0]
    assert shown["mtu"] == 1280
    assert "10.1.0.5" not in json.dumps(shown)


def test_default_route_interface(netns):
    with netns.entered():
        assert LinkManager().default_route_interface() is None
    netns.run("ip", "route", "add", "default", "via", "10.77.0.254", "metric", "100")
    netns.run("ip", "link", "add", "dummy0", "type", "bridge")
    netns.run("ip", "addr", "add", "10.78.0.1/24", "dev", "dummy0")
    netns.run("ip", "link", "set", "dummy0", "up")
    netns.run("ip", "route", "add", "default", "via", "10.78.0.254", "metric", "50")
    with netns.entered():
        assert LinkManager().default_route_interface() == "dummy0", "the lower metric wins"


def test_multicast_interfaces_follow_the_machine(netns):
    async def until_found(links: LinkManager):
        # the kernel reports a carrier a moment after the link was set up
        with trio.fail_after(20), links.watch() as changes:
            while not (found := links.multicast_interfaces()):
                await changes.wait(settle=0)
        return found

    with netns.entered():
        links = LinkManager()
        (found,) = trio.run(until_found, links)
        assert (found.name, [str(ip) for ip in found.ipv4]) == ("eth0", [netns.address])
        assert links.multicast_interfaces(lambda name, _ipv4: name == "eth0") == []
        netns.run("ip", "link", "add", "br9", "type", "bridge")
        netns.run("ip", "link", "set", "eth0", "master", "br9")
        assert links.multicast_interfaces() == [], "a bridge's port is not spoken on"


def test_watch_tells_of_a_new_address(netns):
    async def main():
        links = LinkManager()
        seen = trio.Event()

        async def follow():
            with links.watch() as changes:
                async for _ in changes:
                    if links.first_address("late0"):
                        seen.set()
                        return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            nursery.start_soon(links.wait_for_interface, "late0", 20)
            await trio.testing.wait_all_tasks_blocked()
            netns.run("ip", "link", "add", "late0", "type", "bridge")
            netns.run("ip", "addr", "add", "10.79.0.1/24", "dev", "late0")
            with trio.fail_after(20):
                await seen.wait()
        with pytest.raises(TimeoutHostError, match="never0"):
            await links.wait_for_interface("never0", 0.01)

    with netns.entered():
        trio.run(main)


def test_persistent_tun_outlives_its_process_and_is_re_attached(netns):
    code = """
import os
from provider_kairos.system.links import LinkManager
from provider_kairos.system.tun import open_tun
tun = open_tun("edgevpn0", 1200)
assert tun.created
m = LinkManager(); m.add_address("edgevpn0", "10.1.0.7/24"); m.set_up("edgevpn0")
print(m.link("edgevpn0").index, flush=True)
os.kill(os.getpid(), 9)
"""
    died = subprocess.run(netns.argv([sys.executable, "-c", code]), capture_output=True, text=True, check=False)
    assert died.returncode == -9, died.stderr
    with netns.entered():
        links = LinkManager()
        after = links.link("edgevpn0")
        assert after is not None
        assert (after.index, after.mtu, after.up, after.kind) == (int(died.stdout), 1200, True, "tun")
        assert links.first_address("edgevpn0", version=4) == "10.1.0.7"
        with open_tun("edgevpn0", 1280) as tun:
            assert not tun.created
            again = links.link("edgevpn0")
            assert again is not None
            assert (again.index, again.mtu) == (after.index, 1280)
            with pytest.raises(HostError, match="held by another process"):
                open_tun("edgevpn0")
        assert remove_tun("edgevpn0") is True
        assert remove_tun("edgevpn0") is False


def test_packets_pass_both_ways(netns):
    async def main():
        links = LinkManager()
        with open_tun("edgevpn0", 1200, persistent=False) as tun:
            links.add_address("edgevpn0", "10.1.0.7/24")
            links.set_up("edgevpn0")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("10.1.0.7", 5000))
                sock.settimeout(20)
                for number in range(3):
                    sock.sendto(b"packet %d" % number, ("10.1.0.8", 6000))
                answered = 0
                with trio.fail_after(20):
                    while answered < 3:
                        for packet in await tun.read():
                            if packet[0] >> 4 == 4 and packet[9] == 17 and packet[16:20] == bytes([10, 1, 0, 8]):
                                # ends swapped, addresses and ports: both checksums stay what they were
                                reply = (
                                    packet[:12]
                                    + packet[16:20]
                                    + packet[12:16]
                                    + packet[22:24]
                                    + packet[20:22]
                                    + packet[24:]
                                )
                                assert tun.write(reply)
                                answered += 1
                got = [sock.recvfrom(2000) for _ in range(3)]
            assert got == [(b"packet %d" % number, ("10.1.0.8", 6000)) for number in range(3)]
            assert not tun.write(b"\x00garbage"), "a bad packet is dropped and counted"
            assert tun.write_errors == 1

    with netns.entered():
        trio.run(main)


def test_reading_a_deleted_interface_says_so(netns):
    async def main():
        with open_tun("gone0", None, persistent=False) as tun:
            LinkManager().set_up("gone0")
            netns.run("ip", "link", "del", "gone0")
            with pytest.raises(HostError, match="gone0 is gone"):  # noqa: PT012
                with trio.fail_after(10):
                    while True:
                        await tun.read()

    with netns.entered():
        trio.run(main)


def test_closing_wakes_the_reader(netns):
    async def main():
        tun = open_tun("edgevpn0", 1200, persistent=False)

        async def read():
            with pytest.raises(trio.ClosedResourceError):
                await tun.read()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            tun.close()

    with netns.entered():
        trio.run(main)


def test_other_kinds_of_interface_are_refused(netns):
    with netns.entered(), pytest.raises(HostError, match="eth0 exists and is a veth"):
        open_tun("eth0")


def test_without_the_capability_the_error_names_it(netns):
    code = """
from provider_kairos.errors import PermissionHostError
from provider_kairos.system.links import LinkManager
from provider_kairos.system.tun import open_tun
for act in (lambda: open_tun("edgevpn9"), lambda: LinkManager().add_address("eth0", "10.5.0.1/24")):
    try:
        act()
    except PermissionHostError as error:
        print(error)
"""
    said = netns.run("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code)
    assert said.count("CAP_NET_ADMIN") == 2
    assert PermissionHostError.exit_code == 6
