"""CSV files in which no cell is a formula to a spreadsheet."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitscope.files.disk_errors import plain_disk_errors

# Behind apostrophes too, or a cell that has one itself would lose it when it is read back.
_FORMULA = re.compile(r"^'*[=+\-@\t\r]")
_NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?")


def write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows; a cell that a spreadsheet would take for a formula begins with an apostrophe."""
    cells = [[escape_cell(cell) for cell in row] for row in rows]
    with (
        plain_disk_errors(path),
        path.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows(cells)


def escape_cell(cell: str) -> str:
    """Text that no spreadsheet takes for a formula; a number is left as it is."""
    return cell if _NUMBER.fullmatch(cell) else _FORMULA.sub(r"'\g<0>", cell)


def read_cell(cell: str) -> str:
    """Text as it was before it was escaped."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
