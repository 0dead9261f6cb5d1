"""Node objects: registration, heartbeats, the Ready condition, deletion (k3s notes, sections 3.7, 4.2 and 8).

The objects live in the store under ``nodes/``, heartbeats under ``leases/``, remembered node passwords under
``passwords/``. A node is not Ready any more when its lease did not change for :data:`GRACE` seconds as *this* server
saw it, so clocks of different machines are never compared.
"""

from __future__ import annotations

import ipaddress
import time
import uuid
from typing import Any

from provider_kairos.lab.k3s import KUBELET_VERSION, MARK
from provider_kairos.lab.k3s.store import Store
from provider_kairos.lab.k3s.tokens import password_hash, password_matches

__all__ = ["GRACE", "HEARTBEAT", "STANDIN_LABEL", "NodeApi", "timestamp"]

HEARTBEAT = 10.0
GRACE = 40.0
STANDIN_LABEL = "k3s.provider-kairos.io/stand-in"
WARNING = f'299 - "this is the k3s {MARK}: no containers, no pods, no overlay network"'


def timestamp(unix: float | None = None) -> str:
    """A time as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() if unix is None else unix))


ROLE_PREFIX = "node-role.kubernetes.io/"


def check_conditions(conditions: Any) -> None:
    """Raise ValueError unless ``conditions`` is a list of objects with type and status."""
    if not isinstance(conditions, list) or not all(
        isinstance(c, dict) and isinstance(c.get("type"), str) and isinstance(c.get("status"), str) for c in conditions
    ):
        raise ValueError("conditions are a list of objects with type and status")


def check_node(node: Any) -> None:
    """Raise ValueError, KeyError or TypeError for what is no Node object that can be listed."""
    metadata, status = node["metadata"], node["status"]
    labels = {**metadata.get("labels", {}), **metadata.get("annotations", {})}
    if not isinstance(metadata["name"], str) or not all(isinstance(v, str) for v in labels.values()):
        raise ValueError("metadata of a node is text")
    if not all(isinstance(a["type"], str) and isinstance(a["address"], str) for a in status["addresses"]):
        raise ValueError("addresses of a node are text")
    info = dict(status["nodeInfo"])
    for name in ("kubeletVersion", "osImage", "kernelVersion", "containerRuntimeVersion"):
        if not isinstance(info[name], str):
            raise ValueError(f"{name} is text")  # noqa: TRY004 - one kind of error for garbage
    dict(node.get("spec", {}))
    check_conditions(status["conditions"])


def ready_condition(node: dict[str, Any]) -> dict[str, Any]:
    """The node's Ready condition; an empty one when it has none yet."""
    for condition in node.get("status", {}).get("conditions", []):
        if condition.get("type") == "Ready":
            return dict(condition)
    return {}


