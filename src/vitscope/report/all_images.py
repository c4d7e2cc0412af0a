"""The table of all images with their numbers, within a limit of bytes."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from vitscope.figures.saved import ModelResult
from vitscope.files.printable import printable, without_folders
from vitscope.images.paths import find_root, hide_parents
from vitscope.report.columns import read_numbers
from vitscope.report.embedding import encode_bytes
from vitscope.results.result_text import TextTable

_BYTES_OF_NUMBER = 16 / 3  # four bytes, as base64
_MOST_FAILURES = 500


def collect_tables(results: Sequence[ModelResult], max_bytes: int) -> dict[str, Any]:
    """Paths and numbers of the images of every audit; audits of the same images share paths.

    Images are left out where they would take more bytes.
    """
    audits = [result for result in results if result.kind == "audit"]
    places: dict[tuple[str, ...], int] = {}
    tables = [_collect_table(result, max_bytes / len(audits), places) for result in audits]
    return {"lists": [_fold_paths(paths) for paths in places], "tables": tables}


def _collect_table(
    result: ModelResult, max_bytes: float, places: dict[tuple[str, ...], int]
) -> dict[str, Any]:
    numbers = read_numbers(result)
    needed = _BYTES_OF_NUMBER * numbers.values.size + sum(map(len, numbers.paths))
    step = max(1, math.ceil(needed / max_bytes))
    kept = numbers.paths[::step]
    note = (
        ""
        if step == 1
        else f"{len(kept):,} of {len(numbers.paths):,} images, at even steps, so that this file "
        "stays small; images.parquet in the folder of the result has all."
    )
    return {
        "label": result.label,
        "note": note,
        "paths": places.setdefault(tuple(kept), len(places)),
        "columns": [column.name for column in numbers.columns],
        # a row per column, of 32-bit floats; NaN where undefined
        "values": encode_bytes(numbers.values[:, ::step].astype("<f4").view("u1")),
    }


def _fold_paths(paths: Iterable[str]) -> dict[str, Any]:
    root = find_root(paths)
    return {"root": root, "paths": [path.removeprefix(root) for path in paths]}


def tabulate_failures(results: Sequence[ModelResult]) -> TextTable | None:
    """Images that could not be read, with the reason; None if there are none."""
    found: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if not result.summary.data.num_failed:
            continue
        failures = result.saved.failures
        shown = hide_parents([path for path, _ in failures])
        for path, (_, reason) in zip(shown, failures, strict=True):
            found.setdefault((path, reason), []).append(result.label)
    if not found:
        return None
    rows = [
        (printable(path), printable(without_folders(reason)), ", ".join(dict.fromkeys(labels)))
        for (path, reason), labels in found.items()
    ]
    left_out = len(rows) - _MOST_FAILURES
    return TextTable(
        ("image", "reason", "results"),
        [rows[:_MOST_FAILURES]],
        caption=f"{left_out:,} more are in failures.csv." if left_out > 0 else "",
    )
