"""Networks of EdgeVPN nodes and ours for benchmarks: the same namespaces and nodes as in ``tests/interop``.

The programs are named by EDGEVPN_BIN (v0.35.4) and EDGEVPN_OLD_BIN (v0.30.2); a benchmark that needs one which is not
there says so and ends with status 0.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.interop.network import NEW, Site, cannot
from tests.net.conftest import namespaces


def need(*versions: str) -> None:
    """End here when a program is missing."""
    for version in versions or (NEW,):
        if reason := cannot(version):
            print(reason)
            sys.exit(0)


@contextmanager
def sites() -> Iterator[Callable[..., Site]]:
    """``make(go, ours, **options)`` → a network that is not started yet; all are gone at the end, also of a SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder, namespaces() as make:
        made: list[Site] = []

        def build(go: int, ours: int, **options: Any) -> Site:
            made.append(Site(make, Path(folder) / f"site{len(made)}", go, ours, **options))
            return made[-1]

        yield build
