"""Directions of variance: whether two terms write along the same directions of the stream."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.metrics.estimates import Directions, SharedDirections
from vitscope.metrics.moments import PairMoments
from vitscope.metrics.pair_estimates import PairEstimates

NUM_DIRECTIONS = 10
"""Leading principal directions of each term that are compared."""

Covariance = Float[Tensor, "dim dim"]


def describe_directions(
    terms: Mapping[str, PairEstimates], read_blocks: Callable[[str], PairMoments], num_images: int
) -> Directions:
    """Effective rank of each term of r, and angles and shared variance of each ordered pair."""
    ranks = {term: with_itself.effective_dim for term, with_itself in terms.items()}
    pairs: dict[str, dict[str, SharedDirections]] = {}
    if num_images >= 2 * NUM_DIRECTIONS:
        covariances = {
            term: _covariance(read_blocks(term))
            for term, with_itself in terms.items()
            if not with_itself.constant
        }
        leading = {term: find_leading_directions(c) for term, c in covariances.items()}
        pairs = {
            a: {
                b: compare_directions(covariances[a], leading[a], leading[b])
                for b in leading
                if b != a
            }
            for a in leading
        }
    return Directions(NUM_DIRECTIONS, ranks, pairs)


def find_leading_directions(covariance: Covariance) -> Float[Tensor, "dim direction"]:
    """At most `NUM_DIRECTIONS` orthonormal columns of the largest variance, none without any."""
    from scipy.linalg import eigh  # slow to import; torch's eigh has no subset

    dim = len(covariance)
    wanted = (max(0, dim - NUM_DIRECTIONS), dim - 1)
    values, vectors = (torch.from_numpy(x) for x in eigh(covariance, subset_by_index=wanted))
    varying = values > values[-1] * dim * torch.finfo(values.dtype).eps
    return vectors[:, varying].flip(1)


def compare_directions(
    covariance: Covariance,
    ours: Float[Tensor, "dim direction"],
    theirs: Float[Tensor, "dim other_direction"],
) -> SharedDirections:
    """Principal angles (Björck & Golub 1973) and shared variance tr(Vᵀ Σ V) / tr Σ of two terms."""
    cosines = torch.linalg.svdvals(ours.mT @ theirs).clamp(max=1)
    within = (theirs * (covariance @ theirs)).sum() / covariance.trace()
    return SharedDirections(
        principal_angles_deg=tuple(cosines.arccos().rad2deg().tolist()),
        shared_variance=float(within),
        shared_variance_if_unrelated=theirs.shape[1] / theirs.shape[0],
    )


def _covariance(blocks: PairMoments) -> Covariance:
    m = blocks.sum()
    scatter = m.cross - torch.outer(m.sum_x, m.sum_y) / m.count
    return (scatter + scatter.mT) / (2 * (m.count - 1))
