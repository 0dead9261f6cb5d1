"""The daemon's settings, read from EdgeVPN's environment variables (spec/edgevpn.md 12, spec/users.md 2.1).

Environment files and ``p2p.vpn.env`` of existing clusters keep working: same names, same forms, same
defaults unless a comment says why ours differs. A value that cannot be read is an error that names the
variable; a variable that this version accepts but does not act on is listed, never ignored in silence.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provider_kairos.daemon import (
    settings_dht,
    settings_dns,
    settings_egress,
    settings_limits,
    settings_trust,
    settings_without,
)
from provider_kairos.daemon.environment import (
    Refused,
    Variable,
    WithoutEffect,
    parse_bool,
    parse_duration,
    parse_interface,
    parse_list,
    parse_number,
    parse_path,
    parse_text,
    read_fields,
)
from provider_kairos.daemon.settings_dht import DhtSettings, parse_bootstrap_peers
from provider_kairos.daemon.settings_dns import DnsSettings
from provider_kairos.daemon.settings_egress import EgressSettings
from provider_kairos.daemon.settings_limits import LimitSettings
from provider_kairos.daemon.settings_trust import TrustSettings
from provider_kairos.errors import ConfigError
from provider_kairos.ledger.policy import OwnershipMode, parse_mode
from provider_kairos.mesh.addresses import parse_listen
from provider_kairos.token.codec import NetworkToken, decode, from_yaml

__all__ = [
    "GROUPS",
    "VARIABLES",
    "DaemonSettings",
    "all_refused",
    "all_variables",
    "all_without_effect",
    "read_settings",
]

DEFAULT_ADDRESS = ipaddress.IPv4Interface("10.1.0.1/24")
DEFAULT_STATE_DIR = "/usr/local/.kairos"
MTU_IPV6 = 1280
_OTHER_TRANSPORT = re.compile(
    r"/(?:ip4|ip6|dns|dns4|dns6)/[^/]+/(?:udp/\d+(?:/.*)?|tcp/\d+/(?:ws|wss|tls|http)(?:/.*)?)"
)
DEFAULT_SOCKET = "unix:///run/edgevpn-kairos.sock"


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """Everything that the daemon is told from outside. Times in seconds, addresses as text."""

    token: NetworkToken = field(repr=False)
    # the VPN
    vpn: bool = True
    dhcp: bool = False
    address: ipaddress.IPv4Interface | ipaddress.IPv6Interface = DEFAULT_ADDRESS
    interface: str = "edgevpn0"
    mtu: int = 1200
    bootstrap_interface: bool = True
    persistent_interface: bool = True
    # EdgeVPN waits 15 s while the packet holds up a worker; ours answers "unreachable" as the kernel does without ARP.
    open_timeout: float = 2.5
    queue_packets: int = 0
    # the ledger
    ownership: OwnershipMode = OwnershipMode.ENFORCE
    ownership_ttl: float = 0
    # EdgeVPN's default is 120 s. v0.35.0-v0.35.3 stop routing to a peer whose heartbeat is older than 120 s, so
    # we write ours more often (spec/edgevpn.md 5.9, ttl).
    heartbeat_interval: float = 40
    scrub_interval: float = 600
    offline_after: float = 900
    sync_interval: float = 10
    announce_interval: float = 10
    # the mesh
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")
    bootstrap_peers: tuple[str, ...] = ()
    mdns: bool = True
    dht: bool = True
    # the API
    api: bool = True
    api_listen: str = DEFAULT_SOCKET
    api_unix_mode: str = "0600"
    api_debug: bool = False
    # parts with settings of their own
    dht_settings: DhtSettings = field(default_factory=DhtSettings)
    dns: DnsSettings = field(default_factory=DnsSettings)
    egress: EgressSettings = field(default_factory=EgressSettings)
    trust: TrustSettings = field(default_factory=TrustSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    # what EdgeVPN left on this machine
    privkey_cache: bool = False
    privkey_cache_dir: Path = Path("~/.edgevpn")
    ledger_state: Path | None = None
    # this machine
    state_dir: Path = Path(DEFAULT_STATE_DIR)
    lease_dir: Path = Path(DEFAULT_STATE_DIR) / "lease"
    log_level: str = "info"
    mesh_log_level: str = ""
    not_acted_on: tuple[tuple[str, str], ...] = ()

    @property
    def liveness_window(self) -> float:
        """Seconds after which an owner counts as gone: ``--ownership-ttl``, or 4 x EdgeVPN's heartbeat of 120 s."""
        return self.ownership_ttl or 480.0


