"""What EdgeVPN can be told and this program does without, each with the reason or with what to write instead.

Passed over (and told of in log and ``status``) is what changes nothing that anybody relies on; refused is what would be
wrong to pass over. Rows of the parts stand with the parts (``settings_dns`` and so on). Specification: spec/edgevpn.md
6.3, 6.4, 12.2, 12.3, 15.2-55.
"""

from __future__ import annotations

from provider_kairos.daemon.environment import (
    Refused,
    WithoutEffect,
    parse_bool,
    parse_duration,
    parse_number,
)

__all__ = ["REFUSED", "WITHOUT_EFFECT"]

_RELAYS = "relays are not part of this version"
_PUNCHING = "hole punching is not part of this version"
_AUTONAT = "AutoNAT is not part of this version: nobody is answered"
_NONE_EITHER = "it has no effect in EdgeVPN either"

_LIMITS = (
    ("STREAMS", "streams"),
    ("STREAMSINBOUND", "streams-inbound"),
    ("STREAMSOUTBOUND", "streams-outbound"),
    ("CONNS", "conn"),
    ("CONNSINBOUND", "conn-inbound"),
    ("CONNSOUTBOUND", "conn-outbound"),
    ("FD", "fd"),
)

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = (
    # packets
    WithoutEffect("", "one task per peer sends, and none waits for another", "--concurrency", parse_number),
    WithoutEffect(
        "EDGEVPNPACKETMTU",
        "packets are read whole, whatever the interface's MTU lets through",
        "--packet-mtu",
        parse_number,
    ),
    # relays and NAT
    WithoutEffect("TRANSIENTCONN", _RELAYS, "--transient-conn", parse_bool, anyway=False),
    WithoutEffect("EDGEVPNAUTORELAY", _RELAYS, "--autorelay", parse_bool, anyway=False),
    WithoutEffect("EDGEVPNAUTORELAYDISCOVERYINTERVAL", _NONE_EITHER, "--autorelay-discovery-interval", parse_duration),
    WithoutEffect("EDGEVPNAUTORELAYSTATICONLY", _RELAYS, "--autorelay-static-only", parse_bool, anyway=False),
    WithoutEffect("EDGEVPNAUTORELAYPEERS", _RELAYS, "--autorelay-static-peer"),
    WithoutEffect("EDGEVPN_RELAY_SERVICE", _RELAYS, "--relay-service", parse_bool, anyway=False),
    WithoutEffect(
        "EDGEVPN_RELAY_SERVICE_NETWORK_ONLY", _RELAYS, "--relay-service-network-only", parse_bool, anyway=True
    ),
    WithoutEffect("EDGEVPN_RELAY_SERVICE_ACL_REFRESH", _RELAYS, "--relay-service-acl-refresh", parse_duration),
    WithoutEffect("EDGEVPN_RELAY_MAX_DATA", _RELAYS, "--relay-service-max-data", parse_number),
    WithoutEffect("EDGEVPN_RELAY_MAX_DURATION", _RELAYS, "--relay-service-max-duration", parse_duration),
    WithoutEffect("EDGEVPN_RELAY_MAX_CIRCUITS", _RELAYS, "--relay-service-max-circuits", parse_number),
    WithoutEffect("EDGEVPN_RELAY_RESERVATION_TTL", _RELAYS, "--relay-service-reservation-ttl", parse_duration),
    WithoutEffect("EDGEVPN_RELAY_BUFFER_SIZE", _RELAYS, "--relay-service-buffer-size", parse_number),
    WithoutEffect("EDGEVPNHOLEPUNCH", _PUNCHING, "--holepunch", parse_bool, anyway=False),
    WithoutEffect("EDGEVPNNATSERVICE", _AUTONAT, "--natservice", parse_bool, anyway=False),
    WithoutEffect(
        "EDGEVPNNATMAP",
        "ports of routers are not mapped (UPnP, NAT-PMP) in this version",
        "--natmap",
        parse_bool,
        anyway=False,
    ),
    WithoutEffect("EDGEVPNNATRATELIMIT", _AUTONAT, "--nat-ratelimit", parse_bool, anyway=True),
    WithoutEffect("EDGEVPNNATRATELIMITGLOBAL", _AUTONAT, "--nat-ratelimit-global", parse_number),
    WithoutEffect("EDGEVPNNATRATELIMITPEER", _AUTONAT, "--nat-ratelimit-peer", parse_number),
    WithoutEffect("EDGEVPNNATRATELIMITINTERVAL", _AUTONAT, "--nat-ratelimit-interval", parse_number),
    # limits
    WithoutEffect("EDGEVPNLOWPROFILE", _NONE_EITHER, "--low-profile", parse_bool),
    WithoutEffect(
        "LIMITENABLE",
        "limits are always on; EDGEVPNMAXCONNS and the connection marks set them",
        "--limit-enable",
        parse_bool,
        anyway=True,
    ),
    WithoutEffect("LIMITSCOPE", _NONE_EITHER, "--limit-scope"),
    *(
        WithoutEffect(f"LIMITCONFIG{name}", _NONE_EITHER, f"--limit-config-{flag}", parse_number)
        for name, flag in _LIMITS
    ),
    # others
    WithoutEffect(
        "ENABLE_HEALTHCHECKS", "heartbeats are always sent", "--enable-healthchecks", parse_bool, anyway=True
    ),
)

_GENERATE = "kairos-p2p generate-token [SECONDS] prints a token, kairos-p2p create-config a cloud-config with one"

REFUSED: tuple[Refused, ...] = (
    Refused(
        "LIMITFILE",
        "limits files of libp2p are not read, and without one the limits would be others than it says",
        "write EDGEVPNMAXCONNS, EDGEVPN_CONNECTION_LOW_WATER and EDGEVPN_CONNECTION_HIGH_WATER",
        "--limit-file",
    ),
    Refused(
        "",
        "the arguments of a process are seen by every user of the machine",
        "set the variable EDGEVPNTOKEN, or name a file with the network's YAML: --config FILE",
        "--token",
    ),
    Refused(
        "",
        "the arguments of a process are seen by every user of the machine",
        "set the variable PEERGATE_AUTH",
        "--peergate-auth",
    ),
    Refused("", "the daemon makes no tokens", _GENERATE, "-g", parse_bool, anyway=False),
    Refused("", "the daemon makes no tokens", _GENERATE, "-b", parse_bool, anyway=False),
    Refused("", "the daemon makes no tokens", _GENERATE, "--key-otp-interval"),
)
