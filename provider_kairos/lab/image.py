"""What lies in the image of a box beside the machine's own programs: wrappers, units, identity files.

Plays kairos-init and the k3s install script (spec/provider.md 3.1, 9.3, 9.6): the unit of the Kairos agent,
the base units of k3s that read ``/etc/sysconfig/%N``, the provider under ``/system/providers``. Contents only;
:mod:`.rootfs` decides where in the layers they go.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import provider_kairos
from provider_kairos.lab.model import AGENT_API, PERSISTENT_PATHS, BoxSpec

__all__ = [
    "EDGEVPN_PROGRAM",
    "FOREIGN_PLUGIN",
    "INIT_PROGRAM",
    "ImageFile",
    "ImageLink",
    "image_files",
    "image_links",
    "product_paths",
    "wrapper",
]

INIT_PROGRAM: Final = "/usr/sbin/kairos-lab-init"
EDGEVPN_PROGRAM: Final = "/usr/bin/edgevpn"
FOREIGN_PLUGIN: Final = "/system/providers/agent-provider-kairos"
PLUGIN: Final = "/system/providers/agent-provider-kairos-p2p"

# Names under which real k3s wants to be found beside itself (spec/k3s.md 10).
K3S_LINKS: Final = ("kubectl", "crictl", "ctr")

_AGENT_UNIT = """\
[Unit]
Description=Kairos agent
After=cos-setup-network.service
Wants=network.target

[Service]
{environment}ExecStart=/usr/bin/kairos-agent start{api}
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
"""

# As the k3s install script writes them; the command is what the provider overrides with a drop-in.
_K3S_UNIT = """\
[Unit]
Description=Lightweight Kubernetes
Documentation=https://k3s.io
Wants=network-online.target
After=network-online.target

[Install]
WantedBy=multi-user.target

[Service]
Type={kind}
EnvironmentFile=-/etc/default/%N
EnvironmentFile=-/etc/sysconfig/%N
EnvironmentFile=-/etc/systemd/system/{name}.service.env
KillMode=process
Delegate=yes
User=root
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s
ExecStartPre=-/sbin/modprobe br_netfilter
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/local/bin/k3s \\
    {command} \\

"""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file of the image. ``once`` files live on persistent paths and are laid at the first boot only."""

    path: str
    content: str
    mode: int = 0o644
    once: bool = False


@dataclass(frozen=True, slots=True)
class ImageLink:
    """One symbolic link of the image."""

    path: str
    target: str
    once: bool = False


def source_root() -> Path:
    """The folder that holds the package, as it must be found in the box too."""
    return Path(provider_kairos.__file__).resolve().parent.parent


def wrapper(module: str, *, isolated: bool = True, call: str = "sys.exit(main())") -> str:
    """A program that runs one of our modules with the interpreter that runs the lab.

    ``isolated`` ones need the standard library only and start in a third of the time; ``call`` is the statement
    that runs the program, a call of one function of the module.
    """
    flags = "-IS" if isolated else "-I"
    start = [f"#!{sys.executable} {flags}"]
    if len(start[0]) > 120 or " " in sys.executable:
        # The kernel cuts long first lines and knows no quotes; the shell does, and Python sees a string.
        start = ["#!/bin/sh", f"""'''exec' "{sys.executable}" {flags} "$0" "$@"\n' '''"""]
    lines = [
        *start,
        "import sys",
        f"sys.path.insert(0, {str(source_root())!r})",
        f"from {module} import {'entry' if call.startswith('entry') else 'main'}",
        call,
    ]
    return "\n".join(lines) + "\n"


