"""What two idle daemons cost: memory, processor, traffic. No Kubernetes: the daemon alone."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bench.boxes import PROGRAM, lab, token
from bench.table import show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=120)
    seconds = parser.parse_args().seconds
    with lab("benchidle", 2, "#cloud-config\n", wait=False) as (boxes, _):
        names = [box["name"] for box in boxes.boxes()]
        environment = f"EDGEVPNTOKEN={token()}\nDHCP=true\nAPI=true\n"
        started = []
        for name in names:
            folder = boxes.root(name) / "etc/bench"
            folder.mkdir()
            Path(folder / "env").write_text(environment)
            started.append(boxes.popen(name, "sh", "-c", f"set -a; . /etc/bench/env; exec {PROGRAM} daemon >/dev/null"))
        time.sleep(60)  # formation and the first, denser heartbeats are not idleness
        daemons = [boxes.daemon(name) for name in names]
        before = [(daemon.cpu_seconds, boxes.link_bytes(name)) for daemon, name in zip(daemons, names, strict=True)]
        time.sleep(seconds)
        after = [(daemon.cpu_seconds, boxes.link_bytes(name)) for daemon, name in zip(daemons, names, strict=True)]
        rows = []
        for name, daemon, old, new in zip(names, daemons, before, after, strict=True):
            rows.append(
                (
                    name,
                    f"{daemon.rss_mb:.1f} MB",
                    f"{(new[0] - old[0]) / seconds * 100:.2f} %",
                    f"{(new[1] - old[1]) / seconds / 1000:.2f} kB/s",
                )
            )
        for process in started:
            process.terminate()
    rows.append(("bound", "100 MB (aim 80)", "1 %", "0.6 kB/s"))
    show(
        f"Idle daemon, two nodes, {seconds} s (traffic: both directions of the box's link)",
        ("box", "memory", "core", "traffic"),
        rows,
    )


if __name__ == "__main__":
    main()
