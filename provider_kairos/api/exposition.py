"""``GET /v1/metrics``: the daemon's figures in the text format that Prometheus reads (version 0.0.4).

Written by hand: the client library would cost the daemon memory (docs/decisions/0016-native-api.md has the figure) for
a registry that nobody needs, because every figure is kept elsewhere already. Names begin with ``kairos_p2p_``, those of
the process are Prometheus' own. Labels never hold a peer ID or a key: how many there are is other people's choice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from provider_kairos.api.backend import Backend

__all__ = ["exposition"]

MAX_PROTOCOLS = 100
Sample = tuple[Mapping[str, str], float]


def exposition(backend: Backend) -> str:
    """All metrics of now."""
    status = backend.status()
    peers, ledger = status["peers"], status["ledger"]
    version = {"version": status["version"], "ownership": ledger["ownership"]}
    counted = [
        ({"state": "connected"}, sum(peer["connected"] for peer in peers)),
        ({"state": "on_topic"}, sum(peer["on_topic"] for peer in peers)),
        ({"state": "in_ledger"}, sum(peer["heartbeat_age"] is not None for peer in peers)),
    ]
    reasons = sorted({str(reason["code"]) for reason in status["waiting"]})
    traffic = sorted(backend.traffic_by_protocol().items())[:MAX_PROTOCOLS]
    lines: list[str] = []

    def metric(name: str, kind: str, words: str, samples: Iterable[Sample]) -> None:
        lines.extend([f"# HELP {name} {words}", f"# TYPE {name} {kind}"])
        lines.extend(f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples)

    metric("kairos_p2p_info", "gauge", "What runs.", [(version, 1)])
    metric("kairos_p2p_ready", "gauge", "Whether the node has all that it should have.", [({}, status["ready"])])
    metric("kairos_p2p_waiting", "gauge", "What the node waits for.", [({"reason": code}, 1) for code in reasons])
    metric("kairos_p2p_uptime_seconds", "gauge", "Since the daemon started.", [({}, status["uptime_seconds"])])
    metric("kairos_p2p_peers", "gauge", "Other nodes, by what is known of them.", counted)
    metric("kairos_p2p_ledger_records", "gauge", "Live records.", [({}, ledger["records"])])
    metric("kairos_p2p_ledger_buckets", "gauge", "Buckets that hold live records.", [({}, ledger["buckets"])])
    metric("kairos_p2p_ledger_index", "gauge", "Index of the last block.", [({}, ledger["index"])])
    metric(
        "kairos_p2p_events_total",
        "counter",
        "What happened, by kind.",
        [({"kind": name}, count) for name, count in sorted(status["counters"].items())],
    )
    metric("kairos_p2p_event_streams", "gauge", "Open streams of events.", [({}, backend.events.log.readers)])
    for way, field in (("received", "TotalIn"), ("sent", "TotalOut")):
        metric(
            f"kairos_p2p_{way}_bytes_total",
            "counter",
            f"Bytes {way}, by protocol.",
            [({"protocol": name}, float(each[field])) for name, each in traffic],  # type: ignore[literal-required]
        )
    for name, kind, words, value in _process():
        metric(name, kind, words, [({}, value)])
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)


def _labels(labels: Mapping[str, str]) -> str:
    """Labels of one sample; texts may come from peers and hold anything."""
    if not labels:
        return ""
    escaped = (text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") for text in labels.values())
    return "{" + ",".join(f'{name}="{text}"' for name, text in zip(labels, escaped, strict=True)) + "}"


def _process() -> Iterable[tuple[str, str, str, float]]:
    """What the kernel says of this process."""
    used = os.times()
    yield "process_cpu_seconds_total", "counter", "CPU time.", used.user + used.system
    try:
        own = Path("/proc/self")
        pages = int((own / "statm").read_bytes().split()[1])
        ticks = int((own / "stat").read_bytes().rpartition(b")")[2].split()[19])
        descriptors = sum(1 for _ in (own / "fd").iterdir())
    except (OSError, ValueError, IndexError):
        return
    yield "process_resident_memory_bytes", "gauge", "Memory.", float(pages * os.sysconf("SC_PAGESIZE"))
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    yield "process_start_time_seconds", "gauge", "When it started.", boot + ticks / os.sysconf("SC_CLK_TCK")
    yield "process_open_fds", "gauge", "Open descriptors.", float(descriptors)