def image_files(spec: BoxSpec) -> list[ImageFile]:
    """Everything that the lab writes into a box before its first process runs."""
    lab = "provider_kairos.lab"
    host = spec.name
    files = [
        ImageFile(INIT_PROGRAM, wrapper(f"{lab}.init"), 0o755),
        ImageFile("/usr/bin/systemctl", wrapper(f"{lab}.systemctl"), 0o755),
        ImageFile("/usr/bin/journalctl", wrapper(f"{lab}.logs"), 0o755),
        ImageFile("/etc/machine-id", f"{spec.machine_id}\n", 0o444),
        ImageFile("/var/lib/dbus/machine-id", f"{spec.machine_id}\n", 0o444),
        ImageFile("/etc/hostname", f"{host}\n"),
        ImageFile("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {host}\n"),
        ImageFile("/etc/resolv.conf", "# the lab has no resolver of its own\n"),
        ImageFile("/etc/kairos-release", 'KAIROS_ID="kairos"\nKAIROS_VARIANT="standard"\nKAIROS_FLAVOR="lab"\n'),
    ]
    if shutil.which("ping") is None:
        files.append(ImageFile("/usr/bin/ping", wrapper(f"{lab}.ping"), 0o755))
    if spec.product:
        files.append(ImageFile("/usr/bin/kairos-agent", wrapper(f"{lab}.agent", isolated=False), 0o755))
        unit = _AGENT_UNIT.format(
            api="" if spec.agent_api == AGENT_API else f" --api={spec.agent_api}",
            environment=f"Environment=KAIROS_P2P_DAEMON={EDGEVPN_PROGRAM}\n"
            if spec.edgevpn and not spec.provider
            else "",
        )
        files.append(ImageFile("/etc/systemd/system/kairos-agent.service", unit, once=True))
    for name, kind, command in (("k3s", "notify", "server"), ("k3s-agent", "exec", "agent")):
        unit = _K3S_UNIT.format(name=name, kind=kind, command=command)
        files.append(ImageFile(f"/etc/systemd/system/{name}.service", unit, once=True))
    if not spec.k3s:
        files.append(
            ImageFile(
                "/usr/local/bin/k3s", wrapper(f"{lab}.k3s.__main__", isolated=False, call="entry(sys.argv)"), 0o755
            )
        )
    # The user's files are laid like an installer does: on persistent paths once, and then they are the box's.
    files += [ImageFile(p, text, 0o600, once=p.startswith(PERSISTENT_PATHS)) for p, text in spec.files.items()]
    return files


def image_links(spec: BoxSpec) -> list[ImageLink]:
    """Links of the image: the product under the names that a Kairos image gives it, enabled units, k3s' names."""
    links = [ImageLink("/etc/mtab", "/proc/self/mounts")]
    if spec.product:
        bin_folder = Path(sys.prefix) / "bin"
        unit = "/etc/systemd/system/kairos-agent.service"
        # A provider that is not ours starts its daemon as "edgevpn": ours under that name, unless it is an EdgeVPN.
        links += (
            [ImageLink(PLUGIN, str(bin_folder / "agent-provider-kairos-p2p"))]
            if not spec.provider
            else [ImageLink(EDGEVPN_PROGRAM, str(bin_folder / "kairos-p2p"))]
            if not spec.edgevpn
            else []
        )
        links += [
            ImageLink("/usr/bin/kairos-p2p", str(bin_folder / "kairos-p2p")),
            ImageLink("/etc/systemd/system/multi-user.target.wants/kairos-agent.service", unit, once=True),
        ]
    links += [ImageLink(f"/usr/local/bin/{name}", "k3s") for name in (K3S_LINKS if spec.k3s else ("kubectl",))]
    return links


def product_paths() -> list[str]:
    """Folders that must be found at the same place in a box: the package, its environment, its interpreter."""
    paths = {str(source_root() / "provider_kairos"), sys.prefix}
    for base in (sys.base_prefix, str(Path(sys.executable).resolve().parent.parent)):
        # /usr and /usr/local are part of every box; anything else (uv's own Pythons) is shown whole, with
        # the links between versions that lie beside it.
        if base not in {"/usr", "/usr/local", "/"}:
            paths.add(str(Path(base).parent))
    return sorted(paths)
