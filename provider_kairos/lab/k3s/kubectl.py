"""``kubectl get nodes`` and ``kubectl delete node`` against the stand-in's API, with a kubeconfig.

Prints what the real one prints; everything else it refuses by name, for this is no kubectl.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from provider_kairos.errors import ProviderError
from provider_kairos.lab.k3s import KUBELET_VERSION, MARK
from provider_kairos.lab.k3s.client import Client, HttpError, Reply, RequestError, context_for

__all__ = ["main"]

COLUMNS = ("NAME", "STATUS", "ROLES", "AGE", "VERSION")
WIDE = (*COLUMNS, "INTERNAL-IP", "EXTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME")
VALUE_FLAGS = frozenset(
    {"-o", "--output", "--kubeconfig", "--raw", "--request-timeout", "-n", "--namespace", "--context"}
)
RESOURCES = frozenset({"node", "nodes", "no"})
ROLE = "node-role.kubernetes.io/"


class KubectlError(ProviderError):
    """Ends kubectl with status 1 and the message on stderr."""


def _read(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    words: list[str] = []
    flags: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        element = rest.pop(0)
        if not element.startswith("-"):
            words.append(element)
            continue
        name, equals, value = element.partition("=")
        if not equals and name.startswith("-o") and len(name) > 2 and not name.startswith("--"):
            name, equals, value = "-o", "=", name[2:]
        if not equals and name in VALUE_FLAGS:
            if not rest:
                raise KubectlError(f"error: flag needs an argument: {name}")
            value = rest.pop(0)
        flags[{"--output": "-o"}.get(name, name)] = value
    return words, flags


def _client(flags: Mapping[str, str], environment: Mapping[str, str]) -> Client:
    etc = Path(environment.get("K3S_STANDIN_ETC") or "/etc/rancher")
    given = flags.get("--kubeconfig") or environment.get("KUBECONFIG", "").partition(":")[0]
    path = Path(given) if given else etc / "k3s" / "k3s.yaml"
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise KubectlError(f"error: open {path}: {(error.strerror or str(error)).lower()}") from error
    import yaml  # noqa: PLC0415 - kubeconfigs only

    try:
        document = yaml.safe_load(text)
        cluster = document["clusters"][0]["cluster"]
        user = document["users"][0]["user"]
        ca = base64.b64decode(cluster["certificate-authority-data"])
        certificate = base64.b64decode(user["client-certificate-data"])
        key = base64.b64decode(user["client-key-data"])
        parts = urlsplit(cluster["server"])
        host = parts.hostname or ""
        target = f"[{host}]:{parts.port or 443}" if ":" in host else f"{host}:{parts.port or 443}"
        context = context_for(ca, certificate, key)
    except (yaml.YAMLError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise KubectlError(f'error: error loading config file "{path}": {type(error).__name__}') from error
    seconds = flags.get("--request-timeout", "").removesuffix("s")
    return Client(target, context, {"Accept": "application/json"}, float(seconds) if seconds.isdigit() else 10.0)


def _ask(client: Client, method: str, path: str) -> Reply:
    try:
        reply = client.expect(method, path)
    except RequestError as error:
        if "connection refused" in str(error):
            raise KubectlError(
                f"The connection to the server {client.target} was refused - did you specify the right host or port?"
            ) from error
        raise KubectlError(f"Unable to connect to the server: {error}") from error
    except HttpError as error:
        if error.code == 401:
            raise KubectlError("error: You must be logged in to the server (Unauthorized)") from error
        names = {403: "Forbidden", 404: "NotFound", 503: "ServiceUnavailable"}
        raise KubectlError(f"Error from server ({names.get(error.code, error.code)}): {error.detail}") from error
    warning = {name.lower(): value for name, value in reply.headers.items()}.get("warning", "")
    if warning:
        print("Warning: " + warning.partition('"')[2].rstrip('"'), file=sys.stderr)
    return reply


def age(stamp: str, now: dt.datetime) -> str:
    """``5s``, ``3m``, ``2h``, ``4d``: a rough age as kubectl prints it."""
    seconds = max(0, int((now - dt.datetime.fromisoformat(stamp)).total_seconds()))
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86400}d"


def row(node: Mapping[str, Any], now: dt.datetime) -> tuple[str, ...]:
    """The wide columns of one node."""
    ready = {c["type"]: c["status"] for c in node["status"].get("conditions", [])}.get("Ready")
    roles = sorted(name.removeprefix(ROLE) for name in node["metadata"]["labels"] if name.startswith(ROLE))
    addresses = {a["type"]: a["address"] for a in reversed(node["status"]["addresses"])}
    info = node["status"]["nodeInfo"]
    return (
        node["metadata"]["name"],
        "Ready" if ready == "True" else "NotReady",
        ",".join(roles) or "<none>",
        age(node["metadata"]["creationTimestamp"], now),
        info["kubeletVersion"],
        addresses.get("InternalIP", "<none>"),
        addresses.get("ExternalIP", "<none>"),
        info["osImage"],
        info["kernelVersion"],
        info["containerRuntimeVersion"],
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns three spaces apart."""
    widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "   ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in rows
    )


