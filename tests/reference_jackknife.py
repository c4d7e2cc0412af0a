"""Delete-block and delete-image intervals in plain numpy, from their definitions."""

import math
from itertools import combinations, combinations_with_replacement

import numpy as np
from scipy import optimize, stats


def busing_interval(statistic, rows, blocks):
    """95 % interval of Busing et al. (1999): recompute the statistic without each block."""
    rows, blocks = np.asarray(rows), np.asarray(blocks)
    groups, sizes = np.unique(blocks, return_counts=True)
    n, g = len(blocks), len(groups)
    theta = statistic(rows)
    without = np.array([statistic(rows[blocks != group]) for group in groups])
    jackknifed = g * theta - np.sum((n - sizes) * without) / n
    h = n / sizes
    pseudo = h * theta - (h - 1) * without
    variance = np.mean((pseudo - jackknifed) ** 2 / (h - 1))
    half = stats.t.ppf(0.975, g - 1) * np.sqrt(variance)
    return theta - half, theta + half


def jackknife(whole, one, sizes):
    """Variance of Busing et al., from the values without each block."""
    n = sum(sizes.values())
    h = {j: n / size for j, size in sizes.items()}
    centre = len(h) * whole - sum((1 - 1 / h[j]) * one[j] for j in h)
    pseudo = {j: h[j] * whole - (h[j] - 1) * one[j] for j in h}
    return sum((pseudo[j] - centre) ** 2 / (h[j] - 1) for j in h) / len(h)


def ratio_interval(quadratics, blocks, *, by_image):
    """95 % interval of a ratio: each set of images separately, ends by a fine search.

    `quadratics` returns numerator and denominator for the images of a mask.
    """
    kept = sorted(set(blocks))
    sizes = {block: int((blocks == block).sum()) for block in kept}
    n = len(blocks)

    def of(*left_out):
        return quadratics(~np.isin(blocks, left_out))

    whole, one = of(), {j: of(j) for j in kept}
    two = {(j, k): of(j, k) for j, k in combinations(kept, 2)}

    def squares(whole, one, two):
        return sum(
            (
                n * whole
                - (n - sizes[j]) * one[j]
                - (n - sizes[k]) * one[k]
                + (n - sizes[j] - sizes[k]) * two[j, k]
            )
            ** 2
            for j, k in combinations(kept, 2)
        )

    # Sum over pairs of images that are independent of each other, block pair by block pair.
    truth = counted = seen = 0.0
    for cell in combinations_with_replacement(kept, 2):
        j, k = cell
        variance = 2 * sizes[j] * (sizes[j] - 1) if j == k else 4 * sizes[j] * sizes[k]

        def part(*left_out, cell=cell):
            m = n - sum(sizes[b] for b in left_out)
            return 0.0 if set(cell) & set(left_out) else 1 / (m * (m - 1))

        ones = {b: part(b) for b in kept}
        twos = {(a, b): part(a, b) for a, b in combinations(kept, 2)}
        truth += variance * part() ** 2
        counted += variance * jackknife(part(), ones, sizes)
        seen += variance * squares(part(), ones, twos)

    singles, repeats, counts = one, counted / truth, sizes
    # Of blocks, only what pairs of images make for certain.
    certain = len(two) / stats.chi2.ppf(0.975, len(two))
    if by_image:
        # Efron & Stein: of a mean over independent pairs, 2 (n − 1) / (n − 2) times its variance.
        everyone, repeats, certain = np.arange(n), 2 * (n - 1) / (n - 2), 1.0
        singles = {i: quadratics(everyone != i) for i in everyone}
        counts = dict.fromkeys(singles, 1)

    def statistic(ratio):
        weights = np.array([1.0, -ratio])
        of_pairs = squares(
            whole @ weights,
            {j: v @ weights for j, v in one.items()},
            {jk: v @ weights for jk, v in two.items()},
        ) * (certain * truth / seen)
        found = jackknife(whole @ weights, {j: v @ weights for j, v in singles.items()}, counts)
        # The pair part cannot exceed its value if nothing else contributed.
        variance = found - (repeats - 1) * min(of_pairs, found / repeats)
        return abs(whole @ weights) - stats.t.ppf(0.975, len(singles) - 1) * math.sqrt(variance)

    ratio, ends = whole[0] / whole[1], []
    for sign in (-1, 1):
        step = 1e-3
        while statistic(ratio + sign * step) <= 0:
            step *= 2
        ends.append(optimize.brentq(statistic, ratio, ratio + sign * step, xtol=1e-14))
    return tuple(ends)
