"""The tree of a parsed file: nodes that know their places (spec/provider.md 2.2).

Scalars keep their text as written, for string fields and string maps take it as it stands; what a typed or an untyped
reader makes of it is a method. document.py builds the tree, hints.py moves parts of it, load.py feeds it to the models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from provider_kairos.config.notice import Mark, Notice

__all__ = ["Document", "Entry", "KeyPath", "Mapping", "Node", "Scalar", "Sequence", "plain"]

KeyPath = tuple[str | int, ...]

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_DECIMAL = re.compile(r"[-+]?[0-9][0-9_]{0,30}")
_BASED = re.compile(r"[-+]?0(?:x[0-9a-fA-F_]{1,30}|o?[0-7_]{1,30}|b[01_]{1,64})")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


@dataclass(slots=True)
class Scalar:
    """One value as written. ``plain`` is false for quoted and block text."""

    text: str = field(repr=False)
    plain: bool
    mark: Mark

    @property
    def is_null(self) -> bool:
        """Whether this is no value at all."""
        return self.plain and self.text in _NULLS

    def boolean(self) -> bool | None:
        """True or false where the text is one of YAML's own words, else None."""
        if self.plain and self.text in _TRUE:
            return True
        if self.plain and self.text in _FALSE:
            return False
        return None

    def integer(self) -> int | None:
        """The whole number that a plain text stands for (decimal, 0x, 0o, 0b, old octal), else None."""
        if not self.plain:
            return None
        text = self.text.replace("_", "")
        try:
            if _BASED.fullmatch(self.text) and text.lstrip("+-") != "0":
                sign = -1 if text.startswith("-") else 1
                body = text.lstrip("+-")
                base = {"x": 16, "b": 2, "o": 8}.get(body[1], 8)
                return sign * int(body[2:] if body[1] in "xbo" else body, base)
            if _DECIMAL.fullmatch(self.text):
                return int(text)
        except ValueError:
            return None
        return None

    def value(self) -> str | int | float | bool | None:
        """The value as an untyped YAML reader sees it."""
        if not self.plain:
            return self.text
        if self.is_null:
            return None
        if (truth := self.boolean()) is not None:
            return truth
        if (number := self.integer()) is not None:
            return number
        return float(self.text) if len(self.text) < 64 and _FLOAT.fullmatch(self.text) else self.text


@dataclass(slots=True)
class Entry:
    """A value of a mapping and the place of its key."""

    key_mark: Mark
    value: Node


@dataclass(slots=True)
class Mapping:
    """Keys in the order of the text."""

    mark: Mark
    entries: dict[str, Entry] = field(default_factory=dict)

    def get(self, *keys: str) -> Node | None:
        """The node at a path of keys below this one."""
        node: Node | None = self
        for key in keys:
            entry = node.entries.get(key) if isinstance(node, Mapping) else None
            node = entry.value if entry else None
        return node


@dataclass(slots=True)
class Sequence:
    """Items in order."""

    mark: Mark
    items: list[Node] = field(default_factory=list)


Node = Scalar | Mapping | Sequence


@dataclass(slots=True)
class Document:
    """One parsed text."""

    root: Mapping
    path: str = ""
    notices: list[Notice] = field(default_factory=list)

    def node(self, path: KeyPath) -> Node | None:
        """The node at ``path``, or None."""
        node: Node | None = self.root
        for step in path:
            if isinstance(node, Mapping) and isinstance(step, str) and step in node.entries:
                node = node.entries[step].value
            elif isinstance(node, Sequence) and isinstance(step, int) and 0 <= step < len(node.items):
                node = node.items[step]
            else:
                return None
        return node

    def mark(self, path: KeyPath, *, key: bool = False) -> Mark:
        """The place of the value at ``path`` (``key``: of its key), or of the nearest parent that exists."""
        node: Node = self.root
        place = self.root.mark
        for step in path:
            if isinstance(node, Mapping) and isinstance(step, str) and step in node.entries:
                entry = node.entries[step]
                place = entry.key_mark if key else entry.value.mark
                node = entry.value
            elif isinstance(node, Sequence) and isinstance(step, int) and 0 <= step < len(node.items):
                node = node.items[step]
                place = node.mark
            else:
                break
        return place

    def data(self) -> dict[str, object]:
        """The whole document as plain Python values."""
        result = plain(self.root)
        assert isinstance(result, dict)
        return result


def plain(node: Node) -> object:
    """A node as plain Python values. Depth is bounded by the parser."""
    match node:
        case Scalar():
            return node.value()
        case Mapping():
            return {key: plain(entry.value) for key, entry in node.entries.items()}
        case Sequence():
            return [plain(item) for item in node.items]
