"""What the rendering knows and what it answers: frozen values, no behaviour of k3s (spec/provider.md 3.4, 3.7, 3.8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from provider_kairos.config.notice import Notice

__all__ = ["Binaries", "Choice", "DesiredFile", "Distribution", "InitKind", "NodeFacts", "NodeRole", "Rendering"]


class Distribution(StrEnum):
    """The Kubernetes distributions that have a place here."""

    K3S = "k3s"
    K0S = "k0s"


class InitKind(StrEnum):
    """What starts services on this machine."""

    SYSTEMD = "systemd"
    OPENRC = "openrc"


class NodeRole(StrEnum):
    """What a node is to be. The first four are the ledger's words, the last two are for nodes without coordination."""

    MASTER = "master"
    CLUSTERINIT = "master/clusterinit"
    HA = "master/ha"
    WORKER = "worker"
    SERVER = "server"
    AGENT = "agent"

    @property
    def is_server(self) -> bool:
        """Whether this node runs a control plane."""
        return self not in {NodeRole.WORKER, NodeRole.AGENT}

    @property
    def is_first(self) -> bool:
        """Whether this node founds the cluster."""
        return self in {NodeRole.MASTER, NodeRole.CLUSTERINIT}

    @property
    def standalone(self) -> bool:
        """Whether nobody told this node where to join."""
        return self in {NodeRole.SERVER, NodeRole.AGENT}


@dataclass(frozen=True, slots=True)
class Binaries:
    """Absolute paths of what is installed; empty: not there."""

    k3s: str = ""
    k0s: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Distribution and role of a node by its configuration alone; ``role`` empty: to be found by coordination."""

    distribution: Distribution
    role: str

    def standalone_role(self) -> NodeRole:
        """The role for a one-time bootstrap."""
        return NodeRole.AGENT if self.role == "worker" else NodeRole.SERVER


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is known about this node and its cluster at the time of rendering.

    Addresses carry no prefix length. ``vpn_*`` facts matter when the settings put Kubernetes on the VPN, the LAN
    interface otherwise. ``server_url`` is the K3S_URL that this node was configured with before: it is kept, for an
    agent drops its list of servers when it changes; leave it empty when the agent is stuck for good.
    ``hostname_unique``: whether all host names in the ledger differ; None when not known. ``config_keys``: the keys
    that k3s' own config.yaml and its drop-ins set (:func:`~provider_kairos.kubernetes.arguments.config_file_keys`).
    ``after``: units that k3s is to be started after, as the mesh daemon's.
    """

    role: NodeRole
    binary: str
    init: InitKind = InitKind.SYSTEMD
    virtual_ip: str = ""
    vpn_interface: str = "edgevpn0"
    interface: str = ""
    interface_ip: str = ""
    master_address: str = ""
    join_token: str = field(default="", repr=False)
    server_url: str = ""
    hostname_unique: bool | None = None
    config_keys: frozenset[str] = frozenset()
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DesiredFile:
    """A file as it is to be: whole content, replaced atomically by whoever applies it."""

    path: str
    content: str = field(repr=False)
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class Rendering:
    """Everything to be laid down and started for one node.

    ``argv`` is the whole command, one element each. On OpenRC there is no drop-in: the env file carries the command
    too. ``warnings`` name keys of the settings; CloudConfig.locate gives them their places.
    """

    service: str
    argv: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    env_file: DesiredFile = field(repr=False)
    drop_in: DesiredFile | None = None
    extra: tuple[DesiredFile, ...] = ()
    warnings: tuple[Notice, ...] = ()

    @property
    def files(self) -> tuple[DesiredFile, ...]:
        """All files, in the order in which they are to be written: the environment first."""
        return (self.env_file, *((self.drop_in,) if self.drop_in else ()), *self.extra)
