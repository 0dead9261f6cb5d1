"""role list, role set, get-kubeconfig: what is read from and written to the cluster's bucket.

Specification: spec/provider.md 4.3 (keys), 7.2 (commands), 13 (what the reference gets wrong: an empty kubeconfig
with exit code 0, every ``127.0.0.1`` of the file replaced, roles and UUIDs unchecked).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import sys
from typing import Any

import trio

from provider_kairos.api.address import default_addresses
from provider_kairos.api.client import DaemonClient
from provider_kairos.cli.output import print_json, print_table
from provider_kairos.clock import SystemClock
from provider_kairos.errors import ConfigError, NotFoundError, TimeoutHostError, UnreachableError
from provider_kairos.roles import model

__all__ = ["client", "get_kubeconfig", "kubeconfig_text", "role_list", "role_set"]

_SERVER = re.compile(r"(?m)^(\s*(?:-\s+)?server:\s*[\"']?https?://)(?:127\.0\.0\.1|localhost|\[::1\])(?=[:/\"'\s]|$)")
_KIND_CONFIG = re.compile(r"(?m)^kind:\s*[\"']?Config[\"']?\s*$")


def client(api: str | None) -> DaemonClient:
    """A client of the daemon that the user means."""
    return DaemonClient(default_addresses(api, os.environ))


# -- roles


def role_list(api: str | None, network_id: str, *, as_json: bool) -> None:
    """Print the advertising nodes."""

    async def read() -> dict[str, Any]:
        async with client(api) as daemon:
            return await daemon.bucket(network_id)

    view = model.view_of(trio.run(read))
    nodes = [view.nodes[uuid] for uuid in view.advertising(SystemClock().now())]
    rows = [(node.uuid, str(view.values.get(model.role_key(node.uuid), "")), node.ip) for node in nodes]
    if as_json:
        print_json(
            {
                "schema": 1,
                "network_id": network_id,
                "leader": view.leader or None,
                "nodes": [{"uuid": uuid, "role": role or None, "ip": ip or None} for uuid, role, ip in rows],
            }
        )
        return
    print_table(("Node", "Role", "IP"), rows, (47, 30, 15))


def role_set(api: str | None, network_id: str, uuid: str, role: str) -> None:
    """Write a role for a node, after a look at both."""
    words = [word.strip() for word in role.split(",")]
    known = [str(word) for word in model.Role]
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(f"{unknown[0]!r} is no role", hint=f"one of {', '.join(known)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", uuid):
        raise ConfigError(f"{uuid!r} is no node UUID", hint="it reads <machine-id>-<hostname>; see `role list`")

    async def write() -> bool:
        async with client(api) as daemon:
            there = model.uuid_key(uuid) in await daemon.bucket_texts(network_id)
            await daemon.put(network_id, model.role_key(uuid), ",".join(words))
            return there

    if not trio.run(write):
        print(f"note: no node {uuid} has advertised itself yet; it takes the role when it joins", file=sys.stderr)


# -- kubeconfig


def kubeconfig_text(values: dict[str, Any]) -> str:
    """The kubeconfig of a cluster from its decoded bucket, its server address made reachable.

    Raises NotFoundError naming what is missing.
    """
    stored, address = values.get(model.KUBECONFIG), values.get(model.IP_MASTER)
    if not isinstance(stored, str) or not stored:
        raise NotFoundError(
            "there is no kubeconfig yet: no first master has published one", hint="wait for it with --wait"
        )
    try:
        padded = stored.translate({10: None, 13: None, 61: None}).encode("ascii")
        raw = base64.b64decode(padded + b"=" * (-len(padded) % 4), altchars=b"-_", validate=True).decode("utf-8")
    except (binascii.Error, UnicodeError, ValueError):
        raise NotFoundError(
            "the kubeconfig in the ledger is broken", hint="the first master publishes it again when it restarts"
        ) from None
    if not _KIND_CONFIG.search(raw):
        raise NotFoundError(
            "the ledger holds something else in the place of the kubeconfig (a k0s cluster configuration?)",
            hint="on a k0s controller: k0s kubeconfig admin",
        )
    if not isinstance(address, str) or not address:
        raise NotFoundError("the first master has not published its address yet", hint="wait for it with --wait")
    host = f"[{address}]" if ":" in address and not address.startswith("[") else address
    return _SERVER.sub(lambda found: found.group(1) + host, raw)


def get_kubeconfig(api: str | None, network_id: str, wait: float) -> None:
    """Print the kubeconfig, or wait for it up to ``wait`` seconds."""

    async def read() -> str:
        async with client(api) as daemon:
            if wait <= 0:
                return kubeconfig_text(await daemon.bucket(network_id))
            return await _wait_for_kubeconfig(daemon, network_id, wait)

    text = trio.run(read)
    print(text, end="" if text.endswith("\n") else "\n")


async def _wait_for_kubeconfig(daemon: DaemonClient, network_id: str, wait: float) -> str:
    why = "nothing has been read"
    with trio.move_on_after(wait):
        while True:
            try:
                async with daemon.follow([network_id]) as states:
                    async for result in states:
                        try:
                            return kubeconfig_text(result.values(network_id))
                        except NotFoundError as error:
                            if error.message != why:
                                why = error.message
                                print(f"waiting: {why}", file=sys.stderr)
            except (UnreachableError, TimeoutHostError) as error:
                why = error.message
                await trio.sleep(1)
    raise TimeoutHostError(f"no kubeconfig within {wait:g} s: {why}", hint="see `kairos-p2p status`")
