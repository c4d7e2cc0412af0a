"""Summary of tokens and depths: register anatomy, layer similarity."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from vitscope.metrics.distribution import Distribution, compute_distribution
from vitscope.metrics.estimates import HighNormTokens, TokenSummary
from vitscope.results.records import column_name
from vitscope.results.schema_numbers import Anatomy, DominantRegister
from vitscope.results.summary import iter_columns

HIGHEST_PATCH = "highest_patch"
_MIN_IMAGES_FRACTION = 0.5
_PATCHES = "patches"


def summarize_anatomy(
    table: Path, tokens: Mapping[str, TokenSummary], high_norm: HighNormTokens
) -> Anatomy:
    """Summarise [CLS], the registers and the highest-norm patch at the input of a block."""
    names = {column_name(("token_norm", name)): name for name in (*tokens, _PATCHES)}
    norms = {names[column]: values for column, values in iter_columns(table, names)}
    registers = [name for name in tokens if name.startswith("register_")]
    dominant = _find_dominant(np.stack([norms[n] for n in registers])) if registers else None
    if dominant is not None:
        analysed: str | None = registers[dominant.index]
    else:
        # If few images have outliers, the highest patch is mostly an ordinary one.
        fraction = high_norm.images_fraction
        is_outlier = fraction is not None and fraction >= _MIN_IMAGES_FRACTION
        analysed = HIGHEST_PATCH if is_outlier else None
    return Anatomy(
        norms={name: compute_distribution(values) for name, values in norms.items()},
        dominant_register=dominant,
        analysed=analysed,
        tokens=tokens,
    )


def summarize_layer_similarity(table: Path) -> tuple[Distribution, ...]:
    """cos(x_cls at depth ℓ, x_cls at the last depth) over images, ℓ = 0..L."""
    names = sorted(n for n in pq.read_schema(table).names if n.startswith("layer_similarity_"))
    return tuple(compute_distribution(values) for _, values in iter_columns(table, names))


def _find_dominant(norms: np.ndarray) -> DominantRegister:
    # One row per register, one column per image.
    counts = np.bincount(norms.argmax(axis=0), minlength=len(norms))
    index = int(counts.argmax())
    others = np.delete(norms, index, axis=0).mean() if len(norms) > 1 else 0.0
    return DominantRegister(
        index=index,
        share=float(counts[index] / counts.sum()),
        counts=tuple(counts.tolist()),
        # There may be no others, or they may be zero in every image.
        ratio=float(norms[index].mean() / others) if others > 0 else math.nan,
    )