class NodeApi:
    """What the API server and its controllers do with nodes."""

    def __init__(self, store: Store, cluster_cidr: str, speed: float = 1.0) -> None:
        self.store = store
        self.grace = max(GRACE / speed, 3.0)
        self._cidr = cluster_cidr
        self._seen: dict[str, tuple[Any, float]] = {}

    def names(self) -> list[str]:
        """All node names, in order."""
        return list(self.store.items("nodes/"))

    def get(self, name: str) -> dict[str, Any] | None:
        """One Node object, or None."""
        node = self.store.get(f"nodes/{name}")
        if node is None:
            return None
        lease = self.store.get(f"leases/{name}")
        if lease:
            node = {**node, "status": {**node["status"]}}
            node["status"]["conditions"] = [
                {**c, "lastHeartbeatTime": lease["renewTime"]} if c["status"] != "Unknown" else c
                for c in node["status"].get("conditions", [])
            ]
        return dict(node)

    def node_list(self) -> dict[str, Any]:
        """A NodeList."""
        items = [node for name in self.names() if (node := self.get(name)) is not None]
        return {"kind": "NodeList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}

    def register(self, node: dict[str, Any]) -> dict[str, Any]:
        """A kubelet's node: created, or brought up to date with identity, creation time and roles kept.

        Raises:
            ValueError, KeyError, TypeError: it is no Node object.
        """
        check_node(node)
        name = node["metadata"]["name"]
        known = self.store.get(f"nodes/{name}")
        metadata = dict(node["metadata"])
        metadata["labels"] = {**metadata.get("labels", {}), STANDIN_LABEL: "true"}
        spec = dict(node.get("spec", {}))
        if known:
            metadata["uid"] = known["metadata"]["uid"]
            metadata["creationTimestamp"] = known["metadata"]["creationTimestamp"]
            spec["podCIDR"] = known["spec"]["podCIDR"]
            kept = {k: v for k, v in known["metadata"]["labels"].items() if k.startswith(ROLE_PREFIX)}
            metadata["labels"] = {**kept, **metadata["labels"]}
        else:
            metadata["uid"] = str(uuid.uuid4())
            metadata["creationTimestamp"] = timestamp()
            spec["podCIDR"] = self._free_pod_cidr()
        spec["podCIDRs"] = [spec["podCIDR"]]
        made = {"kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": node["status"]}
        self.store.put(f"nodes/{name}", made)
        self.store.put(f"leases/{name}", {"renewTime": timestamp(), "beat": time.time_ns()})
        return made

    def _free_pod_cidr(self) -> str:
        taken = {node["spec"].get("podCIDR") for node in self.store.items("nodes/").values()}
        network = ipaddress.ip_network(self._cidr.split(",", maxsplit=1)[0], strict=False)
        prefix = max(network.prefixlen, 24 if network.version == 4 else 64)
        for subnet in network.subnets(new_prefix=prefix):
            if str(subnet) not in taken:
                return str(subnet)
        return str(network)

    def heartbeat(self, name: str, conditions: list[dict[str, Any]]) -> bool:
        """A kubelet's sign of life with its conditions; False when there is no such node.

        Raises:
            ValueError: these are no conditions.
        """
        check_conditions(conditions)
        node = self.store.get(f"nodes/{name}")
        if node is None:
            return False
        self.store.put(f"leases/{name}", {"renewTime": timestamp(), "beat": time.time_ns()})
        wanted = {c["type"]: c["status"] for c in conditions}
        current = {c["type"]: c["status"] for c in node["status"].get("conditions", [])}
        if wanted != current:
            self.store.put(f"nodes/{name}", {**node, "status": {**node["status"], "conditions": conditions}})
        return True

    def label(self, name: str, labels: dict[str, str]) -> None:
        """Add labels, as the control plane does for roles."""
        node = self.store.get(f"nodes/{name}")
        if node is not None and not labels.items() <= node["metadata"]["labels"].items():
            merged = {**node["metadata"], "labels": {**node["metadata"]["labels"], **labels}}
            self.store.put(f"nodes/{name}", {**node, "metadata": merged})

    def delete(self, name: str) -> bool:
        """Remove a node with its lease and its remembered password; False when there is none."""
        if self.store.get(f"nodes/{name}") is None:
            return False
        self.store.delete(f"nodes/{name}", f"leases/{name}", f"passwords/{name}")
        return True

    def check_password(self, name: str, password: str) -> bool:
        """Whether ``password`` is that of node ``name``; an unknown name is recorded with it."""
        remembered = self.store.get(f"passwords/{name}")
        if remembered is None:
            self.store.create(f"passwords/{name}", password_hash(password))
            remembered = self.store.get(f"passwords/{name}")
        return password_matches(password, remembered)

    def silent_for(self, name: str, now: float) -> float:
        """Seconds (of monotonic ``now``) since this server saw the node's lease change."""
        lease = self.store.get(f"leases/{name}")
        seen, when = self._seen.get(name, (None, now))
        if name not in self._seen or seen != lease:
            self._seen[name] = (lease, now)
            return 0.0
        return now - when

    def judge(self, now: float) -> list[str]:
        """The node controller's round: silent nodes become ``Unknown``; returns whom it found silent just now."""
        found = []
        for name in self.names():
            if self.silent_for(name, now) < self.grace:
                continue
            node = self.store.get(f"nodes/{name}")
            if node is None or ready_condition(node).get("status") == "Unknown":
                continue
            conditions = [
                {
                    **condition,
                    "status": "Unknown",
                    "reason": "NodeStatusUnknown",
                    "message": "Kubelet stopped posting node status.",
                    "lastTransitionTime": timestamp(),
                }
                for condition in node["status"].get("conditions", [])
                if condition["type"] != "EtcdIsVoter"
            ]
            self.store.put(f"nodes/{name}", {**node, "status": {**node["status"], "conditions": conditions}})
            found.append(name)
        return found


def version_document() -> dict[str, str]:
    """What ``/version`` says."""
    return {"major": "1", "minor": "34", "gitVersion": KUBELET_VERSION, "platform": "linux/amd64", "goVersion": MARK}
