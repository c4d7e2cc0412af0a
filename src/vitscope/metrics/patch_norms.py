"""High-norm patch tokens: counts of norms by depth and place on the grid, and a fitted threshold.

Counts are whole numbers, so they add up to the same whatever the order and grouping of images.

Source: Darcet et al., "Vision Transformers Need Registers" (ICLR 2024): outlier tokens are a
second, separate mode of the distribution of patch norms.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.metrics.depth_norms import DepthNorms
from vitscope.metrics.estimates import HighNormTokens
from vitscope.metrics.norm_bins import BINS_PER_OCTAVE, bin_of, lower_edge
from vitscope.metrics.second_mode import (
    MAX_UNSEEN,
    NormCounts,
    find_doubtful_bin,
    find_threshold_bin,
)
from vitscope.metrics.sums import Batch


class PatchNormCounts:
    """How many patch tokens had which norm, at each depth and place of the model."""

    name: ClassVar[str] = "patch_norms"

    def __init__(self) -> None:
        """Start with no images."""
        self._depths: list[DepthNorms] = []

    @property
    def num_depths(self) -> int:
        """Depths counted at: the embeddings and the output of each block."""
        return len(self._depths)

    def num_images(self, depth: int) -> int:
        """Images whose norms are known at a depth.

        Returns:
            How many.
        """
        return self._depths[depth].num_images

    def read(self, depth: int) -> NormCounts:
        """Counts of one depth.

        Returns:
            The counts, on the whole scale of bins.
        """
        return self._depths[depth].read()

    def update(self, batch: Batch) -> None:
        """Take in a batch."""
        norms = batch.patch_norms
        _, depths, places = norms.shape
        self._check_grid([places] * depths)
        # What is not known is counted nowhere: any bin will do.
        bins = bin_of(norms.nan_to_num(0.0)).long().cpu().numpy()
        known = ~norms.isnan().any(dim=-1).cpu().numpy()
        for index, depth in enumerate(self._depths):
            if known[:, index].any():
                depth.update(bins[known[:, index], index])

    def merge(self, other: "PatchNormCounts") -> None:
        """Take in the counts of a disjoint set of images."""
        if not other._depths:
            return
        self._check_grid([depth.num_places for depth in other._depths])
        for ours, theirs in zip(self._depths, other._depths, strict=True):
            ours.merge(theirs)

    def fit(self, depth: int) -> HighNormTokens:
        """Tell the outliers of one depth from the rest.

        Returns:
            The threshold that the norms of all images ask for, and what lies above it; without
            images nothing is known.
        """
        counts = self.read(depth)
        if not counts.num_images:
            return HighNormTokens(0, None, None, None, None, None)
        first, share = find_threshold_bin(counts), None
        histogram = counts.by_place.sum(axis=0)
        known = HighNormTokens(
            num_images=counts.num_images,
            threshold=None,
            fraction=None,
            position_share=None,
            median=_quantile(histogram, 0.5),
            p99=_quantile(histogram, 0.99),
        )
        if first is None:
            doubtful = find_doubtful_bin(counts)
            above = 0 if doubtful is None else int(histogram[doubtful:].sum())
            return replace(
                known,
                doubtful_from=None if doubtful is None else lower_edge(doubtful),
                fraction_at_most=min(1.0, max(MAX_UNSEEN, above) / int(histogram.sum())),
            )
        if counts.num_images > 1:
            outliers = counts.by_place[:, first:].sum(axis=1)
            share = _explained_by_place(outliers, counts.num_images)
        return replace(
            known,
            threshold=lower_edge(first),
            fraction=float(histogram[first:].sum() / histogram.sum()),
            position_share=share,
        )

    def frequency_of_outliers(self, depth: int) -> Float64[np.ndarray, " patch"]:
        """How often each place on the grid is an outlier.

        Returns:
            Part of the images, per patch in row-major order; NaN where no outliers are found or no
            image is known.
        """
        counts = self.read(depth)
        first = find_threshold_bin(counts) if counts.num_images else None
        if first is None:
            return np.full(len(counts.by_place), np.nan)
        frequency: np.ndarray = counts.by_place[:, first:].sum(axis=1) / counts.num_images
        return frequency

    def save(self) -> dict[str, Tensor]:
        """Everything there is to save; bins outside a depth's occupied range are left out."""
        return {
            f"{depth:03d}/{name}": tensor
            for depth, counts in enumerate(self._depths)
            for name, tensor in counts.to_tensors().items()
        }

    def load(self, tensors: Mapping[str, Tensor], _: Path | None = None) -> None:
        """Become what was saved."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            depth, __, part = name.partition("/")
            parts.setdefault(depth, {})[part] = tensor
        depths = [DepthNorms.from_tensors(parts[f"{depth:03d}"]) for depth in range(len(parts))]
        if len({depth.num_places for depth in depths}) > 1:
            raise ValueError("grids differ between depths")
        self._depths = depths

    def summarize(self) -> dict[str, Any]:
        """The outliers of every depth."""
        return {"high_norm_tokens": [self.fit(depth) for depth in range(self.num_depths)]}

    def _check_grid(self, places: list[int]) -> None:
        if not self._depths:
            self._depths = [DepthNorms(count) for count in places]
        if [depth.num_places for depth in self._depths] != places:
            raise ResultError("these counts are of different grids and cannot be merged")


def _explained_by_place(outliers: np.ndarray, num_images: int) -> float:
    # Of a yes-or-no variable: variance of its mean over places, over its whole variance.
    frequency = outliers / num_images
    mean = float(frequency.mean())
    explained = float(frequency.var() / (mean * (1 - mean)))
    return (num_images * explained - 1) / (num_images - 1)


def _quantile(histogram: np.ndarray, q: float) -> float:
    # The middle, on the logarithmic scale, of the bin that the order statistic falls into.
    rank = q * (histogram.sum() - 1)
    index = int(np.searchsorted(histogram.cumsum(), rank, side="right"))
    return lower_edge(index) * 2 ** (0.5 / BINS_PER_OCTAVE)
