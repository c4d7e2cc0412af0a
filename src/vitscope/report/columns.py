"""Numbers of single images: their names, and their distribution over all images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from vitscope.figures.saved import ModelResult, as_sentence, printable
from vitscope.files.reading import open_table
from vitscope.images.paths import hide_parents
from vitscope.results.vocabulary import (
    COVARIATES,
    PER_IMAGE,
    TERMS,
    TOTALS,
    Quantity,
    name_covariate,
    name_term,
)

_NUM_BINS = 28
_NOISE = 1e-6
"""Spread, relative to the largest value, that counts as rounding."""
_COVARIATE, SKILL = "covariate_", "skill_"
_TERMS, _QUANTITIES = list(TERMS), list(PER_IMAGE.values())


@dataclass(frozen=True)
class Column:
    """A number of each image."""

    name: str  # name in the table of the result
    group: str
    label: str
    description: str  # what it is, in a line; empty if not known
    order: tuple[int, str, int, str]  # position in the list to choose from


@dataclass(frozen=True)
class ImageNumbers:
    """Numbers of all images of one result."""

    columns: tuple[Column, ...]
    values: Float64[np.ndarray, "column image"]  # one row per column; NaN where undefined
    rows: dict[str, int]  # index of each image, by its digest
    paths: Sequence[str]  # of the images, without folders that say nothing of them

    @classmethod
    def of_columns(
        cls,
        columns: Mapping[str, Float64[np.ndarray, " image"]],
        digests: Sequence[str],
        paths: Sequence[str],
    ) -> "ImageNumbers":
        """Put numbers in the order of display."""
        described = sorted(map(describe_column, columns), key=lambda column: column.order)
        rows = [columns[column.name] for column in described]
        values = np.stack(rows) if rows else np.empty((0, len(digests)))
        places = {digest: row for row, digest in enumerate(digests)}
        return cls(tuple(described), values, places, hide_parents(paths))


def describe_column(name: str) -> Column:
    """Describe a column of the table of images."""
    if name.startswith(_COVARIATE):
        key = name.removeprefix(_COVARIATE)
        return _place(name, "Image", name_covariate(key), COVARIATES.get(key))
    if name.startswith(SKILL):
        return _place(name, "Skill", name_term(name.removeprefix(SKILL)))
    keys = [key for key in PER_IMAGE if name == key or name.startswith(f"{key}_")]
    if not keys:
        return _place(name, "Other", name_term(name))
    key = max(keys, key=len)
    quantity = PER_IMAGE[key]
    rest = name.removeprefix(key).removeprefix("_")
    if not rest:
        is_proof = key.endswith("_error")
        group = "Checks" if is_proof else "Image" if name == "level_range" else "Attention"
        return _place(name, group, quantity.name, quantity)
    total = next((total for total in quantity.totals if rest.startswith(f"{total}_")), None)
    term = rest if total is None else rest.removeprefix(f"{total}_")
    group = quantity.name if total is None else f"{quantity.name} with {TOTALS[total]}"
    label = f"depth {int(term)}" if term.isdigit() else name_term(term)
    return _place(name, group, label, quantity, term)


def _place(
    name: str, group: str, label: str, quantity: Quantity | None = None, term: str = ""
) -> Column:
    last = _TERMS.index(term) if term in TERMS else len(_TERMS)
    first, unit, description = len(_QUANTITIES), "", ""
    if quantity is not None:
        first = _QUANTITIES.index(quantity) if quantity in _QUANTITIES else first
        unit = f" ({quantity.unit})" if quantity.unit else ""
        description = as_sentence(quantity.description)
    order = (first, group, last, name)
    return Column(name, group, printable(label) + unit, description, order)


def collect_numbers(table: pa.Table) -> ImageNumbers:
    """The numbers of a table that differ between its images."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_floating(column.type):
            values = column.to_numpy().astype(np.float64)
            values = np.where(np.isfinite(values), values, np.nan)
            known = values[~np.isnan(values)]
            if known.size and np.ptp(known) > _NOISE * np.abs(known).max():
                columns[name] = values
    ids, paths = (table[name].to_pylist() for name in ("image_id", "path"))
    return ImageNumbers.of_columns(columns, ids, paths)


def read_numbers(result: ModelResult) -> ImageNumbers:
    """Numbers of all images of an audit."""
    with open_table(result.folder / "images.parquet") as file:
        return collect_numbers(file.read())


def count_bins(values: Float64[np.ndarray, " image"]) -> dict[str, Any]:
    """Histogram of a number over images."""
    known = values[~np.isnan(values)]
    counts, edges = np.histogram(known, bins=_NUM_BINS)
    p05, p50, p95 = np.quantile(known, [0.05, 0.5, 0.95]).tolist()
    return {
        "start": float(edges[0]),
        "step": float(edges[1] - edges[0]),
        "counts": counts.tolist(),
        "n": int(known.size),
        "mean": float(known.mean()),
        "p05": p05,
        "p50": p50,
        "p95": p95,
    }