def _get(client: Client, names: Sequence[str], flags: Mapping[str, str]) -> None:
    if names:
        found = [_ask(client, "GET", f"/api/v1/nodes/{quote(name, safe='')}").json() for name in names]
    else:
        found = _ask(client, "GET", "/api/v1/nodes").json()["items"]
    form = flags.get("-o", "")
    if form in ("json", "yaml"):
        document = found[0] if len(names) == 1 else {
            "apiVersion": "v1", "items": found, "kind": "List", "metadata": {"resourceVersion": ""},
        }  # fmt: skip
        if form == "json":
            print(json.dumps(document, indent=4, sort_keys=True, ensure_ascii=False))
            return
        import yaml  # noqa: PLC0415

        print(yaml.safe_dump(document, sort_keys=True), end="")
        return
    if form == "name":
        for node in found:
            print(f"node/{node['metadata']['name']}")
        return
    if form not in ("", "wide"):
        raise KubectlError(f"error: the k3s {MARK} prints -o json, yaml, wide and name, not {form!r}")
    if not found:
        print("No resources found", file=sys.stderr)
        return
    columns = WIDE if form == "wide" else COLUMNS
    now = dt.datetime.now(dt.UTC)
    rows = [row(node, now)[: len(columns)] for node in found]
    print(table(rows if "--no-headers" in flags else [columns, *rows]))


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    words, flags = _read(arguments)
    command = words[0] if words else ""
    if command == "version":
        print(f"Client Version: {KUBELET_VERSION} (k3s {MARK})")
        return
    if command not in ("get", "delete"):
        raise KubectlError(f"error: the kubectl of the k3s {MARK} knows 'get nodes' and 'delete node', not {command!r}")
    client = _client(flags, environment)
    if command == "get" and "--raw" in flags:
        print(_ask(client, "GET", flags["--raw"]).body.decode("utf-8", "replace"))
        return
    names = words[1:]
    kind = names.pop(0) if names else ""
    resource, slash, name = kind.partition("/")
    if slash:
        names.insert(0, name)
    if resource not in RESOURCES:
        raise KubectlError(f"error: the k3s {MARK} has nodes, and no {resource or 'other resource'!r}")
    if command == "get":
        _get(client, names, flags)
        return
    if not names:
        raise KubectlError("error: resource(s) were provided, but no name was specified")
    for name in names:
        _ask(client, "DELETE", f"/api/v1/nodes/{quote(name, safe='')}")
        print(f'node "{name}" deleted')


def main(arguments: Sequence[str]) -> int:
    """Run kubectl; the exit status."""
    try:
        _run(arguments, os.environ)
    except ProviderError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
