"""How often do the intervals hold the truth?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import brentq

from benchmarks.page import Section, Table
from benchmarks.settings import Settings
from vitscope.metrics.feature_plan import make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.metrics.sums import Batch
from vitscope.metrics.token_sums import TokenSums

Matrix = npt.NDArray[np.float64]
Interval = tuple[float, float] | None

_PLAN = make_plan(("patches",), has_skip=True, has_embedding=False, renormalize=False)
_TERMS = ("term/patches", "term/skip")


@dataclass(frozen=True)
class _Plan:
    ranks: Sequence[tuple[int, int]] = ((26, 384), (218, 384), (748, 1536))
    """Effective rank and width."""
    counts: tuple[int, ...] = (50, 200, 1000)
    draws: int = 400
    token_draws: int = 2000
    shares: tuple[float, ...] = (0.05, 0.5, 0.95)


_MANY = 200_000
_TINY = _Plan(ranks=((4, 8),), counts=(50,), draws=3, token_draws=3)


def measure(settings: Settings) -> Section:
    """Draw sets of images again and again, and count the intervals that hold the truth."""
    plan = _TINY if settings.tiny else _Plan()
    return Section(
        title="How often 95 % intervals hold the truth",
        how=(
            "Simulated sets of images go through the audit's own sums and estimators: "
            f"{plan.draws} sets per row for Gram shares, {plan.token_draws} for tokens. Chance "
            "alone gives 0.93 to 0.97 and 0.94 to 0.96. Gram shares are those of two independent "
            "Gaussian terms A and B whose covariance has a power law of eigenvalues, so every "
            "share is 1/4; *biased* is the mean of the biased estimate of (A, A). Tokens are "
            "Gaussian states of the same covariance; the last two columns give the lowest and the "
            f"highest result for variance shares of {', '.join(map(str, plan.shares))}."
        ),
        tables=[Table(_COLUMNS, [row for rank in plan.ranks for row in _list_rows(plan, *rank)])],
    )


_COLUMNS = (
    "effective rank",
    "images",
    "Gram share (A, A)",
    "biased",
    "Gram share (A, B)",
    "variance share",
    "pairwise cosine",
)


def _list_rows(plan: _Plan, rank: int, width: int) -> Iterator[list[str]]:
    scales = np.sqrt(_make_spectrum(rank, width))
    means = [np.full(width, np.sqrt((1 - share) / share / width)) for share in plan.shares]
    truths = (*plan.shares, *(_find_cosine(scales, mean) for mean in means))
    for count in plan.counts:
        grams = _try_grams(plan, rank, scales, count)
        random = np.random.default_rng([rank, count])
        found = [_draw_tokens(random, scales, count, means) for _ in range(plan.token_draws)]
        hits = [_count_hits([one[k] for one in found], truth) for k, truth in enumerate(truths)]
        middle = len(plan.shares)
        ranges = (f"{min(part)} to {max(part)}" for part in (hits[:middle], hits[middle:]))
        yield [str(rank), str(count), *grams, *ranges]


def _try_grams(plan: _Plan, rank: int, scales: Matrix, count: int) -> list[str]:
    random = np.random.default_rng([rank, count])
    found = [_draw_gram(random, scales, count) for _ in range(plan.draws)]
    own, between = ([one[k] for one in found] for k in (0, 1))
    biased = np.mean([one[2] for one in found])
    return [_count_hits(own, 0.25), f"{biased:.3f}", _count_hits(between, 0.25)]


def _draw_gram(
    random: np.random.Generator, scales: Matrix, count: int
) -> tuple[Interval, Interval, float]:
    terms = random.standard_normal((2 * count, len(scales))) * scales
    if len(terms) < len(scales):
        # Shares depend on inner products alone, which are the same in fewer dimensions.
        terms = np.linalg.qr(terms.T, mode="r").T
    sums = FeatureSums(_PLAN, torch.float64)
    rows = dict(zip(_TERMS, torch.from_numpy(terms).split(count), strict=True))
    features = {name: rows.get(name, torch.zeros(count, 1)) for name in _PLAN.kept}
    sums.update(Batch(features, random.integers(NUM_BLOCKS, size=count).tolist()))
    found = sums.estimate_gram_ledger("residual")["patches"]
    return found["patches"].ci95, found["skip"].ci95, found["patches"].biased


def _draw_tokens(
    random: np.random.Generator, scales: Matrix, count: int, means: Sequence[Matrix]
) -> list[Interval]:
    names = [str(place) for place in range(len(means))]
    rows = random.standard_normal((count, len(scales))) * scales
    sums = TokenSums(names)
    states = {"hidden": torch.from_numpy(rows[:, np.newaxis] + np.stack(means))}
    sums.update(Batch({}, random.integers(NUM_BLOCKS, size=count).tolist(), states))
    estimators = sums.estimate_variance_share, sums.estimate_pairwise_cosine
    return [estimate("hidden", name).ci95 for estimate in estimators for name in names]


def _find_cosine(scales: Matrix, mean: Matrix) -> float:
    """Mean cosine of two independent states."""
    random = np.random.default_rng(len(scales))
    halves = np.zeros((2, len(scales)))
    for half in halves:
        for _ in range(0, _MANY, 2000):
            rows = random.standard_normal((1000, len(scales))) * scales + mean
            half += (rows / np.linalg.norm(rows, axis=1, keepdims=True)).sum(axis=0)
    return float(halves[0] @ halves[1]) / (_MANY / 2) ** 2


def _count_hits(intervals: Sequence[Interval], truth: float) -> str:
    hits = sum(found is not None and found[0] <= truth <= found[1] for found in intervals)
    return f"{hits / len(intervals):.3f}"


def _make_spectrum(rank: int, width: int) -> Matrix:
    """Eigenvalues j^−p, of sum 1, of effective rank (Σ λ)² / Σ λ²."""
    places = np.arange(1, width + 1, dtype=np.float64)

    def excess(power: float) -> float:
        values = places**-power
        return float(values.sum() ** 2 / (values**2).sum() - rank)

    values: Matrix = places ** -brentq(excess, 0, 5)
    return values / values.sum()
