"""Records that services, files and their users have in the ledger: buckets, values, and reading them.

Specification: spec/edgevpn.md 8.3-8.5. Values are JSON texts in Go's field order; what cannot be read counts as absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from provider_kairos.errors import ConfigError
from provider_kairos.ids import PeerId

__all__ = [
    "EGRESS_BUCKET",
    "EGRESS_VALUE",
    "FILES_BUCKET",
    "SERVICES_BUCKET",
    "USERS_BUCKET",
    "check_name",
    "named_peer",
    "named_value",
    "user_value",
]

SERVICES_BUCKET = "services"
FILES_BUCKET = "files"
USERS_BUCKET = "users"
EGRESS_BUCKET = "egress"

EGRESS_VALUE = '"ok"'
LONGEST_NAME = 255


def check_name(kind: str, name: str) -> str:
    """A name of a service or file, as it is. Raises ConfigError for one that no ledger key should be."""
    if not name or len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        raise ConfigError(f"a {kind} needs a name of 1 to {LONGEST_NAME} bytes")
    if not name.isprintable():
        raise ConfigError(f"the name of the {kind} {name!r} holds a character that cannot be printed")
    return name


def named_value(peer: PeerId, name: str) -> str:
    """The text of ``services[name]`` or ``files[name]``."""
    return json.dumps({"PeerID": peer, "Name": name}, separators=(",", ":"), ensure_ascii=False)


def user_value(peer: PeerId, unix: float) -> str:
    """The text of ``users[peer]``; the time as Go prints a local one, with its monotonic suffix."""
    moment = datetime.fromtimestamp(unix, UTC)
    text = f"{moment:%Y-%m-%d %H:%M:%S.%f}000 +0000 UTC m=+0.000000001"
    return json.dumps({"PeerID": peer, "Timestamp": text}, separators=(",", ":"))


def named_peer(records: Mapping[str, str] | None, name: str) -> PeerId | None:
    """Who has the service or file of that name; None when nobody does, or the record makes no sense."""
    text = (records or {}).get(name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    peer = value.get("PeerID") if isinstance(value, dict) else None
    return PeerId(peer) if isinstance(peer, str) and peer else None
