"""The lease file: the virtual IP of last time, where EdgeVPN keeps it (spec/edgevpn.md 9).

``<lease-dir>/<md5hex(otp.crypto.key + "-ek")>`` holds the bare address. The name depends on the token only, so the
address survives reboots and a change of program; people delete the file to get another address.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from pathlib import Path

from provider_kairos.system.files import write_atomic
from provider_kairos.token.codec import NetworkToken

__all__ = ["LeaseFile"]

log = logging.getLogger(__name__)


class LeaseFile:
    """Reads and writes the lease of one network. Calls block."""

    def __init__(self, directory: Path, token: NetworkToken) -> None:
        # MD5 is EdgeVPN's choice of file name; it protects nothing here
        name = hashlib.md5(f"{token.crypto.key}-ek".encode(), usedforsecurity=False).hexdigest()
        self.path = directory / name

    def read(self) -> str | None:
        """The saved address without prefix, or None; a file that holds no address is ignored and said."""
        try:
            text = self.path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            log.warning("the lease in %s cannot be read, a new address will be leased: %s", self.path, error)
            return None
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            log.warning("%s holds %r, which is no address; a new one will be leased", self.path, text[:40])
            return None

    def write(self, address: str) -> None:
        """Save an address; on disk when this returns. Raises HostError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(self.path, address.encode("ascii"), 0o600)

    def remove(self) -> None:
        """Forget the address."""
        self.path.unlink(missing_ok=True)
