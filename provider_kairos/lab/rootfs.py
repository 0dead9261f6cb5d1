"""The root of a box: layers, what is kept, what is private; then ``pivot_root`` into it.

Runs in the first process of a box, in its new mount namespace, before anything else of the box exists.
Two ways (design.md 7, tried on kernel 6.18):

* *overlay*: one overlay of ``/``; needs root.
* *assembled*: a tmpfs with the machine's folders bound into it and overlays of ``/usr``, ``/etc`` and ``/var``
  (``userxattr``); all that a user namespace may do, and the fall-back where an overlay of ``/`` is refused.

Files of the image are laid into the upper layers before these are mounted: in a user namespace only folders
that exist in an upper layer belong to us. What outlives a reboot is bound from the box's store
(spec/provider.md 3.8.3); the rest lives in a tmpfs that goes with the mount namespace.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Final

from provider_kairos.lab.image import EDGEVPN_PROGRAM, FOREIGN_PLUGIN, image_files, image_links, product_paths
from provider_kairos.lab.model import PERSISTENT_PATHS, BoxSpec
from provider_kairos.lab.syscalls import (
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    bind,
    mount,
    pivot_into,
)

__all__ = ["Layers", "build_root"]

_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty", "kmsg", "net/tun")
_DEVICE_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# Folders of the machine that an assembled root shows read-only when they are no links.
_SHOWN: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt", "nix")
# Folders of an image that must exist, be ours and be writable.
_FOLDERS: Final = (
    "/etc/default",
    "/etc/sysctl.d",
    "/etc/profile.d",
    "/etc/systemd/system/multi-user.target.wants",
    "/etc/systemd/system.conf.d",
    "/var/lib",
    "/var/cache",
    "/var/spool",
    "/system/providers",
    "/system/oem",
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/local/etc",
    "/usr/local/share",
    "/usr/local/cloud-config",
    "/usr/local/system/providers",
    "/var/log/lab",
    "/var/log/kairos",
)


class Layers:
    """Where a path of the box has to be written before its root is mounted.

    ``uppers`` maps a mount point in the box ("/", "/usr", "/usr/local") to the folder that becomes its upper
    layer; the longest one that holds a path wins.
    """

    def __init__(self, uppers: dict[str, Path]) -> None:
        self.uppers = uppers

    def locate(self, path: str) -> Path:
        """The place of a path of the box in the layer that will hold it."""
        base = max((b for b in self.uppers if path == b or path.startswith(b.rstrip("/") + "/")), key=len)
        return self.uppers[base] / path[len(base) :].lstrip("/")

    def folder(self, path: str) -> Path:
        """Make a folder with its parents; they keep the modes that the machine's own folders have."""
        made = Path("/")
        for part in Path(path).parts[1:]:
            made /= part
            place = self.locate(str(made))
            if not place.is_dir():
                place.mkdir()
                if made.is_dir():
                    place.chmod(stat.S_IMODE(made.stat().st_mode))
        return self.locate(path)

    def write(self, path: str, content: str, mode: int) -> None:
        """Lay one file."""
        self.folder(str(Path(path).parent))
        place = self.locate(path)
        place.unlink(missing_ok=True)
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        place.chmod(mode)

    def link(self, path: str, target: str) -> None:
        """Lay one symbolic link."""
        self.folder(str(Path(path).parent))
        place = self.locate(path)
        place.unlink(missing_ok=True)
        place.symlink_to(target)


def _tmpfs(target: Path, *, mode: str = "755", flags: int = MS_NOSUID) -> None:
    target.mkdir(parents=True, exist_ok=True)
    mount("tmpfs", target, "tmpfs", flags, f"mode={mode}")


def _overlay(lower: str, upper: Path, work: Path, target: Path, *, user: bool) -> None:
    work.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}" + (",userxattr" if user else "")
    mount("overlay", target, "overlay", 0, options)


