"""Intervals of ratios of two quadratic statistics, from values without some of the images.

The delete-one jackknife is right for the variance that comes from single images, but counts the
part from interactions between pairs of images twice (Efron & Stein 1981). For similarities of
features with many directions that part dominates. The values without two blocks estimate it.

Sources: B. Efron and C. Stein, "The jackknife estimate of variance" (Ann. Stat. 1981);
E. C. Fieller, "Some problems in interval estimation" (JRSS B 1954).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np
from jaxtyping import Float64
from scipy.special import chdtri

from vitscope.metrics.jackknife import leave_out, student_975

Values = Float64[np.ndarray, " union"]
_MIN_BLOCKS = 3
_MAX_DOUBLINGS = 100
_MAX_HALVINGS = 200


def compute_ratio_interval(
    above: Values, below: Values, sizes: Sequence[int]
) -> tuple[float, float] | None:
    """95 % interval of above / below: the ratios ρ for which above − ρ · below may be zero.

    The values are those on the unions of `leave_out`, followed, where known, by those without each
    image. above − ρ · below is compared with Student's t times its standard error. The squared
    standard error is the jackknife variance less the excess from pairs of images. The jackknife is
    over images, with n − 1 degrees of freedom, where their values are known, otherwise over blocks,
    with blocks − 1. With so few blocks the difference could be far too small by chance; then only
    the lower end of a 95 % interval of the pairs' part is subtracted.

    Returns:
        (low, high), or None where it is undefined: fewer than three blocks, an undefined value, or
        a denominator that may be zero.
    """
    known = np.isfinite(above).all() and np.isfinite(below).all()
    if len(sizes) < _MIN_BLOCKS or not known or not below[0] > 0:
        return None
    # In units of the denominator no square overflows.
    above, below = above / below[0], below / below[0]
    spread = _Spread.measure(np.stack([above, below], axis=1), sizes)
    ratio, quantile = float(above[0]), student_975(len(spread.singles) - 1.0)

    def is_outside(candidate: float) -> bool:
        distance = abs(ratio - candidate)
        return distance > quantile * math.sqrt(spread.estimate_variance(candidate))

    step = max(math.sqrt(spread.estimate_variance(ratio)), math.ulp(ratio))
    low, high = (_find_end(is_outside, ratio, sign * step) for sign in (-1, 1))
    return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class _Spread:
    """Sampling variation of two statistics."""

    # effect of leaving out each image or block, one row each; the sum of squares is the delete-one
    # jackknife variance
    singles: Float64[np.ndarray, "single 2"]
    # interaction of each two blocks, likewise; the sum of squares is the part of the variance that
    # comes from pairs of images, or its lower end
    pairs: Float64[np.ndarray, "pair 2"]
    repeats: float  # how many times the jackknife variance counts that part

    @classmethod
    def measure(cls, values: Float64[np.ndarray, "union 2"], sizes: Sequence[int]) -> "_Spread":
        """Compute the differences, scaled to variances."""
        # For a pure pair statistic the variance is known: each two blocks add their number of
        # pairs of images.
        kept = leave_out(sizes)
        n = kept @ np.array(sizes, dtype=np.float64)
        cells = list(combinations_with_replacement(range(len(sizes)), 2))
        held = np.stack([kept[:, j] * kept[:, k] for j, k in cells], axis=1)
        worth = [2 * sizes[j] * (sizes[k] - 1 if j == k else 2 * sizes[k]) for j, k in cells]
        pure = held / (n * (n - 1))[:, np.newaxis] * np.sqrt(worth)
        variance = float((pure[0] ** 2).sum())
        scale = math.sqrt(variance / float((_differ_by_two(pure, n, len(sizes)) ** 2).sum()))
        pairs = scale * _differ_by_two(values[: len(n)], n, len(sizes))
        whole, without_image = n[0], values[len(n) :]
        if len(without_image):
            counts = np.append(whole, np.full(len(without_image), whole - 1))
            singles = _differ_by_one(np.concatenate([values[:1], without_image]), counts)
            return cls(singles, pairs, float(2 * (whole - 1) / (whole - 2)))
        one = slice(1 + len(sizes))
        repeats = float((_differ_by_one(pure[one], n[one]) ** 2).sum()) / variance
        certain = math.sqrt(len(pairs) / chdtri(len(pairs), 0.025))
        return cls(_differ_by_one(values[one], n[one]), certain * pairs, repeats)

    def estimate_variance(self, ratio: float) -> float:
        """Variance of the first statistic less a multiple of the second."""
        weights = np.array([1.0, -ratio])
        jackknife = float(((self.singles @ weights) ** 2).sum())
        of_pairs = float(((self.pairs @ weights) ** 2).sum())
        # The jackknife variance is at least `repeats` times the pairs' part.
        return jackknife - (self.repeats - 1) * min(of_pairs, jackknife / self.repeats)


def _differ_by_one(
    values: Float64[np.ndarray, "set column"], n: Float64[np.ndarray, " set"]
) -> Float64[np.ndarray, "_ column"]:
    # All images first, then all but one image or block.
    num_singles = len(n) - 1
    ratios = (n[0] / (n[0] - n[1:]))[:, np.newaxis]
    pseudo = ratios * values[0] - (ratios - 1) * values[1:]
    centre = num_singles * values[0] - ((1 - 1 / ratios) * values[1:]).sum(axis=0)
    differences: np.ndarray = (pseudo - centre) / np.sqrt((ratios - 1) * num_singles)
    return differences


def _differ_by_two(
    values: Float64[np.ndarray, "union column"], n: Float64[np.ndarray, " union"], blocks: int
) -> Float64[np.ndarray, "pair column"]:
    # Second differences of n · value: 0 for a mean, the two blocks' interaction for a mean over
    # pairs.
    first, second = np.array(list(combinations(range(1, 1 + blocks), 2))).T
    total = n[:, np.newaxis] * values
    differences: np.ndarray = total[0] - total[first] - total[second] + total[1 + blocks :]
    return differences


def _find_end(is_outside: Callable[[float], bool], inside: float, step: float) -> float | None:
    for _ in range(_MAX_DOUBLINGS):
        outside = inside + step
        if is_outside(outside):
            break
        inside, step = outside, 2 * step
    else:
        return None
    for _ in range(_MAX_HALVINGS):
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        inside, outside = (inside, middle) if is_outside(middle) else (middle, outside)
    return inside
