"""High-norm patch tokens: counts of norms by depth and place on the grid, and a fitted threshold.

Counts are whole numbers, so they add up to the same whatever the order and grouping of images.

Source: Darcet et al., "Vision Transformers Need Registers" (ICLR 2024): outlier tokens are a
second, separate mode of the distribution of patch norms.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitscope.errors import ResultError

_BINS_PER_OCTAVE = 16
_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -10, 14
NUM_BINS = _BINS_PER_OCTAVE * (_HIGHEST_OCTAVE - _LOWEST_OCTAVE)
"""Bins of norms from 2^-10 to 2^14, each 4.4 % wide; what lies beyond is in the first or last."""

_SEPARATION = _BINS_PER_OCTAVE
_WINDOW = 5
_MIN_DIP = 5.0


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


class PatchNormCounts:
    """How many patch tokens had which norm, at each depth and place: `update`, `merge`, `fit`."""

    def __init__(self, counts: Int64[Tensor, "depth patch bin"] | None = None) -> None:
        """Start with no images, or with saved counts.

        Args:
            counts: What `counts` of another object was.
        """
        self._counts = counts

    @property
    def counts(self) -> Int64[Tensor, "depth patch bin"] | None:
        """Tokens per depth, place on the grid (row-major) and bin; None without images."""
        return self._counts

    @property
    def num_images(self) -> int:
        """Images seen."""
        return 0 if self._counts is None else int(self._counts[0, 0].sum())

    @property
    def num_depths(self) -> int:
        """Depths counted at: the embeddings and the output of each block."""
        return 0 if self._counts is None else len(self._counts)

    def update(self, norms: Float[Tensor, "batch depth patch"]) -> None:
        """Take in a batch.

        Args:
            norms: Norm of each patch token at each depth.
        """
        _, depth, patch = norms.shape
        if self._counts is None:
            self._counts = torch.zeros(depth, patch, NUM_BINS, dtype=torch.int64)
        cells = torch.arange(depth * patch).reshape(depth, patch) * NUM_BINS
        index = (cells + bin_of(norms)).flatten()
        self._counts.view(-1).index_add_(0, index, torch.ones_like(index))

    def merge(self, other: "PatchNormCounts") -> None:
        """Take in the counts of a disjoint set of images.

        Args:
            other: Counts of the same depths and grid; left unchanged.

        Raises:
            ResultError: If depths or grid differ.
        """
        if other.counts is None:
            return
        if self._counts is None:
            self._counts = other.counts.clone()
            return
        if self._counts.shape != other.counts.shape:
            raise ResultError("these counts are of different grids and cannot be merged")
        self._counts += other.counts

    def fit(self, depth: int) -> HighNormTokens:
        """Tell the outliers of one depth from the rest.

        Args:
            depth: 0 for the embeddings, ℓ for the output of the ℓ-th block.

        Returns:
            The threshold that the norms of all images ask for, and what lies above it.
        """
        assert self._counts is not None
        of_depth = self._counts[depth].numpy()
        histogram = of_depth.sum(axis=0)
        first = find_threshold_bin(histogram)
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
        assert self._counts is not None
        of_depth = self._counts[depth].numpy()
        first = find_threshold_bin(of_depth.sum(axis=0))
        above = of_depth[:, NUM_BINS if first is None else first :]
        frequency: np.ndarray = above.sum(axis=1) / self.num_images
        return frequency

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything there is to save; bins outside the occupied range are left out.

        Returns:
            Named tensors; `from_tensors` makes the same counts of them.
        """
        if self._counts is None:
            return {}
        occupied = self._counts.sum(dim=(0, 1)).nonzero().flatten()
        low, high = int(occupied[0]), int(occupied[-1]) + 1
        kept = self._counts[:, :, low:high].to(torch.int32).contiguous()
        return {"counts": kept, "first_bin": torch.tensor([low])}

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
        if not tensors:
            return cls()
        try:
            kept, low = tensors["counts"].long(), int(tensors["first_bin"][0])
            counts = torch.zeros(*kept.shape[:2], NUM_BINS, dtype=torch.int64)
            counts[:, :, low : low + kept.shape[2]] = kept
        except (KeyError, IndexError, RuntimeError) as error:
            raise ResultError(
                f"the saved counts of patch norms are damaged ({error}): audit again"
            ) from None
        return cls(counts)


def bin_of(norms: Float[Tensor, "*axes"]) -> Int64[Tensor, "*axes"]:
    """Bin of each norm on the logarithmic scale.

    Args:
        norms: Norms, not negative.

    Returns:
        ⌊16 (log₂ norm + 10)⌋, from 0 to `NUM_BINS` − 1.
    """
    scaled = (norms.double().log2() - _LOWEST_OCTAVE) * _BINS_PER_OCTAVE
    return scaled.floor().clamp(0, NUM_BINS - 1).long()


def lower_edge(bin_index: int) -> float:
    """Least norm that falls into a bin.

    Args:
        bin_index: Index of the bin.

    Returns:
        2^(index / 16 − 10).
    """
    return float(2.0 ** (bin_index / _BINS_PER_OCTAVE + _LOWEST_OCTAVE))


def find_threshold_bin(histogram: np.ndarray) -> int | None:
    """First bin of a second, separate mode of high norms.

    The histogram is summed over a sliding window of five bins (0.3 octaves). Its highest point is
    the mode of ordinary tokens. A second mode lies at least an octave (twice the norm) above it,
    and the histogram dips in between: the lowest window between the two must hold fewer tokens
    than the second mode's by more than five standard deviations of counts, and at most half as
    many. Of several such points the highest is taken. The threshold is the middle of the lowest
    stretch of the dip. A distribution with one mode, however long its tail, has none.

    Args:
        histogram: Tokens per bin.

    Returns:
        The bin, or None.
    """
    # The last bin holds all that lies beyond: it may be the end of a tail, and makes no mode.
    smooth = np.convolve(histogram[:-1], np.ones(_WINDOW), mode="same")
    mode = int(smooth.argmax())
    peaks = smooth[mode:]
    valleys = np.minimum.accumulate(peaks)
    is_mode = (peaks - valleys > _MIN_DIP * np.sqrt(peaks + valleys)) & (valleys <= peaks / 2)
    is_mode[:_SEPARATION] = False
    if not is_mode.any():
        return None
    second = int(np.where(is_mode, peaks, 0).argmax())
    lowest = np.flatnonzero(peaks[:second] == valleys[second])
    return mode + int(lowest[len(lowest) // 2])


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
    return lower_edge(index) * 2 ** (0.5 / _BINS_PER_OCTAVE)
