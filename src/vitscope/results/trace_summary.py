"""The traced images of an audit: a table, and its summary by depth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from vitscope.files.reading import plain_damage
from vitscope.metrics.jackknife import Estimate, block_of, replicate
from vitscope.results.saved_result import read_table, write_table
from vitscope.results.schema_numbers import TraceSummary

_TABLE = "traced.parquet"
_OTHER_COLUMNS = ("image_id", "total", "gap", "through_values", "through_routing")


def write_traces(folder: Path, table: pa.Table) -> None:
    """Write the traced images: one row each, with lists by depth or block."""
    write_table(folder / _TABLE, table)


def merge_traces(folder: Path, parts: Sequence[Path]) -> None:
    """Combine the traced images of several results."""
    tables = [table for part in parts if (table := read_traces(part)) is not None]
    if tables:
        write_traces(folder, pa.concat_tables(tables))


def read_traces(folder: Path) -> pa.Table | None:
    """Read the traced images; None if there are none."""
    path = folder / _TABLE
    return read_table(path) if path.exists() else None


def summarize_traces(folder: Path) -> TraceSummary | None:
    """Shares by depth over the traced images; None if there are none.

    A share is Σ_x part(x) / Σ_x total(x) over the images x, so that images whose total is near zero
    do not count more than others.
    """
    table = read_traces(folder)
    if table is None:
        return None
    with plain_damage(folder / _TABLE):
        return _summarize(table)


def _summarize(table: pa.Table) -> TraceSummary:
    total = table["total"].to_numpy()
    blocks = [block_of(image) for image in table["image_id"].to_pylist()]

    def divide(parts: Float64[np.ndarray, " image"]) -> Estimate:
        with np.errstate(invalid="ignore", divide="ignore"):  # without the only block
            ratio = replicate(lambda kept: float(parts[kept].sum() / total[kept].sum()), blocks)
        return ratio.estimate()

    def by_depth(name: str) -> tuple[Estimate, ...]:
        return tuple(map(divide, np.stack(table[name].to_pylist()).T))

    shares = {name: by_depth(name) for name in table.column_names if name not in _OTHER_COLUMNS}
    below_half = (depth for depth, one in enumerate(shares["patches"]) if one.value < 0.5)
    return TraceSummary(
        num_images=table.num_rows,
        max_gap=float(np.max(table["gap"].to_numpy())),
        shares=shares,
        through_values=by_depth("through_values"),
        through_routing=by_depth("through_routing"),
        half_depth=next(below_half, None),
    )


def make_rows(
    ids: Sequence[str],
    columns: Mapping[str, Float64[np.ndarray, "image *depth"]],
) -> pa.Table:
    """Rows of the table for some images."""
    lists = {name: pa.array(values.tolist()) for name, values in columns.items()}
    return pa.table({"image_id": pa.array(list(ids), pa.string()), **lists})
