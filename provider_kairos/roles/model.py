"""Words, keys and the typed view of a cluster's bucket (spec/provider.md 4.3, 4.6; ids as in 4.2).

The engine never sees ledger text: whoever reads the ledger decodes the values (three layers, spec 4.1) and hands
over plain Python values. Everything that other nodes wrote is read with distrust here: a value of the wrong shape
counts as absent and nothing raises.

Our own extra record is ``<uuid>-meta`` (advisory; Go nodes ignore it, spec 4.12): what a node holds on its disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from provider_kairos.clock import NANO, Now
from provider_kairos.ids import NodeUuid

__all__ = [
    "IP_MASTER",
    "KUBECONFIG",
    "LEADER",
    "NODE_TOKEN",
    "WINDOW",
    "Held",
    "LocalTruth",
    "Meta",
    "Node",
    "Role",
    "View",
    "advertisement",
    "format_time",
    "ip_key",
    "meta_key",
    "parse_role",
    "parse_time",
    "role_key",
    "uuid_key",
    "view_of",
]

WINDOW = 15 * 60
"""Seconds for which an advertisement or a heartbeat counts (spec 4.11)."""

LEADER = "leader-auto"
IP_MASTER = "ip-master"
NODE_TOKEN = "token-nodetoken"  # noqa: S105  # the ledger key's name, not a secret
KUBECONFIG = "master-kubeconfig"
META_VERSION = 1


class Role(StrEnum):
    """The words that a role value may hold (spec 4.6), and ``none`` of spec 13 #5."""

    MASTER = "master"
    CLUSTER_INIT = "master/clusterinit"
    HA = "master/ha"
    WORKER = "worker"
    AUTO = "auto"
    NONE = "none"

    @property
    def first(self) -> bool:
        """A first master: it founds the cluster."""
        return self in {Role.MASTER, Role.CLUSTER_INIT}

    @property
    def control_plane(self) -> bool:
        """First or additional master."""
        return self.first or self is Role.HA

    @property
    def executable(self) -> bool:
        """Whether there is something to configure."""
        return self.control_plane or self is Role.WORKER


def parse_role(text: object) -> Role | None:
    """The first known word of a role value (values may be joined with commas); None when there is none."""
    if not isinstance(text, str):
        return None
    for word in text.split(","):
        try:
            return Role(word.strip())
        except ValueError:
            continue
    return None


def uuid_key(uuid: str) -> str:
    """``<uuid>-uuid``: the advertisement."""
    return f"{uuid}-uuid"


def role_key(uuid: str) -> str:
    """``<uuid>-role``."""
    return f"{uuid}-role"


def ip_key(uuid: str) -> str:
    """``<uuid>-ip``."""
    return f"{uuid}-ip"


def meta_key(uuid: str) -> str:
    """``<uuid>-meta``: ours alone."""
    return f"{uuid}-meta"


_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)\Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def format_time(unix_ns: int) -> str:
    """RFC 3339 in UTC with up to nine digits, trailing zeros dropped, as Go's encoder prints it."""
    seconds, nanos = divmod(unix_ns, NANO)
    base = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{base}{fraction}Z"


def parse_time(text: object) -> int | None:
    """Unix nanoseconds of an RFC 3339 time with 0-9 digits and any offset; None when it is none."""
    if not isinstance(text, str) or not (match := _TIME.match(text)):
        return None
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone == 'Z' else zone}")
    except ValueError:
        return None
    whole = moment - _EPOCH
    return (whole.days * 86400 + whole.seconds) * NANO + int((fraction or "0").ljust(9, "0"))


def advertisement(now: Now) -> dict[str, str]:
    """The value of ``<uuid>-uuid``."""
    return {"Time": format_time(now.unix_ns)}


@dataclass(frozen=True, slots=True)
class Meta:
    """What one of our nodes says about itself.

    ``held`` is the role on its disk (it never changes again); ``generation`` names the founding that it belongs to;
    ``forced`` says that its own configuration fixes the role; ``published`` that, as first master, the join token
    in the ledger is its present one.
    """

    held: Role | None = None
    deployed: bool = False
    forced: bool = False
    published: bool = False
    generation: str = ""

    def value(self) -> dict[str, object]:
        """The ledger value."""
        return {
            "v": META_VERSION,
            "held": str(self.held) if self.held else "",
            "deployed": self.deployed,
            "forced": self.forced,
            "published": self.published,
            "generation": self.generation,
        }

    @staticmethod
    def of(value: object) -> Meta | None:
        """Read a ledger value; None when it is not ours."""
        if not isinstance(value, dict) or not isinstance(value.get("v"), int):
            return None
        generation = value.get("generation")
        return Meta(
            held=parse_role(value.get("held")),
            deployed=value.get("deployed") is True,
            forced=value.get("forced") is True,
            published=value.get("published") is True,
            generation=generation if isinstance(generation, str) else "",
        )


