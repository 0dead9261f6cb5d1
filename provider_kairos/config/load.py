"""The way from a cloud-config's text to settings: parse, map old spellings, validate, check.

All wrong types of a file are found in one go; the first is raised, ``others`` holds the rest. Everything that is
merely odd becomes a notice with a place.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from provider_kairos.config import checks, document, hints
from provider_kairos.config.notice import InvalidConfigError, Mark, Notice
from provider_kairos.config.schema import KUBEVIP_KEYS, KubeVip, RawScalar, Settings
from provider_kairos.config.tree import Document, KeyPath, Mapping, Node, Scalar, Sequence, plain
from provider_kairos.errors import TokenError

if TYPE_CHECKING:
    from provider_kairos.token.codec import NetworkToken

__all__ = ["CloudConfig", "load"]


@dataclass(frozen=True, slots=True)
class CloudConfig:
    """Settings, what is to be said about them, and the document for places."""

    settings: Settings
    warnings: tuple[Notice, ...]
    path: str = ""
    document: Document | None = field(default=None, repr=False, compare=False)

    def errors(self) -> tuple[Notice, ...]:
        """The notices that say: this cannot work as written."""
        return tuple(notice for notice in self.warnings if notice.severity == "error")

    def place(self, key: str) -> Mark:
        """Where a key as in ``k3s.args[0]`` stands in the file, or its nearest parent; unknown without a document."""
        if self.document is None or not key:
            return Mark()
        steps = re.findall(r"[^.\[\]]+|\[\d+\]", key)
        return self.document.mark(tuple(int(step[1:-1]) if step.startswith("[") else step for step in steps))

    def locate_notice(self, notice: Notice) -> Notice:
        """A notice that names a key, with the key's place in this file."""
        mark = self.place(notice.key)
        return replace(notice, path=self.path, line=mark.line, column=mark.column)

    def locate_error(self, error: InvalidConfigError) -> InvalidConfigError:
        """An error that names a key, with the key's place in this file; the same object."""
        mark = self.place(error.key)
        error.path, error.line, error.column = self.path, mark.line, mark.column
        return error

    def network_token(self) -> NetworkToken:
        """The decoded ``p2p.network_token``.

        Raises:
            TokenError: missing or wrong; carries path, line and column of the token in the file.
        """
        from provider_kairos.token import codec  # noqa: PLC0415  # only nodes with a token need it

        try:
            text = self.settings.token_text()
            if not text:
                raise TokenError(
                    "is missing", hint="put the output of `kairos-p2p generate-token` into p2p.network_token"
                )
            return codec.decode(text)
        except TokenError as error:
            mark = self.place("p2p.network_token")
            error.path, error.line, error.column = self.path, mark.line, mark.column
            raise


def load(text: str | bytes, path: str = "") -> CloudConfig:
    """Read a cloud-config.

    Raises:
        InvalidConfigError: broken YAML or wrong types (a ConfigError with path, line, column, hint and ``others``).
    """
    doc = document.parse(text, path)
    notices = [*doc.notices, *hints.apply(doc)]
    raw = {name: _raw(entry.value) for name, entry in doc.root.entries.items() if name in Settings.BLOCKS}
    raw = {name: value for name, value in raw.items() if value is not None}
    _gather_kubevip(doc, raw)
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise _invalid(doc, error) from None
    notices += _unknown_keys(doc)
    notices += checks.run(settings, doc)
    notices.sort(key=lambda notice: (notice.line, notice.column))
    return CloudConfig(settings, tuple(notices), path, doc)


def _raw(node: Node, *, texts: bool = False) -> Any:
    """A node as the models take it: texts that know their plain meaning, nulls left out (in maps of ``texts``: empty)."""
    match node:
        case Scalar() if node.is_null:
            return "" if texts else None
        case Scalar():
            return RawScalar(node.text, node.boolean(), node.integer())
        case Sequence():
            return [value for value in map(_raw, node.items) if value is not None]
        case Mapping():
            values = ((key, _raw(entry.value, texts=texts or key == "env")) for key, entry in node.entries.items())
            return {key: value for key, value in values if value is not None}


