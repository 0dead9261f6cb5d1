r"""How text travels in the path of a request: Go's rule, used by server and client alike.

Specification: spec/edgevpn.md 11.1 with the corrections of section 17. The router looks at the *raw* path as soon as
one character of it is not written the way Go itself would write it, and then no segment is decoded, keys and bucket
included. So a writer must use exactly Go's form (:func:`quote_segment`), and a reader must apply the rule to the
whole path (:func:`route_path`).

Our own routes (``/v1``) have the rule that everybody else has: each segment is decoded for itself
(:func:`native_segments`), so that a bucket or key with a slash can be named.

Bytes that are no UTF-8 travel as lone surrogates (``surrogateescape``) and are printed as ``\ufffd``, as Go does.
"""

from __future__ import annotations

from provider_kairos.errors import LocalError, PeerError

__all__ = ["PathError", "is_native", "native_segments", "quote_native", "quote_segment", "route_path"]

# What Go's url package leaves as it is inside a path: unreserved characters and "$&+,/:;=@" (not "?").
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")
_PLAIN = _UNRESERVED | frozenset(b"$&+,/:;=@")
_HEX = frozenset(b"0123456789abcdefABCDEF")


class PathError(PeerError):
    """The path of a request holds a percent sign that is not followed by two hex digits."""


def _escape(raw: bytes, plain: frozenset[int] = _PLAIN) -> bytes:
    """Go's ``escape(path, encodePath)``."""
    if all(byte in plain for byte in raw):
        return raw
    return b"".join(bytes((byte,)) if byte in plain else b"%%%02X" % byte for byte in raw)


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


def quote_native(text: str) -> str:
    """One path segment, or one value of a query, for our own routes; any text can be named."""
    return _escape(text.encode("utf-8", "replace"), _UNRESERVED).decode("ascii")


def route_path(target: bytes) -> tuple[str, str]:
    """The path as the router sees it, and the query text, from the target of a request line.

    The path is decoded when Go would write it the same way, else it is taken as it came. A target in absolute form
    (``http://host/path``) loses scheme and host. Raises :class:`PathError`.
    """
    path, query = _split(target)
    decoded = _unescape(path)
    chosen = decoded if _escape(decoded) == path else path
    return chosen.decode("utf-8", "surrogateescape"), query.decode("latin-1")


def is_native(target: bytes) -> bool:
    """Whether a target is one of our own routes, whose segments are decoded one by one."""
    return _split(target)[0].startswith(b"/v1/")


def native_segments(target: bytes) -> tuple[list[str], str]:
    """The decoded segments of the path, the empty one before the first slash included, and the query text.

    Raises :class:`PathError` for a broken escape and for bytes that are no UTF-8.
    """
    path, query = _split(target)
    try:
        return [_unescape(segment).decode("utf-8") for segment in path.split(b"/")], query.decode("latin-1")
    except UnicodeDecodeError:
        raise PathError("the path is no UTF-8") from None


def _split(target: bytes) -> tuple[bytes, bytes]:
    """Path and query of a target, without scheme and host."""
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/"):
        scheme, found, rest = path.partition(b"://")
        if found and scheme.lower() in {b"http", b"https"}:
            _, slash, tail = rest.partition(b"/")
            path = slash + tail or b"/"
    return path, query
