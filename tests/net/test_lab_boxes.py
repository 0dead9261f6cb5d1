"""Boxes of the lab on this kernel: boot, services, reboot, power cut, and that nothing stays behind."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.errors import HostError, NotFoundError
from provider_kairos.lab import client
from provider_kairos.lab.model import LabSettings
from provider_kairos.lab.place import Place

pytestmark = pytest.mark.root

SLEEPER = """\
[Unit]
Description=Sleeps

[Service]
ExecStart=/bin/sleep 1000
Restart=always
RestartSec=100ms

[Install]
WantedBy=multi-user.target
"""
WANTED = "/etc/systemd/system/multi-user.target.wants/sleeper.service"


def until(what: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait for a fact of another process that no event tells us of; the value that came."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return value


class Lab:
    """A lab of bare boxes and shorthand for looking into them."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def box(self, name: str = "box1") -> dict[str, Any]:
        return client.order(self.place, "box", box=name)

    def booted(self, name: str = "box1") -> dict[str, Any]:
        found: dict[str, Any] = until(lambda: (b := self.box(name))["phases"]["booted"] is not None and b)
        return found

    def sh(self, script: str, box: str = "box1", *, check: bool = True) -> str:
        argv = [sys.executable, "-m", "provider_kairos.lab", "exec", "--name", self.place.name, box, "--"]
        done = subprocess.run([*argv, "sh", "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if check:
            assert done.returncode == 0, f"{script}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr if not check else done.stdout

    def code(self, script: str, box: str = "box1") -> int:
        argv = [sys.executable, "-m", "provider_kairos.lab", "exec", "--name", self.place.name, box, "--"]
        return subprocess.run([*argv, "sh", "-c", script], capture_output=True, stdin=subprocess.DEVNULL).returncode

    def put(self, path: str, text: str, box: str = "box1") -> None:
        argv = [sys.executable, "-m", "provider_kairos.lab", "exec", "--name", self.place.name, box, "--"]
        script = 'mkdir -p "$(dirname "$0")"; cat >"$0"'
        subprocess.run([*argv, "sh", "-c", script, path], input=text.encode(), check=True)

    def supervisor(self) -> int:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self.place.socket))
            raw = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", raw)[0])


def bare(name: str, boxes: int = 1, files: dict[str, str] | None = None) -> LabSettings:
    return LabSettings(name=name, boxes=boxes, product=False, files=files or {})


@pytest.fixture
def make_lab(needs_root) -> Iterator[Callable[..., Lab]]:
    made: list[Place] = []

    def make(boxes: int = 1, files: dict[str, str] | None = None) -> Lab:
        place = client.start(bare(f"t{os.getpid()}-{len(made)}", boxes, files))
        made.append(place)
        lab = Lab(place)
        for number in range(1, boxes + 1):
            lab.booted(f"box{number}")
        return lab

    yield make
    for place in made:
        client.take_down(place)


@pytest.fixture(scope="module")
def one(needs_root) -> Iterator[Lab]:
    """One bare box that several tests share; each cleans up after itself."""
    place = client.start(bare(f"shared{os.getpid()}", 1))
    lab = Lab(place)
    lab.booted()
    yield lab
    client.take_down(place)


def traces(name: str) -> dict[str, Any]:
    """What a lab could leave on this machine; the same before and after when it left nothing."""
    links = sorted(path.name for path in Path("/sys/class/net").iterdir())
    mounts = [line for line in Path("/proc/self/mounts").read_text("utf-8").splitlines() if name in line]
    processes = []
    for entry in (path.name for path in Path("/proc").iterdir()):
        if not entry.isdigit():
            continue
        try:
            command = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if name in command:
            processes.append(command)
    folders = [str(p) for base in ("/run", "/var/lib", "/tmp") for p in Path(base).glob(f"kairos-p2p-lab*/{name}*")]
    return {"links": links, "mounts": mounts, "processes": sorted(processes), "folders": folders}


def test_a_box_has_its_own_world(one):
    assert one.sh("hostname").strip() == "box1"
    first = one.sh("cat /proc/1/cmdline").replace("\0", " ")
    assert "kairos-lab-init" in first
    assert one.sh("ls /sys/class/net").split() == ["eth0", "lo"]
    assert one.sh("cat /etc/machine-id") == one.sh("cat /var/lib/dbus/machine-id")
    for path in ("/run", "/tmp", "/usr/local", "/etc", "/oem", "/system/providers", "/var/lib/rancher"):
        one.sh(f"touch {path}/mark")
        assert not Path(path, "mark").exists(), f"{path} is shared with the machine"
    assert one.code("test -c /dev/net/tun") == 0