def _gather_kubevip(doc: Document, raw: dict[str, Any]) -> None:
    """kube-vip's own fields, written beside ours or under ``config``, untyped under ``config``; those beside ours win."""
    block = doc.root.get("kubevip")
    if not isinstance(block, Mapping):
        return
    own = set(KubeVip.model_fields)
    beside = {key: plain(entry.value) for key, entry in block.entries.items() if key not in own}
    config = block.get("config")
    if config is None or isinstance(config, Mapping) or (isinstance(config, Scalar) and config.is_null):
        below = plain(config) if isinstance(config, Mapping) else {}
        assert isinstance(below, dict)
        raw["kubevip"]["config"] = {**below, **beside}


_WORDS = {
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of names to values",
    "tuple_type": "a list",
    "string_type": "a text",
    "bool_type": "true or false",
    "int_type": "a whole number",
}


def _invalid(doc: Document, error: ValidationError) -> InvalidConfigError:
    found: list[InvalidConfigError] = []
    for item in error.errors(include_url=False, include_input=False, include_context=True):
        path = _key_path(doc, item["loc"])
        node = doc.node(path)
        key = dotted(path)
        context = item.get("ctx", {})
        match item["type"]:
            case "expected":
                what = str(context["what"])
            case "greater_than_equal":
                what = f"at least {context['ge']}"
            case "less_than_equal":
                what = f"at most {context['le']}"
            case kind:
                what = _WORDS.get(kind, item["msg"])
        mark = doc.mark(path)
        found.append(
            InvalidConfigError(
                f"{key}: expected {what}, not {_kind(node)}",
                path=doc.path,
                line=mark.line,
                column=mark.column,
                hint=_type_hint(what, node),
                key=key,
            )
        )
    found.sort(key=lambda one: (one.line, one.column))
    first = found[0]
    return InvalidConfigError(
        first.message,
        path=first.path,
        line=first.line,
        column=first.column,
        hint=first.hint,
        key=first.key,
        others=found[1:],
    )


def _key_path(doc: Document, loc: tuple[int | str, ...]) -> KeyPath:
    """A validator's location without its own additions (``[key]``) and with nulls of lists counted again."""
    path: list[str | int] = []
    for step in loc:
        if step == "[key]":
            break
        node = doc.node(tuple(path))
        if isinstance(step, int) and isinstance(node, Sequence):
            kept = [at for at, item in enumerate(node.items) if not (isinstance(item, Scalar) and item.is_null)]
            path.append(kept[step] if step < len(kept) else step)
        else:
            path.append(step)
    return tuple(path)


def dotted(path: KeyPath) -> str:
    """A path of keys as people write it: ``k3s.args[0]``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _kind(node: Node | None) -> str:
    match node:
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
        case Scalar():
            value = node.value()
            if isinstance(value, bool):
                return "true or false"
            if isinstance(value, int):
                return "a number" if value >= 0 else "a negative number"
            if isinstance(value, float):
                return "a number with a fraction"
            return "a text" if node.plain else "a quoted text"
        case None:
            return "this"


def _type_hint(what: str, node: Node | None) -> str:
    if what == "a list" and isinstance(node, Scalar):
        return 'write each element on a line of its own after a dash, or ["..."]'
    if what.startswith("a mapping") and isinstance(node, Scalar | Sequence):
        return "write `name: value` lines below it, indented"
    if isinstance(node, Scalar) and not node.plain and what in {"true or false", "a whole number"}:
        return "leave the quotes out"
    if what == "a text" and isinstance(node, Mapping):
        return "quote a value that contains a colon followed by a space"
    return ""


def _unknown_keys(doc: Document) -> list[Notice]:
    found: list[Notice] = []

    def walk(model: type[BaseModel], node: Node | None, path: KeyPath) -> None:
        if not isinstance(node, Mapping):
            return
        known = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
        for key, entry in node.entries.items():
            if key in known:
                if (inner := _model_of(known[key])) is not None:
                    walk(inner, entry.value, (*path, key))
                continue
            if not path or (model is KubeVip and key in KUBEVIP_KEYS):
                continue
            names = [*known, *(KUBEVIP_KEYS if model is KubeVip else ())]
            close = difflib.get_close_matches(key, names, n=1, cutoff=0.7)
            kept = "passed on to kube-vip" if model is KubeVip else "ignored"
            found.append(
                Notice(
                    doc.path,
                    entry.key_mark.line,
                    entry.key_mark.column,
                    dotted((*path, key)),
                    f"unknown key, {kept}",
                    f"did you mean {dotted((*path, close[0]))}?" if close else "",
                )
            )

    walk(Settings, doc.root, ())
    return found


def _model_of(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
