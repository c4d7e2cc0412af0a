"""What follows from the moments of compared pairs: CKA and variance shares, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.metrics.jackknife import Estimate, compute_interval, make_estimate
from vitscope.metrics.linear_cka import (
    Hsic,
    compute_cka,
    compute_hsic,
    expected_biased_cka,
    is_constant,
)
from vitscope.metrics.moments import PairMoments, compute_covariance_trace


@dataclass(frozen=True)
class CkaEstimate:
    """Linear CKA of a restricted output with the full one.

    Attributes:
        biased: The paper's estimator.
        unbiased: The estimator that does not grow with d / n.
        ci95: 95 % jackknife interval of `unbiased`, which ends at 1; None where it cannot be
            told.
        biased_if_unrelated: What `biased` would be, about, for unrelated features of these
            (effective) dimensions on this many images.
    """

    biased: float
    unbiased: float
    ci95: tuple[float, float] | None
    biased_if_unrelated: float


@dataclass(frozen=True)
class PairEstimates:
    """Statistics of one pair over all images and with each non-empty block left out.

    Attributes:
        hsic: Dependence of the two features.
        covariance: Σ ⟨x − mean x, y − mean y⟩.
        left_out: Both with one block left out.
        sizes: Images in each of those blocks.
        constant: Whether the pair is of one feature, which does not vary over images.
    """

    hsic: Hsic
    covariance: float
    left_out: tuple[tuple[Hsic, float], ...]
    sizes: tuple[int, ...]
    constant: bool

    @property
    def effective_dim(self) -> float:
        """Of a feature with itself: (tr Σ)² / tr Σ² without bias; NaN where it is undefined."""
        if self.constant or not self.hsic.unbiased > 0:
            return math.nan
        variance = self.covariance / (sum(self.sizes) - 1)
        return variance**2 / self.hsic.unbiased


def estimate_pair(
    blocks: Sequence[PairMoments], reference: Float[Tensor, " dim"] | None, dtype: torch.dtype
) -> PairEstimates:
    """Statistics of a pair from its moments.

    Args:
        blocks: Moments of each non-empty block.
        reference: Reference of the feature in those moments, if the pair is of one feature.
        dtype: Precision of the features; tells variation from rounding.

    Returns:
        The statistics.
    """
    total = sum(blocks[1:], start=blocks[0])
    rests = (total - block for block in blocks)
    return PairEstimates(
        hsic=compute_hsic(total),
        covariance=float(compute_covariance_trace(total)),
        left_out=tuple((compute_hsic(r), float(compute_covariance_trace(r))) for r in rests),
        sizes=tuple(round(float(block.count)) for block in blocks),
        constant=reference is not None and is_constant(total, reference, torch.finfo(dtype).eps),
    )


def estimate_cka(xy: PairEstimates, xx: PairEstimates, yy: PairEstimates) -> CkaEstimate:
    """CKA of two features.

    Args:
        xy: The two features.
        xx: The first with itself.
        yy: The second with itself.

    Returns:
        The estimates; NaN where one of the two does not vary over the images.
    """
    if xx.constant or yy.constant:
        return CkaEstimate(math.nan, math.nan, None, math.nan)
    unbiased = compute_cka(xy.hsic.unbiased, xx.hsic.unbiased, yy.hsic.unbiased)
    left_out = [
        compute_cka(a.unbiased, b.unbiased, c.unbiased)
        for (a, _), (b, _), (c, _) in zip(xy.left_out, xx.left_out, yy.left_out, strict=True)
    ]
    return CkaEstimate(
        biased=compute_cka(xy.hsic.biased, xx.hsic.biased, yy.hsic.biased),
        unbiased=unbiased,
        ci95=compute_interval(unbiased, left_out, xy.sizes, at_most=1.0),
        biased_if_unrelated=expected_biased_cka(sum(xy.sizes), xx.effective_dim, yy.effective_dim),
    )


def estimate_share(xy: PairEstimates, xx: PairEstimates) -> Estimate:
    """Part of a total's variance over images that a term accounts for.

    Args:
        xy: The total with the term.
        xx: The total with itself.

    Returns:
        The share; NaN where the total does not vary over the images.
    """
    if xx.constant:
        return Estimate(math.nan, None)
    left_out = [
        a / b if b > 0 else math.nan
        for (_, a), (_, b) in zip(xy.left_out, xx.left_out, strict=True)
    ]
    return make_estimate(xy.covariance / xx.covariance, left_out, xy.sizes)
