"""Which versions and modes the live tests go through, and what is expected where the ledger formats differ."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.interop.network import NEW, OLD

__all__ = ["CELLS", "Cell", "all_cells", "expected_apart"]


@dataclass(frozen=True)
class Cell:
    """One version of EdgeVPN, and the ownership mode of all nodes; v0.30.2 knows none, so there it is ours."""

    version: str
    mode: str

    @property
    def apart(self) -> bool:
        """Whether the two do not read each other's records: EdgeVPN before v0.35 cannot decode signed blocks."""
        return self.version == OLD and self.mode != "off"

    def __str__(self) -> str:
        return f"{self.version}-{self.mode}"


CELLS = [Cell(version, mode) for version in (NEW, OLD) for mode in ("enforce", "observe", "off")]
all_cells = pytest.mark.parametrize("cell", CELLS, ids=str)


def expected_apart(text: str) -> dict[tuple[str, str], str]:
    """For ``expected_by`` of a row: what is expected where the formats differ."""
    return {(cell.version, cell.mode): text for cell in CELLS if cell.apart}
