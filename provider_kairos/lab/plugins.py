"""Provider plugins as the Kairos agent finds and runs them (spec/provider.md 1.1 to 1.4, 1.6)."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["PREFIX", "Plugin", "Response", "find_plugins", "publish", "run_plugin"]

PREFIX: Final = "agent-provider-"
PLUGIN_FOLDERS: Final = ("/system/providers", "/usr/local/system/providers")
LARGEST_INLINE: Final = 8192
"""Bytes of payload beyond which it goes into a side file."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """An executable and the name that its file name gives it."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Response:
    """What a plugin answered; a plugin that broke has ``error`` set by the host."""

    state: str = ""
    data: str = ""
    error: str = ""
    log: str = ""


def find_plugins(search_path: str, working_directory: str) -> list[Plugin]:
    """Every plugin, in search order: ``$PATH``, the two provider folders, the working directory.

    A name or a path that was found before is dropped; no executable bit is looked at.
    """
    found: list[Plugin] = []
    for folder in (*search_path.split(":"), *PLUGIN_FOLDERS, working_directory):
        if not folder:
            continue
        for path in sorted(Path(working_directory, folder).glob(f"{PREFIX}*")):
            plugin = Plugin(path.name.removeprefix(PREFIX), str(path))
            if not any(plugin.name == other.name or plugin.path == other.path for other in found):
                found.append(plugin)
    return found


def run_plugin(plugin: Plugin, event: str, payload: str) -> Response:
    """Run one plugin for one event: JSON on stdin, JSON on stdout, no time-out."""
    side = ""
    try:
        if len(payload.encode()) > LARGEST_INLINE:
            handle, side = tempfile.mkstemp(prefix="pluggable")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(payload)
        document = {"name": event, "data": "" if side else payload, "file": side}
        try:
            done = subprocess.run(
                [plugin.path, event], input=json.dumps(document).encode(), stdout=subprocess.PIPE, stderr=None
            )
        except OSError as error:
            return Response(error=f"error while executing plugin: {error}")
        if done.returncode != 0:
            text = done.stdout.decode("utf-8", errors="replace").strip()
            return Response(error=f"error while executing plugin: exit status {done.returncode} {text}".rstrip())
        try:
            answer = json.loads(done.stdout)
            return Response(**{key: str(answer.get(key, "")) for key in ("state", "data", "error", "log")})
        except (ValueError, AttributeError) as error:
            return Response(error=f"the plugin's answer is not JSON: {error}")
    finally:
        if side:
            Path(side).unlink(missing_ok=True)


def publish(
    plugins: list[Plugin],
    event: str,
    payload: str,
    listen: Callable[[Plugin, Response], None],
) -> None:
    """Send an event to all plugins at once; ``listen`` gets each answer as it comes."""
    with ThreadPoolExecutor(max_workers=max(1, len(plugins))) as pool:
        jobs = [(plugin, pool.submit(run_plugin, plugin, event, payload)) for plugin in plugins]
        for plugin, job in jobs:
            listen(plugin, job.result())
