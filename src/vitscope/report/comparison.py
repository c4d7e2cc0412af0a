"""The report's table of several audits, and which ones it compares."""

from collections.abc import Sequence
from dataclasses import replace

from vitscope.figures.saved import ModelResult
from vitscope.results.number_text import NumberText
from vitscope.results.result_text import ABSENT, TextTable, tabulate_comparison
from vitscope.results.schema_remedies import ORIGINAL


def list_compared(results: Sequence[ModelResult]) -> list[ModelResult]:
    """Audits to compare; those of edits are left out, which a comparison of their own has."""
    edits = {
        (one.folder.parent / name).resolve()
        for one in results
        if one.kind == "remedies"
        for name in (ORIGINAL, *(edit.folder for edit in one.remedies.remedies))
    }
    return [one for one in results if one.kind == "audit" and one.folder.resolve() not in edits]


def tabulate_compared(results: Sequence[ModelResult]) -> TextTable | str:
    """A row per audit, with the name of its run; or why they cannot be compared."""
    table = tabulate_comparison(results)
    if isinstance(table, str):
        return table
    (rows,) = table.sections
    told = [
        (row[0], one.run or ABSENT, NumberText(f"{one.num_images:,}", one.num_images), *row[1:])
        for row, one in zip(rows, results, strict=True)
    ]
    first, *others = table.columns
    return replace(table, columns=(first, "run", "images", *others), sections=[told])
