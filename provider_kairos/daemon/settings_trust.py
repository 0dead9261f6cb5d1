"""The trust zone (spec/edgevpn.md 13, 12.3)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from provider_kairos.daemon.environment import Variable, WithoutEffect, parse_bool, parse_number
from provider_kairos.errors import ConfigError
from provider_kairos.trustzone.keys import KeyTextError, load_private

__all__ = ["VARIABLES", "WITHOUT_EFFECT", "TrustSettings", "parse_auth"]


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """The trust zone (spec/edgevpn.md 13, 12.3). ``interval`` in seconds; ``private_key`` is a key text, a secret.

    A gate or a clean-up without the guard is refused: EdgeVPN passes over it, and lets everybody in.
    """

    guard: bool = False
    gate: bool = False
    relaxed: bool = False
    autoclean: bool = False
    interval: int = 120
    strict: bool = False
    private_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        for name, asked in (("PEERGATE", self.gate), ("PEERGATE_AUTOCLEAN", self.autoclean)):
            if asked and not self.guard:
                raise ConfigError(f"{name} needs PEERGUARD: alone it protects nothing", hint="set PEERGUARD=true")
        if not self.interval:
            raise ConfigError("EDGEVPNPEERGATEINTERVAL=0 would never rest", hint="120 is the default")


def parse_auth(name: str, text: str) -> str:
    """The private key text in ``{"ecdsa":{"private_key":"..."}}``. Raises ConfigError, without a word of the text."""
    hint = 'write {"ecdsa":{"private_key":"..."}} with what `kairos-p2p peergater ecdsa-genkey --privkey` prints'
    try:
        providers = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"{name} is not JSON", hint=hint) from None
    if not isinstance(providers, dict) or not all(isinstance(each, dict) for each in providers.values()):
        raise ConfigError(f"{name} is no JSON object of providers", hint=hint)
    unknown = [each for each in providers if each.lower() != "ecdsa"]
    if unknown:
        # what stands there may be the key itself
        shown = f" {unknown[0]!r}" if re.fullmatch(r"[A-Za-z0-9_-]{1,24}", unknown[0]) else ""
        raise ConfigError(f"{name} names a provider{shown} that there is none of", hint="ecdsa is the only one")
    if not providers:
        return ""
    if len(providers) > 1:
        raise ConfigError(f"{name} names ecdsa twice", hint=hint)
    options = next(iter(providers.values()))
    key = options.get("private_key")
    if not isinstance(key, str) or not key:
        raise ConfigError(f"{name} has no private_key for ecdsa", hint=hint)
    try:
        load_private(key)
    except KeyTextError as error:
        raise ConfigError(f"{name}: {error.message}", hint=hint) from None
    return key


VARIABLES: tuple[Variable, ...] = (
    Variable(
        "PEERGUARD",
        "guard",
        parse_bool,
        "take part in the trust zone: ask to be trusted, and let in who shows a trusted key",
        flag="--peerguard",
    ),
    Variable(
        "PEERGATE",
        "gate",
        parse_bool,
        "hear ledger messages of the zone's peers only; off and on at run time too",
        "--peergate",
    ),
    Variable(
        "PEERGATE_RELAXED",
        "relaxed",
        parse_bool,
        "hear everybody while the zone is empty: to begin with",
        flag="--peergate-relaxed",
    ),
    Variable(
        "PEERGATE_AUTOCLEAN",
        "autoclean",
        parse_bool,
        "take peers off that are gone for `HEALTHCHECKMAXINTERVAL` seconds",
        flag="--peergate-autoclean",
    ),
    Variable(
        "PEERGATE_AUTH",
        "private_key",
        parse_auth,
        'a secret: `{"ecdsa":{"private_key":"..."}}`, the key that this node asks with; removed from the environment once read',
    ),
    Variable(
        "EDGEVPNPEERGATEINTERVAL",
        "interval",
        parse_number,
        "longest pause in seconds between two requests to be trusted",
        flag="--peergate-interval",
    ),
    Variable(
        "KAIROS_P2P_TRUST_STRICT",
        "strict",
        parse_bool,
        "there are no EdgeVPN nodes: make and take only challenges that nobody else can say again (ours)",
    ),
)

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = ()