def test_exec_passes_status_stdin_and_streams(one):
    assert one.code("exit 7") == 7
    assert one.code("kill -9 $$") == 137
    argv = [sys.executable, "-m", "provider_kairos.lab", "exec", "--name", one.place.name, "box1", "--"]
    done = subprocess.run([*argv, "sh", "-c", "cat; echo no >&2"], input=b"through\n", capture_output=True)
    assert (done.stdout, done.stderr) == (b"through\n", b"no\n")
    assert subprocess.run([*argv, "no-such-program"], capture_output=True).returncode == 127


def test_exec_gives_the_program_our_terminal(one):
    import pty

    argv = [sys.executable, "-m", "provider_kairos.lab", "exec", "--name", one.place.name, "box1", "--"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*argv, "sh", "-c", "test -t 0 && test -t 1 && echo a terminal"])
    output = b""
    while True:
        try:
            chunk = os.read(terminal, 1024)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        output += chunk
    os.close(terminal)
    os.waitpid(pid, 0)
    assert b"a terminal" in output


def test_services_start_restart_stop_and_log(one):
    one.put("/etc/systemd/system/sleeper.service", SLEEPER)
    assert one.sh("systemctl is-active sleeper", check=False) == "inactive\n"
    one.sh("systemctl enable --now sleeper")
    assert one.sh("systemctl is-active sleeper") == "active\n"
    assert one.sh("systemctl is-enabled sleeper") == "enabled\n"
    before = one.sh("systemctl show -p MainPID --value sleeper")
    one.sh(f"kill -9 {before}")
    after = until(lambda: (p := one.sh("systemctl show -p MainPID --value sleeper")) not in {before, "0\n"} and p)
    assert after != before
    assert one.sh("systemctl show -p NRestarts --value sleeper") == "1\n"
    one.sh("systemctl stop sleeper")
    assert one.code("systemctl is-active -q sleeper") == 3
    assert one.code(f"kill -0 {after}") != 0
    one.sh("systemctl disable sleeper")
    assert one.code(f"test -e {WANTED}") != 0


def test_journalctl_shows_the_files(one):
    one.put("/etc/systemd/system/talk.service", "[Service]\nType=oneshot\nExecStart=/bin/echo a b\n")
    one.sh("systemctl start talk")
    assert one.sh("journalctl -u talk --no-pager") == "a b\n"
    assert one.sh("journalctl -fu nobody -n 3") == "-- No entries --\n"


def test_a_stop_ends_every_process_of_the_service(one):
    one.put(
        "/etc/systemd/system/family.service",
        "[Service]\nExecStart=/bin/sh -c 'setsid sleep 4711 & sleep 4712'\n",
    )
    one.sh("systemctl start family")
    until(lambda: one.code("grep -qz 4711 /proc/[0-9]*/cmdline") == 0)
    one.sh("systemctl stop family")
    assert one.code("grep -lz '^471[12]$' /proc/[0-9]*/cmdline") != 0


def test_notify_service_is_activating_until_it_says_ready(one):
    program = (
        "import os, socket, time\n"
        "while not os.path.exists('/tmp/now'): time.sleep(0.02)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.sendto(b'READY=1\\nSTATUS=well\\n', os.environ['NOTIFY_SOCKET'])\n"
        "time.sleep(1000)\n"
    )
    one.put("/opt/notify.py", program)
    one.put(
        "/etc/systemd/system/late.service",
        f"[Service]\nType=notify\nExecStart={sys.executable} -IS /opt/notify.py\n",
    )
    one.sh("systemctl start --no-block late")
    until(lambda: one.sh("systemctl show -p MainPID --value late") != "0\n")
    assert one.sh("systemctl is-active late", check=False) == "activating\n"
    one.sh("touch /tmp/now; systemctl start late")
    assert one.sh("systemctl is-active late") == "active\n"
    one.sh("systemctl stop late")


