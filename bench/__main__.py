"""All figures in one run: ``python -m bench``; one part with ``python -m bench.startup`` and so on."""

from __future__ import annotations

import platform
import sys

from bench import formation, idle, startup, throughput


def main() -> None:
    print(f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {platform.machine()}")
    sys.argv = sys.argv[:1]  # each part has options of its own
    for part in (startup, formation, idle, throughput):
        part.main()


if __name__ == "__main__":
    main()
