"""Intervals of ratios of two quadratic statistics, from values without some of the images.

The delete-one jackknife is right for the variance that comes from single images, but counts the
part from interactions between pairs of images twice (Efron & Stein 1981). For similarities of
features with many directions that part dominates. The values without two blocks estimate it.

Sources: B. Efron and C. Stein, "The jackknife estimate of variance" (Ann. Stat. 1981);
E. C. Fieller, "Some problems in interval estimation" (JRSS B 1954).
"""

import math
from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement

import numpy as np
from jaxtyping import Float64
from scipy.special import chdtri

from vitscope.metrics.jackknife import leave_out, student_975

Values = Float64[np.ndarray, " union"]
_Quadratic = Float64[np.ndarray, "3"]
"""Coefficients of 1, d and d²."""
_MIN_BLOCKS = 3


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
    singles, pairs, repeats = _measure_spread(np.stack([above, below], axis=1), sizes)
    ratio, quantile = float(above[0]), student_975(len(singles) - 1.0)
    # Two variances of above − (ratio + d) · below, as quadratics in d; the larger one counts. It is
    # the jackknife variance less the excess from pairs, of which the jackknife variance has at
    # least R times their part: J − (R − 1) min(P, J / R).
    weights = np.array([[1.0, 0.0], [-ratio, -1.0]])
    jackknife, of_pairs = (_square(each @ weights) for each in (singles, pairs))
    variances = jackknife - (repeats - 1) * of_pairs, jackknife / repeats
    if not np.isfinite(variances).all():  # too few images without two blocks
        return None
    pieces = [piece for each in variances for piece in _solve(quantile**2 * each)]
    low, high = _find_around_zero(pieces)
    return (ratio + low, ratio + high) if math.isfinite(high - low) else None


def _measure_spread(
    values: Float64[np.ndarray, "union 2"], sizes: Sequence[int]
) -> tuple[Float64[np.ndarray, "single 2"], Float64[np.ndarray, "pair 2"], float]:
    """Sampling variation of two statistics.

    Returns:
        The effect of leaving out each image or block, one row each: the sum of squares is the
        delete-one jackknife variance. The interaction of each two blocks, likewise: the sum of
        squares is the part of the variance that comes from pairs of images, or its lower end. How
        many times the jackknife variance counts that part.
    """
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
        return singles, pairs, float(2 * (whole - 1) / (whole - 2))
    one = slice(1 + len(sizes))
    repeats = float((_differ_by_one(pure[one], n[one]) ** 2).sum()) / variance
    certain = math.sqrt(len(pairs) / chdtri(len(pairs), 0.025))
    return _differ_by_one(values[one], n[one]), certain * pairs, repeats


def _square(values: Float64[np.ndarray, "row 2"]) -> _Quadratic:
    # Σ (a + b d)² by powers of d.
    first, second = values.T
    return np.array([first @ first, 2 * first @ second, second @ second])


def _find_around_zero(pieces: Sequence[tuple[float, float]]) -> tuple[float, float]:
    # The part of the union of intervals that holds 0.
    low = high = 0.0
    for _ in pieces:
        for first, last in pieces:
            if first <= high and low <= last:
                low, high = min(low, first), max(high, last)
    return low, high


def _solve(bound: _Quadratic) -> list[tuple[float, float]]:
    # The intervals of d in which d² <= bound(d).
    constant, linear, square = (float(each) for each in bound)
    leading, half = 1 - square, linear / 2
    discriminant = half * half + leading * constant
    if discriminant < 0:
        return [] if leading > 0 else [(-math.inf, math.inf)]
    # The roots of leading · d² − 2 half · d − constant, without a difference of near numbers.
    far = half + math.copysign(math.sqrt(discriminant), half)
    if far == 0:
        return [(0.0, 0.0)] if leading > 0 else [(-math.inf, math.inf)]
    roots = -constant / far, far / leading if leading else math.copysign(math.inf, far)
    low, high = min(roots), max(roots)
    return [(low, high)] if leading >= 0 else [(-math.inf, low), (high, math.inf)]


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
