"""Counts of patch norms at one depth: whole numbers, in the range of bins that occur."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from vitscope.metrics.norm_bins import NUM_BINS, WINDOW, sum_windows
from vitscope.metrics.second_mode import NormCounts

_MARGIN = WINDOW // 2


class DepthNorms:
    """How many patch tokens of one depth had which norm: `update`, `merge`, `read`."""

    def __init__(self, num_places: int) -> None:
        """Start with no images."""
        self._first_bin = 0
        self._by_place = np.zeros((num_places, 0), dtype=np.int32)
        self._image_squares = np.zeros(NUM_BINS, dtype=np.int64)
        self._image_contrasts = np.zeros(NUM_BINS, dtype=np.int64)

    @property
    def num_images(self) -> int:
        """Images counted."""
        return int(self._image_contrasts.sum())

    @property
    def num_places(self) -> int:
        """Patches of the grid."""
        return len(self._by_place)

    def update(self, bins: Integer[np.ndarray, "batch patch"]) -> None:
        """Take in images."""
        first, end = int(bins.min()), int(bins.max()) + 1
        self._cover(first, end)
        width = self._by_place.shape[1]
        cells = bins + (width * np.arange(self.num_places) - self._first_bin)
        # Two images may have the same norm at the same place, and a plain += would count it once.
        flat = torch.from_numpy(self._by_place).view(-1)
        flat.index_add_(
            0, torch.from_numpy(cells.ravel()), torch.ones(cells.size, dtype=flat.dtype)
        )
        self._image_squares += _sum_image_squares(bins, first, end)
        half = (self.num_places - 1) // 2
        contrasts = bins.max(axis=1) - np.partition(bins.astype(np.int16), half, axis=1)[:, half]
        self._image_contrasts += np.bincount(contrasts, minlength=NUM_BINS)

    def merge(self, other: "DepthNorms") -> None:
        """Take in the counts of a disjoint set of images."""
        width = other._by_place.shape[1]
        if not width:
            return
        self._cover(other._first_bin, other._first_bin + width)
        start = other._first_bin - self._first_bin
        self._by_place[:, start : start + width] += other._by_place
        self._image_squares += other._image_squares
        self._image_contrasts += other._image_contrasts

    def read(self) -> NormCounts:
        """The counts on the whole scale.

        Returns:
            Counts per place and per image.
        """
        width = self._by_place.shape[1]
        margins = (self._first_bin, NUM_BINS - self._first_bin - width)
        return NormCounts(
            self.num_images,
            np.pad(self._by_place, ((0, 0), margins)),
            self._image_squares,
            self._image_contrasts,
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything there is to save.

        Returns:
            Named tensors; `from_tensors` makes the same counts of them.
        """
        small = self._by_place.size == 0 or self._by_place.max() <= np.iinfo(np.int16).max
        counts = self._by_place.astype(np.int16 if small else np.int32)
        return {
            "counts": torch.from_numpy(counts),
            "first_bin": torch.tensor([self._first_bin]),
            "image_squares": torch.from_numpy(self._image_squares.copy()),
            "image_contrasts": torch.from_numpy(self._image_contrasts.copy()),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "DepthNorms":
        """Restore saved counts.

        Returns:
            The counts.
        """
        counts, first, squares, contrasts = (
            tensors[name].numpy()
            for name in ("counts", "first_bin", "image_squares", "image_contrasts")
        )
        if counts.ndim != 2 or not len(counts) or first.shape != (1,):
            raise ValueError(f"shapes {counts.shape} and {first.shape}")
        if not 0 <= int(first[0]) <= NUM_BINS - counts.shape[1]:
            raise ValueError(f"bins from {int(first[0])} on")
        if squares.shape != (NUM_BINS,) or contrasts.shape != (NUM_BINS,):
            raise ValueError(f"shapes {squares.shape} and {contrasts.shape}")
        if (counts.sum(axis=1) != contrasts.sum()).any():
            raise ValueError("counts of places and images differ")
        most = int(contrasts.sum()) * len(counts) ** 2
        if min(counts.min(initial=0), contrasts.min(), squares.min(), most - squares.max()) < 0:
            raise ValueError("counts below 0, or above what so many images can have")
        restored = cls(len(counts))
        restored._first_bin = int(first[0])
        restored._by_place = counts.astype(np.int32)
        restored._image_squares = squares.astype(np.int64)
        restored._image_contrasts = contrasts.astype(np.int64)
        return restored

    def _cover(self, first: int, end: int) -> None:
        width = self._by_place.shape[1]
        if not width:
            self._first_bin, self._by_place = (
                first,
                np.zeros((self.num_places, end - first), np.int32),
            )
            return
        margins = max(self._first_bin - first, 0), max(end - self._first_bin - width, 0)
        if any(margins):
            self._by_place = np.pad(self._by_place, ((0, 0), margins))
            self._first_bin -= margins[0]


def _sum_image_squares(
    bins: Integer[np.ndarray, "batch patch"], first: int, end: int
) -> Int64[np.ndarray, " bin"]:
    # A margin for the windows around the outermost bins; what is off the scale is cut off again.
    start, width = first - _MARGIN, end - first + 2 * _MARGIN
    cells = bins + (width * np.arange(len(bins))[:, np.newaxis] - start)
    by_image = np.bincount(cells.ravel(), minlength=len(bins) * width).reshape(-1, width)
    squares = np.zeros(NUM_BINS + 2 * _MARGIN, dtype=np.int64)
    squares[start + _MARGIN : start + _MARGIN + width] = (sum_windows(by_image) ** 2).sum(axis=0)
    return squares[_MARGIN : _MARGIN + NUM_BINS]
