"""Lab up and lab down, again and again: how many of them formed, and the distribution of the seconds."""

from __future__ import annotations

import argparse
import sys

from bench.boxes import lab
from bench.table import show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--boxes", type=int, default=3)
    options = parser.parse_args()
    rows: list[tuple[float, float, float]] = []
    for number in range(options.runs):
        try:
            with lab("twenty", options.boxes) as (_, document):
                boxes = document["boxes"]
                rows.append(
                    (
                        max(box["seconds_to_address"] for box in boxes),
                        max(box["seconds_to_role"] for box in boxes),
                        max(box["seconds_to_ready"] for box in boxes),
                    )
                )
        except SystemExit as failure:
            print(f"run {number + 1} did not form: {failure}", file=sys.stderr)
    names = ("last address", "last role", "last Ready")
    table = []
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        ordered = sorted(column)
        nine = ordered[min(len(ordered) - 1, round(0.9 * (len(ordered) - 1)))]
        middle = ordered[len(ordered) // 2]
        table.append((name, f"{ordered[0]:.1f}", f"{middle:.1f}", f"{nine:.1f}", f"{ordered[-1]:.1f}"))
    show(
        f"{options.boxes} boxes, lab up and down {options.runs} times: {len(rows)} of {options.runs} formed (seconds)",
        ("figure", "least", "median", "90 %", "most"),
        table,
    )
    sys.exit(len(rows) != options.runs)


if __name__ == "__main__":
    main()
