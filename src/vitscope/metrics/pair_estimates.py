"""CKA and variance shares, with intervals, from the moments of compared pairs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.metrics.estimates import CkaEstimate
from vitscope.metrics.jackknife import Replicates, leave_out
from vitscope.metrics.linear_cka import (
    Hsic,
    compute_cka,
    compute_hsic,
    compute_hsic_of_others,
    expected_biased_cka,
    is_constant,
)
from vitscope.metrics.moments import PairMoments, Rows, compute_covariance_traces


@dataclass(frozen=True, eq=False)
class PairEstimates:
    """Statistics of one pair over all images, and without one or two blocks."""

    hsic: Hsic  # HSIC of the two features on each union of blocks that `leave_out` lists
    covariance: Float[Tensor, " union"]  # Σ ⟨x − mean x, y − mean y⟩, likewise
    sizes: tuple[int, ...]  # images in each nonempty block
    constant: bool  # whether this is a feature paired with itself that does not vary over images
    # unbiased HSIC without each image in turn; empty if rows were folded
    hsic_of_others: Float[Tensor, " image"]

    @property
    def effective_dim(self) -> float:
        """For a feature with itself: unbiased (tr Σ)² / tr Σ²; NaN where it is undefined."""
        if self.constant or not self.hsic.unbiased[0] > 0:
            return math.nan
        variance = float(self.covariance[0]) / (sum(self.sizes) - 1)
        return variance**2 / float(self.hsic.unbiased[0])

    @property
    def without_one(self) -> slice:
        """The unions without one block."""
        return slice(1, 1 + len(self.sizes))


def estimate_pair(
    blocks: PairMoments,
    reference: Float[Tensor, " dim"] | None,
    dtype: torch.dtype,
    rows: Iterable[tuple[Rows, Rows]] = (),
) -> PairEstimates:
    """Statistics of a pair from its moments."""
    sizes = [round(count) for count in blocks.count.tolist()]
    kept = torch.from_numpy(leave_out(sizes))
    epsilon, total = torch.finfo(dtype).eps, blocks.sum()
    others = [compute_hsic_of_others(total, x, y) for x, y in rows]
    return PairEstimates(
        hsic=compute_hsic(blocks, kept),
        covariance=compute_covariance_traces(blocks, kept),
        sizes=tuple(size for size in sizes if size),
        constant=reference is not None and is_constant(blocks, reference, epsilon),
        hsic_of_others=torch.cat(others) if others else blocks.count.new_empty(0),
    )


def replicate_cka(xy: PairEstimates, xx: PairEstimates, yy: PairEstimates) -> Replicates:
    """Unbiased CKA of two features; NaN where one of the two does not vary over the images."""
    pairs = (xy, xx, yy)
    if xx.constant or yy.constant:
        return Replicates(math.nan, (math.nan,) * len(xy.sizes), xy.sizes)
    left_out = (pair.hsic.unbiased[pair.without_one].tolist() for pair in pairs)
    return Replicates(
        compute_cka(*(float(pair.hsic.unbiased[0]) for pair in pairs)),
        tuple(compute_cka(*values) for values in zip(*left_out, strict=True)),
        xy.sizes,
    )


def estimate_cka(xy: PairEstimates, xx: PairEstimates, yy: PairEstimates) -> CkaEstimate:
    """CKA of two features; NaN where one of the two does not vary over the images."""
    if xx.constant or yy.constant:
        return CkaEstimate(math.nan, math.nan, None, math.nan)
    unbiased = replicate_cka(xy, xx, yy).estimate(at_most=1.0)
    traces = ((float(pair.covariance[0]), float(pair.hsic.biased[0])) for pair in (xx, yy))
    return CkaEstimate(
        biased=compute_cka(*(float(pair.hsic.biased[0]) for pair in (xy, xx, yy))),
        unbiased=unbiased.value,
        ci95=unbiased.ci95,
        biased_if_unrelated=expected_biased_cka(sum(xy.sizes), *traces),
    )


def replicate_share(xy: PairEstimates, xx: PairEstimates) -> Replicates:
    """Fraction of a total's variance over images that a term accounts for; NaN without variance."""
    if xx.constant:
        return Replicates(math.nan, (math.nan,) * len(xy.sizes), xy.sizes)
    share = torch.where(xx.covariance > 0, xy.covariance / xx.covariance, math.nan)
    return Replicates(float(share[0]), tuple(share[xx.without_one].tolist()), xy.sizes)
