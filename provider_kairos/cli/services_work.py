"""What ``service``, ``file`` and ``egress`` do: a node of its own with one service of :mod:`provider_kairos.services`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import trio

from provider_kairos.cli import own_node
from provider_kairos.cli.output import print_json
from provider_kairos.daemon.daemon import Daemon
from provider_kairos.daemon.parts import NodeService, Parts
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.errors import ExitCode, TimeoutHostError, UsageError
from provider_kairos.services.connect import ServiceConnector
from provider_kairos.services.endpoints import Endpoint, parse_endpoint
from provider_kairos.services.expose import ServiceExposer
from provider_kairos.services.partfile import destination
from provider_kairos.services.proxy import EgressProxy
from provider_kairos.services.receive import FileReceiver, Received
from provider_kairos.services.records import check_name
from provider_kairos.services.send import FileSender

__all__ = ["egress", "file_receive", "file_send", "service_add", "service_connect"]

_Value = TypeVar("_Value")


def service_add(
    pairs: Sequence[str], name: str | None, address: str | None, for_edgevpn: str | None, config: str | None
) -> int:
    """Expose services until told to end."""
    wanted = _pairs("service", "ADDRESS", pairs, (name, address), _target)
    if for_edgevpn is not None and for_edgevpn not in wanted:
        raise UsageError(f"--edgevpn names {for_edgevpn!r}, which is none of the services")

    def make(parts: Parts) -> Sequence[NodeService]:
        return [ServiceExposer(parts.ledger, parts.mesh, parts.clock, wanted, for_edgevpn=for_edgevpn)]

    return own_node.run(None, services=make, config=config)


def service_connect(pairs: Sequence[str], name: str | None, address: str | None, config: str | None) -> int:
    """Listen for services until told to end."""
    wanted = _pairs("service", "ADDRESS", pairs, (name, address), parse_endpoint)

    def make(parts: Parts) -> Sequence[NodeService]:
        return [ServiceConnector(parts.ledger, parts.mesh, parts.clock, wanted)]

    return own_node.run(None, services=make, config=config)


def file_send(
    pairs: Sequence[str], name: str | None, path: str | None, for_edgevpn: str | None, config: str | None
) -> int:
    """Offer files until told to end."""
    wanted = _pairs("file", "PATH", pairs, (name, path), Path)
    if for_edgevpn is not None and for_edgevpn not in wanted:
        raise UsageError(f"--edgevpn names {for_edgevpn!r}, which is none of the files")

    def make(parts: Parts) -> Sequence[NodeService]:
        return [FileSender(parts.ledger, parts.mesh, parts.clock, wanted, for_edgevpn=for_edgevpn)]

    return own_node.run(None, services=make, config=config)


def file_receive(
    pairs: Sequence[str], names: tuple[str | None, str | None], wait: float, config: str | None, *, as_json: bool
) -> int:
    """Fetch one file. Raises TimeoutHostError, TruncatedError, HostError."""
    wanted = _pairs("file", "PATH", pairs, names, str)
    if len(wanted) > 1:
        raise UsageError("one file at a time is received")
    ((name, text),) = wanted.items()
    path = destination(text, name)
    receivers: list[FileReceiver] = []

    def make(parts: Parts) -> Sequence[NodeService]:
        receivers.append(FileReceiver(parts.ledger, parts.mesh, parts.clock, name, path))
        return receivers

    async def work(_daemon: Daemon) -> int:
        (receiver,) = receivers
        with trio.move_on_after(wait or math.inf):
            await receiver.done.wait()
        if receiver.failure is not None:
            raise receiver.failure
        if receiver.received is None:
            reasons = "; ".join(reason.text() for reason in receiver.waiting())
            raise TimeoutHostError(f"file {name!r} is not there after {wait:.0f} s: {reasons or 'it is on its way'}")
        _print_received(name, receiver.received, as_json=as_json)
        return ExitCode.OK

    return own_node.run(work, services=make, config=config)


def egress(listen: str, dead_interval: float, api_listen: str | None, config: str | None) -> int:
    """Run the proxy until told to end. Raises UsageError, HostError."""
    endpoint = parse_endpoint(listen, what="listen address")
    if api_listen is not None and not api_listen.startswith("unix://"):
        there = parse_endpoint(api_listen.removeprefix("http://"), what="API address")
        if there.port == endpoint.port and (there.host == endpoint.host or not there.host or not endpoint.host):
            raise UsageError(
                f"the proxy and the API cannot both listen on {endpoint}", hint="name another --api-listen"
            )

    def make(parts: Parts) -> Sequence[NodeService]:
        return [EgressProxy(parts.ledger, parts.mesh, parts.clock, parts.rng, endpoint, dead_interval=dead_interval)]

    def adapt(settings: DaemonSettings) -> DaemonSettings:
        told = tuple((name, why) for name, why in settings.not_acted_on if not name.startswith("PROXY"))
        return replace(settings, not_acted_on=told, api_listen=api_listen or settings.api_listen)

    return own_node.run(None, services=make, config=config, api=api_listen is not None, adapt=adapt)


def _print_received(name: str, received: Received, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "schema": 1,
                "name": name,
                "path": str(received.path),
                "size": received.size,
                "sha256": received.sha256,
                "peer_id": received.peer,
                "verified": received.verified,
                "resumed_at": received.resumed_at,
            }
        )
        return
    print(f"{received.path}: {received.size} bytes, SHA-256 {received.sha256}")
    if received.verified:
        print("complete: length and SHA-256 are the sender's")
    else:
        print("not verified: the sender is an EdgeVPN node, which tells neither length nor checksum")


def _target(text: str) -> Endpoint:
    endpoint = parse_endpoint(text)
    if not endpoint.port:
        raise UsageError(f"the address {text!r} has port 0: name the port of the service")
    return endpoint


def _pairs(
    kind: str, what: str, words: Sequence[str], flags: tuple[str | None, str | None], parse: Callable[[str], _Value]
) -> dict[str, _Value]:
    """Names to values, from ``NAME VALUE NAME VALUE ...`` or EdgeVPN's two flags, or one of each.

    Raises UsageError and what ``parse`` raises.
    """
    words = list(words)
    name, value = flags
    if name is not None:
        words.insert(0, name)
    if value is not None:
        words.insert(1, value)
    if not words or len(words) % 2:
        raise UsageError(f"a {kind} needs NAME and {what}", hint=f"NAME {what}, as often as there are {kind}s")
    pairs = list(zip(words[::2], words[1::2], strict=True))
    names = [check_name(kind, each) for each, _ in pairs]
    if len(set(names)) < len(names):
        raise UsageError(f"a name stands for two {kind}s")
    return {each: parse(text) for each, text in pairs}
