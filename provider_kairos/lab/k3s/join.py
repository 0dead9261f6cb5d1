"""How a server joins the cluster of another one, with its refusals (k3s notes, section 6)."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from provider_kairos.lab.k3s import files, tokens
from provider_kairos.lab.k3s.client import Client, HttpError, RequestError, basic_header, context_for
from provider_kairos.lab.k3s.cluster import mismatches
from provider_kairos.lab.k3s.life import Fatal, Life, Shutdown
from provider_kairos.lab.k3s.store import Row, Store

__all__ = ["ServerUrl", "fetch_bootstrap", "join_members"]

log = logging.getLogger(__name__)

PREFIX = "Error: preparing server: failed to bootstrap cluster data: "
CHECKING = PREFIX + "failed to check if bootstrap data has been initialized: failed to validate token: "
PERSISTENCE = 7.0


class ServerUrl:
    """A ``--server`` value: where it points and what is wrong with it."""

    def __init__(self, text: str) -> None:
        self.text = text.rstrip("/")
        if "://" not in text and ":" in text.partition("/")[0]:
            raise Fatal(f'Error: parse "{text}": first path segment in URL cannot contain colon')
        try:
            parts = urlsplit(self.text)
            port = parts.port
        except ValueError as error:
            raise Fatal(f'Error: parse "{text}": {error}') from error
        self.scheme = parts.scheme
        host = parts.hostname or ""
        self.host = host
        self.target = f"[{host}]:{port or 443}" if ":" in host else f"{host}:{port or 443}"

    @property
    def https(self) -> bool:
        """Whether it can be used at all."""
        return self.scheme == "https" and bool(self.host)


def _authority(life: Life, url: ServerUrl) -> bytes:
    """``/cacerts``, asked for some seconds long."""
    client = Client(url.target, context_for(None), timeout=5.0)
    deadline = time.monotonic() + PERSISTENCE / life.speed
    while True:
        try:
            return client.get("/cacerts").body
        except (RequestError, HttpError) as error:
            if time.monotonic() > deadline:
                raise Fatal(f"{CHECKING}failed to get CA certs: {error}") from error
        life.sleep(1.0)


def fetch_bootstrap(
    life: Life, url: ServerUrl, token: tokens.JoinToken, agent_password: str, tls: Path, *, ours: dict[str, Any]
) -> None:
    """Get the authorities of the cluster at ``url`` into ``tls``, when token and settings agree.

    Raises:
        Fatal: wrong token, wrong authority, nobody there, no cluster of servers, or other critical settings.
    """
    if not url.https:
        raise Fatal(f"{CHECKING}only https:// URLs are supported, invalid scheme: {url.text}")
    ca = _authority(life, url)
    try:
        tokens.check_ca(token, ca)
    except tokens.CaMismatch as error:
        raise Fatal(f"{CHECKING}{error}") from error
    if not token.full:
        log.warning(
            "Cluster CA certificate is not trusted by the host CA bundle, but the token does not include a CA hash. "
            "Use the full token from the server's node-token file to enable Cluster CA validation."
        )
    context = context_for(ca)
    client = Client(url.target, context, basic_header("server", token.password))
    data = _get_ready(life, client, "/v1-k3s/server-bootstrap").json()
    node = Client(url.target, context, basic_header("node", agent_password))
    try:
        theirs = node.get("/v1-k3s/config").json()
    except (HttpError, RequestError) as error:
        # As k3s: without the agent token nothing is compared, and nobody says so.
        log.debug("Settings were not compared: %s", error)
    else:
        fields = mismatches(ours, theirs)
        for name in fields:
            log.warning("critical configuration mismatched: %s", name)
        if fields:
            raise Fatal(
                f"{PREFIX}failed to validate server configuration: "
                "critical configuration value mismatch between servers"
            )
    # Keys first: a certificate on disk means a usable pair.
    for name in sorted(data, key=lambda name: name.endswith(".crt")):
        if name == Path(name).name:
            files.write(tls / name, data[name], 0o644 if name.endswith(".crt") else 0o600)


def _get_ready(life: Life, client: Client, path: str) -> Any:
    while True:
        try:
            return client.get(path)
        except HttpError as error:
            if error.code in (401, 403):
                raise Fatal(f"{PREFIX}{error.detail}") from error
            if error.code != 503:
                raise Fatal(f"{PREFIX}{error}") from error
            log.info("Waiting for the cluster to be ready: %s", error.detail)
        except RequestError as error:
            raise Fatal(f"{PREFIX}{error}") from error
        life.sleep(2.0)


def join_members(life: Life, client: Client, store: Store, record: dict[str, str]) -> None:
    """Become a learner; waits as long as another one is learning.

    Raises:
        Shutdown: the node name is a member's already (k3s then ends with status 0).
        Fatal: the server went away.
    """
    body = json.dumps(record).encode()
    while True:
        try:
            reply = client.expect("POST", "/standin/members", body)
        except HttpError as error:
            if error.code == 409:
                raise Shutdown(f"etcd cluster join failed: {error.detail}") from error
            if error.code != 503:
                raise Fatal(f"{PREFIX}{error.detail or error}") from error
            log.info("Waiting for other members to finish joining etcd cluster: %s", error.detail)
        except RequestError as error:
            raise Fatal(f"{PREFIX}{error}") from error
        else:
            store.merge(Row.from_json(row) for row in reply.json()["rows"])
            return
        life.sleep(1.0)
