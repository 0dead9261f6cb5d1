"""Connections: listen, dial, make secure, agree on yamux, and know who is connected (spec/edgevpn.md 7).

Every step of a connection has a time limit of its own and every failure is a :class:`DialError` or a line in the log:
what a peer sends while connecting never reaches anybody else. Of several connections to one peer, both sides prefer
the one that the smaller peer ID dialled; the other is closed once no stream is left on it. Whom to dial and when is
decided by :mod:`provider_kairos.mesh.dialer`, what runs on streams by :mod:`provider_kairos.mesh.host`.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import trio

from provider_kairos.ids import PeerId
from provider_kairos.mesh.addresses import Endpoint, Networks
from provider_kairos.mesh.channels import NOISE, TLS, ChannelError, Handshakes, TcpChannel
from provider_kairos.mesh.connection_limits import Candidate, ConnectionLimits, Standing, to_make_room, to_trim
from provider_kairos.mesh.multistream import NegotiationError, respond, select
from provider_kairos.mesh.muxer import PROBE_TIMEOUT, ByteChannel, Muxer
from provider_kairos.mesh.muxer import PROTOCOL as YAMUX
from provider_kairos.mesh.muxer_stream import PacketHandler, Stream, StreamEndedError
from provider_kairos.mesh.sockets import DialError, bare, bind, connect, multiaddr_of

__all__ = ["Connection", "DialError", "Swarm"]

log = logging.getLogger(__name__)

UPGRADE_TIMEOUT = 15.0
"""Seconds for security and muxer together; a slow box under load needs some."""

MAX_UPGRADING = 64
MAX_UPGRADING_PER_ADDRESS = 16
"""Inbound connections that are not yet secure."""

TRIM_EVERY = 10.0
"""Seconds between two looks at whether there are too many connections."""

DUPLICATE_GRACE = 5.0
"""Seconds until a connection that is not preferred is closed, if no stream is left on it."""


class Connection:
    """One live connection."""

    __slots__ = ("address", "born", "muxer", "outbound", "peer", "security")

    def __init__(self, muxer: Muxer, address: str, security: str, *, outbound: bool) -> None:
        self.muxer = muxer
        self.peer = muxer.peer
        self.address = address
        self.security = security
        self.outbound = outbound
        self.born = trio.current_time()

    @property
    def host(self) -> str:
        """The address without port; a name where one was dialled."""
        return self.address.split("/")[2]


class _PlainReader:
    """Reads lines off a secure channel and keeps what comes after them for the muxer."""

    def __init__(self, channel: ByteChannel) -> None:
        self._channel = channel
        self._buffer = b""

    async def read(self, count: int) -> bytes:
        if not self._buffer:
            self._buffer = await self._channel.receive()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    async def receive(self) -> bytes:
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        return await self._channel.receive()

    @property
    def idle(self) -> bool:
        return self._channel.idle

    async def send(self, data: bytes) -> None:
        await self._channel.send(data)

    def send_nowait(self, data: bytes) -> bool:
        return self._channel.send_nowait(data)

    async def aclose(self) -> None:
        await self._channel.aclose()


class Swarm:
    """All connections of one host."""

    def __init__(
        self,
        peer_id: PeerId,
        handshakes: Handshakes,
        blocked: Networks,
        *,
        serves: Callable[[str], bool],
        on_stream: Callable[[Stream], None],
        packet_handlers: Mapping[str, PacketHandler],
        on_connected: Callable[[Connection], None],
        on_disconnected: Callable[[Connection], None],
        on_forget: Callable[[Stream], None],
        security: Sequence[str] = (TLS, NOISE),
        connects: Callable[[PeerId], bool] = lambda _peer: True,
        limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - a frozen value
        standing: Callable[[PeerId], Standing] = lambda _peer: Standing.STRANGER,
        on_trimmed: Callable[[PeerId], None] = lambda _peer: None,
    ) -> None:
        """``standing`` says who is spared when there are too many; ``on_trimmed`` hears whom we sent away."""
        self.peer_id = peer_id
        self.bound: list[tuple[str, int]] = []
        self.counters: dict[str, int] = {}
        self._handshakes = handshakes
        self._blocked = blocked
        self._serves = serves
        self._on_stream = on_stream
        self._packet_handlers = packet_handlers
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._on_forget = on_forget
        self._security = tuple(security)
        self._connects = connects
        self._limits = limits
        self._exempt = Networks(limits.exempt)
        self._standing = standing
        self._on_trimmed = on_trimmed
        self._connections: dict[PeerId, list[Connection]] = {}
        self._upgrading: Counter[str] = Counter()
        self._nursery: trio.Nursery | None = None

    # --- who is there -----------------------------------------------------------------------------------------------

    def connections(self, peer: PeerId) -> list[Connection]:
        """Live connections to a peer, the preferred one first."""
        return sorted(self._connections.get(peer, ()), key=self._rank)

    def peers(self) -> list[PeerId]:
        """Connected peers."""
        return list(self._connections)

    def streams(self) -> Iterator[Stream]:
        """Every open stream."""
        for connection in self._all():
            yield from connection.muxer.streams.values()

    def preferred(self, peer: PeerId) -> Connection | None:
        """The connection for new streams."""
        for connection in self.connections(peer):
            if connection.muxer.alive:
                return connection
        return None

    def _rank(self, connection: Connection) -> tuple[bool, bool, float]:
        smaller_is_us = self.peer_id < connection.peer
        return connection.muxer.suspect, connection.outbound != smaller_is_us, -connection.born

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        """A stream on which one of ``protocols`` is agreed. Raises StreamEndedError or NegotiationError."""
        connection = self.preferred(peer)
        if connection is None:
            raise StreamEndedError(f"{peer} is not connected")
        stream = connection.muxer.open_stream()
        try:
            stream.protocol = await select(protocols, stream.read, stream.write)
        except BaseException:
            stream.reset()
            raise
        return stream

    # --- listening --------------------------------------------------------------------------------------------------

    async def serve(self, listen: Sequence[tuple[str, int]], task_status: trio.TaskStatus[None]) -> None:
        """Listen and hold all connections until cancelled. Raises HostError when no address can be bound."""
        listeners = bind(listen)
        self.bound = [listener.socket.getsockname()[:2] for listener in listeners]
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            for listener in listeners:
                nursery.start_soon(self._accept, listener)
            nursery.start_soon(self._close_duplicates)
            nursery.start_soon(self._trim)

    async def _accept(self, listener: trio.SocketListener) -> None:
        assert self._nursery is not None
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}:
                        raise
                    self._count("accept_out_of_files")
                    await trio.sleep(0.2)
                    continue
                if self._upgrading.total() >= MAX_UPGRADING:
                    self._count("inbound_over_limit")
                    await trio.aclose_forcefully(stream)
                    continue
                self._nursery.start_soon(self._inbound, TcpChannel(stream, initiator=False))

    async def _inbound(self, raw: TcpChannel) -> None:
        try:
            host, port = raw.remote()
        except ChannelError:
            await raw.close()
            return
        if host in self._blocked or self._upgrading[host] >= MAX_UPGRADING_PER_ADDRESS:
            self._count("inbound_refused")
            await raw.close()
            return
        if self._is_crowded(host):
            self._count("inbound_over_address_limit")
            await raw.close()
            return
        self._upgrading[host] += 1
        try:
            muxer, security = await self._upgrade(raw, None)
            if muxer.peer == self.peer_id:
                raise DialError("peer is ourselves")
            if len(self._connections.get(muxer.peer, ())) >= self._limits.most_per_peer:
                self._count("inbound_over_peer_limit")
                raise DialError(f"peer {muxer.peer} has {self._limits.most_per_peer} connections already")
            if not self._has_room(host):
                self._count("inbound_over_limit")
                raise DialError(f"all {self._limits.most} connections are in use")
        except (ChannelError, NegotiationError, DialError) as error:
            self._count("inbound_failed")
            log.debug("inbound connection failed: %s", error)
            await raw.close()
            return
        except BaseException:
            await trio.aclose_forcefully(raw)
            raise
        finally:
            self._upgrading[host] -= 1
            if not self._upgrading[host]:
                del self._upgrading[host]
        await self._hold(Connection(muxer, multiaddr_of(host, port), security, outbound=False))

    # --- dialling ---------------------------------------------------------------------------------------------------

    async def dial(self, endpoint: Endpoint, expected: PeerId | None) -> Connection:
        """Connect one address. ``expected`` is who must answer, None where any peer will do.

        Raises DialError.
        """
        if endpoint.host in self._blocked:
            raise DialError(f"{endpoint} lies in a blocked network")
        if expected is not None and not self._connects(expected):
            raise DialError(f"peer {expected} is on the block list")
        if self._nursery is None:
            raise DialError("not started")
        if not self._has_room(endpoint.host):
            self._count("dial_over_limit")
            raise DialError(f"{endpoint}: all {self._limits.most} connections are in use")
        raw = await connect(endpoint, self._blocked)
        try:
            muxer, security = await self._upgrade(raw, expected)
            if muxer.peer == self.peer_id:
                raise DialError(f"{endpoint} is ourselves")
        except (ChannelError, NegotiationError) as error:
            await raw.close()
            raise DialError(f"{endpoint}: {error}") from error
        except BaseException:
            await trio.aclose_forcefully(raw)
            raise
        connection = Connection(muxer, str(endpoint), security, outbound=True)
        self._nursery.start_soon(self._hold, connection)
        self._register(connection)
        return connection

    async def _upgrade(self, raw: TcpChannel, expected: PeerId | None) -> tuple[Muxer, str]:
        try:
            with trio.fail_after(UPGRADE_TIMEOUT):
                if raw.is_initiator:
                    security = await select(self._security, raw.read, raw.write)
                else:
                    security = await respond(self._security.__contains__, raw.read, raw.write)
                peer, channel = await self._handshakes.secure(raw, security, expected)
                if not self._connects(peer):
                    self._count("blocked_peer")
                    raise DialError(f"peer {peer} is on the block list")
                reader = _PlainReader(channel)
                if raw.is_initiator:
                    await select((YAMUX,), reader.read, reader.send)
                else:
                    await respond(YAMUX.__eq__, reader.read, reader.send)
        except trio.TooSlowError:
            raise DialError(f"not secure within {UPGRADE_TIMEOUT:.0f} s") from None
        muxer = Muxer(
            reader,
            peer,
            initiator=raw.is_initiator,
            serves=self._serves,
            on_stream=self._on_stream,
            packet_handlers=self._packet_handlers,
            on_forget=self._on_forget,
        )
        return muxer, security

    # --- holding ----------------------------------------------------------------------------------------------------

    def _register(self, connection: Connection) -> None:
        entries = self._connections.setdefault(connection.peer, [])
        if connection not in entries:
            for older in entries:
                older.muxer.ping(PROBE_TIMEOUT)  # a peer that lost power connects anew while we believe in the old link
            entries.append(connection)
            self._on_connected(connection)

    async def _hold(self, connection: Connection) -> None:
        self._register(connection)
        try:
            await connection.muxer.run()
        except Exception:  # a bug of ours that one peer's frames bring out must not cost the others
            self._count("connection_crashed")
            log.exception("connection to %s ends because of an error of ours", connection.peer)
        finally:
            entries = self._connections[connection.peer]
            entries.remove(connection)
            if not entries:
                del self._connections[connection.peer]
            self._on_disconnected(connection)

    async def _close_duplicates(self) -> None:
        while True:
            await trio.sleep(DUPLICATE_GRACE)
            now = trio.current_time()
            for peer, entries in list(self._connections.items()):
                if len(entries) < 2:
                    continue
                best = self.preferred(peer)
                for connection in list(entries):
                    old = (
                        now - connection.born > DUPLICATE_GRACE
                        and best is not None
                        and now - best.born > DUPLICATE_GRACE
                    )
                    if connection is not best and old and connection.muxer.idle:
                        connection.muxer.close()

    # --- limits -----------------------------------------------------------------------------------------------------

    def _candidates(self) -> list[Candidate[Connection]]:
        now = trio.current_time()
        return [
            Candidate(
                each,
                self._standing(each.peer),
                each.host,
                now - each.born,
                each.outbound,
                each.muxer.idle,
                each.host in self._exempt,
            )
            for each in self._all()
            if each.muxer.alive
        ]

    def _is_crowded(self, host: str) -> bool:
        """Whether an address has so many inbound connections of strangers that it gets no further one."""
        address = bare(host)
        strangers = sum(each.host == address and not each.outbound and not each.spared for each in self._candidates())
        return address not in self._exempt and strangers + self._upgrading[host] >= self._limits.most_per_address

    def _has_room(self, host: str) -> bool:
        """Whether one more connection may be held; a stranger's makes room for it when every place is taken."""
        if bare(host) in self._exempt:
            return True
        candidates = self._candidates()
        if len(candidates) < self._limits.most:
            return True
        spare = to_make_room(candidates)
        if spare is None:
            return False
        self._send_away(spare, "connections_replaced")
        return True

    async def _trim(self) -> None:
        while True:
            await trio.sleep(TRIM_EVERY)
            for connection in to_trim(self._candidates(), self._limits):
                self._send_away(connection, "connections_trimmed")

    def _send_away(self, connection: Connection, reason: str) -> None:
        self._count(reason)
        log.debug("connection to %s at %s is closed: there are too many", connection.peer, connection.address)
        connection.muxer.close()
        if not any(each.muxer.alive for each in self._connections.get(connection.peer, ())):
            self._on_trimmed(connection.peer)

    def _all(self) -> list[Connection]:
        return [connection for entries in self._connections.values() for connection in entries]

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1
