"""The Gram ledger: which terms the similarities between images come from.

Source: Lappe & Giese (NeurIPS 2025), eq. 5.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.jackknife import Estimate, make_estimate
from vitscope.metrics.moments import PairMoments

GramLedger = dict[str, dict[str, Estimate]]


def estimate_gram_ledger(sums: FeatureSums, total: str) -> GramLedger:
    """Share of each pair of terms in the representational geometry of their total.

    With X = Σ_a X_a the features of all images, centred over images, G = X Xᵀ and
    G_ab = X_a X_bᵀ, the share of (a, b) is ⟨G, G_ab⟩ / ⟨G, G⟩. It comes without any matrix over
    images from ⟨G, G_ab⟩ = ⟨Xᵀ X_a, Xᵀ X_b⟩, and so is symmetric; over all pairs it sums to 1. A
    share may be negative: two terms that undo one another.

    Args:
        sums: Sums over images.
        total: "attention" or "residual".

    Returns:
        Share and interval by the names of the two terms; NaN where the total does not vary.
    """
    pairs = sums.plan.shares[total]
    full = next(iter(pairs.values()))[0]
    # As many of the total's dimensions at a time as there are terms, so that what is in memory is
    # what a single pair takes.
    products = sum(
        (
            _multiply_crosses([sums.compute_block_moments(pair, dims) for pair in pairs.values()])
            for dims in _cut(len(sums.compute_mean(full)), len(pairs))
        ),
        start=torch.zeros(()),
    )
    shares = products / products.sum(dim=(1, 2), keepdim=True)
    if sums.is_constant(full):
        shares = torch.full_like(shares, math.nan)
    sizes = sums.block_sizes
    return {
        a: {
            b: make_estimate(float(shares[0, i, j]), shares[1:, i, j].tolist(), sizes)
            for j, b in enumerate(pairs)
        }
        for i, a in enumerate(pairs)
    }


def _cut(length: int, num_parts: int) -> Iterator[slice]:
    width = math.ceil(length / num_parts)
    for start in range(0, length, width):
        yield slice(start, min(start + width, length))


def _multiply_crosses(
    terms: Sequence[Sequence[PairMoments]],
) -> Float[Tensor, "variant term term"]:
    # The centred cross moments with the total over all images, then with each block left out.
    totals = [sum(blocks[1:], start=blocks[0]) for blocks in terms]
    products = [_multiply([_centre(total) for total in totals])]
    for blocks in zip(*terms, strict=True):
        rests = (total - block for total, block in zip(totals, blocks, strict=True))
        products.append(_multiply([_centre(rest) for rest in rests]))
    return torch.stack(products)


def _multiply(terms: Sequence[Tensor]) -> Float[Tensor, "term term"]:
    rows = torch.stack(list(terms))
    return rows @ rows.mT


def _centre(moments: PairMoments) -> Tensor:
    # Nothing is left where a set's only block was taken out.
    count = moments.count.clamp(min=1)
    return (moments.cross - torch.outer(moments.sum_x, moments.sum_y) / count).flatten()