def _mode(name: str, text: str) -> OwnershipMode:
    try:
        return parse_mode(text)
    except ConfigError:
        raise ConfigError(f"{name}={text!r} is no ownership mode", hint="off, observe or enforce") from None


VARIABLES = (
    Variable(
        "KAIROS_P2P_VPN", "vpn", parse_bool, "`false`: the ledger and its API alone, no interface (ours, not EdgeVPN's)"
    ),
    Variable("KAIROS_P2P_STATE_DIR", "state_dir", parse_path, "where identity and ledger are kept (ours)"),
    Variable("DHCP", "dhcp", parse_bool, "lease a virtual IP; `false`: `ADDRESS` is this node's own", flag="--dhcp"),
    Variable(
        "DHCPLEASEDIR",
        "lease_dir",
        parse_path,
        "where the lease is kept, in the file name that EdgeVPN uses",
        flag="--lease-dir",
    ),
    Variable(
        "ADDRESS",
        "address",
        parse_interface,
        "with `DHCP` the subnet of the leases, without it this node's address; always with a prefix. IPv6 without `DHCP` "
        "alone, with `EDGEVPNMTU` 1280 or more",
        flag="--address",
    ),
    Variable("IFACE", "interface", parse_text, "name of the VPN interface", flag="--interface"),
    Variable("EDGEVPNMTU", "mtu", parse_number, "its MTU, 576 to 65535", flag="--mtu"),
    Variable(
        "EDGEVPNBOOTSTRAPIFACE",
        "bootstrap_interface",
        parse_bool,
        "`false`: somebody else gives the interface its address, MTU and state",
        flag="--bootstrap-iface",
    ),
    Variable(
        "EDGEVPNTIMEOUT",
        "open_timeout",
        parse_duration,
        "how long packets wait for a way to their peer, before they are answered as undeliverable; EdgeVPN's default is "
        "15 s",
        flag="--timeout",
    ),
    Variable(
        "EDGEVPNCHANNELBUFFERSIZE",
        "queue_packets",
        parse_number,
        "packets that may wait for one peer; 0: 512",
        flag="--channel-buffer-size",
    ),
    Variable(
        "EDGEVPNOWNERSHIP",
        "ownership",
        _mode,
        "`off`, `observe` or `enforce`, the same on all nodes; `off` beside EdgeVPN before v0.35",
        flag="--ownership",
    ),
    Variable(
        "EDGEVPNOWNERSHIPTTL",
        "ownership_ttl",
        parse_duration,
        "seconds without a heartbeat after which an owner counts as gone; 0: 480",
        flag="--ownership-ttl",
    ),
    Variable(
        "HEALTHCHECKINTERVAL",
        "heartbeat_interval",
        parse_number,
        "seconds between heartbeats; EdgeVPN's default is 120",
        flag="--aliveness-healthcheck-interval",
    ),
    Variable(
        "HEALTHCHECKSCRUBINTERVAL",
        "scrub_interval",
        parse_number,
        "seconds between two searches for records of nodes that are gone",
        flag="--aliveness-healthcheck-scrub-interval",
    ),
    Variable(
        "HEALTHCHECKMAXINTERVAL",
        "offline_after",
        parse_number,
        "seconds without a heartbeat after which a node leaves all lists",
        flag="--aliveness-healthcheck-max-interval",
    ),
    Variable(
        "EDGEVPNLEDGERSYNCINTERVAL",
        "sync_interval",
        parse_number,
        "seconds between broadcasts of the ledger while something happens",
        flag="--ledger-synchronization-interval",
    ),
    Variable(
        "EDGEVPNLEDGERINTERVAL",
        "announce_interval",
        parse_number,
        "seconds between repeats of this node's own announcements",
        flag="--ledger-announce-interval",
    ),
    Variable(
        "EDGEVPNLISTENMADDRS",
        "listen",
        parse_list,
        "multiaddresses to listen on, with commas; those that are not TCP are left out, with a word about it",
        flag="--listen-maddrs",
    ),
    Variable(
        "EDGEVPNBOOTSTRAPPEERS",
        "bootstrap_peers",
        parse_bootstrap_peers,
        "multiaddresses of peers to dial, with commas, `/p2p/ID` at the end; they are the way into the DHT too, in place of "
        "the public one's",
        flag="--discovery-bootstrap-peers",
    ),
    Variable("EDGEVPNMDNS", "mdns", parse_bool, "find peers on the LAN", flag="--mdns"),
    Variable("EDGEVPNDHT", "dht", parse_bool, "find peers through a DHT: the public one, or your own", flag="--dht"),
    Variable("API", "api", parse_bool, "serve the HTTP API", flag="--api"),
    Variable("APILISTEN", "api_listen", parse_text, "where: `unix://PATH` or `HOST:PORT`", flag="--api-listen"),
    Variable("APILISTENUNIXMODE", "api_unix_mode", parse_text, "octal mode of the socket"),
    Variable(
        "KAIROS_P2P_API_DEBUG",
        "api_debug",
        parse_bool,
        "serve `/debug/tasks`: what every task of the daemon is doing now (ours)",
        flag="--debug",
    ),
    Variable(
        "EDGEVPNPRIVKEYCACHE",
        "privkey_cache",
        parse_bool,
        "take EdgeVPN's identity over at the first start; this node's own is kept in any case",
        flag="--privkey-cache",
    ),
    Variable(
        "EDGEVPNPRIVKEYCACHEDIR", "privkey_cache_dir", parse_path, "where its key is: `privkey`", "--privkey-cache-dir"
    ),
    Variable(
        "EDGEVPNLEDGERSTATE",
        "ledger_state",
        parse_path,
        "take over EdgeVPN's ledger in this directory while ours is empty; ours is on disk in any case",
        flag="--ledger-state",
    ),
    Variable(
        "EDGEVPNLOGLEVEL",
        "log_level",
        parse_text,
        "`debug`, `info`, `warn`, `error`; another word counts as `error`",
        flag="--log-level",
    ),
    Variable(
        "EDGEVPNLIBP2PLOGLEVEL",
        "mesh_log_level",
        parse_text,
        "the same for the mesh alone, where it says more: `debug`",
        flag="--libp2p-log-level",
    ),
)

