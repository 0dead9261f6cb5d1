r"""Two small things that Go's encoder does and Python's does not: indenting, and strings of broken UTF-8.

Specification: spec/edgevpn.md 11.1 (``?pretty``) and 17 (bytes of a path that are no UTF-8). All other printing is
``token.gojson``'s.
"""

from __future__ import annotations

import re

from provider_kairos.token import gojson

__all__ = ["indent", "quote_bytes"]

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^"\[\]{},:\s]+')


def indent(text: str) -> str:
    """Compact JSON text with two spaces per level, as Go's json.Indent does it; empty lists stay ``[]``."""
    out: list[str] = []
    depth = 0
    opened = False
    for piece in _TOKEN.findall(text):
        if piece in "]}":
            depth -= 1
            out.append(piece if opened else "\n" + "  " * depth + piece)
            opened = False
            continue
        if opened:
            out.append("\n" + "  " * depth)
            opened = False
        if piece in "[{":
            depth += 1
            opened = True
            out.append(piece)
        elif piece == ",":
            out.append(",\n" + "  " * depth)
        elif piece == ":":
            out.append(": ")
        else:
            out.append(piece)
    return "".join(out)


def quote_bytes(text: str) -> str:
    r"""A JSON string of text that may hold lone surrogates for bytes that are no UTF-8: each is printed ``\ufffd``."""
    if text.isascii():
        return gojson.quote(text)
    parts = re.split("([\udc80-\udcff])", text)
    inner = (r"\ufffd" if index % 2 else gojson.quote(part)[1:-1] for index, part in enumerate(parts))
    return f'"{"".join(inner)}"'
