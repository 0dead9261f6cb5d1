"""Who this machine is: machine id, host name, node UUID (spec/provider.md 4.2), platform words for the ledger."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path

from provider_kairos.errors import HostError
from provider_kairos.ids import NodeUuid
from provider_kairos.system.files import read_text

__all__ = ["architecture", "hostname", "machine_id", "node_uuid"]

_PLACES = ("var/lib/dbus/machine-id", "etc/machine-id")

# Go's names, which EdgeVPN and the provider write into records and file names.
_GO_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv6l": "arm",
    "armv7l": "arm",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}


def machine_id(root: Path = Path("/")) -> str:
    """The machine's id, trimmed.

    Raises:
        HostError: There is none yet (a first boot that has not come that far, or a bare container).
    """
    for place in _PLACES:
        text = (read_text(root / place, limit=4096) or "").strip()
        if text and text != "uninitialized":
            return text
    raise HostError(
        f"no machine id in {' or '.join('/' + place for place in _PLACES)}",
        hint="run systemd-machine-id-setup or dbus-uuidgen --ensure",
    )


def hostname() -> str:
    """The kernel's host name, as Go's ``os.Hostname`` gives it."""
    return socket.gethostname()


def node_uuid(environment: Mapping[str, str] | None = None, root: Path = Path("/")) -> NodeUuid:
    """``UUID`` from the environment if set, else ``<machine-id>-<hostname>``. Raises HostError."""
    given = (os.environ if environment is None else environment).get("UUID", "")
    return NodeUuid(given or f"{machine_id(root)}-{hostname()}")


def architecture() -> str:
    """The processor in Go's words (``amd64``, ``arm64``, ...)."""
    machine = platform.machine()
    return _GO_ARCHITECTURES.get(machine, machine)
