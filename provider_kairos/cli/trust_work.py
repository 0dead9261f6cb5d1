"""peergater ecdsa-genkey; trust list, add-key, remove-key, gate (spec/edgevpn.md 11.2, 13).

Works with either kind of daemon. A private key that is given where a public one belongs is refused before it leaves
this process: the ledger is read by every member.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from provider_kairos.api.address import default_addresses
from provider_kairos.api.client import DaemonClient
from provider_kairos.cli.files import read_bytes
from provider_kairos.cli.output import print_json, print_table
from provider_kairos.errors import ConfigError, NotFoundError, UsageError
from provider_kairos.trustzone import keys
from provider_kairos.trustzone.model import AUTH_BUCKET, NOTES_BUCKET, ZONE_BUCKET, read_keys, read_notes

__all__ = ["add_key", "gate", "generate", "remove_key", "show"]

T = TypeVar("T")


def generate(*, privkey: bool, pubkey: bool) -> None:
    """Print a fresh pair as EdgeVPN does: both with a word before, one alone without a line end."""
    pair = keys.generate()
    if privkey:
        print(pair.private, end="")
    elif pubkey:
        print(pair.public, end="")
    else:
        print(f"Private key: {pair.private}\nPublic key: {pair.public}")


def show(api: str | None, *, as_json: bool) -> None:
    """Print what the ledger says of the zone."""

    async def read(daemon: DaemonClient) -> tuple[Any, ...]:
        buckets = [await daemon.bucket_texts(name) for name in (AUTH_BUCKET, ZONE_BUCKET, NOTES_BUCKET)]
        online = {each["ID"] for each in await daemon.nodes() if each.get("Online")}
        return (*buckets, online | {(await daemon.summary())["NodeID"]}, await daemon.peer_gate())

    auth, zone, notes, online, gated = _with(api, read)
    prints = {name: _print_of(text) for name, text in read_keys(auth).items()}
    admitted = read_notes(notes)
    peers = [(peer, peer in online, admitted.get(peer, "")) for peer in sorted(zone)]
    if as_json:
        print_json(
            {
                "schema": 1,
                "gate": gated,
                "keys": [{"name": name, "fingerprint": key or None} for name, key in prints.items()],
                "peers": [{"peer_id": peer, "online": up, "key": key or None} for peer, up, key in peers],
            }
        )
        return
    print("gate    " + {None: "none: this node does not guard", True: "on", False: "off: everybody is heard"}[gated])
    print()
    print_table(("Key", "Fingerprint"), [(name, key or "cannot be read") for name, key in prints.items()])
    print()
    print_table(("Peer", "Online", "Let in by"), [(peer, "yes" if up else "no", key or "-") for peer, up, key in peers])


def add_key(api: str | None, file: str | None, name: str | None) -> None:
    """Write a public key into the ledger."""
    data, shown = read_bytes(file)
    text = data.decode("ascii", "replace").strip()
    for line in text.splitlines():  # what `ecdsa-genkey` printed: both halves, of which one is for all
        if line.startswith("Public key: "):
            text = line.removeprefix("Public key: ").strip()
    try:
        key = keys.load_public(text)
    except keys.KeyTextError as error:
        raise ConfigError(error.message, path=shown, hint="kairos-p2p peergater ecdsa-genkey prints one") from None
    print_of = keys.fingerprint(key)
    name = name or f"ecdsa_{print_of}"
    if "ecdsa" not in name or "/" in name:
        raise UsageError(f"no key may be called {name!r}", hint="a name has `ecdsa` in it and no slash")

    async def write(daemon: DaemonClient) -> None:
        await daemon.put_text(AUTH_BUCKET, name, text)

    _with(api, write)
    print(f"{name} is trusted: {print_of}")


def remove_key(api: str | None, name: str) -> None:
    """Delete a key from the ledger."""

    async def write(daemon: DaemonClient) -> list[str]:
        found = read_keys(await daemon.bucket_texts(AUTH_BUCKET))
        names = [each for each, text in found.items() if name in {each, _print_of(text)}]
        for each in names:
            await daemon.delete(AUTH_BUCKET, each)
        return names

    names = _with(api, write)
    if not names:
        raise NotFoundError(f"the ledger has no trusted key {name}", hint="kairos-p2p trust list")
    print("\n".join(f"{each} is trusted no longer" for each in names))


def gate(api: str | None, state: str | None) -> None:
    """Print or switch the gate of this node."""
    if state not in {None, "on", "off"}:
        raise UsageError(f"the gate is switched on or off, not {state!r}")

    async def switch(daemon: DaemonClient) -> bool | None:
        return await daemon.peer_gate(None if state is None else state == "on")

    on = _with(api, switch)
    if on is None:
        raise NotFoundError("this node has no gate", hint="it has one with PEERGUARD=true")
    print("on" if on else "off")


def _with(api: str | None, work: Callable[[DaemonClient], Awaitable[T]]) -> T:
    async def run() -> T:
        async with DaemonClient(default_addresses(api, os.environ)) as daemon:
            return await work(daemon)

    return trio.run(run)


def _print_of(text: str) -> str:
    """The fingerprint of a public key text; empty when it is none."""
    try:
        return keys.fingerprint(keys.load_public(text))
    except keys.KeyTextError:
        return ""
