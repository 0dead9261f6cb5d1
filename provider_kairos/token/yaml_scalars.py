"""How Go's yaml.v2 reads and writes the scalars of a token (spec/edgevpn.md 1.1, 17).

A token has only texts and integers, but the two sides must agree on every odd spelling: ``010`` is eight, ``1e3`` a
thousand, ``'30'`` is no number, ``null`` an empty secret, and a secret that looks like a number or a boolean is quoted
when written. PyYAML's own rules differ (YAML 1.1 with sexagesimals), so every scalar is read as text here and converted
by Go's rules. Knows nothing of tokens; :mod:`provider_kairos.token.codec` does.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["INT64_MAX", "INT64_MIN", "compose", "is_null", "looks_like_no_text", "scalar_int", "write_mapping"]

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = frozenset(
    {"y", "Y", "yes", "Yes", "YES", "n", "N", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF"}
    | {"true", "True", "TRUE", "false", "False", "FALSE"}
)
_SPECIAL_FLOATS = frozenset(
    {".nan", ".NaN", ".NAN"} | {sign + word for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")}
)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|([1-9][0-9]*|0))")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}"
    r"(?:[Tt ]\s*[0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}(?:\.[0-9]+)?\s*(?:Z|[-+][0-9]{1,2}(?::?[0-9]{2})?)?)?"
)
_TAG = "tag:yaml.org,2002:"


def compose(text: bytes) -> yaml.Node | None:
    """The first document as a node tree in which every scalar is text; None when it is empty.

    Raises yaml.YAMLError (with a line mark) or RecursionError for absurd nesting.
    """
    loader = yaml.BaseLoader(text)
    try:
        return loader.get_node() if loader.check_node() else None
    finally:
        loader.dispose()


def is_null(node: yaml.Node) -> bool:
    """Whether Go reads the node as nil: an unquoted ``null``, ``~`` or nothing."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS


def scalar_int(node: yaml.ScalarNode) -> int | None:
    """The integer that Go puts into an ``int`` field, or None when it refuses the scalar.

    Integers: decimal, ``0x``, ``0b``, ``0o`` and leading-zero octal, with underscores. Floats are cut toward zero. Text
    in quotes is no number. The range is that of a signed 64-bit integer.
    """
    if node.style is not None and node.tag != _TAG + "int":
        return None
    plain = node.value.replace("_", "")
    whole = _INTEGER.fullmatch(plain)
    if whole:
        sign, hexadecimal, binary, octal, decimal = whole.groups()
        digits, base = next((d, b) for d, b in ((hexadecimal, 16), (binary, 2), (octal, 8), (decimal, 10)) if d)
        value = _bounded_int(sign + digits, base)
    elif _FLOAT.fullmatch(plain):
        number = float(plain)
        if not abs(number) < 2.0**64:
            return None
        value = int(number)
    else:
        return None
    return value if value is not None and INT64_MIN <= value <= INT64_MAX else None


def _bounded_int(digits: str, base: int) -> int | None:
    return int(digits, base) if len(digits) <= 80 else None


def looks_like_no_text(text: str) -> bool:
    """Whether an unquoted ``text`` would be read as something else than text (so Go puts it in double quotes)."""
    if text in _NULLS or text in _BOOLS or text in _SPECIAL_FLOATS or text == "<<":
        return True
    if _SEXAGESIMAL.fullmatch(text) or _TIMESTAMP.fullmatch(text):
        return True
    if text[0] not in "+-.0123456789":
        return False
    plain = text if text[0] == "." else text.replace("_", "")
    return bool(_INTEGER.fullmatch(plain) or _FLOAT.fullmatch(plain))


class _Dumper(yaml.SafeDumper):
    """Texts and integers only, no implicit types: the style alone decides about quotes."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's class attribute

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else ('"' if looks_like_no_text(text) else None)
    return dumper.represent_scalar(_TAG + "str", text, style=style)


def _represent_int(dumper: _Dumper, number: int) -> yaml.ScalarNode:
    return dumper.represent_scalar(_TAG + "str", str(number))


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(int, _represent_int)


def write_mapping(mapping: dict[str, Any]) -> str:
    """YAML text of nested mappings of texts and integers, byte for byte as Go's yaml.v2 writes it."""
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)
