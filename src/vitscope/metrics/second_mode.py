"""Whether patch norms have a second, separate mode of high norms, and where it begins.

Tokens are not independent draws: every image has the same places, whose norms differ through
position embeddings alone, and one image may raise all of its norms. So a few places, or images, in
the ordinary tail can form a bump of thousands of tokens. Hence the dip before a second mode must be
significant both with places and with images as the sampling unit.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

BINS_PER_OCTAVE = 16
MIN_TOKENS = 26
"""Fewer tokens are never detected: their number is within five standard errors of 0."""
_STANDARD_ERRORS = 5
_WINDOW = 5
"""Bins (0.3 octaves) counted together, since single bins hold few tokens."""
_MIN_GAP = BINS_PER_OCTAVE // 2
_MIN_OTHERS = 12


@dataclass(frozen=True, eq=False)
class NormCounts:
    """Counts of patch norms at one depth, in bins of a sixteenth of an octave."""

    by_place: Integer[np.ndarray, "patch bin"]  # tokens per place on the grid (row-major) and bin
    # Σ over images of the square of an image's count in the window of each bin
    image_squares: Int64[np.ndarray, " bin"]
    image_peaks: Int64[np.ndarray, " bin"]  # images by the bin of their highest norm
    # images by the number of bins from their median to their highest norm
    image_contrasts: Int64[np.ndarray, " bin"]
    # tokens per jackknife block and bin; all 0 in results of earlier versions
    by_block: Int64[np.ndarray, "block bin"]

    @property
    def num_images(self) -> int:
        """Images counted."""
        return int(self.image_peaks.sum())


class SecondMode(NamedTuple):
    """Where a second mode begins."""

    first_bin: int  # middle of the lowest stretch of the dip before it
    found: bool  # whether it is a mode and not a tail; if False, it is undecided


def find_second_mode(counts: NormCounts) -> SecondMode | None:
    """Find the dip before a second mode.

    The window with the most tokens is the mode of ordinary tokens. A rise is a window at least an
    octave (twice the norm) above it with at least twice as many tokens as the lowest window between
    the two, the dip. The largest rise is a second mode if

    - it exceeds five standard errors with places and with images as the sampling unit
      (`estimate_variance`), or else the places, or images, above the dip `stand_apart`;
    - at most half of all tokens are above the dip, and their median norm is at least twice that of
      the others.

    Returns:
        None if there is no rise. If the largest rise is no second mode, the first dip.
    """
    # The last bin also holds all higher norms, so it may be the end of a tail.
    windows = sum_windows(counts.by_place[:, :-1])
    heights = windows.sum(axis=0)
    mode = int(heights.argmax())
    after = heights[mode:]
    lowest = np.minimum.accumulate(after)
    rises = np.where(after >= 2 * lowest, after - lowest, 0)
    rises[:BINS_PER_OCTAVE] = 0
    if not rises.any():
        return None
    peak = int(rises.argmax())
    dip = _find_dip(after, peak)
    rise, ends = int(rises[peak]), [mode + peak, mode + dip]
    squares = (windows[:, ends].astype(np.float64) ** 2).sum(axis=0)
    of_places = estimate_variance(squares, heights[ends], len(windows))
    of_images = estimate_variance(counts.image_squares[ends], heights[ends], counts.num_images)
    if (
        (_exceeds(rise, of_places) or _do_places_stand_apart(counts, mode + dip))
        and (_exceeds(rise, of_images) or _do_images_stand_apart(counts, mode + dip))
        and _are_modes_apart(counts.by_place.sum(axis=0), mode + dip)
    ):
        return SecondMode(mode + dip, found=True)
    return SecondMode(mode + _find_dip(after, int(np.flatnonzero(rises)[0])), found=False)


def sum_windows(counts: Integer[np.ndarray, "*axes bin"]) -> Int64[np.ndarray, "*axes bin"]:
    """Tokens in the window of five bins around each bin; windows are shorter at the ends."""
    margin = _WINDOW // 2
    padded = np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [(margin + 1, margin)])
    below = padded.cumsum(axis=-1, dtype=np.int64)
    windows: np.ndarray = below[..., _WINDOW:] - below[..., :-_WINDOW]
    return windows


def estimate_variance(squares: np.ndarray, totals: np.ndarray, num_clusters: int) -> np.ndarray:
    """Jackknife variance of counts of tokens when whole clusters (places, images) are sampled.

    C / (C − 1) · Σ (count of a cluster − mean count)², from Σ count² and Σ count, but at least the
    count itself, the variance of independent tokens.
    """
    if num_clusters == 1:
        return totals.astype(np.float64)
    spread = num_clusters / (num_clusters - 1) * (squares - totals**2 / num_clusters)
    variance: np.ndarray = np.maximum(spread, totals)
    return variance


def stand_apart(values: Integer[np.ndarray, " value"], num_high: int) -> bool:
    """Whether the highest of some log norms are separate from the others.

    They must be at most half of all, the gap below them at least half an octave and wider than the
    range of the others, and the others at least 12, so that their range is meaningful.
    """
    values = np.sort(values)
    others = len(values) - num_high
    if not 0 < num_high <= others or others < _MIN_OTHERS:
        return False
    lowest, below, above = (int(values[k]) for k in (0, others - 1, others))
    # A gap is known to within one bin, which is subtracted.
    return above - below >= _MIN_GAP and above - below - 1 >= max(below - lowest, 1)


def _find_dip(after: Int64[np.ndarray, " bin"], peak: int) -> int:
    stretch = np.flatnonzero(after[:peak] == after[:peak].min())
    return int(stretch[len(stretch) // 2])


def _exceeds(rise: int, variance: np.ndarray) -> bool:
    return rise > _STANDARD_ERRORS * math.sqrt(variance.sum())


def _do_places_stand_apart(counts: NormCounts, dip: int) -> bool:
    # By upper quartile, which is high if a place is high in a quarter of the images.
    below = counts.by_place.cumsum(axis=1)
    quartiles = (below >= 0.75 * below[:, -1:]).argmax(axis=1)
    return stand_apart(quartiles, int((quartiles >= dip).sum()))


def _do_images_stand_apart(counts: NormCounts, dip: int) -> bool:
    # By highest over median norm, which does not change if all norms of an image are raised.
    contrasts = np.repeat(np.arange(len(counts.image_contrasts)), counts.image_contrasts)
    return stand_apart(contrasts, int(counts.image_peaks[dip:].sum()))


def _are_modes_apart(histogram: Integer[np.ndarray, " bin"], dip: int) -> bool:
    # The highest window may be a narrow mode of few tokens, and a rise the slope of a near mode.
    below, above = histogram[:dip], histogram[dip:]
    apart = dip + _find_median(above) - _find_median(below) >= BINS_PER_OCTAVE
    return bool(above.sum() <= below.sum()) and apart


def _find_median(histogram: Integer[np.ndarray, " bin"]) -> int:
    below = histogram.cumsum()
    return int((2 * below >= below[-1]).argmax())