GROUPS: dict[str, tuple[type[Any], tuple[Variable, ...], tuple[WithoutEffect, ...]]] = {
    "dht_settings": (DhtSettings, settings_dht.VARIABLES, settings_dht.WITHOUT_EFFECT),
    "dns": (DnsSettings, settings_dns.VARIABLES, settings_dns.WITHOUT_EFFECT),
    "egress": (EgressSettings, settings_egress.VARIABLES, settings_egress.WITHOUT_EFFECT),
    "trust": (TrustSettings, settings_trust.VARIABLES, settings_trust.WITHOUT_EFFECT),
    "limits": (LimitSettings, settings_limits.VARIABLES, settings_limits.WITHOUT_EFFECT),
}
"""Field of :class:`DaemonSettings` to its type and rows. A group checks its values in its own ``__post_init__``."""


def all_variables() -> Iterator[tuple[type[Any], Variable]]:
    """Every variable that does something, with the settings that it fills."""
    yield from ((DaemonSettings, row) for row in VARIABLES)
    for kind, rows, _ in GROUPS.values():
        yield from ((kind, row) for row in rows)


def all_without_effect() -> Iterator[WithoutEffect]:
    """Every variable that is read, told of and does nothing."""
    yield from settings_without.WITHOUT_EFFECT
    for _, _, rows in GROUPS.values():
        yield from rows


