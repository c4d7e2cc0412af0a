"""How well a map says what the model does when patches are removed: pure functions of numbers.

A map gives every patch a value m_j. s(S) is the number that is explained with the set S of patches
removed, and δ_j = s(∅) − s({j}) is what patch j is worth on its own. Nothing here sees a model:
`make_*` says which sets to remove, and `compute_*` scores what came out.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int

from vitscope.metrics.rank_correlation import correlate_ranks

NUM_STEPS = 16
"""Steps of a curve: patches are removed a sixteenth at a time."""

FRACTIONS = np.linspace(0, 1, NUM_STEPS + 1)
"""Fractions at which a curve is known."""

NUM_GROUPS = 10
"""Groups of patches that `compute_saco` compares."""

SUBSET_FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)
SUBSETS_EACH = 8
"""Random subsets of each size, for `compute_infidelity`: 40 in all."""

_ROUNDING = 1e-12

Values = Float64[np.ndarray, " patch"]
Order = Int[np.ndarray, " patch"]
Sets = Bool[np.ndarray, "set patch"]
Curve = Float64[np.ndarray, " step"]


def make_orders(
    values: Values, ties: Float64[np.ndarray, "draw patch"]
) -> Int[np.ndarray, "order patch"]:
    """Order patches by decreasing value; one order for each row of `ties` if values are equal."""
    draws = ties if len(np.unique(values)) < len(values) else ties[:1]
    return np.stack([np.lexsort((draw, -values)) for draw in draws])


def make_prefixes(order: Order) -> Sets:
    """The first k / 16 of an order: sets that are removed one after the other.

    `NUM_STEPS` + 1 sets, from none to all; the k-th has round(k P / 16) of P patches.
    """
    places = order.argsort()
    return places < _cut(len(order), NUM_STEPS)[:, None]


def make_groups(order: Order) -> Sets:
    """Cut an order, from the most important, into `NUM_GROUPS` disjoint sets of about equal size.

    Fewer than that if there are fewer patches.
    """
    places = order.argsort()
    bounds = np.unique(_cut(len(order), NUM_GROUPS))[:, None]
    return (places >= bounds[:-1]) & (places < bounds[1:])


def make_subsets(num_patches: int, generator: np.random.Generator) -> Sets:
    """Draw `SUBSETS_EACH` random sets of each of `SUBSET_FRACTIONS` of patches, at least one."""
    sizes = np.repeat(SUBSET_FRACTIONS, SUBSETS_EACH) * num_patches
    counts = np.rint(sizes).clip(min=1)
    places = generator.random((len(counts), num_patches)).argsort(axis=1).argsort(axis=1)
    chosen: Sets = places < counts[:, None]
    return chosen


def compute_area(curve: Curve) -> float:
    """Area under a curve, by trapezoids: (c_0 / 2 + c_1 + … + c_15 + c_16 / 2) / 16.

    With s while the most important patches are removed first, this is the deletion score (low for a
    faithful map). With s while they are added first, it is the insertion score (high). Both are in
    the unit of s and read only beside those of random orders.

    Source:
        Petsiuk et al., *RISE* (BMVC 2018).
    """
    return float(np.trapezoid(curve, FRACTIONS))


def compute_gap(deletion: Curve, insertion: Curve) -> float:
    """The insertion score minus the deletion score.

    Inserting the most important patches first passes the same sets as removing the least important
    first, so this is ∫ (s_least − s_most) over the fraction removed. What shifts both curves alike
    cancels. The expectation over random orders is 0, because a reversed order has minus the gap.
    """
    return compute_area(insertion) - compute_area(deletion)


def compute_skill(
    gap: Float64[np.ndarray, " map"], random: float, oracle: float
) -> Float64[np.ndarray, " map"]:
    """(gap − random) / (oracle − random): 0 for random orders, 1 for the order by δ, the oracle.

    Patches interact, so the oracle is a reference and not a bound: a map may have more than 1. NaN
    if the oracle is not above random, because there is then no scale. Over several images use the
    ratio of mean gaps: the mean of ratios belongs to the images with the smallest oracle.
    """
    scale = oracle - random
    return (gap - random) / scale if scale > 0 else np.full_like(gap, np.nan)


def compute_rank(values: Values, deltas: Values) -> float:
    """Spearman's ρ of a map with the single deletions δ.

    0 for a constant map, which ranks nothing; NaN if the deletions are constant, or there are fewer
    than 4 patches. Between the deletions of two removals this is the ceiling: no map can be
    expected to agree with one removal better than another removal does.
    """
    if np.ptp(values) == 0 < np.ptp(deltas):
        return 0.0
    return correlate_ranks(values, deltas).rho


def compute_saco(
    means: Float64[np.ndarray, " group"], drops: Float64[np.ndarray, " group"]
) -> float:
    """Whether larger values of a map go with larger drops: Σ w / Σ |w|, from −1 to 1.

    For all pairs of groups i < j, from the most important: w = S_i − S_j if Δ_i ≥ Δ_j, otherwise
    −(S_i − S_j), with S the map's mean in a group of `make_groups` and Δ = (s(∅) − s(group)) /
    size. Both are per patch, where the source has sums: otherwise a larger group would look
    important in itself. 0 for a constant map.

    Source:
        Wu et al., *On the Faithfulness of Vision Transformer Explanations* (CVPR 2024).
    """
    first, second = np.triu_indices(len(means), k=1)
    weights = means[first] - means[second]
    signed = np.where(drops[first] >= drops[second], weights, -weights)
    total = np.abs(weights).sum()
    constant = total <= _ROUNDING * np.abs(means).sum()
    return 0.0 if constant else float(signed.sum() / total)


def compute_infidelity(
    predicted: Float64[np.ndarray, " set"], drops: Float64[np.ndarray, " set"]
) -> float:
    """How badly sums of a map predict what removing random subsets S does.

    min over β of mean (β p − Δ)² / var Δ, with p = Σ_{j ∈ S} m_j and Δ = s(∅) − s(S); β makes the
    map's scale irrelevant. 0 is perfect, and 1 is what the mean of Δ would do. There is no upper
    bound, and a constant map may have less than 1, because it knows how many patches go. NaN if Δ
    does not vary.

    Source:
        Yeh et al., *On the (In)fidelity and Sensitivity of Explanations* (NeurIPS 2019).
    """
    variance = drops.var()
    if variance == 0:
        return float("nan")
    power = predicted @ predicted
    beta = predicted @ drops / power if power > 0 else 0.0
    return float(np.mean((beta * predicted - drops) ** 2) / variance)


def compute_completeness(total: float, target: float) -> float:
    """|total − target| / |target|: how far a map's sum over all tokens is from what it should be.

    NaN if the target is 0. It is a property of sums: an unfaithful map may be complete.
    """
    return abs(total - target) / abs(target) if target else float("nan")


def compute_sensitivity(values: Values, disturbed: Float64[np.ndarray, "draw patch"]) -> float:
    """Max over draws of ‖m(x + ε) − m(x)‖ / ‖m(x)‖, when the image hardly changes.

    NaN for a map of zeros.

    Source:
        Yeh et al., *On the (In)fidelity and Sensitivity of Explanations* (NeurIPS 2019).
    """
    norm = np.linalg.norm(values)
    if norm == 0:
        return float("nan")
    return float(np.linalg.norm(disturbed - values, axis=1).max() / norm)


def compute_sufficiency(insertion: Curve, fractions: Sequence[float]) -> list[float]:
    """S with the most important patches alone, interpolated between the points of a curve."""
    return [float(value) for value in np.interp(fractions, FRACTIONS, insertion)]


def compute_comprehensiveness(deletion: Curve, fractions: Sequence[float]) -> list[float]:
    """What s loses without the most important patches, interpolated likewise."""
    return [float(deletion[0] - value) for value in np.interp(fractions, FRACTIONS, deletion)]


def _cut(num_patches: int, parts: int) -> Int[np.ndarray, " bound"]:
    return np.rint(np.arange(parts + 1) * num_patches / parts).astype(np.int64)
