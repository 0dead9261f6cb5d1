"""``lab up``: from a command line to Ready nodes, telling what is going on and what it waits for.

The phases are facts seen from outside the boxes, each with the seconds since the box's boot; nothing is said
before it has happened (users' notes 10, "progress with honest phases").
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from provider_kairos.errors import ConfigError, TimeoutHostError
from provider_kairos.lab import client
from provider_kairos.lab.model import LabError, LabSettings, box_name, box_number
from provider_kairos.lab.place import Place

__all__ = [
    "CONFIG_PATH",
    "EXTRA_PATH",
    "Progress",
    "config_files",
    "foreign_daemons",
    "reasons",
    "settings_for",
    "still_waiting",
    "wait_until_ready",
]

CONFIG_PATH: Final = "/oem/90_custom.yaml"
EXTRA_PATH: Final = "/oem/99_lab.yaml"
_PHASES: Final = (
    ("booted", "booted"),
    ("daemon", "daemon answers"),
    ("address", "address"),
    ("role", "role"),
    ("k3s", "k3s started"),
    ("ready", "Ready"),
)
_LOOK_EVERY: Final = 0.1


def _generated(*, lone: bool) -> str:
    from provider_kairos.token import codec  # noqa: PLC0415 -- only when there is no file

    text = codec.encode(codec.generate())
    lines = ["#cloud-config", "", "p2p:", f'  network_token: "{text}"', "  disable_dht: true"]
    if lone:
        lines.append("  minimum_nodes: 1")
    return "\n".join(lines) + "\n"


def _check_config(text: str, path: str, say: Callable[[str], None]) -> None:
    """Find what is wrong with a file here and now, not in boxes that wait for ever; raises ConfigError."""
    from provider_kairos.config.load import load  # noqa: PLC0415 -- only when there is a file
    from provider_kairos.lab.cloudconfig import has_header  # noqa: PLC0415

    if not has_header(text):
        raise ConfigError(
            "no #cloud-config among the first ten lines: a Kairos agent passes such a file over",
            path=path,
            hint="make it the first line",
        )
    config = load(text, path)
    for notice in config.warnings:
        say(str(notice))
    if config.settings.token_text():
        config.network_token()


def config_files(
    config: Path | None, boxes: int, *, as_is: bool = False, say: Callable[[str], None] = print
) -> dict[str, str]:
    """The cloud-config files of every box: the user's or a generated one; a lone box waits for nobody else.

    ``as_is`` lays the file unchecked and without ``minimum_nodes``. Raises ConfigError; ``say`` gets what is odd.
    """
    lone = boxes == 1 and not as_is
    if config is None:
        return {CONFIG_PATH: _generated(lone=lone)}
    try:
        text = config.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot be read: {reason}", path=str(config)) from error
    if not as_is:
        _check_config(text, str(config), say)
    files = {CONFIG_PATH: text}
    if lone:
        files[EXTRA_PATH] = "#cloud-config\n\np2p:\n  minimum_nodes: 1\n"
    return files


def reasons(status: dict[str, Any], box: dict[str, Any]) -> list[str]:
    """What a box says that it waits for, with the boxes' names in the place of their long node UUIDs."""
    texts = [str(reason.get("text") or reason.get("code")) for reason in box["waiting"]]
    for other in status["boxes"]:
        if other["uuid"]:
            texts = [text.replace(other["uuid"], other["name"]) for text in texts]
    return texts


class Progress:
    """Prints every phase of every box once, as it comes; ``only`` names the one box that is of interest."""

    def __init__(self, write: Callable[[str], None], only: str = "") -> None:
        self._write = write
        self._only = only
        self._said: set[tuple[str, str]] = set()
        self._reasons: dict[str, str] = {}

    def show(self, status: dict[str, Any]) -> None:
        """Say what is new in a supervisor's status."""
        for box in status["boxes"]:
            if self._only not in {"", box["name"]}:
                continue
            for key, words in _PHASES:
                seconds = box["phases"][key]
                if seconds is None or (box["name"], key) in self._said:
                    continue
                self._said.add((box["name"], key))
                what = {"address": f"address {box['address']}", "role": f"role {box['role']}"}.get(key, words)
                self._write(f"{seconds:7.1f} s  {box['name']:<6} {what}")
            reason = "; ".join(reasons(status, box))
            if reason and reason != self._reasons.get(box["name"]) and not box["seconds_to_ready"]:
                self._reasons[box["name"]] = reason
                self._write(f"           {box['name']:<6} waits: {reason}")