def all_refused() -> Iterator[Refused]:
    """Every variable and flag that is refused."""
    yield from settings_without.REFUSED


def read_settings(environ: Mapping[str, str]) -> DaemonSettings:
    """Read the environment. An empty variable counts as unset, as Go's flag library has it.

    Raises ConfigError that names the variable; TokenError for the token (field and why).
    """
    values: dict[str, Any] = {"token": _read_token(environ), **read_fields(VARIABLES, environ)}
    for name, (kind, rows, _) in GROUPS.items():
        values[name] = kind(**read_fields(rows, environ))
    for refused in all_refused():
        refused.check(refused.name, environ.get(refused.name, ""))
    names = ((row.name or row.flag, row) for row in all_without_effect())
    passed_over = [(name, row.why) for name, row in names if row.told(environ.get(name, ""))]
    if "listen" in values:
        values["listen"], others = _tcp_only(values["listen"])
        passed_over += [(f"EDGEVPNLISTENMADDRS={each}", "TCP is the only transport") for each in others]
    values["not_acted_on"] = tuple(passed_over)
    settings = DaemonSettings(**values)
    _check(settings)
    return settings


def _tcp_only(listen: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Listen addresses that are TCP's, and those of other transports. Raises ConfigError when none is TCP's."""
    others = tuple(each for each in listen if _OTHER_TRANSPORT.fullmatch(each))
    tcp = tuple(each for each in listen if each not in others)
    if listen and not tcp:
        raise ConfigError(
            f"EDGEVPNLISTENMADDRS={','.join(listen)}: TCP is the only transport",
            hint="for example /ip4/0.0.0.0/tcp/4001",
        )
    for each in tcp:
        try:
            parse_listen(each)
        except ConfigError as error:
            raise ConfigError(f"EDGEVPNLISTENMADDRS: {error.message}", hint=error.hint) from None
    return tcp, others


def _read_token(environ: Mapping[str, str]) -> NetworkToken:
    text, path = environ.get("EDGEVPNTOKEN", ""), environ.get("EDGEVPNCONFIG", "")
    if path:  # replaces the token's values (spec/edgevpn.md 1.3)
        try:
            document = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"EDGEVPNCONFIG: {error}", path=path) from error
        return from_yaml(document)
    if not text:
        raise ConfigError(
            "there is no network token: neither EDGEVPNTOKEN nor EDGEVPNCONFIG is set",
            hint="set p2p.network_token; `kairos-p2p generate-token` makes one",
        )
    return decode(text)


def _check(settings: DaemonSettings) -> None:
    if not 576 <= settings.mtu <= 65535:
        raise ConfigError(f"EDGEVPNMTU={settings.mtu} is out of range", hint="576 to 65535; 1200 is the default")
    if not re.fullmatch(r"[^\s/:]{1,15}", settings.interface) or settings.interface in {".", ".."}:
        raise ConfigError(f"IFACE={settings.interface!r} is no interface name", hint="at most 15 characters, no space")
    if not settings.open_timeout:
        raise ConfigError("EDGEVPNTIMEOUT=0 would never let a packet go", hint="for example 15s")
    if not settings.heartbeat_interval:
        raise ConfigError("HEALTHCHECKINTERVAL=0 would never let others see this node", hint="40 is the default")
    if settings.vpn and settings.address.version == 6:
        if settings.dhcp:
            raise ConfigError(
                f"ADDRESS={settings.address} with DHCP: only IPv4 addresses are leased",
                hint="set DHCP=false and give every node its own ADDRESS, or lease from a network such as 10.1.0.1/24",
            )
        if settings.mtu < MTU_IPV6:
            raise ConfigError(
                f"ADDRESS={settings.address} needs an MTU of {MTU_IPV6} or more, EDGEVPNMTU is {settings.mtu}",
                hint=f"set EDGEVPNMTU={MTU_IPV6} on every node",
            )
    if settings.dhcp and settings.address.network.prefixlen > 30:  # a /31 holds no pool
        raise ConfigError(f"ADDRESS={settings.address} has no room for leases", hint="use a /24")