def test_a_notify_service_that_ends_early_fails_the_job_and_is_restarted(one):
    one.put(
        "/etc/systemd/system/early.service",
        "[Service]\nType=notify\nExecStart=/bin/true\nRestart=always\nRestartSec=60\n",
    )
    assert one.code("systemctl start early") == 1
    assert one.sh("systemctl show -p SubState --value early") == "auto-restart\n"
    one.sh("systemctl stop early")


def test_start_limit_holds_as_in_systemd(one):
    one.put("/etc/systemd/system/flap.service", "[Service]\nExecStart=/bin/false\nRestart=always\nRestartSec=1ms\n")
    one.sh("systemctl start flap")
    until(lambda: one.sh("systemctl is-active flap", check=False) == "failed\n")
    assert one.sh("systemctl show -p Result --value flap") == "start-limit-hit\n"
    assert one.code("systemctl start flap") == 1
    one.sh("systemctl reset-failed flap")


def test_a_loaded_unit_keeps_its_old_files_until_a_reload(one):
    one.put("/etc/systemd/system/stale.service", "[Service]\nExecStart=/bin/sleep 501\n")
    one.sh("systemctl start stale")
    one.put("/etc/systemd/system/stale.service.d/x.conf", "[Service]\nExecStart=\nExecStart=/bin/sleep 502\n")
    assert one.sh("systemctl show -p NeedDaemonReload --value stale") == "yes\n"
    said = one.sh("systemctl restart stale", check=False)
    assert "daemon-reload" in said
    pid = one.sh("systemctl show -p MainPID --value stale").strip()
    # A unit that has come to rest is not loaded any more, so a restart reads it from disk; one that runs keeps it.
    assert one.sh(f"tr '\\0' ' ' </proc/{pid}/cmdline").strip() in {"/bin/sleep 501", "/bin/sleep 502"}
    one.sh("systemctl daemon-reload; systemctl restart stale")
    pid = one.sh("systemctl show -p MainPID --value stale").strip()
    assert one.sh(f"tr '\\0' ' ' </proc/{pid}/cmdline").strip() == "/bin/sleep 502"
    one.sh("systemctl stop stale")


def test_a_unit_that_was_never_loaded_is_read_at_its_start(one):
    one.put("/etc/systemd/system/fresh.service", "[Service]\nExecStart=/bin/sleep 511\n")
    one.put("/etc/systemd/system/fresh.service.d/override.conf", "[Service]\nExecStart=\nExecStart=/bin/sleep 512\n")
    one.sh("systemctl start --no-block fresh")
    pid = until(lambda: (p := one.sh("systemctl show -p MainPID --value fresh").strip()) != "0" and p)
    until(lambda: one.sh(f"tr '\\0' ' ' </proc/{pid}/cmdline").strip() == "/bin/sleep 512")
    one.sh("systemctl stop fresh")


def test_environment_files_templates_and_limits(one):
    one.put("/etc/systemd/system.conf.d/show-a.env", 'WORD="two words"\nCASH=$HOME\nONE=1\n')
    one.put(
        "/etc/systemd/system/show@.service",
        "[Service]\nType=oneshot\nEnvironment=ONE=0 OTHER=yes\n"
        "EnvironmentFile=/etc/systemd/system.conf.d/show-%i.env\nEnvironmentFile=-/nowhere\nLimitNOFILE=1234\n"
        'ExecStart=/bin/sh -c \'printf "%%s|" "$$0" "$$@" >/tmp/said; ulimit -n >>/tmp/said\' $WORD ${WORD} ${CASH} ${ONE} ${OTHER} %i 5%%\n',
    )
    one.sh("systemctl start show@a")
    assert one.sh("cat /tmp/said") == "two|words|two words|$HOME|1|yes|a|5%|1234\n"
    one.put("/etc/systemd/system/show@b.service", "[Service]\nEnvironmentFile=/nowhere\nExecStart=/bin/true\n")
    assert one.code("systemctl start show@b") == 1


def test_what_is_not_there_is_said_as_systemctl_says_it(one):
    assert one.code("systemctl start nothing") == 5
    assert one.code("systemctl status nothing") == 4
    assert "could not be found" in one.sh("systemctl status nothing", check=False)
    assert one.code("systemctl is-enabled nothing") == 1
    assert one.code("systemctl frobnicate") == 1
    assert one.code("systemctl start --frobnicate x") == 1


