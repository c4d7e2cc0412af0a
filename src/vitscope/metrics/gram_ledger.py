"""The Gram ledger: which terms the similarities between images come from.

Source: Lappe & Giese (NeurIPS 2025), eq. 5.
"""

import math
from collections.abc import Sequence

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
    # Per term: the centred cross moments with the total over all images, then with each block
    # left out, each laid flat.
    crosses = [_centred_crosses(sums.compute_block_moments(pair)) for pair in pairs.values()]
    products = torch.stack([_multiply(terms) for terms in zip(*crosses, strict=True)])
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


def _centred_crosses(blocks: list[PairMoments]) -> list[Tensor]:
    total = sum(blocks[1:], start=blocks[0])
    return [_centre(total), *(_centre(total - block) for block in blocks)]


def _multiply(terms: Sequence[Tensor]) -> Float[Tensor, "term term"]:
    rows = torch.stack(list(terms))
    return rows @ rows.mT


def _centre(moments: PairMoments) -> Tensor:
    # Nothing is left where a set's only block was taken out.
    count = moments.count.clamp(min=1)
    return (moments.cross - torch.outer(moments.sum_x, moments.sum_y) / count).flatten()
