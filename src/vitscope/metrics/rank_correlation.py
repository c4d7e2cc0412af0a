"""Rank correlation of two numbers over the images."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float64

Numbers = Float64[np.ndarray, " pair"]

MIN_PAIRS = 4
"""Fewest pairs for a correlation: the interval divides by √(n − 3)."""

NORMAL_975 = 1.959963984540054
_PERFECT = 1 - 1e-12


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of two numbers."""

    # the correlation, −1 to 1; NaN where it is undefined: fewer than `MIN_PAIRS` pairs, or one of
    # the two does not vary
    rho: float
    # 95 % interval; None where it is undefined: rho undefined, or exactly 1 or −1
    ci95: tuple[float, float] | None
    p: float  # two-sided p value against independence; NaN where rho is undefined
    n: int  # pairs with both numbers defined


@dataclass(frozen=True)
class AdjustedCorrelation(RankCorrelation):
    """One of several rank correlations."""

    p_holm: float  # the p value after Holm's correction for their number


def correlate_ranks(first: Numbers, second: Numbers) -> RankCorrelation:
    """Spearman's ρ: Pearson's correlation of the ranks, ties given their mean rank.

    The interval is tanh(artanh ρ ± 1.96 √((1 + ρ² / 2) / (n − 3))). The p value is that of
    Student's t with n − 2 degrees of freedom, t = ρ √((n − 2) / (1 − ρ²)), but never below 2 / n!,
    the smallest possible with n pairs. Both are approximations that assume independent pairs; below
    25 pairs, or for |ρ| above 0.9, the interval is rough.

    Returns:
        The correlation over the pairs with both numbers finite; their order does not matter.

    Source:
        D. G. Bonett and T. A. Wright, *Sample size requirements for estimating Pearson, Kendall and
        Spearman correlations*, Psychometrika 65 (2000).
    """
    from scipy.special import stdtr  # slow to import; scipy.stats takes several times as long

    defined = np.isfinite(first) & np.isfinite(second)
    first, second = first[defined], second[defined]
    n = int(first.size)
    if n < MIN_PAIRS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return RankCorrelation(math.nan, None, math.nan, n)
    # Sorted, so that the sums do not depend on the order of the pairs.
    order = np.lexsort((second, first))
    ranks = np.column_stack([_rank(first[order]), _rank(second[order])])
    rho = float(np.corrcoef(ranks, rowvar=False)[1, 0])
    with np.errstate(divide="ignore"):
        t = rho * np.sqrt(np.maximum((n - 2) / ((rho + 1) * (1 - np.float64(rho))), 0))
    p = float(2 * stdtr(n - 2, -abs(t)))
    smallest = math.exp(math.log(2) - math.lgamma(n + 1))
    if abs(rho) > _PERFECT:
        return RankCorrelation(rho, None, max(p, smallest), n)
    half = NORMAL_975 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    ends = math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)
    return RankCorrelation(rho, ends, max(p, smallest), n)


def _rank(values: Numbers) -> Numbers:
    # From 1; ties get their mean rank.
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Numbers = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def correlate_several(
    covariates: Mapping[str, Float64[np.ndarray, " image"]], target: Float64[np.ndarray, " image"]
) -> dict[str, AdjustedCorrelation]:
    """Spearman's ρ of each covariate with a target; p values are Holm-corrected."""
    found = {name: correlate_ranks(values, target) for name, values in covariates.items()}
    adjusted = adjust_holm({name: correlation.p for name, correlation in found.items()})
    return {
        name: AdjustedCorrelation(**asdict(correlation), p_holm=adjusted[name])
        for name, correlation in found.items()
    }


def adjust_holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of several p values, which controls the family-wise error rate.

    With m defined values in ascending order: p̃_(i) = max over j ≤ i of min(1, (m − j + 1) p_(j)).

    Source:
        S. Holm, *A simple sequentially rejective multiple test procedure*, Scand. J. Stat. 6
        (1979).
    """
    adjusted = dict.fromkeys(p_values, math.nan)
    ascending = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    largest = 0.0
    for rank, (p, name) in enumerate(ascending):
        largest = max(largest, min(1.0, (len(ascending) - rank) * p))
        adjusted[name] = largest
    return adjusted