def test_reboot_keeps_the_persistent_paths_and_loses_the_rest(make_lab):
    lab = make_lab(1, {"/oem/x.yaml": "#cloud-config\n", "/etc/systemd/system/sleeper.service": SLEEPER})
    lab.sh("systemctl enable sleeper")
    machine = lab.sh("cat /etc/machine-id")
    kept = ["/usr/local/.kairos/deployed", "/oem/mine.yaml", "/etc/rancher/node/password", "/var/lib/rancher/k3s/x"]
    lost = ["/etc/lost", "/var/lib/lost", "/run/lost", "/usr/bin/lost", "/tmp/lost", "/root/lost"]
    for path in kept + lost:
        lab.put(path, "here\n")
    lab.sh("echo changed >/oem/x.yaml")
    client.order(lab.place, "reboot", box="box1")
    box = lab.booted()
    assert box["boots"] == 2
    for path in kept:
        assert lab.sh(f"cat {path}") == "here\n"
    for path in lost:
        assert lab.code(f"test -e {path}") != 0, path
    assert lab.sh("cat /oem/x.yaml") == "changed\n"
    assert lab.sh("cat /etc/machine-id") == machine
    assert lab.sh("systemctl is-active sleeper") == "active\n", "an enabled unit starts at boot"


def test_a_box_may_reboot_and_power_off_itself(make_lab):
    lab = make_lab(1)
    lab.code("systemctl reboot")
    until(lambda: lab.box()["boots"] == 2 and lab.box()["phases"]["booted"])
    lab.code("systemctl poweroff")
    until(lambda: lab.box()["state"] == "off")


