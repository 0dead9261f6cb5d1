"""This program under EdgeVPN's name: what a link ``edgevpn`` does, so that units and scripts of a fleet go on as they are.

A provider that knows only EdgeVPN starts ``edgevpn`` for the VPN and ``edgevpn api --enable-healthchecks`` for the
ledger alone (spec/edgevpn.md 12.1, spec/provider.md 3.5, 3.6). Flags, variables and the other commands have the same
names in both programs. Standard library only: the daemon starts through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

__all__ = ["NAME", "is_edgevpn", "translate"]

NAME = "edgevpn"


def is_edgevpn(program: str) -> bool:
    """Whether the program was called by EdgeVPN's name."""
    return PurePath(program).name == NAME


def translate(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Arguments of ``kairos-p2p`` for those of ``edgevpn``, and the variables to set beside them.

    EdgeVPN's ``api`` ignores APILISTEN, although Kairos sets it for exactly that command (spec/edgevpn.md 15.2, 46);
    here it counts, and ``--listen`` wins over it. The heartbeat that ``--enable-healthchecks`` asks for is always there.
    """
    if not arguments or arguments[0].startswith("-"):
        return ["daemon", *arguments], {}
    command, *flags = arguments
    if command == "start":
        return ["daemon", *flags], {"KAIROS_P2P_VPN": "false", "API": "false"}
    if command != "api":
        return list(arguments), {}
    kept = [flag for flag in flags if flag.lstrip("-").partition("=")[0] != "enable-healthchecks"]
    renamed = [_renamed(flag) for flag in kept]
    return ["daemon", *renamed], {"KAIROS_P2P_VPN": "false", "API": "true"}


def _renamed(flag: str) -> str:
    name, equals, value = flag.partition("=")
    return f"--api-listen{equals}{value}" if name in {"--listen", "-listen"} else flag
