"""High-norm patch tokens: counts of norms by depth and place on the grid, and a fitted threshold.

Counts are integers, so their sums do not depend on the order and grouping of images.

Source: Darcet et al., "Vision Transformers Need Registers" (ICLR 2024): outlier tokens are a
second, separate mode of the distribution of patch norms.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.metrics.estimates import HighNormTokens
from vitscope.metrics.jackknife import NUM_BLOCKS, Replicates, replicate_sums
from vitscope.metrics.second_mode import (
    BINS_PER_OCTAVE,
    MIN_TOKENS,
    NormCounts,
    SecondMode,
    find_second_mode,
    sum_windows,
)
from vitscope.metrics.sums import Batch

_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -10, 24
NUM_BINS = BINS_PER_OCTAVE * (_HIGHEST_OCTAVE - _LOWEST_OCTAVE)
"""Bins of norms from 2^-10 to 2^24, each 4.4 % wide; other norms go into the first or last."""
_MOST_PLACES = 2**16
"""Upper bound on the patches of a grid, for reading files."""
_OF_IMAGES = ("image_squares", "image_peaks", "image_contrasts")


class PatchNormCounts:
    """Counts of patch tokens by depth, place on the grid and norm."""

    name: ClassVar[str] = "patch_norms"

    def __init__(self) -> None:
        """Start with no images."""
        self._counts: dict[str, Tensor] = {}
        self._highest: Float64[Tensor, " depth"] = torch.empty(0, dtype=torch.float64)

    @property
    def num_depths(self) -> int:
        """Number of depths: the embeddings and the output of each block."""
        return len(self._highest)

    def num_images(self, depth: int) -> int:
        """Images whose norms are known at a depth."""
        return self.read(depth).num_images

    def read(self, depth: int) -> NormCounts:
        """Counts of one depth."""
        return NormCounts(**{name: counts[depth].numpy() for name, counts in self._counts.items()})

    def update(self, batch: Batch) -> None:
        """Add a batch; an image counts only at depths where all of its norms are known."""
        norms = batch.patch_norms.double()
        images, depths, places = norms.shape
        self._start(depths, places)
        known = ~norms.isnan().any(dim=-1)
        highest = norms.amax(dim=2).where(known, 0.0).amax(dim=0)
        self._highest = self._highest.maximum(highest)
        image, depth = known.nonzero(as_tuple=True)
        bins = bin_of(norms[known])
        counts = self._counts
        cells = depth[:, None] * places + torch.arange(places)
        _add_ones(counts["by_place"], cells * NUM_BINS + bins)
        peaks, median = bins.amax(dim=1), bins.median(dim=1).values
        _add_ones(counts["image_peaks"], depth * NUM_BINS + peaks)
        _add_ones(counts["image_contrasts"], depth * NUM_BINS + peaks - median)
        by_image = torch.zeros(images, depths, NUM_BINS, dtype=torch.int32)
        _add_ones(by_image, (image * depths + depth)[:, None] * NUM_BINS + bins)
        squares = (sum_windows(by_image.numpy()) ** 2).sum(axis=0)
        counts["image_squares"] += torch.from_numpy(squares)
        blocks = torch.tensor(batch.blocks)
        counts["by_block"].index_add_(1, blocks, by_image.transpose(0, 1).long())

    def merge(self, other: "PatchNormCounts") -> None:
        """Add the counts of a disjoint set of images."""
        if not other.num_depths:
            return
        depths, places, _ = other._counts["by_place"].shape
        self._start(depths, places)
        self._highest = self._highest.maximum(other._highest)
        for name, counts in other._counts.items():
            self._counts[name] += counts

    def fit(self, depth: int) -> HighNormTokens:
        """The threshold fitted to the norms of one depth, and the tokens above it."""
        counts = self.read(depth)
        if not counts.num_images:
            return HighNormTokens(0)
        histogram = counts.by_place.sum(axis=0)
        known = HighNormTokens(
            num_images=counts.num_images,
            median=_quantile(histogram, 0.5),
            p99=_quantile(histogram, 0.99),
            max=float(self._highest[depth]),
        )
        if counts.num_images < int(self._counts["image_peaks"].sum(dim=1).max()):
            return known
        return _describe_outliers(known, counts, find_second_mode(counts))

    def frequency_of_outliers(self, depth: int) -> Float64[np.ndarray, " patch"]:
        """Fraction of images where a patch (row-major) is an outlier; NaN without a threshold."""
        counts = self.read(depth)
        mode = find_second_mode(counts) if counts.num_images else None
        if mode is None or not mode.found:
            return np.full(len(counts.by_place), np.nan)
        above = counts.by_place[:, mode.first_bin :].sum(axis=1)
        frequency: np.ndarray = above / counts.num_images
        return frequency

    def replicate_fraction(self, depth: int, threshold: float) -> Replicates | None:
        """Fraction of tokens at or above a threshold of `fit`, and without each block of images.

        None for counts of earlier versions, which do not have blocks.
        """
        counts = self.read(depth)
        tokens, places = counts.by_block.sum(axis=1), len(counts.by_place)
        if tokens.sum() != counts.num_images * places:
            return None
        first = int(bin_of(torch.tensor([threshold], dtype=torch.float64)))
        above = counts.by_block[:, first:].sum(axis=1)
        return replicate_sums(above / places, tokens // places)

    def save(self) -> dict[str, Tensor]:
        """The tensors to save; bins below the lowest and above the highest norm are left out."""
        if not self.num_depths:
            return {}
        by_place = self._counts["by_place"]
        used = by_place.any(dim=0).any(dim=0).nonzero().flatten()
        first, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        kept = by_place[..., first:stop].contiguous()
        small = not kept.numel() or int(kept.max()) <= torch.iinfo(torch.int16).max
        cropped = {"by_place": kept.short() if small else kept, "first_bin": torch.tensor(first)}
        cropped["by_block"] = self._counts["by_block"][..., first:stop].contiguous()
        return self._counts | cropped | {"highest": self._highest}

    def load(self, tensors: Mapping[str, Tensor], _: Path | None = None) -> None:
        """Restore saved counts."""
        if not tensors:
            return
        by_place, first = tensors["by_place"], int(tensors["first_bin"])
        depths, places, width = by_place.shape
        fits = 0 < places <= _MOST_PLACES and 0 <= first <= NUM_BINS - width
        shapes = {tuple(tensors[name].shape) for name in _OF_IMAGES}
        if not fits or shapes != {(depths, NUM_BINS)} or tensors["highest"].shape != (depths,):
            raise ValueError(f"counts of patch norms of shape {tuple(by_place.shape)} at {first}")
        # Checked before memory is allocated: a few bytes must not ask for gigabytes.
        images = tensors["image_peaks"].sum(dim=1, keepdim=True)
        if not torch.equal(by_place.sum(dim=2), images.expand(-1, places)):
            raise ValueError("counts of patch norms by place and by image differ")
        self._start(depths, places)
        self._counts["by_place"][..., first : first + width] = by_place
        if "by_block" in tensors:
            self._counts["by_block"][..., first : first + width] = tensors["by_block"]
        for name in _OF_IMAGES:
            self._counts[name] += tensors[name]
        self._highest += tensors["highest"]
        self._check()

    def summarize(self) -> dict[str, Any]:
        """The outliers of every depth."""
        return {"high_norm_tokens": [self.fit(depth) for depth in range(self.num_depths)]}

    def _start(self, depths: int, places: int) -> None:
        if not self._counts:
            self._counts = {k: torch.zeros(depths, NUM_BINS, dtype=torch.int64) for k in _OF_IMAGES}
            self._counts["by_place"] = torch.zeros(depths, places, NUM_BINS, dtype=torch.int32)
            self._counts["by_block"] = torch.zeros(depths, NUM_BLOCKS, NUM_BINS, dtype=torch.int64)
            self._highest = torch.zeros(depths, dtype=torch.float64)
        if self._counts["by_place"].shape[:2] != (depths, places):
            raise ResultError("these counts have different grids and cannot be merged")

    def _check(self) -> None:
        by_place, squares = self._counts["by_place"], self._counts["image_squares"]
        images = self._counts["image_peaks"].sum(dim=1)
        if not torch.equal(self._counts["image_contrasts"].sum(dim=1), images):
            raise ValueError("counts of patch norms by image differ")
        if bool((self._counts["by_block"].sum(dim=1) > by_place.sum(dim=1)).any()):
            raise ValueError("more patch norms by block than by place")
        if not self._highest.isfinite().all() or bool(
            (squares > images[:, None] * by_place.shape[1] ** 2).any()
        ):
            raise ValueError("patch norms above what can be")
        if min(float(t.min()) for t in (*self._counts.values(), self._highest)) < 0:
            raise ValueError("counts of patch norms below 0")


def bin_of(norms: Float64[Tensor, "*axes"]) -> Int64[Tensor, "*axes"]:
    """Bin of each norm: the b with 2^(b / 16 − 10) ≤ norm < 2^((b + 1) / 16 − 10), or an end."""
    return torch.bucketize(norms, _make_edges(), right=True).sub_(1).clamp_(0, NUM_BINS - 1)


def lower_edge(bin_index: int) -> float:
    """Least norm in a bin."""
    return float(2.0 ** (bin_index / BINS_PER_OCTAVE + _LOWEST_OCTAVE))


@functools.cache
def _make_edges() -> Tensor:
    return torch.tensor([lower_edge(index) for index in range(NUM_BINS + 1)], dtype=torch.float64)


def _add_ones(counts: Tensor, cells: Int64[Tensor, "*axes"]) -> None:
    # Cells may repeat; += would count them once.
    ones = torch.ones(cells.numel(), dtype=counts.dtype)
    counts.view(-1).index_add_(0, cells.flatten(), ones)


def _describe_outliers(
    known: HighNormTokens, counts: NormCounts, mode: SecondMode | None
) -> HighNormTokens:
    first = NUM_BINS if mode is None else mode.first_bin
    edge = None if mode is None else lower_edge(first)
    by_place, num_images = counts.by_place[:, first:].sum(axis=1), known.num_images
    num_tokens = num_images * len(by_place)
    tokens, images = int(by_place.sum()), int(counts.image_peaks[first:].sum())
    if mode is None or not mode.found:
        unseen = MIN_TOKENS - 1
        return replace(
            known,
            doubtful_from=edge,
            fraction_at_most=min(1.0, max(unseen, tokens) / num_tokens),
            images_fraction_at_most=min(1.0, max(unseen, images) / num_images),
        )
    return replace(
        known,
        threshold=edge,
        fraction=tokens / num_tokens,
        images_fraction=images / num_images,
        position_share=_explain_by_place(by_place, num_images) if num_images > 1 else None,
    )


def _explain_by_place(outliers: np.ndarray, num_images: int) -> float:
    # Variance of an indicator's mean over places, over its total variance.
    frequency = outliers / num_images
    mean = float(frequency.mean())
    explained = float(frequency.var() / (mean * (1 - mean)))
    return (num_images * explained - 1) / (num_images - 1)


def _quantile(histogram: np.ndarray, q: float) -> float:
    # Geometric middle of the bin with the order statistic.
    rank = q * (histogram.sum() - 1)
    index = int(np.searchsorted(histogram.cumsum(), rank, side="right"))
    return lower_edge(index) * 2 ** (0.5 / BINS_PER_OCTAVE)
