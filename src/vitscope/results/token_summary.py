"""The summary of tokens and depths: register anatomy, layer similarity, high-norm patch tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from vitscope.metrics.distribution import Distribution, compute_distribution
from vitscope.metrics.estimates import HighNormTokens, TokenSummary
from vitscope.metrics.second_mode import MAX_UNSEEN
from vitscope.results.records import column_name
from vitscope.results.schema_numbers import (
    Anatomy,
    DominantRegister,
    HighNormDepth,
)
from vitscope.results.summary import read_column

HIGHEST_PATCH = "highest_patch"
_MIN_IMAGES_FRACTION = 0.5
_PATCHES = "patches"
_OF_OUTLIERS = ("threshold", "fraction", "position_share", "doubtful_from", "fraction_at_most")


def summarize_anatomy(
    table: Path, tokens: Mapping[str, TokenSummary], high_norm: HighNormDepth
) -> Anatomy:
    """What [CLS], the registers and the highest-norm patch are at the input of a block."""
    norms = {name: _read_norms(table, name) for name in (*tokens, _PATCHES)}
    registers = [name for name in tokens if name.startswith("register_")]
    dominant = _find_dominant(np.stack([norms[n] for n in registers])) if registers else None
    if dominant is not None:
        analysed: str | None = registers[dominant.index]
    else:
        # Over all images the highest patch would be an ordinary one for the most part.
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
    names = _list_depths(table, "layer_similarity")
    return tuple(compute_distribution(read_column(table, name)) for name in names)


def summarize_high_norm_tokens(
    table: Path, depths: Sequence[HighNormTokens]
) -> tuple[HighNormDepth, ...]:
    """Outliers among the patch tokens, depth by depth, and in how many images they are."""
    found = []
    for depth, name in enumerate(_list_depths(table, "highest_patch_norm")):
        tokens, highest = depths[depth], read_column(table, name)
        known = highest[~np.isnan(highest)]
        row = HighNormDepth(**asdict(tokens), max=float(known.max()) if known.size else None)
        if known.size < highest.size:
            row = HighNormDepth(**asdict(row) | dict.fromkeys(_OF_OUTLIERS))
        elif tokens.threshold is not None:
            row = replace(row, images_fraction=float((known >= tokens.threshold).mean()))
        elif known.size:
            at_most = _bound_images(known, tokens.doubtful_from)
            row = replace(row, images_fraction_at_most=at_most)
        found.append(row)
    return tuple(found)


def _bound_images(highest: np.ndarray, doubtful_from: float | None) -> float:
    doubtful = 0 if doubtful_from is None else int((highest >= doubtful_from).sum())
    return min(1.0, max(MAX_UNSEEN, doubtful) / highest.size)


def _find_dominant(norms: np.ndarray) -> DominantRegister:
    # One row a register, one column an image.
    counts = np.bincount(norms.argmax(axis=0), minlength=len(norms))
    index = int(counts.argmax())
    others = np.delete(norms, index, axis=0).mean() if len(norms) > 1 else 0.0
    return DominantRegister(
        index=index,
        share=float(counts[index] / counts.sum()),
        counts=tuple(counts.tolist()),
        # There may be no others, or all of them zero in every image.
        ratio=float(norms[index].mean() / others) if others > 0 else math.nan,
    )


def _read_norms(table: Path, name: str) -> np.ndarray:
    return read_column(table, column_name(("token_norm", name)))


def _list_depths(table: Path, prefix: str) -> list[str]:
    return sorted(n for n in pq.read_schema(table).names if n.startswith(f"{prefix}_"))
