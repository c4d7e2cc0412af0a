"""The summary of tokens and depths: register anatomy, layer similarity."""

from collections.abc import Collection
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from vitscope.metrics.distribution import Distribution, compute_distribution
from vitscope.results.records import column_name
from vitscope.results.summary import read_column

HIGHEST_PATCH = "highest_patch"
_MIN_IMAGES_FRACTION = 0.5
_PATCHES = "patches"
_UNDEFINED = dict.fromkeys(field.name for field in fields(Distribution)) | {"n": 0}


def summarize_anatomy(
    table: Path, tokens: Collection[str], *, images_fraction: float | None
) -> dict[str, Any]:
    """Norms of the special tokens at the input of a block, and which of them to look at."""
    norms = {name: _read_norms(table, name) for name in (*tokens, _PATCHES)}
    registers = [name for name in tokens if name.startswith("register_")]
    dominant = _find_dominant(np.stack([norms[n] for n in registers])) if registers else None
    if dominant is not None:
        analysed = registers[dominant["index"]]
    else:
        # Over all images the highest patch would be an ordinary one for the most part.
        is_outlier = images_fraction is not None and images_fraction >= _MIN_IMAGES_FRACTION
        analysed = HIGHEST_PATCH if is_outlier else None
    return {
        "norms": {name: _describe(values) for name, values in norms.items()},
        "dominant_register": dominant,
        "images_fraction": images_fraction,
        "analysed": analysed,
    }


def summarize_layer_similarity(table: Path) -> list[dict[str, Any]] | None:
    """cos(x_cls at depth ℓ, x_cls at the last depth) over images, ℓ = 0..L."""
    return [
        {"layer": depth, **(_describe(read_column(table, name)) or _UNDEFINED)}
        for depth, name in enumerate(_list_depths(table, "layer_similarity"))
    ] or None


def _find_dominant(norms: np.ndarray) -> dict[str, Any]:
    # One row a register, one column an image.
    counts = np.bincount(norms.argmax(axis=0), minlength=len(norms))
    index = int(counts.argmax())
    others = np.delete(norms, index, axis=0).mean() if len(norms) > 1 else 0.0
    return {
        "index": index,
        "share": float(counts[index] / counts.sum()),
        "counts": counts.tolist(),
        # None where there are no others, or all of them are zero in every image.
        "ratio": float(norms[index].mean() / others) if others > 0 else None,
    }


def _read_norms(table: Path, name: str) -> np.ndarray:
    return read_column(table, column_name(("token_norm", name)))


def _list_depths(table: Path, prefix: str) -> list[str]:
    return sorted(n for n in pq.read_schema(table).names if n.startswith(f"{prefix}_"))


def _describe(values: np.ndarray) -> dict[str, Any] | None:
    distribution = compute_distribution(values)
    return None if distribution is None else asdict(distribution)
