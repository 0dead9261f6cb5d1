"""Where the daemon's API is and is to be (spec/provider.md 3.3, recommended order; 13 #22)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping

from provider_kairos.api.address import DEFAULT_SOCKET, parse_address

__all__ = ["answers", "choose_address", "listen_value", "url_of"]


def url_of(listen: str) -> str:
    """The client's URL for an ``APILISTEN`` value: ``127.0.0.1:8080`` → ``http://127.0.0.1:8080``."""
    return listen if "://" in listen else f"http://{listen}"


def listen_value(url: str) -> str:
    """``APILISTEN`` for an address: the scheme of TCP addresses falls away, as in the original."""
    return url.removeprefix("http://").removeprefix("https://").rstrip("/") if not url.startswith("unix://") else url


def answers(url: str) -> bool:
    """Whether somebody accepts connections on a unix socket."""
    path = url.removeprefix("unix://")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def choose_address(
    environ: Mapping[str, str],
    *,
    vpn_env: Mapping[str, str],
    env_file: Mapping[str, str],
    payload: str,
    probe: Callable[[str], bool] = answers,
) -> str:
    """The API's URL.

    ``EDGEVPN_API``; the user's own ``APILISTEN``; the daemon's present one; a socket that answers; what the agent
    sent; the socket. Raises ConfigError for an address that nobody could listen on.
    """
    if named := environ.get("EDGEVPN_API"):
        chosen = named
    elif (listen := vpn_env.get("APILISTEN")) or (listen := env_file.get("APILISTEN")):
        chosen = url_of(listen)
    elif probe(DEFAULT_SOCKET):
        chosen = DEFAULT_SOCKET
    else:
        chosen = payload or DEFAULT_SOCKET
    return str(parse_address(chosen))
