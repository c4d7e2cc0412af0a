"""CSV files whose cells no spreadsheet runs as formulas."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitscope.files.disk_errors import plain_disk_errors

# Also after apostrophes, so that a cell's own leading apostrophe survives a round trip.
_FORMULA = re.compile(r"^'*[=+\-@\t\r]")
_NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?")


def write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows; cells that a spreadsheet would read as formulas get a leading apostrophe."""
    cells = [[escape_cell(cell) for cell in row] for row in rows]
    with (
        plain_disk_errors(path),
        path.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows(cells)


def escape_cell(cell: str) -> str:
    """Escape text that a spreadsheet would read as a formula; numbers are unchanged."""
    return cell if _NUMBER.fullmatch(cell) else _FORMULA.sub(r"'\g<0>", cell)


def read_cell(cell: str) -> str:
    """Undo `escape_cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
