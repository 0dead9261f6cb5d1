r"""JSON text exactly as Go's encoder prints it, and a reader as strict as Go's (spec/edgevpn.md 5.3, 5.7).

Go prints without spaces, keeps UTF-8, and escapes ``<``, ``>``, ``&``, U+2028 and U+2029 as ``\u003c`` etc. The text
matters byte for byte where values are compared, hashed or signed. Mapping keys are printed in the order given: Go's
structs have theirs, Go's maps are sorted (:func:`sorted_keys`).
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

__all__ = ["dumps", "loads", "quote", "sorted_keys"]

_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_encode_text = json.JSONEncoder(ensure_ascii=False).encode


def quote(text: str) -> str:
    """A JSON string with Go's escapes. Lone surrogates, which Go cannot hold, become U+FFFD."""
    quoted = _encode_text(text).translate(_HTML)
    return quoted if quoted.isascii() or _is_unicode(quoted) else _without_surrogates(quoted)


def dumps(value: Any) -> str:
    """Compact JSON of None, bool, int, float, str, list, tuple and dict (text keys), as Go prints it.

    Raises ValueError for NaN and infinities, TypeError for anything else.
    """
    if isinstance(value, str):
        return quote(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{quote(key)}:{dumps(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(dumps(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} has no JSON form")


def sorted_keys(value: Any) -> Any:
    """The same value with all mappings in Go's map order (bytewise by key), for dumps()."""
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value, key=lambda k: k.encode("utf-8", "replace"))}
    if isinstance(value, list | tuple):
        return [sorted_keys(item) for item in value]
    return value


def loads(data: bytes | str) -> Any:
    """Read JSON as Go does: invalid UTF-8 and lone surrogates become U+FFFD, NaN and infinities are refused.

    Raises ValueError for anything that is no JSON, nested absurdly, or holds numbers of thousands of digits.
    """
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    if "\\ud" in text or "\\uD" in text or not _is_unicode(text):
        return _clean(_parse(text))
    return _parse(text)


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _integer(digits: str) -> Any:
    return -0.0 if digits == "-0" else int(digits)  # Go's zero keeps its sign


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value if _is_unicode(value) else _without_surrogates(value)
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


def _number(value: float) -> str:
    """Go's shortest form: plain digits between 1e-6 and 1e21, else an exponent without leading zeros."""
    if not math.isfinite(value):
        raise ValueError("JSON has no NaN and no infinity")
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    number = Decimal(repr(value)).normalize()
    if 1e-6 <= abs(value) < 1e21:
        return format(number, "f")
    sign, digits, exponent = number.as_tuple()
    text = "".join(map(str, digits))
    power = int(exponent) + len(text) - 1
    fraction = f".{text[1:]}" if len(text) > 1 else ""
    return f"{'-' if sign else ''}{text[0]}{fraction}e{power:+d}"
