"""``kairos-agent`` in a box: ``start`` publishes ``agent.bootstrap``, ``run-stage`` runs stages, ``uuid`` prints it.

Plays the Kairos agent of spec/provider.md 3.1 as far as the provider can see it: collects the cloud-config,
sets ``env`` and the host name, finds plugins, hands them the event, and ends with status 1 when one answers
with an error (its unit then starts it again after 5 s).
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any, Final

from provider_kairos.lab.model import AGENT_API

__all__ = ["expand_host_name", "main"]

LOG_FILE: Final = "/var/log/kairos/agent-provider.log"
FIRST_BOOT: Final = Path("/usr/local/.kairos/sentinel_firstboot")


def _machine_id() -> str:
    for path in ("/var/lib/dbus/machine-id", "/etc/machine-id"):
        try:
            return Path(path).read_text("ascii").strip()
        except OSError:
            continue
    return ""


def expand_host_name(text: str, machine_id: str) -> str | None:
    """A ``hostname`` value with its template filled in: ``{{ .MachineID }}`` and ``{{ trunc 4 .MachineID }}``.

    None when it asks for more of the template language than the lab has.
    """

    def fill(match: re.Match[str]) -> str:
        words = match[1].split()
        if words == [".MachineID"]:
            return machine_id
        if len(words) == 3 and words[0] == "trunc" and words[1].isdigit() and words[2] == ".MachineID":
            return machine_id[: int(words[1])]
        return match[0]

    name = re.sub(r"\{\{-?\s*(.*?)\s*-?\}\}", fill, text).strip()
    return name if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})", name) else None


def _set_host_name(value: Any) -> None:
    if not isinstance(value, str) or not value:
        return
    name = expand_host_name(value, _machine_id())
    if name is None:
        print(f"hostname {value!r} is not understood in a lab; the box keeps {socket.gethostname()}")
    elif name != socket.gethostname():
        socket.sethostname(name)
        Path("/etc/hostname").write_text(f"{name}\n", "ascii")
        Path("/etc/hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n", "ascii")


def _set_environment(value: Any) -> None:
    for item in value if isinstance(value, list) else []:
        name, equals, content = str(item).partition("=")
        if equals and name:
            os.environ[name] = content


def _start(arguments: list[str]) -> int:
    from provider_kairos.lab.cloudconfig import (  # noqa: PLC0415 -- only this verb reads YAML
        BOOT_FOLDERS,
        MergeError,
        collect,
        render,
    )
    from provider_kairos.lab.plugins import Plugin, Response, find_plugins, publish  # noqa: PLC0415

    api = AGENT_API
    folders: list[str] = []
    words = iter(arguments)
    for word in words:
        if word.startswith("--api"):
            api = word.partition("=")[2] if "=" in word else next(words, "")
        elif not word.startswith("-"):
            folders.append(word)
    Path("/usr/local/.kairos").mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        collected = collect(folders or BOOT_FOLDERS)
    except MergeError as error:
        print(error)
        return 1
    for warning in collected.warnings:
        print(warning)
    _set_environment(collected.values.get("env"))
    _set_host_name(collected.values.get("hostname"))
    if not FIRST_BOOT.exists():
        FIRST_BOOT.touch()
    payload = json.dumps({"api": api, "config": render(collected), "logfile": LOG_FILE})
    errors = []

    def listen(plugin: Plugin, response: Response) -> None:
        if os.environ.get("BUS_DEBUG") == "true":
            print(f"[provider event: agent.bootstrap] {response}")
        if response.error:
            errors.append(f"Provider {plugin.name} at {plugin.path} had an error: {response.error}")
        elif response.state:
            print(f"[provider event: agent.bootstrap] {response.state}")
        sys.stdout.flush()

    plugins = find_plugins(os.environ.get("PATH", ""), os.getcwd())  # noqa: PTH109
    publish(plugins, "agent.bootstrap", payload, listen)
    for text in errors:
        print(text)
    return 1 if errors else 0


def main() -> int:
    """The program."""
    arguments = sys.argv[1:]
    verb = next((word for word in arguments if not word.startswith("-")), "")
    rest = arguments[arguments.index(verb) + 1 :] if verb else []
    match verb:
        case "start":
            return _start(rest)
        case "run-stage":
            from provider_kairos.lab.stages import run_stages  # noqa: PLC0415 -- only this verb reads YAML

            run_stages(word for word in rest if not word.startswith("-"))
            return 0
        case "uuid":
            print(os.environ.get("UUID") or f"{_machine_id()}-{socket.gethostname()}")
            return 0
        case _:
            print(f"kairos-agent: {verb or 'no verb'}: not known in a lab", file=sys.stderr)
            return 2
