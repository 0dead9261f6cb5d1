"""One-time codes and what an epoch derives from them (spec/edgevpn.md 2).

The counter and the HMAC are RFC 6238's (pyotp's building blocks); the code is not: it is the first characters of the
base64 text of the whole digest, and every consumer hashes that text with MD5. An :class:`Epoch` carries what gossip
needs. When to switch, and how long old and new overlap, is :mod:`provider_kairos.mesh`'s business.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
from dataclasses import dataclass, field

from pyotp.otp import OTP

from provider_kairos.errors import LocalError
from provider_kairos.token.codec import MAX_CODE_LENGTH, NetworkToken

__all__ = ["Epoch", "code", "counter_at", "epoch_at", "epochs_around", "md5_hex", "rendezvous_at", "rendezvous_around"]

NEVER = 2**63 - 1
"""End of an epoch that never ends, in Unix seconds."""

_CODE_LENGTH_OF_ZERO = 6
"""What the OTP library keeps when the length is zero or negative."""

_RENDEZVOUS_LENGTH_OF_ZERO = 12
"""What the DHT layer puts in place of a zero length before it asks for a code."""


class _EdgeOtp(OTP):
    """pyotp's counter codes with EdgeVPN's secret (raw text) and truncation (base64 of the digest)."""

    def __init__(self, secret: str, length: int) -> None:
        super().__init__(secret, digest=hashlib.sha256)
        self._length = length if length > 0 else _CODE_LENGTH_OF_ZERO

    def byte_secret(self) -> bytes:
        return self.secret.encode()

    def generate_otp(self, input: int) -> str:  # noqa: A002 - pyotp's name
        digest = hmac.digest(self.byte_secret(), self.int_to_bytestring(input), "sha256")
        return base64.b64encode(digest).decode("ascii")[: self._length]


@dataclass(frozen=True, slots=True)
class Epoch:
    """One period of derived keys: ``starts <= unix < ends`` in whole seconds.

    ``topic`` is the ledger room, ``public_topic`` the generic one; ``seal_key`` has 32 bytes (ASCII, spec 3.1).
    """

    counter: int
    topic: str
    public_topic: str
    seal_key: bytes = field(repr=False)
    starts: int
    ends: int


def counter_at(interval: int, unix: float) -> int:
    """The OTP counter: unsigned 64-bit division. A negative interval is huge when read unsigned, so it gives 0."""
    if interval == 0:
        raise LocalError("an OTP interval of 0 seconds; the codec refuses it")
    return int(unix) // interval if interval > 0 else 0


def code(secret: str, interval: int, length: int, unix: float) -> str:
    """The code at a Unix time in seconds: ``length`` characters of base64 (6 when ``length`` is not positive)."""
    return _code_of_counter(secret, length, counter_at(interval, unix))


def _code_of_counter(secret: str, length: int, counter: int) -> str:
    if length > MAX_CODE_LENGTH:
        raise LocalError(f"a code has at most {MAX_CODE_LENGTH} characters; the codec refuses {length}")
    return _EdgeOtp(secret, length).generate_otp(counter)


def md5_hex(text: str) -> str:
    """Lower-case MD5 of a text; names things here, protects nothing."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def epoch_at(token: NetworkToken, unix: float) -> Epoch:
    """The epoch that a Unix time (seconds) falls in."""
    return _epoch(token, counter_at(token.crypto.interval, unix))


@functools.lru_cache(maxsize=32)
def _epoch(token: NetworkToken, counter: int) -> Epoch:
    interval = token.crypto.interval
    room = _code_of_counter(token.room, token.crypto.length, counter)
    return Epoch(
        counter=counter,
        topic=md5_hex(room),
        public_topic=md5_hex(room + "public"),
        seal_key=md5_hex(_code_of_counter(token.crypto.key, token.crypto.length, counter)).encode("ascii"),
        starts=counter * interval if interval > 0 else 0,
        ends=min((counter + 1) * interval, NEVER) if interval > 0 else NEVER,
    )


def epochs_around(token: NetworkToken, unix: float, slack: float = 10.0) -> tuple[Epoch | None, Epoch, Epoch | None]:
    """``(previous, current, next)``; the outer two only within ``slack`` seconds of the boundary, else None.

    EdgeVPN tries the current key alone (spec 2.2). Trying the neighbours near a boundary loses no message that was in
    flight, and tolerates clocks that differ by up to ``slack``. Send with the current one only.
    """
    current = epoch_at(token, unix)
    previous = following = None
    if current.counter > 0 and unix - current.starts < slack:
        previous = _epoch(token, current.counter - 1)
    if current.ends < NEVER and current.ends - unix <= slack:
        following = _epoch(token, current.counter + 1)
    return previous, current, following


def rendezvous_at(token: NetworkToken, unix: float) -> str:
    """The DHT rendezvous of a Unix time; the literal ``rendezvous`` when ``otp.dht.key`` is empty."""
    settings = token.dht
    if not settings.key:
        return token.rendezvous
    return md5_hex(code(settings.key, settings.interval, settings.length or _RENDEZVOUS_LENGTH_OF_ZERO, unix))


def rendezvous_around(token: NetworkToken, unix: float) -> tuple[str, ...]:
    """Current and previous rendezvous, without repeats: where to look for nodes that have not announced anew."""
    interval = token.dht.interval if token.dht.key else 0
    points = [rendezvous_at(token, unix)]
    if 0 < interval <= unix:
        points.append(rendezvous_at(token, unix - interval))
    return tuple(dict.fromkeys(points))
