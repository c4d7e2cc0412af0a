"""Linear CKA, biased and unbiased, and variance shares, with intervals, from moments of pairs.

CKA is exact, in O(d²).

Source: Lappe & Giese (NeurIPS 2025), eq. 4 (the biased estimator, Kornblith et al. 2019); Song et
al. (JMLR 2012) and Nguyen et al. (ICLR 2021) for the unbiased one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.metrics.estimates import CkaEstimate
from vitscope.metrics.jackknife import Replicates, leave_out
from vitscope.metrics.moments import PairMoments, Rows, compute_covariance_traces

MIN_IMAGES = 4
"""The unbiased estimator divides by n (n − 3)."""


class Hsic(NamedTuple):
    """Biased and unbiased HSIC, up to a factor that cancels in CKA; vectors for several sets."""

    biased: Float[Tensor, " union"]
    unbiased: Float[Tensor, " union"]


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
        constant=reference is not None and _is_constant(blocks, reference, epsilon),
        hsic_of_others=torch.cat(others) if others else blocks.count.new_empty(0),
    )


def replicate_cka(xy: PairEstimates, xx: PairEstimates, yy: PairEstimates) -> Replicates:
    """Unbiased CKA of two features; NaN where one of the two does not vary over the images."""
    pairs = (xy, xx, yy)
    if xx.constant or yy.constant:
        return Replicates(math.nan, (math.nan,) * len(xy.sizes), xy.sizes)
    left_out = (pair.hsic.unbiased[pair.without_one].tolist() for pair in pairs)
    return Replicates(
        _compute_cka(*(float(pair.hsic.unbiased[0]) for pair in pairs)),
        tuple(_compute_cka(*values) for values in zip(*left_out, strict=True)),
        xy.sizes,
    )


def estimate_cka(xy: PairEstimates, xx: PairEstimates, yy: PairEstimates) -> CkaEstimate:
    """CKA of two features; NaN where one of the two does not vary over the images."""
    if xx.constant or yy.constant:
        return CkaEstimate(math.nan, math.nan, None, math.nan)
    unbiased = replicate_cka(xy, xx, yy).estimate(at_most=1.0)
    traces = ((float(pair.covariance[0]), float(pair.hsic.biased[0])) for pair in (xx, yy))
    return CkaEstimate(
        biased=_compute_cka(*(float(pair.hsic.biased[0]) for pair in (xy, xx, yy))),
        unbiased=unbiased.value,
        ci95=unbiased.ci95,
        biased_if_unrelated=_expect_biased_cka(sum(xy.sizes), *traces),
    )


def replicate_share(xy: PairEstimates, xx: PairEstimates) -> Replicates:
    """Fraction of a total's variance over images that a term accounts for; NaN without variance."""
    if xx.constant:
        return Replicates(math.nan, (math.nan,) * len(xy.sizes), xy.sizes)
    share = torch.where(xx.covariance > 0, xy.covariance / xx.covariance, math.nan)
    return Replicates(float(share[0]), tuple(share[xx.without_one].tolist()), xy.sizes)


def compute_hsic(blocks: PairMoments, kept: Float[Tensor, "union block"]) -> Hsic:
    """Hilbert-Schmidt independence criterion of two linear kernels, for unions of blocks.

    biased: ‖Σ (x − x̄)(y − ȳ)ᵀ‖²_F. unbiased, with K̃ and L̃ the Gram matrices without diagonals:
    tr(K̃L̃) + 1ᵀK̃1 · 1ᵀL̃1 / ((n−1)(n−2)) − 2/(n−2) · 1ᵀK̃L̃1, over n(n−3). Inner products of the
    blocks' moments are computed once and combined for each union.
    """
    m, n = blocks, kept @ blocks.count
    cross = m.cross.flatten(1)

    def join(*factors: Tensor) -> Float[Tensor, " union"]:
        # Σ over pairs of blocks in the union of ⟨first factor, second factor⟩.
        return ((kept @ (factors[0] @ factors[1].mT)) * kept).sum(dim=1)

    triples = torch.einsum("ai,bic->abc", m.sum_x, m.cross @ m.sum_y.mT)
    x_cross_y = torch.einsum("ua,ub,uc,abc->u", kept, kept, kept, triples)
    squares, norm_x, norm_y = join(cross, cross), join(m.sum_x, m.sum_x), join(m.sum_y, m.sum_y)
    biased = squares - 2 / n * x_cross_y + norm_x * norm_y / n**2
    sum_pq = kept @ m.sum_pq
    total_x, total_y = norm_x - kept @ m.sum_p, norm_y - kept @ m.sum_q
    mixed = x_cross_y - join(m.sum_x, m.sum_qx) - join(m.sum_y, m.sum_py) + sum_pq
    return Hsic(biased.clamp(min=0), _unbiased(n, squares - sum_pq, total_x, total_y, mixed))


