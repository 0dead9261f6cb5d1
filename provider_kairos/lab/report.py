"""A lab's state for people and for programs: the table of boxes, the node list, the JSON documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

__all__ = ["box_table", "node_table", "status_document", "up_document"]

_BOX_KEYS: Final = ("name", "role", "address", "uuid", "seconds_to_address", "seconds_to_role", "seconds_to_ready")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def box_table(status: dict[str, Any]) -> list[str]:
    """Name, role, virtual IP and the three figures of every box."""
    head = ("BOX", "ROLE", "VIRTUAL IP", "TO ADDRESS", "TO ROLE", "TO READY", "STATE")
    rows = [
        (
            box["name"],
            box["role"] or "-",
            box["address"] or "-",
            _seconds(box["seconds_to_address"]),
            _seconds(box["seconds_to_role"]),
            _seconds(box["seconds_to_ready"]),
            box["state"],
        )
        for box in status["boxes"]
    ]
    return _table(head, rows)


def node_table(status: dict[str, Any]) -> list[str]:
    """The cluster's own list of nodes, with a line that says what kind of cluster it is."""
    cluster = status["cluster"]
    version = f" ({cluster['version']})" if cluster["version"] else ""
    lines = [f"Nodes of the cluster, {cluster['distribution']}{version}:"]
    if not cluster["nodes"]:
        return [*lines, "none yet"]
    rows = [
        (node["name"], "Ready" if node["ready"] else "NotReady", node["roles"], node["address"], node["version"])
        for node in cluster["nodes"]
    ]
    return [*lines, *_table(("NAME", "STATUS", "ROLES", "INTERNAL-IP", "VERSION"), rows)]


def up_document(status: dict[str, Any]) -> dict[str, Any]:
    """What ``lab up --json`` prints."""
    return {
        "schema": 1,
        "name": status["name"],
        "boxes": [{key: box[key] for key in _BOX_KEYS} for box in status["boxes"]],
        "cluster": {key: status["cluster"][key] for key in ("distribution", "version", "nodes")},
        "seconds": status["seconds"],
    }


def status_document(status: dict[str, Any]) -> dict[str, Any]:
    """What ``lab status --json`` prints: the same and more."""
    keys = (*_BOX_KEYS, "state", "lan_address", "hostname", "node", "boots", "pid", "phases", "services", "waiting")
    document = up_document(status)
    document["boxes"] = [{key: box[key] for key in keys} for box in status["boxes"]]
    return document | {"complete": status["complete"], "rootless": status["rootless"]}
