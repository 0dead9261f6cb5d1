"""The VPN's interface as it has to be: one address, up, the right MTU, and nothing else of this machine in its network.

:meth:`VpnInterface.put_right` may be called at any time: it looks first and changes only what is wrong, so that a
daemon without CAP_NET_ADMIN can serve an interface that somebody else made ready. The TUN device is
:mod:`provider_kairos.system.tun`'s; when to look is :mod:`provider_kairos.daemon.vpn_service`'s decision.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Protocol

from provider_kairos.daemon.reasons import AddressTaken
from provider_kairos.errors import HostError, NotFoundError
from provider_kairos.system.links import Address, Link, LinkManager, LinkWatch

__all__ = ["Links", "VpnInterface"]

IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Links(Protocol):
    """What is needed of :class:`~provider_kairos.system.links.LinkManager`."""

    def link(self, name: str) -> Link | None:
        """The link of that name."""
        ...

    def addresses(self, interface: str | None = None) -> list[Address]:
        """All addresses, or those of one interface."""
        ...

    def add_address(self, interface: str, address: str) -> bool:
        """Give an address."""
        ...

    def delete_address(self, interface: str, address: str) -> bool:
        """Take an address away."""
        ...

    def set_up(self, interface: str) -> None:
        """Set up."""
        ...

    def set_mtu(self, interface: str, mtu: int) -> None:
        """Set the MTU."""
        ...

    def watch(self) -> LinkWatch:
        """Changes from now on."""
        ...


class VpnInterface:
    """Interface ``name`` with an ``mtu``. ``links`` is the machine's unless a test says otherwise."""

    def __init__(self, name: str, mtu: int, links: Links | None = None) -> None:
        self.name = name
        self.links: Links = links if links is not None else LinkManager()
        self.conflicts: tuple[AddressTaken, ...] = ()
        self._mtu = mtu

    def put_right(self, address: str) -> list[str]:
        """Give it exactly the ``address`` (with prefix length); returns what had to be changed, in words.

        Addresses of the other IP version are not touched, nor those that IPv6 gives every interface by itself. Raises
        HostError, also when the interface is gone.
        """
        try:
            return self._put_right(ipaddress.ip_interface(address))
        except NotFoundError as error:
            raise HostError(f"interface {self.name} is gone") from error

    def _put_right(self, address: IpInterface) -> list[str]:
        link = self.links.link(self.name)
        if link is None:
            raise HostError(f"interface {self.name} is gone")
        everything = self.links.addresses()
        mine = [
            each.ip
            for each in everything
            if each.interface == self.name
            and each.ip.version == address.version
            and not (each.ip.version == 6 and each.ip.is_link_local)
        ]
        self.conflicts = self._conflicts(everything, address)
        done: list[str] = []
        if link.mtu != self._mtu:
            self.links.set_mtu(self.name, self._mtu)
            done.append(f"MTU {self._mtu}")
        for old in mine:
            if old != address:
                self.links.delete_address(self.name, str(old))
                done.append(f"without {old}")
        if address not in mine:
            self.links.add_address(self.name, str(address))
            done.append(f"address {address}")
        if not link.up:
            self.links.set_up(self.name)
            done.append("up")
        return done

    def _conflicts(self, everything: Sequence[Address], address: IpInterface) -> tuple[AddressTaken, ...]:
        return tuple(
            AddressTaken(each.interface, str(each.ip), str(address.network))
            for each in everything
            if each.interface != self.name and each.ip.version == address.version and each.ip.ip in address.network
        )
