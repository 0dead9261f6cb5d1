"""How long a person or the Kairos agent waits for an answer that needs no mesh."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.table import show

EVENT = json.dumps({"name": "agent.boot", "data": json.dumps({"config": "#cloud-config\n"}), "file": ""})
NOTHING = json.dumps({"name": "agent.bootstrap", "data": json.dumps({"config": "#cloud-config\n"}), "file": ""})
FOLDER = Path(sys.executable).parent


def measure(words: list[str], stdin: str = "", runs: int = 15) -> float:
    """Median seconds from start to exit."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(words, input=stdin, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    program, plugin = str(FOLDER / "kairos-p2p"), str(FOLDER / "agent-provider-kairos-p2p")
    base = measure([sys.executable, "-c", "pass"])
    rows = [("python3 -c pass", base, "")]
    for name, words, stdin in [
        ("kairos-p2p --help", [program, "--help"], ""),
        ("agent.boot (nobody answers it)", [plugin, "agent.boot"], EVENT),
        ("agent.bootstrap, nothing to do", [plugin, "agent.bootstrap"], NOTHING),
    ]:
        rows.append((name, measure(words, stdin), "0.2 s"))
    show(
        "Start to exit, median of 15",
        ("command", "seconds", "bound", "times python3"),
        [(name, f"{seconds:.3f}", bound, f"{seconds / base:.1f}") for name, seconds, bound in rows],
    )


if __name__ == "__main__":
    main()
