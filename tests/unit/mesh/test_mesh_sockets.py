"""Dialling: names of either family, names for the VPN, several addresses behind one name, names that are none."""

from __future__ import annotations

import socket

import pytest
import trio

from provider_kairos.mesh.addresses import Endpoint, Networks
from provider_kairos.mesh.sockets import connect
from provider_kairos.mesh.swarm import DialError

NOBODY = "127.0.0.9"


class Names(trio.abc.HostnameResolver):
    """Every name has the same addresses."""

    def __init__(self, *addresses):
        self.addresses = addresses

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002, PLR0917 - the interface is trio's
        await trio.lowlevel.checkpoint()
        found = [(socket.AF_INET6 if ":" in each else socket.AF_INET, each) for each in self.addresses]
        found = [(kind, each) for kind, each in found if family in {0, kind}]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(kind, socket.SOCK_STREAM, 6, "", (each, int(port))) for kind, each in found]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


def dial(family, *addresses, host="node.example", blocked=()):
    """The address that was reached, of those at which somebody listens: 127.0.0.1 and ::1."""

    async def main():
        trio.socket.set_custom_hostname_resolver(Names(*addresses) if addresses else None)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        try:
            channel = await connect(Endpoint(family, host, port), Networks(blocked))
            remote = channel.remote()[0]
            await channel.close()
            return remote
        finally:
            for listener in listeners:
                await listener.aclose()

    return trio.run(main)


def test_a_name_is_dialled_at_its_addresses_one_after_the_other():
    assert dial("dns", NOBODY, "::1", "127.0.0.1") == "127.0.0.1"


def test_a_name_of_one_family_is_dialled_in_that_family():
    assert dial("dns4", "::1", "127.0.0.1") == "127.0.0.1"
    with pytest.raises(DialError):
        dial("dns6", "127.0.0.1")


def test_a_name_for_the_vpn_is_not_dialled():
    with pytest.raises(DialError, match="blocked network"):
        dial("dns", "127.0.0.1", blocked=("127.0.0.0/8",))
    assert dial("dns", "10.1.0.7", "127.0.0.1", blocked=("10.1.0.0/24",)) == "127.0.0.1"


def test_a_name_where_nobody_answers_says_so():
    with pytest.raises(DialError, match=r"node\.example"):
        dial("dns4", NOBODY)


@pytest.mark.parametrize("host", ["a" * 200, "a..b", "a" * 64 + ".example"])
def test_a_name_that_the_dns_cannot_hold_is_refused_like_any_other(host):
    with pytest.raises(DialError):
        dial("dns4", host=host)


def test_an_address_needs_no_resolver():
    assert dial("ip4", host="127.0.0.1") == "127.0.0.1"
