"""Follows the node list of a box's cluster; run by the supervisor, in the box, for as long as both live.

Reads the kubeconfig that k3s wrote and asks the API server on the box's own loopback, a real k3s or the
stand-in alike. Every change is printed as one JSON line ``{"nodes": [...], "heartbeats": {name: unix seconds}}``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import ssl
import sys
import tempfile
import time
from datetime import datetime
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from provider_kairos.lab.enter import enter
from provider_kairos.lab.model import LabError
from provider_kairos.lab.syscalls import die_with_parent

__all__ = ["KubeApi", "heartbeats", "main", "summarize"]

KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"
_PAUSE = 0.2
_LONG_PAUSE = 1.0
_CALM = 15.0


class KubeApi:
    """The little of a Kubernetes client that a node list needs."""

    def __init__(self, text: str) -> None:
        import yaml  # noqa: PLC0415 -- only this program needs it, and only now

        try:
            config = yaml.safe_load(text)
            cluster = config["clusters"][0]["cluster"]
            user = config["users"][0]["user"]
            self._target = urlsplit(cluster["server"])
            authority = base64.b64decode(cluster["certificate-authority-data"]).decode("ascii")
            pair = [base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")]
        except (yaml.YAMLError, KeyError, IndexError, TypeError, ValueError) as error:
            raise LabError(f"the kubeconfig is not what k3s writes: {error}") from error
        self._context = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile() as file:  # the ssl module takes certificates from files only
            file.write(b"\n".join(pair))
            file.flush()
            self._context.load_cert_chain(file.name)
        self._link: HTTPSConnection | None = None

    def get(self, path: str) -> dict[str, Any]:
        """One document; raises OSError, HTTPException, ssl.SSLError or ValueError."""
        if self._link is None:
            self._link = HTTPSConnection(
                self._target.hostname or "", self._target.port, timeout=5, context=self._context
            )
        try:
            self._link.request("GET", path)
            answer = self._link.getresponse()
            body = answer.read()
        except (OSError, HTTPException):
            self._link.close()
            self._link = None
            raise
        if answer.status != 200:
            raise OSError(f"{path}: status {answer.status}")
        document: dict[str, Any] = json.loads(body)
        return document


def _roles(labels: dict[str, str]) -> str:
    prefix = "node-role.kubernetes.io/"
    return ",".join(sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix))) or "<none>"


def summarize(listing: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every node: name, ready, roles, address, version, age of its readiness; sorted by name."""
    nodes = []
    for item in listing.get("items", []):
        status = item.get("status", {})
        addresses = {a["type"]: a["address"] for a in reversed(status.get("addresses", []))}
        ready = {c["type"]: c["status"] for c in status.get("conditions", [])}.get("Ready") == "True"
        nodes.append(
            {
                "name": item["metadata"]["name"],
                "ready": ready,
                "roles": _roles(item["metadata"].get("labels", {})),
                "address": addresses.get("InternalIP", ""),
                "version": status.get("nodeInfo", {}).get("kubeletVersion", ""),
            }
        )
    return sorted(nodes, key=lambda node: str(node["name"]))


def heartbeats(listing: dict[str, Any]) -> dict[str, float]:
    """When each node's kubelet last reported, in Unix seconds by the node's clock; 0 where it does not say."""
    times = {}
    for item in listing.get("items", []):
        conditions = {c["type"]: c for c in item.get("status", {}).get("conditions", [])}
        text = conditions.get("Ready", {}).get("lastHeartbeatTime") or ""
        try:
            times[item["metadata"]["name"]] = datetime.fromisoformat(text).timestamp()
        except ValueError:
            times[item["metadata"]["name"]] = 0.0
    return times


def _follow() -> None:
    api: KubeApi | None = None
    stamp = 0
    last = ""
    before: list[dict[str, Any]] = []
    said = ""
    changed = time.monotonic()
    while True:
        try:
            place = Path(KUBECONFIG)
            if api is None or place.stat().st_mtime_ns != stamp:
                stamp = place.stat().st_mtime_ns
                api = KubeApi(place.read_text("utf-8"))
            listing = api.get("/api/v1/nodes")
            nodes = summarize(listing)
        except (OSError, HTTPException, ValueError, KeyError, LabError) as error:
            if not isinstance(error, FileNotFoundError) and str(error) != said:
                said = str(error)
                print(f"node list: {said}", file=sys.stderr, flush=True)
            time.sleep(_PAUSE)
            continue
        line = json.dumps({"nodes": nodes, "heartbeats": heartbeats(listing)})
        if nodes != before:
            changed = time.monotonic()
        if line != last:
            print(line, flush=True)
        before, last = nodes, line
        time.sleep(_PAUSE if time.monotonic() - changed < _CALM else _LONG_PAUSE)


def main() -> int:
    """``python -m provider_kairos.lab.nodes SUPERVISOR PID``."""
    supervisor, pid = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(supervisor)
    try:
        enter(pid)
    except OSError as error:
        print(f"cannot enter the box: {error}", file=sys.stderr)
        return 1
    child = os.fork()  # only children are in the box's pid namespace, and die with it
    if child == 0:
        with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
            _follow()
        os._exit(0)
    os.close(1)
    os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
