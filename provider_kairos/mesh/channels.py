"""TCP sockets and what makes them secure: TLS 1.3 and Noise, named explicitly (spec/edgevpn.md 7; spec/libp2p.md 1).

Certificates, handshake patterns and key checks are py-libp2p's (:mod:`provider_kairos.mesh.parts`). Moving bytes
afterwards is done here, because py-libp2p reads two pieces per noise message and 4 KiB per TLS read, and swallows
errors. Every failure of a peer, a socket or a handshake is a :class:`ChannelError`. Agreeing on a muxer and all that
follows belongs to :mod:`provider_kairos.mesh.swarm`.
"""

from __future__ import annotations

import datetime as dt
import os
import ssl
from contextlib import suppress
from typing import Any

import trio
from cryptography import x509
from cryptography.x509.oid import NameOID

from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import parts

__all__ = ["NOISE", "TLS", "ChannelError", "Handshakes", "NoiseChannel", "TcpChannel", "TlsChannel"]

TLS = "/tls/1.0.0"
NOISE = "/noise"

RECEIVE = 64 * 1024
YIELD_AFTER = 16 * 1024
"""Bytes that one connection may receive without waiting until the other tasks get their turn."""

YIELD_EVERY = 64 * 16
"""How many of these bytes every receive counts for at least."""

MAX_NOISE_PLAINTEXT = 65535 - 16


class ChannelError(PeerError):
    """A connection broke, or could not be made secure."""


