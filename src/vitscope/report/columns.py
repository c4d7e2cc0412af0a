"""The numbers of single images in words, and how they are spread over all images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from vitscope.figures.saved import printable
from vitscope.figures.style import TERMS
from vitscope.report.figure import name_term

_NUM_BINS = 28
_NOISE = 1e-6
"""Spread, as a part of the largest value, that is rounding alone."""
# The longest prefix first.
_GROUPS = (
    ("centred_cosine_attention_", "Centred cosine with t", "centred-cosine"),
    ("centred_cosine_residual_", "Centred cosine with r", "centred-cosine"),
    ("restricted_cosine_attention_", "Restricted cosine with t", "cosine"),
    ("contribution_norm_", "Length of contribution", "contribution-norm"),
    ("highest_patch_norm_", "Highest patch norm", "high-norm"),
    ("layer_similarity_", "Layer similarity", "layer-similarity"),
    ("cosine_attention_", "Cosine with t", "cosine"),
    ("cosine_residual_", "Cosine with r", "cosine"),
    ("attention_mass_", "Attention mass", "attention-mass"),
    ("centred_share_", "Centred share", "centred-share"),
    ("share_without_bias_", "Share, bias aside", "share"),
    ("covariate_", "Image", "covariates"),
    ("token_norm_", "Norm", "anatomy"),
    ("share_", "Share", "share"),
)
_SINGLE = {
    "patch_share": ("Attention mass", "patches against registers", "patch-share"),
    "balance_error": ("Checks", "error of the balance", "balance"),
    "residual_error": ("Checks", "error of the residual stream", "balance"),
    "block_error": ("Checks", "error of the block", "balance"),
    "embedding_error": ("Checks", "error of the embedding", "balance"),
}
_ORDER = (
    "Centred share",
    "Share, bias aside",
    "Share",
    "Attention mass",
    "Centred cosine with r",
    "Centred cosine with t",
)
_TERMS = [name_term(term) for term in TERMS]
_TOTALS = {"attention_total": "all together (t)", "residual_total": "all together (r)"}


@dataclass(frozen=True)
class Column:
    """A number that every image has.

    Attributes:
        name: As in the table of the result.
        group: What kind of number it is.
        label: Which of its kind.
        definition: Key of its definition; empty where there is none.
    """

    name: str
    group: str
    label: str
    definition: str

    @property
    def order(self) -> tuple[int, str, int, str]:
        """Its place in a list to choose from."""
        group = _ORDER.index(self.group) if self.group in _ORDER else len(_ORDER)
        term = _TERMS.index(self.label) if self.label in _TERMS else len(_TERMS)
        return group, self.group, term, self.name


@dataclass(frozen=True)
class ImageNumbers:
    """Numbers of all images of one result.

    Attributes:
        columns: What they are.
        values: One row a column; NaN where one is undefined.
        rows: Place of each image by its digest.
    """

    columns: tuple[Column, ...]
    values: Float64[np.ndarray, "column image"]
    rows: dict[str, int]

    @classmethod
    def of_columns(
        cls, columns: Mapping[str, Float64[np.ndarray, " image"]], digests: Sequence[str]
    ) -> "ImageNumbers":
        """Put numbers in the order in which they are offered."""
        described = sorted(map(describe_column, columns), key=lambda column: column.order)
        rows = [columns[column.name] for column in described]
        values = np.stack(rows) if rows else np.empty((0, len(digests)))
        return cls(tuple(described), values, {digest: row for row, digest in enumerate(digests)})


def describe_column(name: str) -> Column:
    """A column of the table of images in words."""
    if name in _SINGLE:
        group, label, definition = _SINGLE[name]
        return Column(name, group, label, definition)
    for prefix, group, definition in _GROUPS:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            if rest.isdigit():
                label = f"depth {int(rest)}"
            elif prefix == "covariate_":
                label = printable(rest.replace("_", " "))
            else:
                label = _TOTALS.get(rest) or name_term(rest)
            return Column(name, group, label, definition)
    return Column(name, "Other", printable(name.replace("_", " ")), "")


def collect_numbers(table: pa.Table) -> ImageNumbers:
    """The numbers of a table that differ between its images."""
    columns = {}
    for name in table.column_names:
        if not pa.types.is_floating(table.schema.field(name).type):
            continue
        values = table[name].to_numpy().astype(np.float64)
        values = np.where(np.isfinite(values), values, np.nan)
        known = values[~np.isnan(values)]
        if known.size and np.ptp(known) > _NOISE * np.abs(known).max():
            columns[name] = values
    return ImageNumbers.of_columns(columns, table["image_id"].to_pylist())


def count_bins(values: Float64[np.ndarray, " image"]) -> dict[str, Any]:
    """How a number is spread over images."""
    known = values[~np.isnan(values)]
    counts, edges = np.histogram(known, bins=_NUM_BINS)
    p05, p50, p95 = (float(q) for q in np.quantile(known, [0.05, 0.5, 0.95]))
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


def round_numbers(values: Iterable[float]) -> list[float | None]:
    """Numbers as the page carries them: five digits are more than it shows."""
    return [None if np.isnan(value) else float(f"{value:.5g}") for value in values]
