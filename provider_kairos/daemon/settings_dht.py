"""Discovery over a DHT, and the peers through which a node comes in (spec/edgevpn.md 6.2, 12.3)."""

from __future__ import annotations

from dataclasses import dataclass

from provider_kairos.daemon.environment import Variable, WithoutEffect, parse_list, parse_number
from provider_kairos.errors import ConfigError
from provider_kairos.mesh import multiaddr
from provider_kairos.mesh.bootstrap import parse_bootstrap
from provider_kairos.mesh.settings import DhtMode

__all__ = ["VARIABLES", "WITHOUT_EFFECT", "DhtSettings", "parse_bootstrap_peers"]


@dataclass(frozen=True, slots=True)
class DhtSettings:
    """Discovery over a DHT (spec/edgevpn.md 6.2, 12.3). ``interval`` in seconds; ``announce`` are multiaddresses."""

    interval: int = 720
    announce: tuple[str, ...] = ()
    mode: DhtMode = DhtMode.AUTO

    def __post_init__(self) -> None:
        if not self.interval:
            raise ConfigError("EDGEVPNDHTINTERVAL=0 would look for peers all the time", hint="720 is the default")


def parse_bootstrap_peers(name: str, text: str) -> tuple[str, ...]:
    """Multiaddresses of bootstrap peers, each with the peer's ID at its end. Raises ConfigError.

    EdgeVPN ends with a panic where the ID is missing, and passes over what it cannot read.
    """
    found = parse_list(name, text)
    for each in found:
        try:
            parse_bootstrap(each)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.message}", hint=error.hint) from None
    return found


def _addresses(name: str, text: str) -> tuple[str, ...]:
    found = parse_list(name, text)
    for each in found:
        try:
            multiaddr.encode(each)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.message}", hint=error.hint) from None
    return found


def _mode(name: str, text: str) -> DhtMode:
    try:
        return DhtMode(text.strip())
    except ValueError:
        raise ConfigError(f"{name}={text!r} is no mode of a DHT node", hint="client, server or auto") from None


VARIABLES: tuple[Variable, ...] = (
    Variable(
        "EDGEVPNDHTINTERVAL",
        "interval",
        parse_number,
        "longest time in seconds between two looks into the DHT; alone, and at every new epoch, it looks sooner",
        flag="--discovery-interval",
    ),
    Variable(
        "EDGEVPNDHTANNOUNCEMADDRS",
        "announce",
        _addresses,
        "multiaddresses, with commas, that the DHT tells others in place of this node's own (behind a router that "
        "forwards a port)",
        flag="--dht-announce-maddrs",
    ),
    Variable(
        "KAIROS_P2P_DHT_MODE",
        "mode",
        _mode,
        "`server`: keep records for others and answer them, as one or two nodes of a private DHT must; `client`: ask only; "
        "`auto`: client, because reachability from outside is not found out yet (ours)",
    ),
)

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = ()
