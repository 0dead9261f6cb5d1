"""The message envelope: one JSON object in a pubsub ``data`` field (spec/edgevpn.md 3.2).

``{"Message":"<hex>","SenderID":"","Annotations":null}``. Sealing is :mod:`provider_kairos.token.seal`'s, who sent it is
the mesh's to say: a received ``SenderID`` proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from provider_kairos.errors import PeerError
from provider_kairos.token import gojson

__all__ = ["MAX_ENVELOPE", "Envelope", "EnvelopeError", "decode", "encode"]

MAX_ENVELOPE = 64 * 1024 * 1024
"""Upper bound in bytes when the caller gives none; the token's ``max_message_size`` is normally lower."""


class EnvelopeError(PeerError):
    """A pubsub body that is no envelope."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """``message`` is sealed text (hexadecimal); ``annotations`` travel in clear."""

    message: str = field(repr=False)
    sender_id: str = ""
    annotations: dict[str, Any] | None = None


def encode(envelope: Envelope) -> bytes:
    """The envelope as Go writes it."""
    return gojson.dumps(
        {
            "Message": envelope.message,
            "SenderID": envelope.sender_id,
            "Annotations": gojson.sorted_keys(envelope.annotations),
        }
    ).encode()


def decode(data: bytes, limit: int = MAX_ENVELOPE) -> Envelope:
    """Read an envelope of at most ``limit`` bytes. Field names in any case, unknown fields ignored, as Go does.

    Raises EnvelopeError.
    """
    if len(data) > limit:
        raise EnvelopeError(f"envelope of {len(data)} bytes is over the limit of {limit}")
    try:
        fields = gojson.loads(data)
    except ValueError as error:
        raise EnvelopeError(f"envelope is not JSON: {str(error)[:80]}") from None
    if not isinstance(fields, dict):
        raise EnvelopeError("envelope is no JSON object")
    message, sender_id, annotations = "", "", None
    for name, value in fields.items():
        match name.lower(), value:
            case _, None:
                continue  # Go leaves the field as it was
            case "message", str():
                message = value
            case "senderid", str():
                sender_id = value
            case "annotations", dict():
                annotations = value
            case (("message" | "senderid" | "annotations"), _):
                raise EnvelopeError(f"envelope field {name.lower()} is a {type(value).__name__}")
    return Envelope(message, sender_id, annotations)