def _lay_image(spec: BoxSpec, layers: Layers) -> None:
    for folder in _FOLDERS:
        layers.folder(folder)
    for file in image_files(spec):
        if not (file.once and layers.locate(file.path).exists()):
            layers.write(file.path, file.content, file.mode)
    for link in image_links(spec):
        # "Once" links mark the first boot: a unit that the box disabled stays disabled.
        if not (link.once and layers.locate("/var/log/lab").joinpath("booted").exists()):
            layers.link(link.path, link.target)
    layers.locate("/var/log/lab").joinpath("booted").touch()


def _shows_usr_local() -> bool:
    """Whether the machine's own /usr/local has to show through: only when the interpreter comes from there."""
    return any(Path(path).is_relative_to("/usr/local") for path in (os.path.realpath("/proc/self/exe"), os.__file__))


def _persistent(spec: BoxSpec) -> dict[str, Path]:
    places = {}
    for path in PERSISTENT_PATHS:
        place = Path(spec.store) / path.strip("/").replace("/", "-")
        place.mkdir(parents=True, exist_ok=True)
        places[path] = place
    return places


def _bind_machine(root: Path) -> None:
    """Show the machine's top-level folders in an assembled root; the ones with an overlay come later."""
    for name in _SHOWN:
        source = Path("/", name)
        if source.is_symlink():
            (root / name).symlink_to(source.readlink())
        elif source.is_dir():
            (root / name).mkdir()
            bind(source, root / name, recursive=True)


def _mount_overlays(layers: Layers, volatile: Path, root: Path, *, assembled: bool) -> None:
    for point in sorted(layers.uppers):
        if point == "/usr/local" or (point == "/" and assembled):
            continue
        target = root / point.lstrip("/")
        target.mkdir(exist_ok=True)
        work = volatile / "work" / (point.strip("/").replace("/", "-") or "root")
        try:
            _overlay(point, layers.uppers[point], work, target, user=assembled)
        except OSError:
            if not assembled or point == "/usr":
                raise
            # Something is mounted below /etc or /var and the kernel will not let us look under it.
            _copy_instead(point, layers.uppers[point], target)


def _copy_instead(point: str, upper: Path, target: Path) -> None:
    """Stand in for an overlay that was refused: the machine's small readable files of /etc; of /var nothing."""
    if point == "/etc":
        for source in sorted(Path(point).rglob("*")):
            copy = upper / source.relative_to(point)
            if copy.exists() or copy.is_symlink():
                continue
            if source.is_symlink():
                copy.symlink_to(source.readlink())
            elif source.is_dir():
                copy.mkdir()
            elif source.is_file() and os.access(source, os.R_OK):
                shutil.copyfile(source, copy)
                copy.chmod(stat.S_IMODE(source.stat().st_mode))
    bind(upper, target)


