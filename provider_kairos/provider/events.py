"""Names of the events that a host may send (spec/provider.md 1.7); nothing else, so that dispatch costs nothing."""

from __future__ import annotations

__all__ = ["BOOTSTRAP", "EVENTS"]

BOOTSTRAP = "agent.bootstrap"

# `agent.installprompt` is in no host's list and stays a command-line word, as in the original.
EVENTS: frozenset[str] = frozenset(
    {
        "agent.available_releases",
        "agent.boot",
        BOOTSTRAP,
        "agent.install",
        "agent.install.challenge",
        "agent.interactive-install",
        "agent.recovery",
        "agent.recovery.stop",
        "agent.reset.after",
        "agent.reset.before",
        "agent.version_image",
        "init.provider.configure",
        "init.provider.info",
        "init.provider.install",
    }
)
"""Every event name of the bus; the program takes the plugin path when its first argument is one of them."""
