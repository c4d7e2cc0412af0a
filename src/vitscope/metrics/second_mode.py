"""Whether patch norms have a second, separate mode of high norms, and where it begins.

Tokens do not stand for themselves. The same place recurs in every image, and position embeddings
alone spread the norms of places; and one image may raise all its norms. A clump of a few places,
or of a few images, holds thousands of tokens, and says no more than those few places or images do:
a gap before it is what any tail has. So a dip counts by the standard error that places and images
give it; and a few places that lie apart in every image count by how far that is, in the spread of
the others.
"""

import numpy as np
from jaxtyping import Float64, Integer
from scipy.ndimage import maximum_filter1d

from vitscope.metrics.norm_bins import BINS_PER_OCTAVE, sum_windows

_SEPARATION = BINS_PER_OCTAVE
_MIN_DIP = 5.0
_MIN_EVIDENCE = 4.0
_MIN_SPREAD = 2
"""Bins: a spread told by bins is told no better."""


def find_threshold_bin(
    by_place: Integer[np.ndarray, "patch bin"],
    image_squares: Integer[np.ndarray, " bin"],
    num_images: int,
) -> int | None:
    """First bin of a second, separate mode of high norms.

    The highest window of bins is the mode of ordinary tokens. There is a second mode where one of
    these is so:

    - A window at least an octave (twice the norm) higher, the highest within half an octave, holds
      more tokens than the lowest window before it by more than five standard errors, and that one
      at most half as many. The standard error is that of clustered counts: the variance over places
      plus that over images, less that of independent tokens, and never less than the latter. Of
      several such windows the highest is taken.
    - Of P places, k < P / 3 have a median norm that an octave or more parts from the medians of the
      others, and k (1 − 3k / P) ln(1 + gap / spread) ≥ 4. Here the spread is that from the median
      place to the last before the gap, both in log norm, and there is a dip of the tokens as above,
      tokens counted as independent. In a tail of log norms that falls with a power ν, ln(1 + gap /
      spread) is exponential with rate k ν, so that for ν = 3, as in Student's t with three degrees
      of freedom, chance leaves such a gap once in e^12. Nearer the middle of a distribution ν is
      less, which 1 − 3k / P makes up for.

    The threshold is the middle of the lowest stretch of the dip. Above it are at most half of all
    tokens, whose median lies at least an octave above that of the rest. A distribution with one
    mode has none, however long its tail and however unlike its places or images.

    Args:
        by_place: Tokens per place on the grid and bin.
        image_squares: Σ over images of the square of an image's count in the window of each bin.
        num_images: Images counted.

    Returns:
        The bin, or None.

    Source: A. C. Cameron, J. B. Gelbach and D. L. Miller, "Robust Inference With Multiway
    Clustering" (2011), for the variance; A. Rényi, "On the theory of order statistics" (1953), for
    the gap.
    """
    windows = sum_windows(by_place)
    heights = windows.sum(axis=0)
    found = _find_mode(heights, estimate_variances(windows, image_squares, num_images))
    if found is None:
        found = _find_far_places(by_place, heights)
    if found is None or not _are_apart(by_place.sum(axis=0), found):
        return None
    return found


def estimate_variances(
    windows: Integer[np.ndarray, "patch bin"],
    image_squares: Integer[np.ndarray, " bin"],
    num_images: int,
) -> Float64[np.ndarray, " bin"]:
    """Variance of the count of tokens in each window, where places and images are drawn at random.

    Args:
        windows: Tokens per place on the grid and window.
        image_squares: Σ over images of the square of an image's count in each window.
        num_images: Images counted.

    Returns:
        V_places + V_images − count, at least the count. V of P clusters (places or images) is
        P / (P − 1) · Σ (count in the cluster − mean count of a cluster)²; of a single one, 0.
    """
    heights = windows.sum(axis=0).astype(np.float64)
    place_squares = (windows.astype(np.float64) ** 2).sum(axis=0)
    of_places = _variance_of_sum(place_squares, heights, len(windows))
    of_images = _variance_of_sum(image_squares.astype(np.float64), heights, num_images)
    variances: np.ndarray = np.maximum(of_places + of_images - heights, heights)
    return variances


def _variance_of_sum(squares: np.ndarray, sums: np.ndarray, count: int) -> np.ndarray:
    if count == 1:
        return np.zeros_like(sums)
    variance: np.ndarray = count / (count - 1) * (squares - sums**2 / count)
    return variance


def _find_mode(heights: np.ndarray, variances: np.ndarray) -> int | None:
    mode = int(heights.argmax())
    peaks, noise = heights[mode:], variances[mode:]
    valleys = np.minimum.accumulate(peaks)
    lowest = np.maximum.accumulate(np.where(peaks == valleys, np.arange(len(peaks)), 0))
    is_mode = _is_dip(peaks, valleys, noise + noise[lowest])
    # The far slope of a mode nearer than that is none of its own.
    is_mode &= peaks == maximum_filter1d(heights, _SEPARATION + 1, mode="constant")[mode:]
    is_mode[:_SEPARATION] = False
    if not is_mode.any():
        return None
    second = int(np.where(is_mode, peaks, 0).argmax())
    return mode + _middle_of_lowest(peaks[:second])


def _find_far_places(by_place: np.ndarray, heights: np.ndarray) -> int | None:
    medians = np.sort(_median_bins(by_place))
    places = len(medians)
    far = np.arange(1, (places + 2) // 3)
    last, first = medians[-far - 1], medians[-far]
    gaps = first - last
    spread = np.maximum(last - medians[places // 2], _MIN_SPREAD)
    evidence = far * (1 - 3 * far / places) * np.log1p(gaps / spread)
    evidence[gaps < _SEPARATION] = 0
    if not (evidence >= _MIN_EVIDENCE).any():
        return None
    best = int(evidence.argmax())
    between = heights[last[best] : first[best]]
    peak, valley = heights[first[best] :].max(keepdims=True), between.min(keepdims=True)
    if not _is_dip(peak, valley, peak + valley).all():
        return None
    return int(last[best]) + _middle_of_lowest(between)


def _are_apart(histogram: np.ndarray, threshold: int) -> bool:
    # A far slope of a mode within the octave, or a clump below the ordinary mode, may be met above.
    below, above = histogram[:threshold], histogram[threshold:]
    if above.sum() > below.sum():
        return False
    (low,), (high,) = (_median_bins(part[np.newaxis]) for part in (below, above))
    return bool(threshold + high - low >= _SEPARATION)


def _is_dip(peaks: np.ndarray, valleys: np.ndarray, variances: np.ndarray) -> np.ndarray:
    deep: np.ndarray = peaks - valleys > _MIN_DIP * np.sqrt(variances)
    return deep & (valleys <= peaks / 2)


def _median_bins(by_place: np.ndarray) -> np.ndarray:
    below = by_place.cumsum(axis=1)
    bins: np.ndarray = (2 * below >= below[:, -1:]).argmax(axis=1)
    return bins


def _middle_of_lowest(heights: np.ndarray) -> int:
    lowest = np.flatnonzero(heights == heights.min())
    return int(lowest[len(lowest) // 2])