def compute_hsic_of_others(
    total: PairMoments, x: Float[Tensor, "image dim_x"], y: Float[Tensor, "image dim_y"]
) -> Float[Tensor, " image"]:
    """Unbiased HSIC of all images but one, for each of some images.

    Leaving out an image removes a row and a column of K̃ and L̃, so its terms with all other images
    are subtracted from each sum over pairs.
    """
    m = total
    p, q = x.square().sum(dim=1), y.square().sum(dim=1)
    to_y, to_x = m.cross @ m.sum_y - m.sum_qx, m.sum_x @ m.cross - m.sum_py
    mixed = m.sum_x @ to_y - m.sum_y @ m.sum_py + m.sum_pq
    # Sums over the image's row: Σ K̃, Σ L̃, Σ K̃ L̃.
    k, l = x @ m.sum_x - p, y @ m.sum_y - q  # noqa: E741
    kl = ((x @ m.cross) * y).sum(dim=1) - p * q
    return _unbiased(
        m.count - 1,
        m.cross.square().sum() - m.sum_pq - 2 * kl,
        m.sum_x @ m.sum_x - m.sum_p - 2 * k,
        m.sum_y @ m.sum_y - m.sum_q - 2 * l,
        mixed - k * l - (x @ to_y - l * p) - (y @ to_x - k * q) + kl,
    )


def _unbiased(
    n: Tensor, squares: Tensor, total_x: Tensor, total_y: Tensor, mixed: Tensor
) -> Tensor:
    # From tr(K̃L̃), 1ᵀK̃1, 1ᵀL̃1 and 1ᵀK̃L̃1.
    value = squares + total_x * total_y / ((n - 1) * (n - 2)) - 2 / (n - 2) * mixed
    return torch.where(n >= MIN_IMAGES, value / (n * (n - 3)), math.nan)


def _compute_cka(xy: float, xx: float, yy: float) -> float:
    """CKA = xy / √(xx · yy) of one HSIC estimator; NaN where a self-term is not positive."""
    if not (xx > 0 and yy > 0):
        return math.nan
    return xy / (math.sqrt(xx) * math.sqrt(yy))


def _expect_biased_cka(num_images: int, xx: tuple[float, float], yy: tuple[float, float]) -> float:
    """Mean of the biased CKA over all permutations of one feature's images.

    Over permutations π the mean of Σ_ij K_ij L_π(i)π(j) is tr K · tr L / (n − 1) for centred Gram
    matrices K and L, and their norms do not change. So this is exact for any distribution.
    """
    return xx[0] * yy[0] / ((num_images - 1) * math.sqrt(xx[1]) * math.sqrt(yy[1]))


def _is_constant(blocks: PairMoments, reference: Float[Tensor, " dim"], epsilon: float) -> bool:
    """Whether a feature's variance is no more than rounding noise on its mean."""
    count, sum_x = blocks.count.sum(), blocks.sum_x.sum(dim=0)
    mean = reference + sum_x / count
    variance = (blocks.sum_p.sum() - sum_x @ sum_x / count) / count
    return bool(variance <= (10 * epsilon) ** 2 * (mean @ mean))
