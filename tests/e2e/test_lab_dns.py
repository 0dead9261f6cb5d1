"""A box with ``p2p.dns``: a name that is written on it resolves on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from provider_kairos.token.codec import encode, generate

pytestmark = pytest.mark.root

PROGRAM = str(Path(sys.prefix, "bin", "kairos-p2p"))

ASK = """
import socket, sys, time
question = bytes.fromhex("123401000001000000000000") + b"\\3foo\\3bar\\0\\0\\1\\0\\1"
ends = time.monotonic() + 60
while time.monotonic() < ends:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", 53))
        try:
            sock.send(question)
            answer = sock.recv(512)
        except OSError:  # not up yet
            answer = b""
    if len(answer) >= 40 and answer[:2] == question[:2]:
        print(socket.inet_ntoa(answer[-4:]))
        break
    time.sleep(0.1)
"""


def cannot() -> str:
    if os.geteuid() != 0:
        return "needs root: boxes made by root"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun (modprobe tun)"
    return ""


def lab(*arguments: str) -> str:
    done = subprocess.run(
        [PROGRAM, "lab", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_a_name_resolves_on_a_box(tmp_path):
    if reason := cannot():
        pytest.skip(reason)
    values: dict[str, Any] = {"network_token": encode(generate()), "minimum_nodes": 1, "dns": True}
    values["vpn"] = {"env": {"DNSFORWARD": "false"}}
    config = tmp_path / "config.yaml"
    config.write_text("#cloud-config\n" + yaml.safe_dump({"p2p": values}), "utf-8")
    name = f"dns{os.getpid()}"
    try:
        lab("up", "--name", name, "--boxes", "1", "--config", str(config))
        lab("exec", "--name", name, "box1", "--", "kairos-p2p", "dns", "add", "foo.bar", "A=2.2.2.2")
        assert lab("exec", "--name", name, "box1", "--", sys.executable, "-c", ASK) == "2.2.2.2\n"
    finally:
        lab("down", "--name", name)