def _mount_devices(root: Path) -> None:
    dev = root / "dev"
    _tmpfs(dev)
    (dev / "net").mkdir()
    for name in _DEVICES:
        source = Path("/dev", name)
        if source.exists():
            (dev / name).touch()
            bind(source, dev / name)
    for name, target in _DEVICE_LINKS.items():
        (dev / name).symlink_to(target)
    (dev / "pts").mkdir()
    mount("devpts", dev / "pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    _tmpfs(dev / "shm", mode="1777", flags=MS_NOSUID | MS_NODEV)


def _mount_kernel(root: Path, *, cgroup: str) -> None:
    (root / "proc").mkdir(exist_ok=True)
    (root / "sys").mkdir(exist_ok=True)
    mount("proc", root / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", root / "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if cgroup:
        mount_cgroups(root / "sys/fs/cgroup")


def mount_cgroups(target: Path) -> None:
    """Mount the cgroup tree as the machine has it: a new sysfs hides it (spec/k3s.md 10).

    In a cgroup namespace every mount shows the box's own part of the tree as its root.
    """
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    hierarchies = []
    for line in Path("/proc/self/mounts").read_text("utf-8").splitlines():
        _, point, kind, options, *_ = line.split(" ")
        if kind in {"cgroup", "cgroup2"} and point.startswith("/sys/fs/cgroup"):
            hierarchies.append((point, kind, options))
    if any(point == "/sys/fs/cgroup" for point, _, _ in hierarchies):
        mount("cgroup2", target, "cgroup2", flags)
        return
    _tmpfs(target)
    plain = {"rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime", "xattr", "clone_children"}
    for point, kind, options in hierarchies:
        place = target / point.removeprefix("/sys/fs/cgroup/")
        place.mkdir(exist_ok=True)
        named = [o for o in options.split(",") if o not in plain and not o.startswith("release_agent=")]
        mount(kind, place, kind, flags, ",".join(named) if kind == "cgroup" else "")


def _plan(spec: BoxSpec, volatile: Path, root: Path) -> Layers:
    """Decide which layers a box has, and make their folders."""
    uppers: dict[str, Path] = {}
    if spec.assembled:
        _tmpfs(root)
        uppers["/"] = root
        points = ["/usr", "/etc", "/var"]
    else:
        # A part of the system that is a file system of its own does not show through an overlay of /.
        points = ["/", *(p for p in ("/usr", "/etc", "/var", "/opt") if os.path.ismount(p))]
    for point in points:
        upper = volatile / "upper" / (point.strip("/") or "root")
        upper.mkdir(parents=True)
        uppers[point] = upper
    uppers.update(_persistent(spec))
    return Layers(uppers)


def build_root(spec: BoxSpec) -> None:
    """Build the root of a box and move into it; afterwards this process sees only the box."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    volatile = Path(spec.store) / ".volatile"
    _tmpfs(volatile)
    root = volatile / "root"
    root.mkdir()
    layers = _plan(spec, volatile, root)
    if spec.assembled:
        _bind_machine(root)
    _lay_image(spec, layers)
    mounted = Layers({p: u for p, u in layers.uppers.items() if p not in PERSISTENT_PATHS})
    for path in PERSISTENT_PATHS:
        mounted.folder(path)
    for name in ("run", "tmp", "root", "mnt", "home", "dev", "proc", "sys"):
        mounted.folder(f"/{name}")
    _mount_overlays(mounted, volatile, root, assembled=spec.assembled)
    _mount_persistent(spec, layers, root)
    _mount_kernel(root, cgroup=spec.cgroup)
    _mount_devices(root)
    for name, mode in (("run", "755"), ("tmp", "1777"), *((("root", "700"),) if spec.assembled else ())):
        _tmpfs(root / name, mode=mode)
    (root / "run/systemd/system").mkdir(parents=True)
    (root / "run/lock").mkdir()
    (root / "run/lab").mkdir(mode=0o700)
    _show_product(spec, root)
    pivot_into(root)


def _mount_persistent(spec: BoxSpec, layers: Layers, root: Path) -> None:
    for path in PERSISTENT_PATHS:
        target = root / path.lstrip("/")
        if path == "/usr/local" and _shows_usr_local():
            _overlay(path, layers.uppers[path], Path(spec.store) / ".usr-local", target, user=spec.assembled)
        else:
            bind(layers.uppers[path], target)


def _show_product(spec: BoxSpec, root: Path) -> None:
    """Bind what must be found at the same place as outside; private /tmp and /run may have hidden it."""
    shown = product_paths()
    for path in shown:
        target = root / path.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        bind(path, target, recursive=True, read_only=True)
    places = ((spec.k3s, "/usr/local/bin/k3s"), (spec.edgevpn, EDGEVPN_PROGRAM), (spec.provider, FOREIGN_PLUGIN))
    for program, place in places:
        if program:
            target = root / place.lstrip("/")
            target.touch()
            bind(program, target, read_only=True)