def test_power_cut_leaves_peers_in_silence(make_lab):
    lab = make_lab(2)
    listen = (
        "import socket; s = socket.create_server(('', 7)); c, _ = s.accept(); c.sendall(b'hi'); "
        "open('/tmp/up', 'w').close(); c.recv(1)"
    )
    lab.put("/etc/systemd/system/l.service", f'[Service]\nExecStart={sys.executable} -c "{listen}"\n', "box2")
    lab.sh("systemctl start l", "box2")
    argv = [sys.executable, "-m", "provider_kairos.lab", "exec", "--name", lab.place.name, "box1", "--"]
    talk = (
        "import socket, time\n"
        "end = time.monotonic() + 20\n"
        "while True:\n"
        "    try:\n"
        "        s = socket.create_connection(('192.168.240.12', 7), 5); break\n"
        "    except ConnectionRefusedError:\n"
        "        assert time.monotonic() < end\n"
        "print(s.recv(2), flush=True)\n"
        "s.settimeout(2)\n"
        "try:\n"
        "    print('closed', s.recv(1), flush=True)\n"
        "except TimeoutError:\n"
        "    print('silence', flush=True)\n"
    )
    with subprocess.Popen([*argv, sys.executable, "-c", talk], stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "b'hi'\n"
        client.order(lab.place, "kill", box="box2")
        assert peer.stdout.readline() == "silence\n"
    assert lab.box("box2")["state"] == "killed"
    with pytest.raises(NotFoundError):
        client.order(lab.place, "kill", box="box3")
    client.order(lab.place, "reboot", box="box2")
    lab.booted("box2")
    lab.sh("ping -c1 -W5 192.168.240.12 >/dev/null")


def test_boxes_reach_each_other_and_nobody_else(make_lab):
    lab = make_lab(2)
    lab.sh("ping -c1 -W5 192.168.240.12 >/dev/null")
    lab.sh("ping -c1 -W5 192.168.240.11 >/dev/null", "box2")
    links = lab.sh(f"{sys.executable} -c \"print(open('/proc/net/if_inet6').read())\"")
    assert any(line.startswith("fe80") and line.endswith("eth0") for line in links.splitlines())
    outside = f"{sys.executable} -c \"import socket; socket.create_connection(('198.51.100.1', 80), 2)\""
    assert lab.code(outside) != 0


def test_down_leaves_nothing(needs_root):
    name = f"t{os.getpid()}-gone"
    before = traces(name)
    place = client.start(bare(name, 3))
    lab = Lab(place)
    for box in ("box1", "box2", "box3"):
        lab.booted(box)
    assert traces(name) != before, "the test can see a lab"
    assert client.take_down(place) is True
    assert traces(name) == before
    assert client.take_down(place) is False


def test_a_killed_supervisor_takes_everything_with_it(needs_root):
    name = f"t{os.getpid()}-killed"
    before = traces(name)
    place = client.start(bare(name, 2))
    lab = Lab(place)
    inits = [lab.booted(box)["pid"] for box in ("box1", "box2")]
    supervisor = lab.supervisor()
    handles = [os.pidfd_open(pid) for pid in (*inits, supervisor)]
    os.kill(supervisor, signal.SIGKILL)
    for handle in handles:
        assert select.select([handle], [], [], 20)[0], "a box outlived its supervisor"
        os.close(handle)
    until(lambda: traces(name)["processes"] == before["processes"])
    with pytest.raises(NotFoundError):
        client.status(place)
    assert traces(name) == before


def test_leash_ends_the_lab_with_its_holder(needs_root):
    name = f"t{os.getpid()}-leash"
    before = traces(name)
    settings = dataclasses.asdict(bare(name, 1))
    program = (
        "import json, sys, time\nfrom provider_kairos.lab import client\nfrom provider_kairos.lab.model import LabSettings\n"
        "client.start(LabSettings(**json.loads(sys.argv[1])), client.Leash())\nprint('up', flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, json.dumps(settings)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        holder.kill()
    until(lambda: not Place(name).alive())
    until(lambda: traces(name) == before)


def test_two_labs_side_by_side(make_lab):
    first, second = make_lab(1), make_lab(1)
    assert first.sh("cat /etc/machine-id") != second.sh("cat /etc/machine-id")
    assert first.box()["lan_address"] == second.box()["lan_address"], "each has a switch of its own"


def test_a_user_that_is_not_root_gets_the_same_box(needs_root):
    name = f"u{os.getpid()}"
    files = {"/etc/systemd/system/sleeper.service": SLEEPER}
    settings = dataclasses.asdict(bare(name, 2, files))
    program = f"""
import json, os, subprocess, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.environ.pop("XDG_RUNTIME_DIR", None)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_lab_boxes import Lab, until
from provider_kairos.lab import client
from provider_kairos.lab.model import LabSettings
place = client.start(LabSettings(**json.loads(sys.argv[1])))
lab = Lab(place)
try:
    lab.booted("box1"); lab.booted("box2")
    print(lab.sh("id -u").strip(), lab.sh("hostname", "box2").strip())
    lab.sh("systemctl enable --now sleeper; touch /usr/local/kept /etc/lost /usr/bin/lost /var/lib/lost")
    lab.sh("ping -c1 -W5 192.168.240.12 >/dev/null")
    client.order(place, "kill", box="box1")
    client.order(place, "reboot", box="box1"); lab.booted("box1")
    print(lab.sh("systemctl is-active sleeper; ls /usr/local/kept; ls /etc/lost 2>/dev/null || echo lost"))
finally:
    print(client.take_down(place))
"""
    before = traces(name)
    done = subprocess.run([sys.executable, "-c", program, json.dumps(settings)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "box2", "active", "/usr/local/kept", "lost", "True"]
    assert traces(name) == before


def test_a_kernel_that_forbids_user_namespaces_is_named_with_the_remedy(needs_root):
    program = f"""
import os, sys
from pathlib import Path
from provider_kairos.lab.syscalls import CLONE_NEWUSER, unshare
unshare(CLONE_NEWUSER)
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text("1000 0 1")
Path("/proc/self/gid_map").write_text("1000 0 1")
Path("/proc/sys/user/max_user_namespaces").write_text("0")
os.environ["XDG_RUNTIME_DIR"] = sys.argv[1]
os.execv(sys.executable, [sys.executable, "-c", '''
from provider_kairos.lab import client
from provider_kairos.lab.model import LabSettings
client.start(LabSettings(name="t{os.getpid()}-no", boxes=1, product=False))
'''])
"""
    done = subprocess.run([sys.executable, "-c", program, "/nowhere"], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "the kernel gives this user no user namespace" in last
    assert "max_user_namespaces=10000" in last


def test_a_box_that_cannot_boot_says_why(needs_root):
    files = {"/etc/machine-id/below-a-file": "x"}
    with pytest.raises(HostError, match=r"box1: cannot boot: .*machine-id"):
        client.start(bare(f"t{os.getpid()}-bad", 1, files))
    assert not Place(f"t{os.getpid()}-bad").alive()
