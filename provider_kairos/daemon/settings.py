"""The daemon's settings, read from EdgeVPN's environment variables (spec/edgevpn.md 12, spec/users.md 2.1).

Environment files and ``p2p.vpn.env`` of existing clusters keep working: same names, same forms, same
defaults unless a comment says why ours differs. A value that cannot be read is an error that names the
variable; a variable that this version accepts but does not act on is listed, never ignored in silence.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from provider_kairos.errors import ConfigError
from provider_kairos.ledger.policy import OwnershipMode, parse_mode
from provider_kairos.token.codec import NetworkToken, decode, from_yaml

__all__ = ["NOT_ACTED_ON", "DaemonSettings", "parse_bool", "parse_duration", "parse_list", "read_settings"]

DEFAULT_ADDRESS = ipaddress.IPv4Interface("10.1.0.1/24")
DEFAULT_STATE_DIR = "/usr/local/.kairos"
DEFAULT_SOCKET = "unix:///run/edgevpn-kairos.sock"

# EdgeVPN parses these too and does nothing with some of them (spec/edgevpn.md 12.3).
NOT_ACTED_ON = {
    "EDGEVPNDHTINTERVAL": "discovery over a DHT is not part of this version",
    "EDGEVPNDHTANNOUNCEMADDRS": "discovery over a DHT is not part of this version",
    "EDGEVPNAUTORELAYPEERS": "relays are not part of this version",
    "EDGEVPNAUTORELAYSTATICONLY": "relays are not part of this version",
    "DNSADDRESS": "the name server is not part of this version",
    "DNSFORWARD": "the name server is not part of this version",
    "DNSFORWARDSERVER": "the name server is not part of this version",
    "DNSCACHESIZE": "the name server is not part of this version",
    "ROUTER": "routing to the outside is not part of this version",
    "EGRESS": "HTTP egress is not part of this version",
    "PEERGUARD": "the trust zone is not part of this version",
    "PEERGATE": "the trust zone is not part of this version",
    "EDGEVPNSTATICPEERTABLE": "static peer tables are not part of this version",
    "EDGEVPNMAXCONNS": "connections are bounded by the mesh itself",
    "EDGEVPN_CONNECTION_HIGH_WATER": "connections are bounded by the mesh itself",
    "EDGEVPN_CONNECTION_LOW_WATER": "connections are bounded by the mesh itself",
    "EDGEVPNBLACKLIST": "peer block lists are not part of this version",
}


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """Everything that the daemon is told from outside. Times in seconds, addresses as text."""

    token: NetworkToken = field(repr=False)
    # the VPN
    vpn: bool = True
    dhcp: bool = False
    address: ipaddress.IPv4Interface = DEFAULT_ADDRESS
    interface: str = "edgevpn0"
    mtu: int = 1200
    bootstrap_interface: bool = True
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
    # this machine
    state_dir: Path = Path(DEFAULT_STATE_DIR)
    lease_dir: Path = Path(DEFAULT_STATE_DIR) / "lease"
    log_level: str = "info"
    not_acted_on: tuple[tuple[str, str], ...] = ()

    @property
    def liveness_window(self) -> float:
        """Seconds after which an owner counts as gone: ``--ownership-ttl``, or 4 x EdgeVPN's heartbeat of 120 s."""
        return self.ownership_ttl or 480.0


_TRUE = {"1", "t", "true"}
_FALSE = {"0", "f", "false"}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_bool(name: str, text: str) -> bool:
    """A boolean as Go's flag parser reads it: 1, t, true, 0, f, false in any of its capitalisations."""
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ConfigError(f"{name}={text!r} is neither true nor false", hint="write true or false")


def parse_number(name: str, text: str) -> int:
    """A whole number that is not negative."""
    try:
        number = int(text.strip())
    except ValueError:
        raise ConfigError(f"{name}={text!r} is not a whole number") from None
    if number < 0:
        raise ConfigError(f"{name}={text!r} is negative")
    return number


def parse_duration(name: str, text: str) -> float:
    """Seconds of a Go duration (``15s``, ``1m30s``); a bare number counts as seconds."""
    stripped = text.strip()
    if stripped.isdigit():
        return float(stripped)
    position, total = 0, 0.0
    for match in _DURATION.finditer(stripped):
        if match.start() != position:
            break
        total += float(match[1]) * _UNITS[match[2]]
        position = match.end()
    if not stripped or position != len(stripped):
        raise ConfigError(f"{name}={text!r} is not a duration", hint="for example 30s or 1m30s")
    return total


