"""Linear CKA, biased and unbiased, exactly, from moments of size O(d²).

Source: Lappe & Giese (NeurIPS 2025), eq. 4 (the biased estimator, Kornblith et al. 2019); Song et
al. (JMLR 2012) and Nguyen et al. (ICLR 2021) for the unbiased one.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.metrics.moments import PairMoments

MIN_IMAGES = 4
"""The unbiased estimator divides by n (n − 3)."""


class Hsic(NamedTuple):
    """Two estimates of the same dependence, each up to a factor that cancels in CKA."""

    biased: float
    unbiased: float


def compute_hsic(moments: PairMoments) -> Hsic:
    """Hilbert-Schmidt independence criterion of two linear kernels.

    biased: ‖Σ (x − x̄)(y − ȳ)ᵀ‖²_F. unbiased, with K̃ and L̃ the Gram matrices without diagonals:
    tr(K̃L̃) + 1ᵀK̃1 · 1ᵀL̃1 / ((n−1)(n−2)) − 2/(n−2) · 1ᵀK̃L̃1, over n(n−3).

    Args:
        moments: Moments of (x, y); the result does not depend on their reference.

    Returns:
        Both estimates; the unbiased one is NaN for fewer than `MIN_IMAGES` images.
    """
    m, n = moments, float(moments.count)
    centred = m.cross - torch.outer(m.sum_x, m.sum_y) / n
    biased = float(centred.square().sum())
    if n < MIN_IMAGES:
        return Hsic(biased, math.nan)
    trace = m.cross.square().sum() - m.sum_pq
    total_x = m.sum_x @ m.sum_x - m.sum_p
    total_y = m.sum_y @ m.sum_y - m.sum_q
    mixed = m.sum_x @ m.cross @ m.sum_y - m.sum_x @ m.sum_qx - m.sum_y @ m.sum_py + m.sum_pq
    unbiased = trace + total_x * total_y / ((n - 1) * (n - 2)) - 2 / (n - 2) * mixed
    return Hsic(biased, float(unbiased) / (n * (n - 3)))


def compute_cka(xy: float, xx: float, yy: float) -> float:
    """CKA from three HSIC values of the same estimator.

    Args:
        xy: HSIC of the two features.
        xx: HSIC of the first with itself.
        yy: HSIC of the second with itself.

    Returns:
        xy / √(xx · yy); NaN where a self-term is not positive (features too alike or too few
        images to tell).
    """
    if not (xx > 0 and yy > 0):
        return math.nan
    return xy / (math.sqrt(xx) * math.sqrt(yy))


def expected_biased_cka(num_images: int, dim_x: float, dim_y: float) -> float:
    """Biased CKA to be expected of two unrelated isotropic Gaussian features.

    For X (n x d) with independent entries, E‖XᵀY‖² ≈ n d_x d_y and E‖XᵀX‖² ≈ n d (n + d), so the
    ratio tends to √(d_x d_y / ((n + d_x)(n + d_y))).

    Args:
        num_images: n.
        dim_x: (Effective) dimension of the first feature.
        dim_y: (Effective) dimension of the second.

    Returns:
        The value that independence would give: the floor under a biased CKA.
    """
    n = float(num_images)
    return math.sqrt(dim_x * dim_y / ((n + dim_x) * (n + dim_y)))


def is_constant(moments: PairMoments, reference: Float[Tensor, " dim"], epsilon: float) -> bool:
    """Whether a feature is the same for every image up to the rounding of its own precision.

    Args:
        moments: Moments of (x, x).
        reference: Reference of x in those moments.
        epsilon: Machine epsilon of the precision that the features were computed in.

    Returns:
        True where the variance is no more than rounding noise on the mean.
    """
    mean = reference + moments.sum_x / moments.count
    variance = (moments.sum_p - moments.sum_x @ moments.sum_x / moments.count) / moments.count
    return bool(variance <= (10 * epsilon) ** 2 * (mean @ mean))
