"""dns serve, add, list, remove: a node with a name server, and records through the daemon's API.

Specification: spec/edgevpn.md 10, 11.2 (``/api/dns``), 12.1. Works with either kind of daemon. EdgeVPN's API takes
anything and says nothing of what became of it; here values and patterns are tried before they are written, and what
was written is looked up afterwards, because a record of another node cannot be replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import trio

from provider_kairos.api.address import default_addresses
from provider_kairos.api.client import DaemonClient
from provider_kairos.api.dnstypes import NUMBERS
from provider_kairos.api.model import DnsEntry
from provider_kairos.cli.output import print_json, print_table
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.settings_dns import DnsSettings
from provider_kairos.dns.pattern import Pattern, compile_pattern
from provider_kairos.dns.pattern_syntax import PatternError
from provider_kairos.dns.records import RecordSet
from provider_kairos.errors import HostError, NotFoundError, UsageError

__all__ = ["add", "key_of", "remove", "serve", "show"]

T = TypeVar("T")

DEFAULT_LISTEN = "127.0.0.1:53"

PATIENCE = 5.0
"""Seconds for the daemon to show what it was told; ours does at once."""

_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")


# -- serve


def serve(
    listen: str | None, servers: Sequence[str], config: str | None, *, forward: bool | None, cache_size: int | None
) -> int:
    """Run a node with a name server until told to end. Raises ConfigError, HostError."""
    from provider_kairos.cli import own_node  # noqa: PLC0415 - the other commands need no node
    from provider_kairos.daemon.dns_service import DnsService  # noqa: PLC0415 - likewise

    def adapt(settings: DaemonSettings) -> DaemonSettings:
        given = settings.dns
        asked = tuple(each for text in servers for part in text.split(",") if (each := part.strip()))
        wanted = DnsSettings(
            listen=listen or given.listen or DEFAULT_LISTEN,
            forward=given.forward if forward is None else forward,
            forward_servers=asked or given.forward_servers,
            cache_size=given.cache_size if cache_size is None else cache_size,
        )
        own_node.say(f"names of the mesh are answered at {wanted.endpoint()}")
        return replace(settings, dns=wanted)

    return own_node.run(None, services=lambda parts: [DnsService.of(parts)], config=config, adapt=adapt)


# -- records


def key_of(name: str, *, pattern: bool) -> str:
    """The pattern under which a name's records stand in the ledger. Raises UsageError."""
    if pattern:
        compiled(name)
        return name
    if not _HOST.fullmatch(name):
        raise UsageError(f"{name!r} is no host name", hint="--regex takes a regular expression")
    escaped = name.lower().removesuffix(".").replace(".", r"\.")
    return rf"(?i)^{escaped}\.$"  # EdgeVPN minds the case unless it is told not to


def compiled(text: str) -> Pattern:
    """The pattern. Raises UsageError."""
    try:
        return compile_pattern(text)
    except PatternError as error:
        raise UsageError(f"{text!r} is no regular expression: {error}") from None


def add(api: str | None, name: str, values: Sequence[str], *, pattern: bool) -> None:
    """Write one record set. Raises UsageError, and HostError when the daemon did not take it."""
    key = key_of(name, pattern=pattern)
    records = dict(_value(each) for each in values)

    async def write(daemon: DaemonClient) -> None:
        await daemon.post_dns(key, records)
        with trio.move_on_after(PATIENCE):
            while _records(await daemon.dns()).get(key) != records:  # noqa: ASYNC110 - EdgeVPN tells nobody
                await trio.sleep(0.1)
            return
        raise HostError(
            f"the records of {key} were not written", hint="they belong to another node, which alone can replace them"
        )

    _with(api, write)


def _value(text: str) -> tuple[str, str]:
    from provider_kairos.dns.answer import readable  # noqa: PLC0415 - brings the DNS library

    kind, equals, value = text.partition("=")
    kind = kind.upper()
    if not equals or not value:
        raise UsageError(f"{text!r} is not TYPE=VALUE", hint="for example A=10.1.0.9")
    number = NUMBERS.get(kind, 0)
    if not number:
        raise UsageError(f"there is no record type {kind}", hint="A, AAAA, CNAME, TXT, MX, SRV, ...")
    if "\n" in value or not readable(number, value):
        raise UsageError(f"{value!r} is no value of type {kind}", hint="as in a zone file")
    return kind, value


def show(api: str | None, *, as_json: bool) -> None:
    """Print the records in the order in which they are tried; patterns that match nothing come last."""
    entries = _with(api, lambda daemon: daemon.dns())
    ordered = sorted(entries, key=_rank)
    if as_json:
        print_json({"schema": 1, "records": [{"regex": each["Regex"], "records": each["Records"]} for each in ordered]})
        return
    rows = [
        (each["Regex"], kind, " ".join(value.split("\n")))
        for each in ordered
        for kind, value in each["Records"].items()
    ]
    print_table(("Pattern", "Type", "Value"), rows)


def _rank(entry: DnsEntry) -> tuple[Any, ...]:
    try:
        return (False, *RecordSet(compile_pattern(entry["Regex"]), {}).rank)
    except PatternError:
        return (True, 0, False, 0, entry["Regex"])


def remove(api: str | None, name: str, *, pattern: bool) -> None:
    """Delete one record set. Raises NotFoundError, and HostError when it stays."""
    key = name if pattern else key_of(name, pattern=False)
    if not key or "/" in key:
        raise UsageError(f"the pattern {key!r} cannot be named in a path", hint="it goes when its node is gone")

    async def erase(daemon: DaemonClient) -> None:
        if key not in _records(await daemon.dns()):
            raise NotFoundError(f"there are no records of {key}", hint="kairos-p2p dns list; --regex for a pattern")
        await daemon.delete("dns", key)
        with trio.move_on_after(PATIENCE):
            while key in _records(await daemon.dns()):  # noqa: ASYNC110 - likewise
                await trio.sleep(0.1)
            return
        raise HostError(
            f"the records of {key} are still there", hint="they belong to another node, which alone can remove them"
        )

    _with(api, erase)


def _records(entries: Sequence[DnsEntry]) -> dict[str, dict[str, str]]:
    return {entry["Regex"]: entry["Records"] for entry in entries}


def _with(api: str | None, work: Callable[[DaemonClient], Awaitable[T]]) -> T:
    async def main() -> T:
        async with DaemonClient(default_addresses(api, os.environ)) as daemon:
            return await work(daemon)

    return trio.run(main)
