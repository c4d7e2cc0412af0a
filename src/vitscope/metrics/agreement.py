"""How well features agree with others of the same images: cosines, neighbours, linear CKA."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import normalize

from vitscope.metrics.estimates import CkaEstimate
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.metrics.moments import add_rows, make_moments
from vitscope.metrics.pair_estimates import PairEstimates, estimate_cka, estimate_pair

_ROWS_AT_ONCE = 512
"""Images whose similarities to all others are in memory at a time."""


def mean_cosine(a: Float[Tensor, "image dim"], b: Float[Tensor, "image dim"]) -> float:
    """Mean over images of cos(a_i, b_i), in float64; a feature of zeros has cosine 0."""
    return float((_find_directions(a) * _find_directions(b)).sum(dim=1).mean())


def knn_overlap(a: Float[Tensor, "image dim_a"], b: Float[Tensor, "image dim_b"], k: int) -> float:
    """Mean over images of `share_neighbours`."""
    return float(share_neighbours(a, b, k).mean())


def share_neighbours(
    a: Float[Tensor, "image dim_a"], b: Float[Tensor, "image dim_b"], k: int
) -> Float64[Tensor, " image"]:
    """|N_k(a) ∩ N_k(b)| / k of each image: the fraction of nearest neighbours they share.

    N_k are the k other images with the highest cosines, in float64. Two unrelated features of n
    images share k / (n - 1) of them on average. Similarities of a few images at a time are in
    memory. NaN where there are fewer than k other images.
    """
    if k >= len(a):
        return torch.full((len(a),), math.nan, dtype=torch.float64)
    shared = []
    first, second = _find_directions(a), _find_directions(b)
    for start in range(0, len(a), _ROWS_AT_ONCE):
        of_a, of_b = (_find_neighbours(each, start, k) for each in (first, second))
        shared.append((of_a.unsqueeze(2) == of_b.unsqueeze(1)).sum(dim=(1, 2)))
    return torch.cat(shared).double() / k


def compare_features(
    a: Float[Tensor, "image dim"], b: Float[Tensor, "image dim"], blocks: Sequence[int]
) -> CkaEstimate:
    """Linear CKA of features that are all in memory, with its jackknife interval over blocks.

    NaN where one of the two does not vary over the images.
    """
    members = torch.tensor(blocks, device=a.device)

    def estimate(x: Float[Tensor, "image dim"], y: Float[Tensor, "image dim"]) -> PairEstimates:
        means = x.double().mean(dim=0), y.double().mean(dim=0)
        moments = make_moments(x.shape[1], y.shape[1], NUM_BLOCKS)
        for block in {*blocks}:
            rows = (
                (each[members == block] - mean).cpu()
                for each, mean in zip((x, y), means, strict=True)
            )
            add_rows(moments[block], *rows)
        return estimate_pair(moments, means[0].cpu() if x is y else None, x.dtype)

    return estimate_cka(estimate(a, b), estimate(a, a), estimate(b, b))


def _find_directions(features: Float[Tensor, "image dim"]) -> Float[Tensor, "image dim"]:
    return normalize(features.detach().double(), eps=torch.finfo(torch.float64).tiny)


def _find_neighbours(
    directions: Float[Tensor, "image dim"], start: int, k: int
) -> Int64[Tensor, "some neighbour"]:
    cosines = directions[start : start + _ROWS_AT_ONCE] @ directions.mT
    rows = torch.arange(len(cosines), device=cosines.device)
    cosines[rows, start + rows] = -torch.inf  # no image is its own neighbour
    return cosines.topk(k, dim=1).indices
