"""High-norm patch tokens: counts of norms by depth and place on the grid, and a fitted threshold.

Counts are whole numbers, so they add up to the same whatever the order and grouping of images.

Source: Darcet et al., "Vision Transformers Need Registers" (ICLR 2024): outlier tokens are a
second, separate mode of the distribution of patch norms.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.metrics.norm_bins import (
    BINS_PER_OCTAVE,
    NUM_BINS,
    WINDOW,
    bin_of,
    lower_edge,
    sum_windows,
)
from vitscope.metrics.second_mode import find_threshold_bin


@dataclass(frozen=True)
class HighNormTokens:
    """The outliers among the patch tokens of one depth.

    Attributes:
        threshold: Norm from which on a token is an outlier; None where the norms have no second
            mode.
        fraction: Part of all patch tokens at or above it; 0 where there is none.
        position_share: Part of the outliers' variance (of being one or not, over all tokens) that
            their place on the grid accounts for: 1 where the same places are outliers in every
            image, about 0 where places are left to the images (chance, 1 / n, is taken off). None
            without outliers and for one image.
        median: Median norm, to within a bin (4.4 %).
        p99: 99 % quantile, likewise.
    """

    threshold: float | None
    fraction: float
    position_share: float | None
    median: float
    p99: float


@dataclass(eq=False)
class _DepthCounts:
    """Counts of one depth.

    Attributes:
        first_bin: The bin that the first column is of.
        by_place: Tokens per place on the grid (row-major) and bin, in the range of bins that occur.
        image_squares: Σ over images of the square of an image's count in the window of each bin.
    """

    first_bin: int
    by_place: Int32[np.ndarray, "patch occupied"]
    image_squares: Int64[np.ndarray, " bin"]

    @property
    def end_bin(self) -> int:
        return self.first_bin + int(self.by_place.shape[1])

    def add(self, other: "_DepthCounts") -> None:
        first, end = min(self.first_bin, other.first_bin), max(self.end_bin, other.end_bin)
        if (first, end) != (self.first_bin, self.end_bin):
            margins = (self.first_bin - first, end - self.end_bin)
            self.by_place, self.first_bin = np.pad(self.by_place, ((0, 0), margins)), first
        start = other.first_bin - first
        self.by_place[:, start : start + other.by_place.shape[1]] += other.by_place
        self.image_squares += other.image_squares

    def fill(self) -> Int32[np.ndarray, "patch bin"]:
        return np.pad(self.by_place, ((0, 0), (self.first_bin, NUM_BINS - self.end_bin)))


class PatchNormCounts:
    """How many patch tokens had which norm, at each depth and place: `update`, `merge`, `fit`."""

    def __init__(self) -> None:
        """Start with no images."""
        self._depths: list[_DepthCounts] = []

    @property
    def num_images(self) -> int:
        """Images seen."""
        return int(self._depths[0].by_place[0].sum()) if self._depths else 0

    @property
    def num_depths(self) -> int:
        """Depths counted at: the embeddings and the output of each block."""
        return len(self._depths)

    def count_at(self, depth: int) -> Int32[np.ndarray, "patch bin"]:
        """Counts of one depth.

        Args:
            depth: 0 for the embeddings, ℓ for the output of the ℓ-th block.

        Returns:
            Tokens per place on the grid (row-major) and bin.
        """
        return self._depths[depth].fill()

    def update(self, norms: Float[Tensor, "batch depth patch"]) -> None:
        """Take in a batch.

        Args:
            norms: Norm of each patch token at each depth, on any device.
        """
        # Few bytes cross from the device; and bincount wants whole numbers of full length.
        bins = bin_of(norms).to(torch.int16).cpu().numpy()
        self._add([_count(bins[:, depth].astype(np.int64)) for depth in range(bins.shape[1])])

    def merge(self, other: "PatchNormCounts") -> None:
        """Take in the counts of a disjoint set of images.

        Args:
            other: Counts of the same depths and grid; left unchanged.

        Raises:
            ResultError: If depths or grid differ.
        """
        if other._depths:
            self._add(copy.deepcopy(other._depths))

    def _add(self, depths: list[_DepthCounts]) -> None:
        if not self._depths:
            self._depths = depths
            return
        if [len(d.by_place) for d in self._depths] != [len(d.by_place) for d in depths]:
            raise ResultError("these counts are of different grids and cannot be merged")
        for ours, theirs in zip(self._depths, depths, strict=True):
            ours.add(theirs)

    def fit(self, depth: int) -> HighNormTokens:
        """Tell the outliers of one depth from the rest.

        Args:
            depth: 0 for the embeddings, ℓ for the output of the ℓ-th block.

        Returns:
            The threshold that the norms of all images ask for, and what lies above it.
        """
        of_depth, first = self.count_at(depth), self._find_threshold(depth)
        histogram = of_depth.sum(axis=0)
        share = None
        if first is not None and self.num_images > 1:
            share = _explained_by_place(of_depth[:, first:].sum(axis=1), self.num_images)
        return HighNormTokens(
            threshold=None if first is None else lower_edge(first),
            fraction=0.0 if first is None else float(histogram[first:].sum() / histogram.sum()),
            position_share=share,
            median=_quantile(histogram, 0.5),
            p99=_quantile(histogram, 0.99),
        )

    def frequency_of_outliers(self, depth: int) -> np.ndarray:
        """How often each place on the grid is an outlier.

        Args:
            depth: 0 for the embeddings, ℓ for the output of the ℓ-th block.

        Returns:
            Part of the images, per patch in row-major order; zeros where there are no outliers.
        """
        first = self._find_threshold(depth)
        above = self.count_at(depth)[:, NUM_BINS if first is None else first :]
        frequency: np.ndarray = above.sum(axis=1) / self.num_images
        return frequency

    def _find_threshold(self, depth: int) -> int | None:
        squares = self._depths[depth].image_squares
        return find_threshold_bin(self.count_at(depth), squares, self.num_images)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything there is to save; bins outside a depth's occupied range are left out.

        Returns:
            Named tensors; `from_tensors` makes the same counts of them.
        """
        if not self._depths:
            return {}
        counts = np.concatenate([depth.by_place for depth in self._depths], axis=1)
        ranges = [(depth.first_bin, depth.end_bin) for depth in self._depths]
        squares = np.stack([depth.image_squares for depth in self._depths])
        return {
            "counts": torch.from_numpy(counts),
            "ranges": torch.tensor(ranges, dtype=torch.int64),
            "image_squares": torch.from_numpy(squares),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "PatchNormCounts":
        """Restore saved counts.

        Args:
            tensors: What `to_tensors` returned.

        Returns:
            The counts.

        Raises:
            ResultError: If a part is missing or does not fit.
        """
        restored = cls()
        if not tensors:
            return restored
        try:
            counts, ranges, squares = (
                tensors[name].numpy() for name in ("counts", "ranges", "image_squares")
            )
            restored._depths = _split(counts, ranges, squares)
        except (KeyError, ValueError) as error:
            raise ResultError(
                f"the saved counts of patch norms are damaged ({error}): audit again"
            ) from None
        return restored


def _count(bins: Int64[np.ndarray, "batch patch"]) -> _DepthCounts:
    images, places = bins.shape
    # A margin for the windows around the outermost bins, which is cut off again.
    first = int(bins.min()) - WINDOW // 2
    width = int(bins.max()) + WINDOW // 2 + 1 - first
    offsets = bins - first
    cells = offsets + width * np.arange(places)
    by_place = np.bincount(cells.ravel(), minlength=places * width).reshape(places, width)
    cells = offsets + width * np.arange(images)[:, np.newaxis]
    by_image = np.bincount(cells.ravel(), minlength=images * width).reshape(images, width)
    squares = np.zeros(NUM_BINS, dtype=np.int64)
    low, high = max(first, 0), min(first + width, NUM_BINS)
    squares[low:high] = (sum_windows(by_image) ** 2).sum(axis=0)[low - first : high - first]
    kept = slice(WINDOW // 2, width - WINDOW // 2)
    return _DepthCounts(first + WINDOW // 2, by_place[:, kept].astype(np.int32), squares)


def _split(counts: np.ndarray, ranges: np.ndarray, squares: np.ndarray) -> list[_DepthCounts]:
    if counts.ndim != 2 or ranges.ndim != 2 or ranges.shape[1:] != (2,):
        raise ValueError(f"shapes {counts.shape} and {ranges.shape}")
    first, end = ranges.T
    if not ((first >= 0) & (first < end) & (end <= NUM_BINS)).all():
        raise ValueError(f"ranges {ranges.tolist()}")
    stops = (end - first).cumsum()
    if not len(ranges) or stops[-1] != counts.shape[1] or squares.shape != (len(ranges), NUM_BINS):
        raise ValueError(f"shapes {counts.shape} and {squares.shape} for {len(ranges)} depths")
    parts = np.split(counts.astype(np.int32), stops[:-1], axis=1)
    kept = squares.astype(np.int64)
    return [
        _DepthCounts(int(low), part.copy(), row.copy())
        for low, part, row in zip(first, parts, kept, strict=True)
    ]


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
