"""How results are printed: one JSON document, or columns; rich only for tables on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["print_json", "print_table"]


def print_json(value: Any) -> None:
    """One document, indented, on standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    print()


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int] = ()) -> None:
    """A table: drawn on a terminal, plain columns elsewhere (``widths`` where programs rely on them)."""
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - only on a terminal
        from rich.table import Table  # noqa: PLC0415 - likewise

        table = Table(*headers)
        for row in rows:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table)
        return
    sizes = [
        max([len(header), *(len(row[n]) for row in rows)]) if not widths else widths[n]
        for n, header in enumerate(headers)
    ]
    for line in [headers, ["-" * size for size in sizes], *rows]:
        print("  ".join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip())
