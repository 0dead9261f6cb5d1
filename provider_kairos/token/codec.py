"""The network token's text: base64(YAML) to a typed value and back (spec/edgevpn.md 1, 17).

Reads what EdgeVPN reads and refuses early what makes EdgeVPN panic or stay deaf: every refusal is a
:class:`~provider_kairos.errors.TokenError` that names the field and the reason, and never shows a secret. What the
values mean over time is :mod:`provider_kairos.token.otp`'s; the scalar rules are
:mod:`provider_kairos.token.yaml_scalars`'.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import string
from dataclasses import dataclass, field

import yaml

from provider_kairos.errors import TokenError
from provider_kairos.token import yaml_scalars

__all__ = [
    "DEFAULT_INTERVAL",
    "DEFAULT_MAX_MESSAGE_SIZE",
    "NetworkToken",
    "OtpSettings",
    "decode",
    "describe",
    "encode",
    "from_yaml",
    "generate",
    "to_yaml",
]

DEFAULT_INTERVAL = 9000
"""Seconds between rotations of a fresh token."""

DEFAULT_MAX_MESSAGE_SIZE = 20 * 1024 * 1024
"""Largest gossip RPC of a fresh token, in bytes."""

DEFAULT_SECRET_LENGTH = 43
CODE_LENGTH = 43
"""Significant base64 characters of a 32-byte digest: what a fresh token keeps of a code."""

MAX_CODE_LENGTH = 44
MIN_MESSAGE_SIZE = 1024
"""Below this not even one sealed heartbeat fits in a message."""

MAX_TOKEN_TEXT = 64 * 1024
MAX_DNS_LABEL = 63

_ALPHABET = string.ascii_letters + string.digits
_FOREIGN = re.compile(r"[^A-Za-z0-9+/=]")


@dataclass(frozen=True, slots=True)
class OtpSettings:
    """One rotating secret: ``interval`` in seconds, ``key`` the HMAC secret, ``length`` characters kept of a code."""

    interval: int
    key: str = field(repr=False)
    length: int


@dataclass(frozen=True, slots=True)
class NetworkToken:
    """The shared text, typed. ``max_message_size`` is in bytes; secrets stay out of ``repr``."""

    dht: OtpSettings
    crypto: OtpSettings
    room: str = field(repr=False)
    rendezvous: str = field(repr=False)
    mdns: str = field(repr=False)
    max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE

    @property
    def rotates(self) -> bool:
        """Whether topic and seal key change within any lifetime (a Kairos token's interval is 292 billion years)."""
        return 0 < self.crypto.interval < 2**40


def decode(text: str) -> NetworkToken:
    """Read a token. Raises TokenError that names the field and what is wrong with it."""
    return from_yaml(_decode_base64(text))


def from_yaml(document: bytes) -> NetworkToken:
    """Read the YAML inside a token (or a ``--config`` file). Raises TokenError."""
    try:
        node = yaml_scalars.compose(document)
    except yaml.YAMLError as error:
        raise TokenError(f"the decoded text is not YAML: {_yaml_reason(error)}", hint=_TRUNCATED_HINT) from None
    except RecursionError:
        raise TokenError("the decoded text is not a token: it is nested too deeply") from None
    if not isinstance(node, yaml.MappingNode):
        kind = "empty" if node is None else _kind(node)
        raise TokenError(f"the decoded text is not a YAML mapping but {kind}", hint=_TRUNCATED_HINT)
    root = _Section(node, "")
    otp = root.section("otp")
    token = NetworkToken(
        dht=_otp_settings(otp.section("dht")),
        crypto=_otp_settings(otp.section("crypto")),
        room=root.text("room"),
        rendezvous=root.text("rendezvous"),
        mdns=root.text("mdns"),
        max_message_size=root.integer("max_message_size"),
    )
    _refuse_what_cannot_work(token, root)
    return token


def to_yaml(token: NetworkToken) -> str:
    """The YAML inside the token, byte for byte as Go emits it."""
    return yaml_scalars.write_mapping(
        {
            "otp": {name: _otp_mapping(settings) for name, settings in (("dht", token.dht), ("crypto", token.crypto))},
            "room": token.room,
            "rendezvous": token.rendezvous,
            "mdns": token.mdns,
            "max_message_size": token.max_message_size,
        }
    )


def encode(token: NetworkToken) -> str:
    """The token text: standard base64 with padding, no line breaks."""
    return base64.b64encode(to_yaml(token).encode()).decode("ascii")


def generate(
    interval: int = DEFAULT_INTERVAL,
    max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE,
    secret_length: int = DEFAULT_SECRET_LENGTH,
) -> NetworkToken:
    """A fresh token with cryptographically random secrets.

    ``interval`` is in seconds, ``max_message_size`` in bytes, ``secret_length`` in characters of a 62-letter alphabet.
    Raises TokenError for values that no node could use.
    """
    if secret_length < 1 or secret_length > MAX_DNS_LABEL:
        raise TokenError(f"secret length {secret_length} is outside 1-{MAX_DNS_LABEL}", field="secret_length")

    def secret() -> str:
        return "".join(secrets.choice(_ALPHABET) for _ in range(secret_length))

    token = NetworkToken(
        dht=OtpSettings(interval, secret(), CODE_LENGTH),
        crypto=OtpSettings(interval, secret(), CODE_LENGTH),
        room=secret(),
        rendezvous=secret(),
        mdns=secret(),
        max_message_size=max_message_size,
    )
    _refuse_what_cannot_work(token, None)
    return token


def describe(token: NetworkToken) -> dict[str, object]:
    """What may be shown of a token: no secret, and a short fingerprint to tell two tokens apart."""
    return {
        "fingerprint": hashlib.sha256(to_yaml(token).encode()).hexdigest()[:8],
        "rotates": token.rotates,
        "otp": {
            "dht": {"interval": token.dht.interval, "length": token.dht.length, "secret": _amount(token.dht.key)},
            "crypto": {
                "interval": token.crypto.interval,
                "length": token.crypto.length,
                "secret": _amount(token.crypto.key),
            },
        },
        "room": _amount(token.room),
        "rendezvous": _amount(token.rendezvous),
        "mdns": _amount(token.mdns),
        "max_message_size": token.max_message_size,
    }


def _amount(secret: str) -> str:
    return f"{len(secret)} characters" if secret else "empty"


# --- reading ---------------------------------------------------------------------------------------------------------

_TRUNCATED_HINT = "the token is damaged, truncated, or not a network token; copy it again whole"


def _decode_base64(text: str) -> bytes:
    """Standard base64 as Go reads it: CR and LF are skipped, everything else foreign is refused."""
    if len(text) > MAX_TOKEN_TEXT:
        raise TokenError(f"{len(text)} characters are too many for a token")
    compact = text.replace("\r", "").replace("\n", "")
    if not compact.strip():
        raise TokenError("is empty", hint="generate one with: kairos-p2p generate-token")
    foreign = _FOREIGN.search(compact)
    if foreign:
        raise TokenError(_foreign_character(compact, foreign.start()), hint=_TRUNCATED_HINT)
    try:
        return base64.b64decode(compact, validate=True)
    except binascii.Error:
        missing = -len(compact) % 4
        reason = f"{missing} characters are missing at the end" if missing else "the padding is misplaced"
        raise TokenError(f"is not base64: {reason} ({len(compact)} characters)", hint=_TRUNCATED_HINT) from None


def _foreign_character(text: str, at: int) -> str:
    if re.match(r"\s*(otp|room|rendezvous|mdns)\s*:|\s*\{", text):
        return "is the YAML itself, not base64 of it"
    name = {" ": "a space", "\t": "a tab", "-": "'-' (url-safe base64)", "_": "'_' (url-safe base64)"}
    return f"is not base64: {name.get(text[at], 'a foreign character')} at position {at}"


def _yaml_reason(error: yaml.YAMLError) -> str:
    """The reason and place without the snippet, which would show secrets."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f" in line {mark.line + 1}" if mark else ""
        return f"{error.problem or error.context or 'broken'}{place}"
    return "it holds bytes that are no text"


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


class _Section:
    """One mapping of the token; missing keys read as zero values, as in Go. Of duplicate keys the last wins."""

    def __init__(self, node: yaml.MappingNode | None, path: str) -> None:
        self._path = path
        self._values: dict[str, yaml.Node] = {}
        for key, value in node.value if node is not None else ():
            if isinstance(key, yaml.ScalarNode):
                self._values[key.value] = value

    def path(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def has(self, key: str) -> bool:
        return key in self._values

    def section(self, key: str) -> _Section:
        node = self._values.get(key)
        if node is None or yaml_scalars.is_null(node):
            return _Section(None, self.path(key))
        if not isinstance(node, yaml.MappingNode):
            raise TokenError(f"must be a mapping, is {_kind(node)}", field=self.path(key))
        return _Section(node, self.path(key))

    def text(self, key: str) -> str:
        node = self._values.get(key)
        if node is None or yaml_scalars.is_null(node):
            return ""
        if not isinstance(node, yaml.ScalarNode):
            raise TokenError(f"must be a text, is {_kind(node)}", field=self.path(key))
        return str(node.value)

    def integer(self, key: str) -> int:
        node = self._values.get(key)
        if node is None or yaml_scalars.is_null(node):
            return 0
        if not isinstance(node, yaml.ScalarNode):
            raise TokenError(f"must be a number, is {_kind(node)}", field=self.path(key))
        number = yaml_scalars.scalar_int(node)
        if number is None:
            quoted = " (it is a text in quotes)" if node.style is not None else ""
            shown = node.value if len(node.value) <= 24 else node.value[:21] + "..."
            raise TokenError(f"{shown!r} is not a whole number of 64 bits{quoted}", field=self.path(key))
        return number


def _otp_settings(section: _Section) -> OtpSettings:
    return OtpSettings(section.integer("interval"), section.text("key"), section.integer("length"))


def _otp_mapping(settings: OtpSettings) -> dict[str, str | int]:
    return {"interval": settings.interval, "key": settings.key, "length": settings.length}


# --- judging ---------------------------------------------------------------------------------------------------------


def _refuse_what_cannot_work(token: NetworkToken, root: _Section | None) -> None:
    """Refuse what makes EdgeVPN panic or stay deaf (spec/edgevpn.md 1.4, 17)."""
    otp = root.section("otp") if root is not None else None
    _check_otp(token.crypto, "otp.crypto", otp.section("crypto") if otp is not None else None)
    if token.dht.key:  # with an empty key the rendezvous is static and interval and length mean nothing
        _check_otp(token.dht, "otp.dht", otp.section("dht") if otp is not None else None)
    if token.max_message_size < MIN_MESSAGE_SIZE:
        missing = root is not None and not root.has("max_message_size")
        what = "is missing" if missing else f"{token.max_message_size} is too small"
        raise TokenError(
            f"{what}: no ledger message would pass (at least {MIN_MESSAGE_SIZE}, usually {DEFAULT_MAX_MESSAGE_SIZE})",
            field="max_message_size",
            hint=_TRUNCATED_HINT if missing else "",
        )
    longest = max(len(label.encode()) for label in token.mdns.split("."))
    if longest > MAX_DNS_LABEL:
        raise TokenError(
            f"a label of {longest} bytes is too long for mDNS (at most {MAX_DNS_LABEL}): nodes would never meet",
            field="mdns",
        )


def _check_otp(settings: OtpSettings, path: str, section: _Section | None) -> None:
    if settings.interval == 0:
        missing = section is not None and not section.has("interval")
        raise TokenError(
            "is missing" if missing else "0 seconds is no period",
            field=f"{path}.interval",
            hint=_TRUNCATED_HINT if missing else "9000 rotates every two and a half hours",
        )
    if settings.length > MAX_CODE_LENGTH:
        raise TokenError(
            f"{settings.length} is more than the {MAX_CODE_LENGTH} characters that a code has", field=f"{path}.length"
        )