def _from_box(place: Place, name: str) -> list[dict[str, Any]]:
    """What the product itself says that it waits for (``kairos-p2p status --json`` in the box)."""
    argv = [sys.executable, "-m", "provider_kairos.lab", "exec", "--name", place.name, name, "--"]
    try:
        done = subprocess.run(
            [*argv, "kairos-p2p", "status", "--json"], capture_output=True, timeout=10, stdin=subprocess.DEVNULL
        )
        document = json.loads(done.stdout)
        return [reason for reason in document.get("waiting", []) if isinstance(reason, dict)]
    except (subprocess.TimeoutExpired, ValueError, AttributeError):
        return []


def _fails(state: str) -> bool:
    return state.startswith("failed") or "auto-restart" in state


def still_waiting(place: Place, status: dict[str, Any]) -> list[str]:
    """One line per box that is not Ready: which phase has not come, and why as far as the box knows."""
    lines = []
    for box in status["boxes"]:
        if box["seconds_to_ready"] is not None:
            continue
        missing = next((words for key, words in _PHASES if box["phases"][key] is None), "Ready")
        told = _from_box(place, box["name"]) if box["state"] == "running" else []
        words = reasons(status, box | {"waiting": told or box["waiting"]})
        words += [f"{unit} {state}, see `lab logs`" for unit, state in box["services"].items() if _fails(state)]
        why = f": {'; '.join(words)}" if words else ""
        lines.append(f"{box['name']} ({box['state']}) has not reached {missing!r}{why}")
    return lines


def wait_until_ready(place: Place, timeout: float, progress: Progress) -> dict[str, Any]:
    """Wait until every box is Ready; raises TimeoutHostError with what each one waits for, LabError when one died."""
    deadline = time.monotonic() + timeout
    while True:
        status = client.status(place)
        progress.show(status)
        if status["complete"]:
            return status
        dead = [box["name"] for box in status["boxes"] if box["state"] in {"off", "dead"}]
        if dead:
            raise LabError(f"{', '.join(dead)} went off while booting", hint=f"see {place.log}")
        if time.monotonic() > deadline:
            waiting = "\n  ".join(still_waiting(place, status))
            raise TimeoutHostError(
                f"not every box is Ready after {timeout:g} s:\n  {waiting}\n",
                hint="the lab stays up: `kairos-p2p lab status`, `lab logs BOX`, `lab exec BOX -- sh`, `lab down`",
            )
        time.sleep(_LOOK_EVERY)


def foreign_daemons(words: Sequence[str], boxes: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Which boxes run an EdgeVPN: ``go`` means all of them, ``box2=go`` one, ``ours`` the product's own daemon.

    The program is ``$EDGEVPN_BIN``. Raises LabError without one, ConfigError for another word, NotFoundError for a
    box that is not there.
    """
    chosen: dict[str, str] = {}
    for word in words:
        box, _, kind = word.rpartition("=")
        if kind not in {"go", "ours"}:
            raise ConfigError(f"--daemon {word}: {kind!r} is no daemon", hint="go or ours, for one box: box2=go")
        names = [box_name(box_number(box, boxes))] if box else [box_name(n) for n in range(1, boxes + 1)]
        chosen |= dict.fromkeys(names, kind)
    named = [box for box, kind in chosen.items() if kind == "go"]
    program = environ.get("EDGEVPN_BIN", "")
    if named and not os.access(program, os.X_OK):
        raise LabError(
            f"{', '.join(named)}: there is no EdgeVPN to run",
            hint="EDGEVPN_BIN=/path/to/edgevpn names the program",
        )
    return {box: str(Path(program).resolve()) for box in named}


def settings_for(
    *,
    name: str,
    boxes: int,
    config: Path | None,
    k3s: str,
    agent_api: str,
    as_is: bool = False,
    daemons: Sequence[str] = (),
    provider: str = "",
) -> LabSettings:
    """The settings of ``lab up``'s options; ``k3s`` empty means ``$K3S_BIN``, and that empty the stand-in.

    ``daemons`` as :func:`foreign_daemons` reads them. Raises ConfigError, LabError, NotFoundError.
    """
    binary = k3s or os.environ.get("K3S_BIN", "")
    return LabSettings(
        name=name,
        boxes=boxes,
        files=config_files(config, boxes, as_is=as_is, say=lambda text: print(text, file=sys.stderr)),
        k3s=str(Path(binary).resolve()) if binary else "",
        agent_api=agent_api,
        provider=str(Path(provider).resolve()) if provider else "",
        edgevpn=foreign_daemons(daemons, boxes, os.environ),
    )
