"""Join tokens: ``K10<sha256 of server-ca.crt>::<user>:<password>`` or the password alone (k3s notes, sections 3.2, 4.2)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from provider_kairos.lab.k3s.life import Fatal

__all__ = ["CaMismatch", "JoinToken", "check_ca", "new_password", "password_hash", "password_matches", "render"]

PREFIX = "K10"
HASH_LENGTH = 64


class CaMismatch(Fatal):
    """The authority that answered is not the one that the token names."""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token as read: ``ca_hash`` is empty in the short form."""

    ca_hash: str
    password: str = field(repr=False)
    full: bool = False

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Read either form; white space around it is dropped. What is no full token is a password."""
        text = text.strip()
        if not text.startswith(PREFIX):
            return cls("", text.rpartition(":")[2] if text.startswith(("server:", "node:")) else text)
        ca_hash, _, credentials = text.removeprefix(PREFIX).partition("::")
        user, colon, password = credentials.partition(":")
        return cls(ca_hash, password if colon else user, full=True)


def render(ca: bytes, user: str, password: str) -> str:
    """The full token for the authority whose certificate file is ``ca`` (PEM as it stands on disk)."""
    return f"{PREFIX}{hashlib.sha256(ca).hexdigest()}::{user}:{password}"


def check_ca(token: JoinToken, ca: bytes) -> None:
    """Raise :class:`CaMismatch` when a full token names another authority than ``ca``."""
    if not token.full:
        return
    if len(token.ca_hash) != HASH_LENGTH:
        raise CaMismatch("invalid token CA hash length")
    found = hashlib.sha256(ca).hexdigest()
    if not hmac.compare_digest(found, token.ca_hash):
        raise CaMismatch(f"token CA hash does not match the Cluster CA certificate hash: {token.ca_hash} != {found}")


def new_password() -> str:
    """32 random hex digits, as k3s makes them for tokens and nodes."""
    return secrets.token_hex(16)


def password_hash(password: str, salt: str | None = None) -> str:
    """``<salt>:<sha256>``: what is remembered of a password."""
    salt = salt or secrets.token_hex(8)
    return f"{salt}:{hashlib.sha256(f'{salt}:{password}'.encode()).hexdigest()}"


def password_matches(password: str, remembered: str) -> bool:
    """Whether ``password`` is the one that ``remembered`` was made of."""
    return hmac.compare_digest(password_hash(password, remembered.partition(":")[0]), remembered)
