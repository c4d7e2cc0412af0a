"""The traced images of an audit: a table, and its summary by depth."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64

from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.reading import plain_damage
from vitscope.metrics.jackknife import Estimate, block_of, make_estimate
from vitscope.results.saved_result import read_table
from vitscope.results.schema_numbers import TraceSummary

_TABLE = "traced.parquet"
_OTHER_COLUMNS = ("image_id", "total", "gap", "through_values", "through_routing")


def write_traces(folder: Path, table: pa.Table) -> None:
    """Write the traced images: one row each, with lists by depth or block."""
    with plain_disk_errors(folder):
        pq.write_table(table, folder / _TABLE)


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
    blocks = np.array([block_of(image) for image in table["image_id"].to_pylist()])
    estimate = _make_ratio(total, blocks)

    def by_depth(name: str) -> tuple[Estimate, ...]:
        return tuple(estimate(values) for values in np.stack(table[name].to_pylist()).T)

    names = [name for name in table.column_names if name not in _OTHER_COLUMNS]
    shares = {name: by_depth(name) for name in names}
    below_half = (depth for depth, one in enumerate(shares["patches"]) if one.value < 0.5)
    return TraceSummary(
        num_images=table.num_rows,
        max_gap=float(np.max(table["gap"].to_numpy())),
        shares=shares,
        through_values=by_depth("through_values"),
        through_routing=by_depth("through_routing"),
        half_depth=next(below_half, None),
    )


def _make_ratio(
    total: Float64[np.ndarray, " image"], blocks: np.ndarray
) -> Callable[[Float64[np.ndarray, " image"]], Estimate]:
    used, sizes = np.unique(blocks, return_counts=True)

    def estimate(parts: Float64[np.ndarray, " image"]) -> Estimate:
        with np.errstate(invalid="ignore", divide="ignore"):  # without the only block
            left_out = [
                float(parts[blocks != block].sum() / total[blocks != block].sum()) for block in used
            ]
            return make_estimate(float(parts.sum() / total.sum()), left_out, sizes.tolist())

    return estimate


def make_rows(
    ids: Sequence[str],
    columns: Mapping[str, Float64[np.ndarray, "image *depth"]],
) -> pa.Table:
    """Rows of the table for some images."""
    lists = {name: pa.array(values.tolist()) for name, values in columns.items()}
    return pa.table({"image_id": pa.array(list(ids), pa.string()), **lists})