def parse_list(_name: str, text: str) -> tuple[str, ...]:
    """Comma-separated items; empty ones fall away."""
    return tuple(item for part in text.split(",") if (item := part.strip()))


def _text(_name: str, text: str) -> str:
    return text.strip()


def _path(_name: str, text: str) -> Path:
    return Path(text.strip()).expanduser()


def _address(name: str, text: str) -> ipaddress.IPv4Interface:
    try:
        interface = ipaddress.ip_interface(text.strip())
    except ValueError:
        raise ConfigError(f"{name}={text!r} is not an address with a prefix", hint="for example 10.1.0.30/24") from None
    if not isinstance(interface, ipaddress.IPv4Interface):
        raise ConfigError(f"{name}={text!r} is IPv6", hint="virtual IPs are IPv4 in this version")
    if "/" not in text:
        # EdgeVPN refuses it; a single address without a network reaches nobody
        raise ConfigError(f"{name}={text!r} has no prefix length", hint=f"write {text.strip()}/24")
    return interface


def _mode(name: str, text: str) -> OwnershipMode:
    try:
        return parse_mode(text)
    except ConfigError:
        raise ConfigError(f"{name}={text!r} is no ownership mode", hint="off, observe or enforce") from None


_VARIABLES: dict[str, tuple[str, Callable[[str, str], object]]] = {
    "KAIROS_P2P_VPN": ("vpn", parse_bool),
    "KAIROS_P2P_STATE_DIR": ("state_dir", _path),
    "DHCP": ("dhcp", parse_bool),
    "DHCPLEASEDIR": ("lease_dir", _path),
    "ADDRESS": ("address", _address),
    "IFACE": ("interface", _text),
    "EDGEVPNMTU": ("mtu", parse_number),
    "EDGEVPNBOOTSTRAPIFACE": ("bootstrap_interface", parse_bool),
    "EDGEVPNOWNERSHIP": ("ownership", _mode),
    "EDGEVPNOWNERSHIPTTL": ("ownership_ttl", parse_duration),
    "HEALTHCHECKINTERVAL": ("heartbeat_interval", parse_number),
    "HEALTHCHECKSCRUBINTERVAL": ("scrub_interval", parse_number),
    "HEALTHCHECKMAXINTERVAL": ("offline_after", parse_number),
    "EDGEVPNLEDGERSYNCINTERVAL": ("sync_interval", parse_number),
    "EDGEVPNLEDGERINTERVAL": ("announce_interval", parse_number),
    "EDGEVPNLISTENMADDRS": ("listen", parse_list),
    "EDGEVPNBOOTSTRAPPEERS": ("bootstrap_peers", parse_list),
    "EDGEVPNMDNS": ("mdns", parse_bool),
    "EDGEVPNDHT": ("dht", parse_bool),
    "API": ("api", parse_bool),
    "APILISTEN": ("api_listen", _text),
    "APILISTENUNIXMODE": ("api_unix_mode", _text),
    "EDGEVPNLOGLEVEL": ("log_level", _text),
}


def read_settings(environ: Mapping[str, str]) -> DaemonSettings:
    """Read the environment. An empty variable counts as unset, as Go's flag library has it.

    Raises ConfigError that names the variable; TokenError for the token (field and why).
    """
    values: dict[str, object] = {"token": _read_token(environ)}
    for name, (attribute, parse) in _VARIABLES.items():
        if text := environ.get(name, ""):
            values[attribute] = parse(name, text)
    values["not_acted_on"] = tuple((name, why) for name, why in NOT_ACTED_ON.items() if environ.get(name, ""))
    settings = DaemonSettings(**values)  # type: ignore[arg-type]  # the table above pairs names and types
    _check(settings)
    return settings


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
    if not settings.heartbeat_interval:
        raise ConfigError("HEALTHCHECKINTERVAL=0 would never let others see this node", hint="40 is the default")
    if settings.dhcp and settings.address.network.prefixlen > 30:  # a /31 holds no pool
        raise ConfigError(f"ADDRESS={settings.address} has no room for leases", hint="use a /24")
