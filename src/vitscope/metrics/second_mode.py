"""Whether patch norms have a second, separate mode of high norms, and where it begins.

Tokens do not stand for themselves. The same place recurs in every image, and position embeddings
alone spread the norms of places; and one image may raise all its norms. A clump of a few places,
or of a few images, holds thousands of tokens and says no more than those few places or images do:
a gap before it is what any tail has. So a dip of the histogram is believed only where neither
places nor images can have made it.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Integer
from scipy.ndimage import maximum_filter1d

from vitscope.metrics.norm_bins import BINS_PER_OCTAVE, sum_windows

_SEPARATION = BINS_PER_OCTAVE
_MIN_DIP = 5.0
MAX_UNSEEN = int(_MIN_DIP**2)
"""Tokens within one window that are never found: their number is within five of its errors of 0."""
_CHANCE_IN_EXPONENTIAL_TAIL = 1e-3
_CHANCE_IN_POWER_TAIL = 0.02
_PLACE_QUANTILES = (0.5, 0.75, 0.9)
_MIN_GAP = BINS_PER_OCTAVE // 2


@dataclass(frozen=True, eq=False)
class NormCounts:
    """Counts of patch norms at one depth.

    Attributes:
        num_images: Images counted.
        by_place: Tokens per place on the grid (row-major) and bin.
        image_squares: Σ over images of the square of an image's count in the window of each bin.
        image_contrasts: Images by how many bins their highest norm lies above their median one.
    """

    num_images: int
    by_place: Integer[np.ndarray, "patch bin"]
    image_squares: Int64[np.ndarray, " bin"]
    image_contrasts: Int64[np.ndarray, " bin"]


def find_threshold_bin(counts: NormCounts) -> int | None:
    """First bin of a second, separate mode of high norms.

    The highest window of bins is the mode of ordinary tokens. A second mode is a window at least an
    octave (twice the norm) above it, the highest within half an octave, with a dip before it: the
    lowest window between the two holds at most half as many tokens, and fewer by more than five
    standard errors, whichever way these are told:

    - of tokens that are independent;
    - of counts clustered by place (`estimate_variance`), or else some places, at most half, lie
      apart of the others: a quantile (50, 75 or 90 %) of their norms is above the dip, that of the
      others below it, and between the two there is a gap (`is_gap`);
    - of counts clustered by image, or else some images, at most half, lie apart of the others:
      there is a gap in how far their highest norm is above their median one. What raises all norms
      of an image does not change that.

    Of several such windows the highest is taken, and the threshold is the middle of the lowest
    stretch of its dip. Above it are at most half of all tokens, whose median lies at least an
    octave above that of the rest. A distribution with one mode has none, however long its tail and
    however unlike its places or images.

    Returns:
        The bin, or None.
    """
    # The last bin holds all that lies beyond: it may be the end of a tail, and makes no mode.
    windows = sum_windows(counts.by_place[:, :-1])
    heights = windows.sum(axis=0)
    dips = _find_dips(heights)
    if not dips:
        return None
    place_squares = (windows.astype(np.float64) ** 2).sum(axis=0)
    of_places = estimate_variance(place_squares, heights, len(windows))
    of_images = estimate_variance(counts.image_squares[:-1], heights, counts.num_images)
    images_apart = _are_images_apart(counts.image_contrasts)
    for peak, valley in dips:
        depth = heights[peak] - heights[valley]
        by_places, by_images = (
            depth > _MIN_DIP * math.sqrt(variance[peak] + variance[valley])
            for variance in (of_places, of_images)
        )
        if (
            (by_images or images_apart)
            and (by_places or _are_places_apart(counts.by_place, valley))
            and _are_modes_apart(counts.by_place.sum(axis=0), valley)
        ):
            return valley
    return None


def find_doubtful_bin(counts: NormCounts) -> int | None:
    """First bin of norms that may be a second mode, which these counts do not show.

    Returns:
        The lowest dip before a window that is at least an octave above the mode and twice as high
        as the dip, however few tokens it holds; None where there is no such dip.
    """
    heights = sum_windows(counts.by_place[:, :-1]).sum(axis=0)
    return min((valley for _, valley in _find_dips(heights, 0.0)), default=None)


def estimate_variance(
    squares: Integer[np.ndarray, " bin"] | Float64[np.ndarray, " bin"],
    heights: Integer[np.ndarray, " bin"],
    num_clusters: int,
) -> Float64[np.ndarray, " bin"]:
    """Variance of the count of tokens in each window, where places, or images, are drawn at random.

    Returns:
        C / (C − 1) · Σ (count of the cluster − mean count of a cluster)², and at least the count,
        which is the variance of independent tokens.

    Source: A. C. Cameron, J. B. Gelbach and D. L. Miller, "Robust Inference With Multiway
    Clustering" (2011).
    """
    independent: np.ndarray = heights.astype(np.float64)
    if num_clusters == 1:
        return independent
    spread = squares - independent**2 / num_clusters
    variance: np.ndarray = np.maximum(num_clusters / (num_clusters - 1) * spread, independent)
    return variance


def is_gap(values: Integer[np.ndarray, " value"], num_above: int) -> bool:
    """Whether the highest values lie further apart of the others than a tail of theirs reaches.

    A gap below the highest k of n values is one where it is at least half an octave wide and

    - chance leaves as wide a one in a tail that falls exponentially less often than once in
      1000 k (k + 1): the spacings of such a tail are independent and exponential themselves
      (Rényi), so that k · gap / (mean excess of the m values below the gap over the next one)
      has the F distribution with 2 and 2m degrees of freedom, and chance is
      (1 + k · gap / (m · excess))^−m. Of m = √(n − k) and m = (n − k) / 4, rounded up, the one that
      makes it more likely is taken;
    - chance leaves it in a tail that falls with the third power, as that of Student's t with three
      degrees of freedom, less often than once in 50 k (k + 1): (1 + gap / spread)^−3k, with the
      spread from the median to the last value below the gap.

    Σ 1 / (k (k + 1)) = 1: so often a gap is found when all k are tried. Norms with a tail that is a
    power law have logarithms with one that is exponential.

    Returns:
        Whether it is one. A gap is known to within a bin, so one is taken off, and excess and
        spread are a bin at least.

    Source: A. Rényi, "On the theory of order statistics" (1953); B. M. Hill, "A simple general
    approach to inference about the tail of a distribution" (1975).
    """
    below = values[: len(values) - num_above]
    width = int(values[len(below)] - below[-1])
    if width < _MIN_GAP:
        return False
    gap, trials = width - 1, num_above * (num_above + 1)
    spread = max(int(below[-1] - values[len(values) // 2]), 1)
    if trials * (1 + gap / spread) ** (-3.0 * num_above) > _CHANCE_IN_POWER_TAIL:
        return False
    for used in (math.ceil(math.sqrt(len(below))), math.ceil(len(below) / 4)):
        if used >= len(below):
            return False
        excess = max(float((below[-used:] - below[-used - 1]).mean()), 1.0)
        if trials * (1 + num_above * gap / (used * excess)) ** -used > _CHANCE_IN_EXPONENTIAL_TAIL:
            return False
    return True


def _find_dips(
    heights: Int64[np.ndarray, " bin"], min_dip: float = _MIN_DIP
) -> list[tuple[int, int]]:
    # Windows that stand out when tokens are independent, highest first, and the dip before each.
    mode = int(heights.argmax())
    peaks = heights[mode:]
    lowest = np.minimum.accumulate(peaks)
    is_peak = (peaks - lowest > min_dip * np.sqrt(peaks + lowest)) & (lowest <= peaks / 2)
    # The far slope of a mode nearer than that is none of its own.
    is_peak &= peaks == maximum_filter1d(heights, _SEPARATION + 1, mode="constant")[mode:]
    is_peak[:_SEPARATION] = False
    found = sorted(np.flatnonzero(is_peak), key=lambda peak: -peaks[peak])
    dips = []
    for peak in found:
        stretch = np.flatnonzero(peaks[:peak] == lowest[peak])
        dips.append((mode + int(peak), mode + int(stretch[len(stretch) // 2])))
    return dips


def _are_places_apart(by_place: Integer[np.ndarray, "patch bin"], threshold: int) -> bool:
    below = by_place.cumsum(axis=1)
    for quantile in _PLACE_QUANTILES:
        bins = np.sort((below >= quantile * below[:, -1:]).argmax(axis=1))
        above = int((bins >= threshold).sum())
        if 0 < above <= len(bins) / 2 and is_gap(bins, above):
            return True
    return False


def _are_images_apart(contrasts: Int64[np.ndarray, " bin"]) -> bool:
    values = np.repeat(np.arange(len(contrasts)), contrasts)
    starts = np.flatnonzero(np.diff(values) >= _MIN_GAP) + 1
    counts_above = len(values) - starts
    return any(is_gap(values, int(k)) for k in counts_above if k <= len(values) / 2)


def _are_modes_apart(histogram: Integer[np.ndarray, " bin"], threshold: int) -> bool:
    # A far slope of a mode within the octave, or a clump below the ordinary mode, may be met above.
    below, above = histogram[:threshold], histogram[threshold:]
    if above.sum() > below.sum():
        return False
    return threshold + _find_median(above) - _find_median(below) >= _SEPARATION


def _find_median(histogram: Integer[np.ndarray, " bin"]) -> int:
    below = histogram.cumsum()
    return int((2 * below >= below[-1]).argmax())
