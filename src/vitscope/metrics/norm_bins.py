"""The logarithmic scale that norms are counted on."""

import functools

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, Integer
from torch import Tensor

BINS_PER_OCTAVE = 16
_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -10, 24
NUM_BINS = BINS_PER_OCTAVE * (_HIGHEST_OCTAVE - _LOWEST_OCTAVE)
"""Bins of norms from 2^-10 to 2^24, each 4.4 % wide; what lies beyond is in the first or last."""

WINDOW = 5
"""Bins (0.3 octaves) that are looked at together, for single ones hold few tokens."""


def bin_of(norms: Float[Tensor, "*axes"]) -> Int32[Tensor, "*axes"]:
    """Bin of each norm, exact at the edges, on the device that the norms are on.

    Returns:
        The bin b with 2^(b / 16 − 10) ≤ norm < 2^((b + 1) / 16 − 10), from 0 to `NUM_BINS` − 1.
    """
    # A rounded logarithm tells the nearest edge well enough, but not which side of it.
    scaled = norms.log2().sub_(_LOWEST_OCTAVE).mul_(BINS_PER_OCTAVE)
    nearest = scaled.round_().clamp_(0, NUM_BINS).int()
    edges = _make_edges(norms.dtype).to(norms.device).index_select(0, nearest.flatten())
    is_below = norms < edges.view_as(norms)
    return nearest.sub_(is_below.int()).clamp_(0, NUM_BINS - 1)


def lower_edge(bin_index: int) -> float:
    """Least norm that falls into a bin.

    Returns:
        2^(index / 16 − 10).
    """
    return float(2.0 ** (bin_index / BINS_PER_OCTAVE + _LOWEST_OCTAVE))


def sum_windows(counts: Integer[np.ndarray, "*axes bin"]) -> Int64[np.ndarray, "*axes bin"]:
    """Tokens in the window of `WINDOW` bins around each.

    Returns:
        The sums; at the ends, of the bins that there are.
    """
    margin = WINDOW // 2
    size = counts.shape[-1]
    total = np.zeros((*counts.shape[:-1], size + 2 * margin + 1), dtype=np.int64)
    counts.cumsum(axis=-1, out=total[..., margin + 1 : margin + 1 + size])
    total[..., margin + 1 + size :] = total[..., margin + size, np.newaxis]
    windows: np.ndarray = total[..., WINDOW:] - total[..., :-WINDOW]
    return windows


@functools.cache
def _make_edges(dtype: torch.dtype) -> Tensor:
    exact = torch.tensor([lower_edge(index) for index in range(NUM_BINS + 1)], dtype=torch.float64)
    edges = exact.to(dtype)
    # The least number of the type that is not below the edge.
    return torch.where(edges.double() < exact, edges.nextafter(edges.new_tensor(torch.inf)), edges)
