"""What machines do to a daemon: power, disks, rights, interfaces and places that are taken.

Each fault has to be said in one line with its remedy, to be survived where it can be, and to be over when its cause is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from provider_kairos.token.codec import encode, generate

pytestmark = pytest.mark.root

_SPEC = importlib.util.spec_from_file_location("daemon_process", Path(__file__).parent / "daemon_process.py")
assert _SPEC
assert _SPEC.loader
daemon_process = importlib.util.module_from_spec(_SPEC)
sys.modules["daemon_process"] = daemon_process
_SPEC.loader.exec_module(daemon_process)
DaemonProcess = daemon_process.DaemonProcess

NO_VPN = {"KAIROS_P2P_VPN": "false", "EDGEVPNMDNS": "false", "EDGEVPNLISTENMADDRS": "/ip4/127.0.0.1/tcp/0"}


@pytest.fixture
def token():
    return encode(generate())


@pytest.fixture
def mounted(tmp_path, needs_root):
    """A function that mounts a tmpfs of a size at ``tmp_path/state`` of a daemon's folder; all are taken off again."""
    places = []

    def mount(folder, size):
        place = folder / "state"
        place.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(path):
    """Write until there is no space left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def put_many(daemon):
    for number in range(2000):
        daemon.put("kept", f"k{number}", "x" * 400)


def test_nothing_that_was_acknowledged_is_lost_by_a_kill(netns, tmp_path, token):
    daemon = DaemonProcess(tmp_path, token, netns.argv([]), **NO_VPN)
    acknowledged: list[str] = []
    for round_number in range(12):
        daemon.start().answers()
        assert set(acknowledged) <= set(daemon.bucket("kept")), round_number
        stop = threading.Event()

        def write(worker, stop=stop, round_number=round_number):
            number = 0
            while not stop.is_set():
                key = f"r{round_number}-w{worker}-{number}"
                try:
                    daemon.put("kept", key, key)
                except (OSError, daemon_process.http.client.HTTPException):
                    return
                acknowledged.append(key)
                number += 1

        workers = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
        before = len(acknowledged)
        for worker in workers:
            worker.start()
        enough = before + 5 + 3 * round_number
        daemon.until(lambda enough=enough: len(acknowledged) > enough, "writes")
        daemon.kill()
        stop.set()
        for worker in workers:
            worker.join()
    daemon.start().answers()
    assert set(acknowledged) <= set(daemon.bucket("kept"))
    assert len(acknowledged) > 100
    assert not daemon.lines("damaged")
    daemon.kill()


def test_a_full_disk_is_said_and_over_when_there_is_space_again(netns, tmp_path, token, mounted):
    state = mounted(tmp_path, "512k")
    with DaemonProcess(tmp_path, token, netns.argv([]), **NO_VPN) as daemon:
        daemon.answers()
        daemon.put("kept", "before", 1)
        ballast = state / "ballast"
        fill(ballast)
        with pytest.raises(AssertionError, match="free some space"):
            put_many(daemon)
        assert "free some space" in daemon.codes()["state-not-saved"]
        assert daemon.bucket("kept")["before"]
        ballast.unlink()
        daemon.until(lambda: "state-not-saved" not in daemon.codes(), "recovery")
        daemon.put("kept", "after", 1)
        daemon.kill()
        daemon.start().answers()
        assert {"before", "after"} <= set(daemon.bucket("kept"))
        assert len(daemon.lines("the ledger is not saved")) <= 2


def test_a_disk_that_is_full_at_start_is_one_line(netns, tmp_path, token, mounted):
    state = mounted(tmp_path, "64k")
    fill(state / "ballast")
    daemon = DaemonProcess(tmp_path, token, netns.argv([]), **NO_VPN).start()
    assert daemon.wait() == 8
    assert "space" in daemon.lines("cannot")[-1]
    assert not daemon.lines("Traceback")


def test_a_read_only_state_directory_is_one_line(netns, tmp_path, token, mounted):
    state = mounted(tmp_path, "1m")
    subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
    daemon = DaemonProcess(tmp_path, token, netns.argv([]), **NO_VPN).start()
    assert daemon.wait() in {6, 8}
    assert "read-only" in daemon.lines("cannot")[-1].lower() or "read-only" in daemon.tail().lower()
    assert not daemon.lines("Traceback")


def test_a_state_directory_of_somebody_else_is_one_line(netns, tmp_path, token):
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055) if parent.is_relative_to("/tmp") else None
    (tmp_path / "state").mkdir(mode=0o700)
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
    daemon = DaemonProcess(tmp_path, token, netns.argv(as_nobody), **NO_VPN).start()
    assert daemon.wait() == 6
    assert "run as root" in daemon.lines("mesh.lock")[-1]


def test_a_damaged_database_is_set_aside_and_the_identity_stays(netns, tmp_path, token):
    daemon = DaemonProcess(tmp_path, token, netns.argv([]), **NO_VPN).start().answers()
    name = daemon.status()["peer_id"]
    daemon.put("kept", "k", 1)
    assert daemon.stop() == 0
    database = daemon.state / "mesh.db"
    for damage in (b"garbage" * 1000, b"", database.read_bytes()[:4096] + os.urandom(8192)):
        database.write_bytes(damage)
        daemon.start().answers()
        assert daemon.status()["peer_id"] == name
        assert daemon.stop() == 0
    assert not daemon.lines("Traceback")


def test_a_second_daemon_on_the_same_places_is_one_line(netns, tmp_path, token):
    with DaemonProcess(tmp_path / "one", token, netns.argv([])) as first:
        first.answers()
        address = first.address()
        same_state = DaemonProcess(
            tmp_path / "two", token, netns.argv([]), KAIROS_P2P_STATE_DIR=str(first.state)
        ).start()
        assert same_state.wait() == 8
        assert "another mesh daemon uses" in same_state.tail()
        same_socket = DaemonProcess(
            tmp_path / "three", token, netns.argv([]), APILISTEN=f"unix://{first.socket}"
        ).start()
        assert same_socket.wait() == 8
        assert "already served by a running daemon" in same_socket.tail()
        # a network of its own, the same interface and the same UDP port 5353
        with DaemonProcess(tmp_path / "four", encode(generate()), netns.argv([])) as same_tun:
            same_tun.answers()
            same_tun.until(
                lambda: "held by another process" in same_tun.codes().get("interface-not-ready", ""), "reason"
            )
            assert not same_tun.lines("Traceback")
        assert first.status()["vpn"]["address"] == address
        assert first.socket.exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no-device", "modprobe tun"),
        ("no-right", "CAP_NET_ADMIN"),
        ("another-kind", "ip link del edgevpn0"),
    ],
)
def test_what_the_interface_needs_is_said_and_taken_when_it_is_there(netns, tmp_path, token, fault, words):
    inside: list[str] = []
    if fault == "no-device":
        inside = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "-"]
    elif fault == "no-right":
        inside = ["setpriv", "--bounding-set", "-net_admin", "--"]
    else:
        netns.run("ip", "link", "add", "edgevpn0", "type", "bridge")
    with DaemonProcess(tmp_path, token, netns.argv(inside)) as daemon:
        daemon.answers()
        daemon.until(lambda: words in daemon.codes().get("interface-not-ready", ""), "the reason")
        daemon.put("b", "k", 1)  # mesh and ledger go on
        assert daemon.bucket("b")
        if fault == "another-kind":
            netns.run("ip", "link", "del", "edgevpn0")
            daemon.address()
            assert "interface-not-ready" not in daemon.codes()


def test_the_interface_is_put_right_whatever_happens_to_it(netns, tmp_path, token):
    with DaemonProcess(tmp_path, token, netns.argv([])) as daemon:
        daemon.answers()
        address = daemon.address()
        for damage in (
            ("addr", "flush", "dev", "edgevpn0"),
            ("link", "set", "edgevpn0", "down"),
            ("link", "set", "edgevpn0", "mtu", "1500"),
            ("link", "del", "edgevpn0"),
        ):
            netns.run("ip", *damage)
            daemon.until(
                lambda: (
                    address in (shown := netns.run("ip", "addr", "show", "edgevpn0", check=False))
                    and "mtu 1200" in shown
                    and ",UP" in shown
                    and daemon.status()["vpn"]["address"]
                ),
                f"the interface after {damage}",
            )
        netns.run("ip", "addr", "add", "10.1.0.250/24", "dev", "eth0")
        daemon.until(lambda: "10.1.0.250" in daemon.codes().get("address-taken", ""), "the reason")
        netns.run("ip", "addr", "del", "10.1.0.250/24", "dev", "eth0")
        daemon.until(lambda: "address-taken" not in daemon.codes(), "the end of the reason")
        assert not daemon.lines("Traceback")
        assert daemon.stop() == 0
        assert address in netns.run("ip", "addr", "show", "edgevpn0")  # it outlives the daemon


def test_sigterm_at_any_time_ends_it_and_leaves_no_socket(netns, tmp_path, token):
    daemon = DaemonProcess(tmp_path, token, netns.argv([]))
    for step in range(24):
        daemon.start()
        time.sleep(step * 0.05)  # the moments of a start, none of them has an event
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() in {0, -signal.SIGTERM}
        assert not daemon.socket.exists() or step < 20
    assert not daemon.lines("Traceback")
    daemon.start().answers()
    assert daemon.stop() == 0
    assert not daemon.socket.exists()


def test_secrets_stay_inside(netns, tmp_path):
    plain = generate()
    token = encode(plain)
    with DaemonProcess(tmp_path, token, netns.argv([]), EDGEVPNLOGLEVEL="debug") as daemon:
        daemon.answers()
        daemon.address()
        mode = stat.S_IMODE(daemon.socket.stat().st_mode)
        assert mode == 0o600
        for path in daemon.state.rglob("*"):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
        process = Path(f"/proc/{daemon.pid}")
        assert token.encode() not in process.joinpath("cmdline").read_bytes()
        assert stat.S_IMODE(process.joinpath("environ").stat().st_mode) == 0o400
        daemon.put("kairos", "nodetoken", "K10-very-secret-join-token")
        daemon.ask("/api/ledger/kairos/nodetoken", "DELETE")
        daemon.signal(signal.SIGABRT)  # whatever a crash prints
        daemon.wait()
    said = daemon.log.read_text()
    for secret in (token, plain.crypto.key, plain.dht.key, plain.room, plain.mdns, plain.rendezvous):
        assert secret not in said
    assert "very-secret" not in said


def test_a_token_that_is_wrong_is_one_line_without_the_token(netns, tmp_path, token):
    daemon = DaemonProcess(tmp_path, token[:-30], netns.argv([])).start()
    assert daemon.wait() == 3
    assert token[:40] not in daemon.tail()
    assert len(daemon.log.read_text().splitlines()) == 1
    assert "token" in json.loads(daemon.log.read_text())["message"]
