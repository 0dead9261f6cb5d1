"""YAML text to a tree of nodes that know their places; safe and bounded.

Follows what the Go decoder of the original does (spec/provider.md 2.1.7, 2.2): the first document counts, string
fields and string maps take a scalar's text as it stands, YAML 1.1 words count as booleans only where a boolean is
wanted. Nothing here knows the keys; schema.py does.

The tree is built from parser events with a stack of our own, so that no nesting, alias or size in a hostile text
can exhaust the machine: depth, number of nodes (aliases count every time they are used) and bytes are limited.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from provider_kairos.config.notice import InvalidConfigError, Mark, Notice
from provider_kairos.config.tree import Document, Entry, Mapping, Node, Scalar, Sequence

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_NODES", "parse"]

MAX_BYTES = 8 * 1024 * 1024
"""The agent takes files below 2 MiB each and merges them."""
MAX_DEPTH = 64
MAX_NODES = 100_000

# libyaml where it is there: its places and its errors are the Go decoder's, which is a port of it.
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse(text: str | bytes, path: str = "") -> Document:
    """Parse the first document of ``text``.

    Raises:
        InvalidConfigError: not UTF-8, not YAML, no mapping, or beyond a limit; with path, line, column and hint.
    """
    source = _decode(text, path)
    return _Composer(source, path).document()


def _decode(text: str | bytes, path: str) -> str:
    if len(text) > MAX_BYTES:
        raise InvalidConfigError(
            f"the file is larger than {MAX_BYTES} bytes", path=path, hint="split off what is no configuration"
        )
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8-sig")
        text.encode("utf-8")
    except UnicodeDecodeError as error:
        place = _place_of(error.object[: error.start].decode("utf-8", "replace"))
    except UnicodeEncodeError as error:
        place = _place_of(error.object[: error.start])
    else:
        return text.removeprefix("\ufeff")
    raise InvalidConfigError(
        "the file is not UTF-8 text", path=path, line=place.line, column=place.column, hint="save it in UTF-8"
    )


def _place_of(before: str) -> Mark:
    """The place right after ``before``."""
    return Mark(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


@dataclass(slots=True)
class _Open:
    """A collection whose end was not read yet."""

    node: Mapping | Sequence
    anchor: str | None
    start: int  # nodes counted before it
    key: Scalar | None = None
    merges: list[Node] = field(default_factory=list)


class _Composer:
    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.path = path
        self.notices: list[Notice] = []
        self.count = 0
        self.anchors: dict[str, tuple[Node, int, int]] = {}  # node, its size, its depth
        self.stack: list[_Open] = []

    def document(self) -> Document:
        try:
            root = self._compose(yaml.parse(self.text, Loader=_Loader))
        except yaml.MarkedYAMLError as error:
            raise self._broken(error) from None
        except yaml.reader.ReaderError as error:
            raise self._unreadable(error) from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise InvalidConfigError(f"not valid YAML: {type(error).__name__}", path=self.path) from None
        if root is None or (isinstance(root, Scalar) and root.is_null):
            root = Mapping(Mark(1, 1))
        if not isinstance(root, Mapping):
            raise self._error(
                "the file has to be a mapping of keys to values", root.mark, hint="start with a key, as in `p2p:`"
            )
        return Document(root, self.path, self.notices)

    def _error(self, message: str, mark: Mark, *, hint: str = "", key: str = "") -> InvalidConfigError:
        return InvalidConfigError(message, path=self.path, line=mark.line, column=mark.column, hint=hint, key=key)

    def _broken(self, error: yaml.MarkedYAMLError) -> InvalidConfigError:
        mark = error.problem_mark or error.context_mark
        place = Mark(mark.line + 1, mark.column + 1) if mark else Mark()
        problem = error.problem or error.context or "cannot be read"
        return self._error(f"not valid YAML: {problem}", place, hint=_hint(problem, self.text, place))

    def _unreadable(self, error: yaml.reader.ReaderError) -> InvalidConfigError:
        # libyaml counts bytes, the pure reader characters
        at = error.position if isinstance(error.position, int) else 0
        before = (
            self.text[:at] if _Loader is yaml.SafeLoader else self.text.encode("utf-8")[:at].decode("utf-8", "ignore")
        )
        hint = "remove it, or write it as an escape in double quotes"
        return self._error("not valid YAML: a control character is not allowed here", _place_of(before), hint=hint)

    def _compose(self, events: Iterator[yaml.Event]) -> Node | None:
        root: Node | None = None
        finished: Node
        for event in events:
            match event:
                case yaml.DocumentEndEvent():
                    self._more_documents(events)
                    return root
                case yaml.ScalarEvent():
                    finished = Scalar(event.value, _is_plain(event), _mark(event))
                    self._charge(1, _mark(event))
                    self._remember(event.anchor, finished, 1)
                case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                    self._open(event)
                    continue
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    finished = self._close()
                case yaml.AliasEvent():
                    finished = self._alias(event)
                case _:
                    continue
            if self.stack:
                self._add(finished)
            else:
                root = finished
        return root

    def _more_documents(self, events: Iterator[yaml.Event]) -> None:
        following = next(events, None)
        if isinstance(following, yaml.DocumentStartEvent):
            place = _mark(following)
            self._notice(
                place,
                "",
                "only the first document of the file is read",
                "remove the line `---` before this one, or this part",
            )

    def _notice(self, mark: Mark, key: str, message: str, hint: str) -> None:
        self.notices.append(Notice(self.path, mark.line, mark.column, key, message, hint))

    def _charge(self, nodes: int, mark: Mark) -> None:
        self.count += nodes
        if self.count > MAX_NODES:
            raise self._error(f"more than {MAX_NODES} values", mark, hint="aliases that multiply are refused")

    def _remember(self, anchor: str | None, node: Node, size: int) -> None:
        if anchor:
            self.anchors[anchor] = (node, size, _depth(node))

    def _open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        mark = _mark(event)
        if len(self.stack) >= MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH} levels", mark)
        start = self.count
        self._charge(1, mark)
        if event.anchor:
            self.anchors.pop(event.anchor, None)
        node = Mapping(mark) if isinstance(event, yaml.MappingStartEvent) else Sequence(mark)
        self.stack.append(_Open(node, event.anchor, start))

    def _close(self) -> Node:
        done = self.stack.pop()
        if isinstance(done.node, Mapping):
            for merged in done.merges:
                sources = merged.items if isinstance(merged, Sequence) else [merged]
                for source in sources:
                    if not isinstance(source, Mapping):
                        raise self._error("`<<` needs a mapping, or a list of mappings", source.mark)
                    for key, entry in source.entries.items():
                        done.node.entries.setdefault(key, entry)
        self._remember(done.anchor, done.node, self.count - done.start)
        return done.node

    def _alias(self, event: yaml.AliasEvent) -> Node:
        mark = _mark(event)
        if event.anchor not in self.anchors:
            raise self._error(
                f"alias *{event.anchor} has no anchor &{event.anchor} before it",
                mark,
                hint="quote a value that starts with `*`",
            )
        node, size, depth = self.anchors[event.anchor]
        if len(self.stack) + depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH} levels", mark)
        self._charge(size, mark)
        return node

    def _add(self, node: Node) -> None:
        top = self.stack[-1]
        if isinstance(top.node, Sequence):
            top.node.items.append(node)
        elif top.key is None:
            if not isinstance(node, Scalar):
                raise self._error(
                    "a key has to be a single word",
                    node.mark,
                    hint="quote a value that contains {{ }} or starts with { or [",
                )
            top.key = node
        else:
            key, top.key = top.key, None
            if key.text == "<<" and key.plain:
                top.merges.append(node)
                return
            if key.text in top.node.entries:
                first = top.node.entries[key.text].key_mark
                self._notice(
                    key.mark,
                    key.text,
                    f"the key is there twice, first on line {first.line}; this one counts",
                    "remove one of them",
                )
            top.node.entries[key.text] = Entry(key.mark, node)


def _mark(event: yaml.Event) -> Mark:
    start = event.start_mark
    return Mark(start.line + 1, start.column + 1) if start else Mark()


def _is_plain(event: yaml.ScalarEvent) -> bool:
    """Whether the text stands for itself or for a number, boolean or null: unquoted, or tagged as one of those."""
    if event.tag:
        return event.tag != "!" and not event.tag.endswith(":str")
    return not event.style


def _depth(node: Node) -> int:
    """Levels of collections in a node; recursion is bounded by MAX_DEPTH."""
    if isinstance(node, Mapping):
        return 1 + max((_depth(e.value) for e in node.entries.values()), default=0)
    if isinstance(node, Sequence):
        return 1 + max((_depth(i) for i in node.items), default=0)
    return 0


def _hint(problem: str, text: str, place: Mark) -> str:
    lines = text.split("\n")
    line = lines[place.line - 1] if 0 < place.line <= len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in problem:
        return "YAML is indented with spaces, never with tabs"
    if "{{" in line:
        return "quote values that contain {{ }}"
    if "mapping values are not allowed" in problem:
        return "quote values that contain a colon followed by a space, and check the indentation"
    if "cannot start any token" in problem:
        return "quote values that start with %, @ or a back-tick"
    if "did not find expected key" in problem or "expected <block end>" in problem:
        return "check the indentation of this line and of those before it"
    return ""
