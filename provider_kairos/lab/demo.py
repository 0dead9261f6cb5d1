"""``lab demo``: what ``make demo`` shows. Ends with 0 only when everything that it prints is true."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType

from provider_kairos.lab import client, report
from provider_kairos.lab.model import LabError, LabSettings
from provider_kairos.lab.place import Place
from provider_kairos.lab.up import Progress, wait_until_ready

__all__ = ["run_demo"]


def _ping(place: Place, address: str) -> int:
    argv = [sys.executable, "-m", "provider_kairos.lab", "exec", "--name", place.name, "box1", "--"]
    return subprocess.run([*argv, "ping", "-c3", "-i", "0.2", "-W", "5", address], stdin=subprocess.DEVNULL).returncode


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run_demo(settings: LabSettings, timeout: float, start: Callable[[LabSettings, client.Leash | None], Place]) -> int:
    """Boot, wait, show, ping, clean up; the lab goes even when this process is killed."""
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGHUP, _interrupted)
    place = Place(settings.name)
    if place.alive():
        raise LabError(f"the lab {settings.name!r} is up already", hint="`kairos-p2p lab down --name NAME` ends it")
    try:
        start(settings, client.Leash())
        status = wait_until_ready(place, timeout, Progress(lambda text: print(text, flush=True)))
        lines = ["", *report.box_table(status), "", *report.node_table(status), ""]
        print("\n".join(lines), flush=True)
        if len(status["boxes"]) > 1:
            address = status["boxes"][1]["address"]
            print(f"box1 pings box2 at its virtual address {address}:", flush=True)
            if _ping(place, address) != 0:
                raise LabError("box2 does not answer through the VPN")
        seconds = status["seconds"]
        print(f"\n{len(status['boxes'])} boxes, one cluster, {seconds:.1f} s; nobody typed an address.", flush=True)
    finally:
        client.take_down(place)
        print("The lab is down; nothing was left behind.", flush=True)
    return 0
