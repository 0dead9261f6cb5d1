r"""How text travels in the path of a request: Go's rule, used by server and client alike.

Specification: spec/edgevpn.md 11.1 with the corrections of section 17. The router looks at the *raw* path as soon as
one character of it is not written the way Go itself would write it, and then no segment is decoded, keys and bucket
included. So a writer must use exactly Go's form (:func:`quote_segment`), and a reader must apply the rule to the
whole path (:func:`route_path`).

Bytes that are no UTF-8 travel as lone surrogates (``surrogateescape``) and are printed as ``\ufffd``, as Go does.
"""

from __future__ import annotations

from provider_kairos.errors import LocalError, PeerError

__all__ = ["PathError", "quote_segment", "route_path"]

# What Go's url package leaves as it is inside a path: unreserved characters and "$&+,/:;=@" (not "?").
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~$&+,/:;=@")
_HEX = frozenset(b"0123456789abcdefABCDEF")


class PathError(PeerError):
    """The path of a request holds a percent sign that is not followed by two hex digits."""


def _escape(raw: bytes) -> bytes:
    """Go's ``escape(path, encodePath)``."""
    if all(byte in _PLAIN for byte in raw):
        return raw
    return b"".join(bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte for byte in raw)


def _unescape(raw: bytes) -> bytes:
    """Percent-decoding that, as Go's, refuses a broken escape. ``+`` stays itself."""
    head, *rest = raw.split(b"%")
    out = bytearray(head)
    for part in rest:
        if len(part) < 2 or part[0] not in _HEX or part[1] not in _HEX:
            raise PathError("invalid URL escape in the path")
        out.append(int(part[:2], 16))
        out += part[2:]
    return bytes(out)


def quote_segment(text: str) -> str:
    """One path segment in Go's own form, so that a Go daemon decodes it.

    Raises LocalError for what no path can carry: the empty text, a slash (escaped, it would leave the whole path
    undecoded).
    """
    if not text:
        raise LocalError("an empty bucket, key or value cannot be named in a path")
    if "/" in text:
        raise LocalError(f"{text!r} holds a slash, which cannot be named in a path")
    return _escape(text.encode("utf-8", "surrogateescape")).decode("ascii")


def route_path(target: bytes) -> tuple[str, str]:
    """The path as the router sees it, and the query text, from the target of a request line.

    The path is decoded when Go would write it the same way, else it is taken as it came. A target in absolute form
    (``http://host/path``) loses scheme and host. Raises :class:`PathError`.
    """
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/"):
        scheme, found, rest = path.partition(b"://")
        if found and scheme.lower() in {b"http", b"https"}:
            _, slash, tail = rest.partition(b"/")
            path = slash + tail or b"/"
    decoded = _unescape(path)
    chosen = decoded if _escape(decoded) == path else path
    return chosen.decode("utf-8", "surrogateescape"), query.decode("latin-1")