@dataclass(frozen=True, slots=True)
class Node:
    """One node as the bucket shows it. ``advertised`` is Unix nanoseconds, None when it never did."""

    uuid: NodeUuid
    advertised: int | None = None
    ledger_role: Role | None = None
    ip: str = ""
    meta: Meta | None = None

    @property
    def held(self) -> Role | None:
        """The role that it is known to hold on disk."""
        return self.meta.held if self.meta else None

    @property
    def role(self) -> Role | None:
        """The role that counts: what is on its disk, else what the ledger says."""
        return self.held or self.ledger_role

    @property
    def ours(self) -> bool:
        """Whether it is a node that publishes what it holds."""
        return self.meta is not None

    def advertises(self, now: Now) -> bool:
        """Heard of within the window, to both sides.

        Go takes any time in the future for present. But a node whose clock is that far ahead sees nobody itself: it
        would be waited for as leader and never lead.
        """
        return self.advertised is not None and abs(self.advertised - now.unix_ns) < WINDOW * NANO


@dataclass(frozen=True, slots=True)
class View:
    """The decoded bucket, and the peers of ``healthcheck`` with their times.

    ``values`` is the bucket as it was read (keys to plain values); it holds secrets.
    """

    nodes: Mapping[NodeUuid, Node] = field(default_factory=dict)
    heartbeats: Mapping[str, int] = field(default_factory=dict)
    leader: str = ""
    ip_master: str = ""
    node_token: str = field(default="", repr=False)
    values: Mapping[str, object] = field(default_factory=dict, repr=False)

    def advertising(self, now: Now) -> tuple[NodeUuid, ...]:
        """Sorted UUIDs heard of within the window."""
        return tuple(sorted(n.uuid for n in self.nodes.values() if n.advertises(now)))

    def active(self, now: Now) -> int:
        """How many peers have a fresh heartbeat; other clusters on the token and bridges count too (spec 4.4)."""
        return sum(1 for at in self.heartbeats.values() if at + WINDOW * NANO > now.unix_ns)


@dataclass(frozen=True, slots=True)
class Held:
    """The role on this machine's disk. ``network_id`` is the bucket that it was taken in."""

    role: Role
    network_id: str
    generation: str = ""


@dataclass(frozen=True, slots=True)
class LocalTruth:
    """What only this machine knows.

    ``deployed`` is the sentinel; ``busy`` says that a configuration is being carried out; ``ip`` is this node's own
    address on the network that Kubernetes uses, ``master_ip`` what joiners are told (an elastic IP, else ``ip``);
    the two secrets are what k3s wrote, None while it has not.
    """

    held: Held | None = None
    deployed: bool = False
    busy: bool = False
    ip: str = ""
    master_ip: str = ""
    node_token: str | None = field(default=None, repr=False)
    kubeconfig: str | None = field(default=None, repr=False)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def view_of(values: Mapping[str, object], healthcheck: Mapping[str, object] | None = None) -> View:
    """A typed view of decoded values; keys that mean nothing to us are left alone."""
    nodes: dict[NodeUuid, Node] = {}
    advertised: dict[str, int | None] = {}
    uuids: set[str] = set()
    for key, value in values.items():
        for suffix in ("-uuid", "-role", "-ip", "-meta"):
            if key.endswith(suffix) and len(key) > len(suffix):
                uuid = key[: -len(suffix)]
                uuids.add(uuid)
                if suffix == "-uuid" and isinstance(value, dict):
                    advertised[uuid] = parse_time(value.get("Time"))
    for uuid in uuids:
        node = NodeUuid(uuid)
        nodes[node] = Node(
            uuid=node,
            advertised=advertised.get(uuid),
            ledger_role=parse_role(values.get(role_key(uuid))),
            ip=_text(values.get(ip_key(uuid))),
            meta=Meta.of(values.get(meta_key(uuid))),
        )
    beats = {peer: at for peer, text in (healthcheck or {}).items() if (at := parse_time(text)) is not None}
    return View(
        nodes=nodes,
        heartbeats=beats,
        leader=_text(values.get(LEADER)),
        ip_master=_text(values.get(IP_MASTER)),
        node_token=_text(values.get(NODE_TOKEN)),
        values=dict(values),
    )