class TcpChannel(trio.abc.AsyncResource):
    """A TCP connection. ``read`` and ``write`` are the shape that py-libp2p's handshakes expect.

    Bytes are moved without trio's socket methods: those yield to the scheduler at every call, which is half of what a
    small packet costs. Here a task yields when it has to wait, and after some bytes without waiting.
    """

    def __init__(self, stream: trio.SocketStream, *, initiator: bool) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._in_a_row = 0
        self.sending = False
        self.is_initiator = initiator

    async def read(self, n: int | None = None) -> bytes:
        """At most ``n`` bytes; none at the end. Raises ChannelError."""
        if not self._buffer:
            self._buffer += await self.receive()
        if n is None or n >= len(self._buffer):
            data = bytes(self._buffer)
            self._buffer.clear()
            return data
        data = bytes(self._buffer[:n])
        del self._buffer[:n]
        return data

    async def receive(self) -> bytes:
        """Whatever is there, buffered bytes first; none at the end. Raises ChannelError."""
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            return data
        if self._in_a_row >= YIELD_AFTER:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        try:
            while True:
                # looked up every time: a number that was closed meanwhile may be somebody else's
                descriptor = self._stream.socket.fileno()
                try:
                    data = os.read(descriptor, RECEIVE)
                except BlockingIOError:
                    self._in_a_row = 0
                    await trio.lowlevel.wait_readable(descriptor)
                else:
                    self._in_a_row += max(len(data), YIELD_EVERY)
                    return data
        except (trio.ClosedResourceError, OSError) as error:
            raise ChannelError(f"connection broke: {_cause(error)}") from error

    async def write(self, data: bytes) -> None:
        """Send everything; one task at a time. Raises ChannelError."""
        view = memoryview(data)
        self.sending = True
        try:
            while view:
                descriptor = self._stream.socket.fileno()
                try:
                    view = view[os.write(descriptor, view) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(descriptor)
        except (trio.ClosedResourceError, OSError) as error:
            raise ChannelError(f"connection broke: {_cause(error)}") from error
        finally:
            self.sending = False

    send = write

    def write_nowait(self, data: bytes) -> bytes:
        """Send what the socket takes at once and return the rest. Raises ChannelError."""
        try:
            return data[os.write(self._stream.socket.fileno(), data) :]
        except BlockingIOError:
            return data
        except OSError as error:
            raise ChannelError(f"connection broke: {_cause(error)}") from error

    async def aclose(self) -> None:
        """Close the socket."""
        with suppress(OSError):
            await self._stream.aclose()

    close = aclose

    def remote(self) -> tuple[str, int]:
        """Address and port of the peer. Raises ChannelError when the connection is already gone."""
        try:
            name = self._stream.socket.getpeername()
        except OSError as error:
            raise ChannelError(f"connection broke: {_cause(error)}") from error
        return str(name[0]), int(name[1])

    def get_remote_address(self) -> tuple[str, int] | None:
        """The same under py-libp2p's name."""
        try:
            return self.remote()
        except ChannelError:
            return None


def _certificate_template() -> x509.CertificateBuilder:
    """A certificate that is valid at any time: a box without a battery-backed clock boots in 1970 or in the future."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "libp2p")])
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .subject_name(name)
        .issuer_name(name)
        .not_valid_before(dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2170, 1, 1, tzinfo=dt.UTC))
    )


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause) or type(cause).__name__


class TlsChannel:
    """TLS over memory buffers: one task may receive while another sends.

    :meth:`send_nowait` is for whoever must not wait, while the channel is :attr:`idle`; what the socket does not take
    then goes with the next :meth:`send`, which may be of nothing.
    """

    def __init__(self, raw: TcpChannel, context: ssl.SSLContext, *, server: bool) -> None:
        self._raw = raw
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._send_lock = trio.Lock()
        self._unsent = b""

    async def handshake(self) -> bytes:
        """Do the handshake and return the peer's certificate (DER). Raises ChannelError."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError as error:
                await self._flush()
                raise ChannelError(f"TLS handshake failed: {error.reason or error}") from error
        await self._flush()
        if self._tls.version() != "TLSv1.3":
            raise ChannelError(f"peer speaks {self._tls.version()}")
        certificate = self._tls.getpeercert(binary_form=True)
        if not certificate:
            raise ChannelError("peer presented no certificate")
        return certificate

    async def receive(self) -> bytes:
        """Some decrypted bytes; none at the end."""
        while True:
            try:
                data = self._tls.read(RECEIVE)
                while self._tls.pending() or self._incoming.pending:  # many records are in one piece
                    try:
                        data += self._tls.read(RECEIVE)
                    except ssl.SSLWantReadError:
                        break
                return data
            except ssl.SSLWantReadError:
                if self._outgoing.pending:
                    await self._flush()
                data = await self._raw.receive()
                if not data:
                    return b""
                self._incoming.write(data)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                raise ChannelError(f"TLS failed: {error.reason or error}") from error

    @property
    def idle(self) -> bool:
        """Nobody is sending, and nothing is left of what was sent."""
        return not self._send_lock.locked() and not self._unsent

    async def send(self, data: bytes) -> None:
        """Encrypt and send everything."""
        self._encrypt(data)
        await self._flush()

    def send_nowait(self, data: bytes) -> bool:
        """Encrypt everything, send what the socket takes; False when something is left."""
        self._encrypt(data)
        self._unsent = self._raw.write_nowait(self._outgoing.read())
        return not self._unsent

    def _encrypt(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._tls.write(view) :]
        except ssl.SSLError as error:
            raise ChannelError(f"TLS failed: {error.reason or error}") from error

    async def aclose(self) -> None:
        """Close the socket; a TLS goodbye adds nothing to yamux's."""
        await self._raw.close()

    async def _fill(self) -> None:
        data = await self._raw.receive()
        if not data:
            raise ChannelError("closed during the TLS handshake")
        self._incoming.write(data)

    async def _flush(self) -> None:
        async with self._send_lock:  # records must reach the socket in the order in which they were made
            data, self._unsent = self._unsent + self._outgoing.read(), b""
            if data:
                await self._raw.write(data)


class NoiseChannel:
    """Noise transport messages: two length bytes, ciphertext."""

    def __init__(self, raw: TcpChannel, session: Any) -> None:
        self._raw = raw
        self._encrypt = session.conn.encrypt
        self._decrypt = session.conn.decrypt
        self._pending = bytearray()
        self._unsent = b""

    async def receive(self) -> bytes:
        """Everything that is complete; none at the end."""
        while True:
            if plain := self._cut():
                return plain
            data = await self._raw.receive()
            if not data:
                return b""
            self._pending += data

    def _cut(self) -> bytes:
        pending = self._pending
        position, found = 0, []
        while len(pending) - position >= 2:
            stop = position + 2 + (pending[position] << 8 | pending[position + 1])
            if stop > len(pending):
                break
            try:
                found.append(self._decrypt(bytes(pending[position + 2 : stop])))
            except Exception as error:  # the noise library raises what its cipher raises
                raise ChannelError(f"noise message does not open: {type(error).__name__}") from error
            position = stop
        if position:
            del pending[:position]
        return b"".join(found)

    @property
    def idle(self) -> bool:
        """As :attr:`TlsChannel.idle`."""
        return not self._raw.sending and not self._unsent

    async def send(self, data: bytes) -> None:
        """Encrypt and send everything in as few messages as possible."""
        unsent, self._unsent = self._unsent, b""
        await self._raw.write(unsent + self._seal(data))

    def send_nowait(self, data: bytes) -> bool:
        """As :meth:`TlsChannel.send_nowait`."""
        self._unsent = self._raw.write_nowait(self._seal(data))
        return not self._unsent

    def _seal(self, data: bytes) -> bytes:
        out = bytearray()
        for start in range(0, len(data), MAX_NOISE_PLAINTEXT):
            sealed = self._encrypt(data[start : start + MAX_NOISE_PLAINTEXT])
            out += len(sealed).to_bytes(2, "big") + sealed
        return bytes(out)

    async def aclose(self) -> None:
        """Close the socket."""
        await self._raw.close()


class Handshakes:
    """Our side of both handshakes, made once per identity."""

    def __init__(self, key_pair: Any) -> None:
        taken = parts.load()
        self._key_pair = key_pair
        self._peer_id = taken.ID.from_pubkey(key_pair.public_key)
        self._noise_key = taken.create_x25519().private_key
        tls = taken.TLSTransport(key_pair, identity_config=taken.TLSIdentity(cert_template=_certificate_template()))
        # py-libp2p makes a context per connection, through files with the key in them; two are enough.
        self._contexts = {server: tls.create_ssl_context(server_side=server) for server in (False, True)}

    async def secure(
        self, raw: TcpChannel, protocol: str, expected: PeerId | None
    ) -> tuple[PeerId, TlsChannel | NoiseChannel]:
        """Make ``raw`` secure with the agreed ``protocol``; returns who the peer is.

        Raises ChannelError, also when the peer is not the one that was ``expected``.
        """
        try:
            if protocol == TLS:
                peer, channel = await self._tls(raw)
            else:
                peer, channel = await self._noise(raw)
        except ChannelError:
            raise
        except Exception as error:  # py-libp2p raises ValueError, AssertionError, InvalidTag and many of its own
            raise ChannelError(f"{protocol} handshake failed: {type(error).__name__}: {str(error)[:80]}") from error
        if expected is not None and peer != expected:
            raise ChannelError(f"peer is {peer}, not {expected}")
        return peer, channel

    async def _tls(self, raw: TcpChannel) -> tuple[PeerId, TlsChannel | NoiseChannel]:
        taken = parts.load()
        channel = TlsChannel(raw, self._contexts[not raw.is_initiator], server=not raw.is_initiator)
        certificate = x509.load_der_x509_certificate(await channel.handshake())
        public_key = taken.verify_certificate_chain([certificate])
        return PeerId(taken.ID.from_pubkey(public_key).to_base58()), channel

    async def _noise(self, raw: TcpChannel) -> tuple[PeerId, TlsChannel | NoiseChannel]:
        pattern = parts.load().NoisePattern(self._peer_id, self._key_pair.private_key, self._noise_key)
        if raw.is_initiator:
            session = await pattern.handshake_outbound(raw, None)
        else:
            session = await pattern.handshake_inbound(raw)
        return PeerId(session.get_remote_peer().to_base58()), NoiseChannel(raw, session)
