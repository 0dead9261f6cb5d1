"""What a lab and a box are made of, as values; no effects here.

The names and sizes come from spec/provider.md 3.8.3 (which paths outlive a reboot) and from the brief of the
lab in design.md 7. Everything that has to cross a process border is a dataclass with ``to_json``/``from_json``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Final, Self

from provider_kairos.errors import HostError, NotFoundError

__all__ = [
    "AGENT_API",
    "DAEMON_INTERFACE",
    "INIT_SOCKET",
    "LAN_INTERFACE",
    "MAX_BOXES",
    "PERSISTENT_PATHS",
    "STATUS_FILE",
    "BoxSpec",
    "LabError",
    "LabSettings",
    "box_name",
    "box_number",
]

MAX_BOXES: Final = 50
"""Boxes in one lab: their LAN addresses are 192.168.240.11 and up."""

LAN_INTERFACE: Final = "eth0"
DAEMON_INTERFACE: Final = "edgevpn0"

INIT_SOCKET: Final = "/run/lab/init.sock"
"""Where the first process of a box takes orders (from ``systemctl`` and from the supervisor)."""

STATUS_FILE: Final = "/run/kairos-p2p/provider.json"
"""What the provider says about its role and phases."""

AGENT_API: Final = "http://127.0.0.1:8080"
"""The API address that released agents hand to the provider (spec/provider.md 3.1). Newer ones hand over nothing and
the provider takes its socket (3.3); so do boxes, unless told otherwise."""

PERSISTENT_PATHS: Final = (
    "/usr/local",
    "/oem",
    "/etc/systemd",
    "/etc/sysconfig",
    "/etc/init.d",
    "/etc/runlevels",
    "/etc/rancher",
    "/etc/k0s",
    "/etc/kubernetes",
    "/etc/cni",
    "/var/lib/rancher",
    "/var/lib/k0s",
    "/var/lib/kubelet",
    "/var/lib/etcd",
    "/var/lib/containerd",
    "/var/lib/cni",
    "/var/log",
)
"""What a reboot keeps; everything else of a box is lost with its power (spec/provider.md 3.8.3)."""


class LabError(HostError):
    """The lab cannot do what was asked: the message names it, the hint is the remedy."""


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """One box as its first process needs to know it.

    ``store`` is the folder of what outlives a reboot; ``assembled`` asks for a root of bind mounts and three
    overlays, which is all that an ordinary user may have; ``k3s`` is a real k3s or empty for the stand-in;
    ``edgevpn`` is an EdgeVPN that runs in the place of our daemon, ``provider`` a plugin in the place of ours, or empty.
    """

    lab: str
    name: str
    number: int
    machine_id: str
    store: str
    files: dict[str, str] = field(default_factory=dict, repr=False)
    assembled: bool = False
    k3s: str = ""
    edgevpn: str = ""
    provider: str = ""
    cgroup: str = ""
    agent_api: str = ""
    product: bool = True

    @property
    def address(self) -> str:
        """The address on the lab's LAN, with its prefix length."""
        return f"192.168.240.{10 + self.number}/24"

    def to_json(self) -> str:
        """One line of JSON; holds the cloud-config, so it travels through pipes only."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class LabSettings:
    """What ``lab up`` was asked for.

    ``files`` maps paths in every box to contents (the cloud-config among them, hence not in repr);
    ``edgevpn`` maps the names of boxes to the EdgeVPN that they run in the place of our daemon, ``provider`` is a
    plugin in the place of ours in all of them;
    ``product`` false gives bare boxes without the Kairos agent, for tests of the lab itself.
    """

    name: str = "lab"
    boxes: int = 3
    files: dict[str, str] = field(default_factory=dict, repr=False)
    k3s: str = ""
    edgevpn: dict[str, str] = field(default_factory=dict)
    provider: str = ""
    agent_api: str = ""
    product: bool = True

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`."""
        values: dict[str, Any] = json.loads(text)
        return cls(**values)


def box_name(number: int) -> str:
    """``box1`` for 1."""
    return f"box{number}"


def box_number(name: str, boxes: int) -> int:
    """The number of a box that the user named as ``box2`` or ``2``; raises NotFoundError."""
    text = name.removeprefix("box")
    if text.isascii() and text.isdigit() and 1 <= int(text) <= boxes:
        return int(text)
    known = "box1" if boxes == 1 else f"box1 to box{boxes}"
    raise NotFoundError(f"there is no box {name!r}", hint=f"this lab has {known}")
