"""From power to cluster: three boxes by mDNS, again and again; and how soon the join token is everywhere."""

from __future__ import annotations

import argparse
import json
import threading
import time
import urllib.parse

from bench.boxes import Lab, lab, token
from bench.table import show, spread

# spec of the comparison: the Go provider with EdgeVPN v0.35.4, three boxes, LAN, mDNS only, seven runs on a machine
# of the same kind; one of the seven never formed
GO_ADDRESS, GO_ROLE = "26 - 36 s", "71 - 91 s"


def config(**more: object) -> str:
    block = "".join(f"  {key}: {value}\n" for key, value in more.items())
    return f"#cloud-config\np2p:\n  network_token: {token()}\n{block}"


class TokenWatch(threading.Thread):
    """Notes when each box's daemon first shows the join token, and when the first master's k3s wrote it."""

    def __init__(self, boxes: Lab, names: list[str]) -> None:
        super().__init__(daemon=True)
        self._roots = {name: boxes.root(name) for name in names}
        self.seen: dict[str, float] = {}
        self.written = 0.0
        self._end = threading.Event()

    def run(self) -> None:
        import http.client
        import socket

        class Unix(http.client.HTTPConnection):
            def __init__(self, path: str) -> None:
                super().__init__("unix", timeout=2)
                self.path = path

            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.settimeout(2)
                self.sock.connect(self.path)

        while not self._end.is_set() and len(self.seen) < len(self._roots):
            for name, root in self._roots.items():
                if not self.written:
                    path = root / "var/lib/rancher/k3s/server/token"
                    if path.exists():
                        self.written = path.stat().st_mtime
                if name in self.seen:
                    continue
                try:
                    connection = Unix(str(root / "run/edgevpn-kairos.sock"))
                    connection.request("GET", f"/api/ledger/kairos/{urllib.parse.quote('token-nodetoken')}")
                    if json.loads(connection.getresponse().read() or b'""'):
                        self.seen[name] = time.time()
                    connection.close()
                except (OSError, ValueError, http.client.HTTPException):
                    continue
            self._end.wait(0.02)

    def stop(self) -> float | None:
        self._end.set()
        self.join(5)
        if not self.written or len(self.seen) < len(self._roots):
            return None
        return max(self.seen.values()) - self.written


def run_once(number: int, **settings: object) -> dict[str, float | None]:
    with lab(f"bench{number}", 3, config(**settings), wait=False) as (boxes, _):
        names = [box["name"] for box in boxes.boxes()]
        watch = TokenWatch(boxes, names)
        watch.start()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            rows = boxes.boxes()
            if all(row["seconds_to_ready"] for row in rows):
                break
            time.sleep(0.5)
        else:
            return {"address": None, "role": None, "ready": None, "token": watch.stop()}
        return {
            "address": max(row["seconds_to_address"] for row in rows),
            "role": max(row["seconds_to_role"] for row in rows),
            "ready": max(row["seconds_to_ready"] for row in rows),
            "token": watch.stop(),
        }


def k3s_by_itself(*, masters: bool = False) -> float | None:
    """Seconds until three nodes are Ready when k3s is simply started with addresses and token given, all at once.

    With ``masters`` all three are servers with embedded etcd.
    """
    with lab("benchalone", 3, "#cloud-config\n", wait=False) as (boxes, _):
        names = [box["name"] for box in boxes.boxes()]
        url = f"https://{boxes.lan_address(names[0])}:6443"
        services = []
        for number, name in enumerate(names):
            service = "k3s" if masters or number == 0 else "k3s-agent"
            services.append(service)
            etc = boxes.root(name) / "etc"
            (etc / "sysconfig").mkdir(exist_ok=True)
            (etc / "rancher/k3s").mkdir(parents=True, exist_ok=True)
            (etc / "sysconfig" / service).write_text("K3S_TOKEN=bench\n")
            setting = "cluster-init: true" if masters and number == 0 else f"server: {url}" if number else ""
            (etc / "rancher/k3s/config.yaml").write_text(setting + "\n")
        began = time.monotonic()
        for name, service in zip(names, services, strict=True):
            boxes.exec(name, "systemctl", "start", "--no-block", service)
        while time.monotonic() - began < 180:
            text = boxes.exec(names[0], "k3s", "kubectl", "get", "nodes", "--no-headers", check=False)
            if sum(" Ready " in line for line in text.splitlines()) == len(names):
                return time.monotonic() - began
            time.sleep(0.2)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    results = [run_once(number) for number in range(runs)]
    alone = k3s_by_itself()
    masters = run_once(runs, auto="{ha: {master_nodes: 2}}")["ready"]
    masters_alone = k3s_by_itself(masters=True)
    formed = [each for each in results if each["ready"] is not None]

    def column(name: str) -> list[float]:
        return [value for each in formed if (value := each[name]) is not None]

    show(
        f"Three boxes, mDNS, process start to ...: {len(formed)} of {runs} formed (least / median / most)",
        ("figure", "ours", "bound", "Go provider + EdgeVPN, recorded"),
        [
            ("last address", spread(column("address")), "10 s with the role", GO_ADDRESS),
            ("last role", spread(column("role")), "10 s", GO_ROLE),
            (
                "last node Ready (k3s stand-in)",
                spread(column("ready")),
                "by itself + 8 s" if alone is None else f"{alone:.1f} s by itself + 8 s",
                "74 - 95 s (real k3s; by itself 14 - 16 s)",
            ),
            (
                "three masters Ready (k3s stand-in), one run",
                f"{masters or float('nan'):.1f} s",
                f"{masters_alone or float('nan'):.1f} s by itself + 8 s",
                "113 s (real k3s; by itself 39 - 45 s)",
            ),
            ("join token written to seen by all", spread(column("token")), "1 s", ""),
        ],
    )


if __name__ == "__main__":
    main()
