"""``kairos-agent run-stage``: the commands and files of ``stages.<name>``, in the plain part of what yip does.

Understood per step: ``name``, ``if`` (a shell test), ``commands``, ``files`` (path, content, permissions),
``directories``, ``environment`` with ``environment_file``, ``hostname``, ``sysctl``, ``dns.nameservers``.
Anything else is named in the record and passed over. Every stage that is run is recorded in
``/var/log/lab/stages.log``, one line each, whether or not a file has it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml

__all__ = ["RECORD", "STAGE_FOLDERS", "run_stages"]

RECORD: Final = Path("/var/log/lab/stages.log")
STAGE_FOLDERS: Final = ("/system/oem", "/oem", "/usr/local/cloud-config")
_KNOWN: Final = {
    "name",
    "if",
    "commands",
    "files",
    "directories",
    "environment",
    "environment_file",
    "hostname",
    "sysctl",
    "dns",
}


def _note(text: str) -> None:
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    with RECORD.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")


def _documents(folders: Iterable[str]) -> list[tuple[str, dict[str, Any]]]:
    documents = []
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix not in {".yaml", ".yml"} or not path.is_file():
                continue
            try:
                document = yaml.safe_load(path.read_text("utf-8", errors="replace"))
            except (yaml.YAMLError, OSError) as error:
                _note(f"{path}: passed over: {error}")
                continue
            if isinstance(document, dict) and isinstance(document.get("stages"), dict):
                documents.append((str(path), document["stages"]))
    return documents


def _write(entry: dict[str, Any]) -> None:
    path = Path(str(entry["path"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(entry.get("content", "")), "utf-8")
    mode = entry.get("permissions", 0o644)
    path.chmod(mode if isinstance(mode, int) else int(str(mode), 8))


def _step(origin: str, step: dict[str, Any]) -> int:
    """Run one step; returns how many of its commands failed."""
    for key in sorted(step.keys() - _KNOWN):
        _note(f"{origin}: {key} is not done in a lab")
    condition = step.get("if")
    if condition and subprocess.run(["/bin/sh", "-c", str(condition)], stdin=subprocess.DEVNULL).returncode:
        return 0
    for entry in step.get("directories") or []:
        Path(str(entry["path"])).mkdir(parents=True, exist_ok=True)
    for entry in step.get("files") or []:
        _write(entry)
    if step.get("environment"):
        place = Path(str(step.get("environment_file") or "/etc/environment"))
        lines = [f'{key}="{value}"\n' for key, value in step["environment"].items()]
        with place.open("a", encoding="utf-8") as file:
            file.writelines(lines)
    for key, value in (step.get("sysctl") or {}).items():
        place = Path("/proc/sys", str(key).replace(".", "/"))
        if place.exists():
            place.write_text(str(value), "utf-8")
    servers = (step.get("dns") or {}).get("nameservers") or []
    if servers:
        Path("/etc/resolv.conf").write_text("".join(f"nameserver {s}\n" for s in servers), "utf-8")
    failed = 0
    for command in step.get("commands") or []:
        done = subprocess.run(["/bin/sh", "-c", str(command)], stdin=subprocess.DEVNULL)
        failed += done.returncode != 0
        _note(f"{origin}: command ended with status {done.returncode}")
    return failed


def run_stages(names: Iterable[str], folders: Iterable[str] = STAGE_FOLDERS) -> int:
    """Run stages by name, each with its ``.before`` and ``.after``; returns how many commands failed."""
    documents = _documents(folders)
    failed = 0
    for name in names:
        _note(f"stage {name}")
        for stage in (f"{name}.before", name, f"{name}.after"):
            for origin, stages in documents:
                for step in stages.get(stage) or []:
                    if isinstance(step, dict):
                        try:
                            failed += _step(origin, step)
                        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                            _note(f"{origin}: {stage}: {error}")
                            failed += 1
    return failed
