"""Where a daemon's API is: the text form, and the order in which places are tried.

Specification: spec/edgevpn.md 11.1, spec/provider.md 3.3 and 7.2. A Go provider looks at the unix socket, a Go daemon
with default settings listens on TCP port 8080, so a tool that is told nothing tries both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from provider_kairos.errors import ConfigError

__all__ = ["DEFAULT_SOCKET", "DEFAULT_TCP", "Address", "default_addresses", "parse_address", "parse_unix_mode"]

DEFAULT_SOCKET = "unix:///run/edgevpn-kairos.sock"
DEFAULT_TCP = "http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Address:
    """A unix socket (``path``) or a TCP endpoint (``host`` and ``port``); the other one is empty."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Read ``unix://PATH``, ``http://HOST:PORT``, ``HOST:PORT`` or ``:PORT`` (all addresses, as in Go).

    Raises ConfigError naming what is wrong.
    """
    hint = "expected unix://PATH or http://HOST:PORT"
    if text.startswith("unix://"):
        path = text.removeprefix("unix://")
        if not path.startswith("/"):
            raise ConfigError(f"API address {text!r}: the socket's path is not absolute", hint=hint)
        if len(path.encode()) > 107:
            raise ConfigError(f"API address {text!r}: a socket's path has at most 107 bytes", hint=hint)
        return Address(path=path)
    if text.startswith("https://"):
        raise ConfigError(f"API address {text!r}: the daemon speaks no TLS", hint=hint)
    rest = text.removeprefix("http://").rstrip("/")
    host, colon, port = rest.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ConfigError(f"API address {text!r} has no port", hint=hint)
    host = host.removeprefix("[").removesuffix("]")
    if any(c in host for c in "/@?# "):
        raise ConfigError(f"API address {text!r}: {host!r} is no host name", hint=hint)
    return Address(host=host or "0.0.0.0", port=int(port))


def parse_unix_mode(text: str | None, default: int = 0o660) -> int:
    """Mode of the socket from ``APILISTENUNIXMODE``: ``0600``, ``600`` or ``0o600``.

    Empty or unparsable text gives ``default`` (EdgeVPN's 0660). Bits above the permissions are dropped.
    """
    digits = (text or "").strip()
    if digits[:2] in {"0o", "0O"}:
        digits = digits[2:]
    if not digits or any(c not in "01234567" for c in digits) or len(digits) > 10:
        return default
    return int(digits, 8) & 0o777


def default_addresses(explicit: str | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Places to try, in order: what the user named, ``EDGEVPN_API``, else the socket and then TCP."""
    named = explicit or environ.get("EDGEVPN_API")
    if named:
        return (named,)
    return (DEFAULT_SOCKET, DEFAULT_TCP)
