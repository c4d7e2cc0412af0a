"""How well features agree with others of the same images: cosines and shared neighbours."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

_ROWS_AT_ONCE = 512
"""Images whose similarities to all others are in memory at a time."""


def mean_cosine(a: Float[Tensor, "image dim"], b: Float[Tensor, "image dim"]) -> float:
    """Mean over images of cos(a_i, b_i), in float64; a feature of zeros has cosine 0.

    Returns:
        The mean, from -1 to 1; NaN without images.
    """
    return float((_find_directions(a) * _find_directions(b)).sum(dim=1).mean())


def knn_overlap(a: Float[Tensor, "image dim_a"], b: Float[Tensor, "image dim_b"], k: int) -> float:
    """Mean over images of |N_k(a) ∩ N_k(b)| / k: the fraction of nearest neighbours they share.

    N_k are the k other images with the highest cosines, in float64. Two unrelated features of n
    images share k / (n - 1) of them on average. Similarities of a few images at a time are in
    memory.

    Args:
        a: Features of n images.
        b: Other features of the same images.
        k: Number of neighbours.

    Returns:
        The overlap, from 0 to 1; NaN where there are fewer than k other images.
    """
    if k >= len(a):
        return math.nan
    shared = 0
    first, second = _find_directions(a), _find_directions(b)
    for start in range(0, len(a), _ROWS_AT_ONCE):
        of_a, of_b = (_find_neighbours(each, start, k) for each in (first, second))
        shared += int((of_a.unsqueeze(2) == of_b.unsqueeze(1)).sum())
    return shared / (k * len(a))


def _find_directions(features: Float[Tensor, "image dim"]) -> Float[Tensor, "image dim"]:
    return normalize(features.detach().double(), eps=torch.finfo(torch.float64).tiny)


def _find_neighbours(
    directions: Float[Tensor, "image dim"], start: int, k: int
) -> Int64[Tensor, "some neighbour"]:
    cosines = directions[start : start + _ROWS_AT_ONCE] @ directions.mT
    rows = torch.arange(len(cosines))
    cosines[rows, start + rows] = -torch.inf  # no image is its own neighbour
    return cosines.topk(k, dim=1).indices
