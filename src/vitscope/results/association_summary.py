"""Summary of associations over images and over layers: covariates, registers, skip."""

from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow.parquet as pq

from vitscope.metrics.distribution import compute_distribution
from vitscope.metrics.jackknife import block_of
from vitscope.metrics.rank_correlation import correlate_ranks, correlate_several
from vitscope.metrics.regression import regress
from vitscope.results.schema_numbers import CovariateSummary, Interdependence, LayerSummary
from vitscope.results.summary import iter_columns

_COVARIATE = "covariate_"
_Shares = Literal["share", "centred_share"]
_SHARES: tuple[_Shares, ...] = get_args(_Shares)
_SOURCES = ("patches", "registers", "skip")


def summarize_covariates(table: Path) -> CovariateSummary:
    """How image properties relate to where the output comes from."""
    columns = pq.read_schema(table).names
    covariates = {
        name.removeprefix(_COVARIATE): values
        for name, values in iter_columns(table, [c for c in columns if c.startswith(_COVARIATE)])
    }
    targets = dict(
        iter_columns(table, [name for name in _list_targets(columns) if name in columns])
    )
    blocks = _read_blocks(table)
    return CovariateSummary(
        distributions={name: compute_distribution(values) for name, values in covariates.items()},
        correlations={
            name: correlate_several(covariates, target) for name, target in targets.items()
        },
        regressions={name: regress(covariates, target, blocks) for name, target in targets.items()},
    )


def summarize_interdependence(
    table: Path, layers: Sequence[LayerSummary]
) -> Interdependence | None:
    """Correlation between the registers' and the skip connection's share of the output."""
    columns = pq.read_schema(table).names
    kind = _SHARES[1] if f"{_SHARES[1]}_skip" in columns else _SHARES[0]
    names = [f"{kind}_{source}" for source in ("registers", "skip")]
    if not set(names) <= set(columns):
        return None
    over_images = correlate_ranks(*(values for _, values in iter_columns(table, names)))
    shares = [layer.variance_share["residual"] for layer in layers]
    over_layers = correlate_ranks(
        *(np.array([s[source].value for s in shares]) for source in ("registers", "skip"))
    )
    return Interdependence(
        shares=kind,
        over_images=over_images,
        over_layers=over_layers if len(layers) > 1 else None,
    )


def _list_targets(columns: Collection[str]) -> Iterator[str]:
    if "share_registers" in columns:  # Without registers it is 1 for every image.
        yield "patch_share"
    for kind in _SHARES:
        yield from (f"{kind}_{source}" for source in _SOURCES)


def _read_blocks(table: Path) -> np.ndarray:
    with pq.ParquetFile(table) as file:
        rows = file.iter_batches(columns=["image_id"])
        ids = chain.from_iterable(batch.column(0).to_pylist() for batch in rows)
        return np.fromiter(map(block_of, ids), dtype=np.int64)
