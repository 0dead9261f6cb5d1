"""Cloud-configs as the Kairos agent collects them: which files count, how they merge, what text comes out.

Follows spec/provider.md 2.1.1 to 2.1.3 and 2.1.7, traps included (lists of plain values lose duplicates).
``config_url`` is not fetched: a lab has no way out. What the keys mean is the product's business.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

__all__ = ["BOOT_FOLDERS", "Collected", "MergeError", "collect", "has_header", "merge", "render"]

log = logging.getLogger(__name__)

BOOT_FOLDERS: Final = ("/oem", "/usr/local/cloud-config")
"""What ``kairos-agent start`` reads; later wins."""

_HEADERS: Final = {"#cloud-config", "#kairos-config", "#node-config"}
# The agent means 1 MB and divides integers: anything below 2 MiB passes.
_TOO_BIG: Final = 2 << 20


class MergeError(Exception):
    """Two files hold values of different kinds under one key: the agent gives up."""


@dataclass(frozen=True, slots=True)
class Collected:
    """The merged configuration, where it came from, and what was passed over (one sentence each)."""

    values: dict[str, Any]
    sources: tuple[str, ...]
    warnings: tuple[str, ...]


def has_header(text: str) -> bool:
    """Whether one of the first ten lines is a header, trailing white space aside."""
    return any(line.rstrip() in _HEADERS for line in text.split("\n")[:10])


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    for kind, name in ((dict, "map"), (list, "list"), (str, "string"), (int, "int"), (float, "float")):
        if isinstance(value, kind):
            return name
    return type(value).__name__


_ZERO: Final[dict[str, Any]] = {"bool": False, "string": "", "int": 0, "float": 0.0}


def merge(left: Any, right: Any, path: str = "") -> Any:
    """Merge ``right`` over ``left``; ``path`` names the place in errors. Raises MergeError."""
    if left is None:
        return right
    if right is None:
        if isinstance(left, dict):
            return {}
        return [] if isinstance(left, list) else _ZERO.get(_kind(left))
    if isinstance(left, dict) and isinstance(right, dict):
        merged = dict(left)
        for key, value in right.items():
            merged[key] = merge(left[key], value, f"{path}.{key}" if path else str(key)) if key in left else value
        return merged
    if isinstance(left, list) and isinstance(right, list):
        if left and isinstance(left[0], dict):
            return [*left, *right]
        return [*left, *(value for value in right if value not in left)]
    if _kind(left) != _kind(right):
        raise MergeError(f"cannot merge {path or 'the document'}: {_kind(left)} with {_kind(right)}")
    return right


def _files(folder: Path) -> list[Path]:
    """The candidates of one folder, recursively, in lexical order."""
    return sorted(path for path in folder.rglob("*") if path.suffix in {".yaml", ".yml"} and path.is_file())


def collect(folders: Iterable[str] = BOOT_FOLDERS, root: str = "/") -> Collected:
    """Read and merge every file that counts; raises MergeError."""
    values: dict[str, Any] = {}
    sources: list[str] = []
    warnings: list[str] = []
    for folder in folders:
        for path in _files(Path(root, folder.lstrip("/"))):
            shown = "/" + str(path.relative_to(root))
            if path.stat().st_size >= _TOO_BIG:
                warnings.append(f"{shown}: too big, passed over")
                continue
            text = path.read_text("utf-8", errors="replace")
            if not has_header(text):
                warnings.append(f"{shown}: no #cloud-config line among the first ten, passed over")
                continue
            try:
                document = yaml.safe_load(text)
            except yaml.YAMLError as error:
                warnings.append(f"{shown}: not valid YAML, passed over: {error}")
                continue
            if document is None:
                document = {}
            if not isinstance(document, dict):
                warnings.append(f"{shown}: not a mapping, passed over")
                continue
            values = merge(values, document)
            sources.append(shown)
    return Collected(values, tuple(sources), tuple(warnings))


def render(collected: Collected) -> str:
    """The text that goes to the provider (spec 2.1.7)."""
    sources = "".join(f"# - {source}\n" for source in collected.sources)
    body = yaml.safe_dump(collected.values, default_flow_style=False, sort_keys=True, allow_unicode=True, width=1 << 16)
    return f"#cloud-config\n\n# Sources:\n{sources}\n{body}"
