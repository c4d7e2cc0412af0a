"""Joint moments of two feature sets: all that linear CKA and covariances need, in O(d²).

Moments of disjoint sets of rows add, those of a subset subtract, and a change of reference point is
exact algebra. So sets can be split, merged and left out without reading the rows again.

Source: Song et al. (JMLR 2012) for the estimator that uses them.
"""

from dataclasses import dataclass, fields
from functools import partial

import torch
from jaxtyping import Float, Float64
from torch import Tensor

Rows = Float[Tensor, "image dim"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PairMoments:
    """Sums over images of the pair (x, y), both shifted by a fixed reference; float64.

    With p = ‖x‖² and q = ‖y‖² after the shift. Moments of several disjoint sets may be stacked
    along a first axis.
    """

    count: Float[Tensor, "*set"]  # number of images n
    cross: Float[Tensor, "*set dim_x dim_y"]  # M = Σ x yᵀ
    sum_x: Float[Tensor, "*set dim_x"]  # Σ x
    sum_y: Float[Tensor, "*set dim_y"]  # Σ y
    sum_p: Float[Tensor, "*set"]  # Σ p
    sum_q: Float[Tensor, "*set"]  # Σ q
    sum_pq: Float[Tensor, "*set"]  # Σ p q
    sum_qx: Float[Tensor, "*set dim_x"]  # Σ q x
    sum_py: Float[Tensor, "*set dim_y"]  # Σ p y

    def __iadd__(self, other: "PairMoments") -> "PairMoments":
        """Add the moments of a disjoint set of images in place."""
        for field in fields(self):
            getattr(self, field.name).add_(getattr(other, field.name))
        return self

    def __getitem__(self, index: int) -> "PairMoments":
        """A view of one of several sets."""
        return PairMoments(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def sum(self) -> "PairMoments":
        """Moments of the union of stacked sets."""
        return PairMoments(**{f.name: getattr(self, f.name).sum(dim=0) for f in fields(self)})


def make_moments(dim_x: int, dim_y: int, *sets: int) -> PairMoments:
    """Moments of no rows."""
    zeros = partial(torch.zeros, dtype=torch.float64)
    return PairMoments(
        count=zeros(sets),
        cross=zeros(*sets, dim_x, dim_y),
        sum_x=zeros(*sets, dim_x),
        sum_y=zeros(*sets, dim_y),
        sum_p=zeros(sets),
        sum_q=zeros(sets),
        sum_pq=zeros(sets),
        sum_qx=zeros(*sets, dim_x),
        sum_py=zeros(*sets, dim_y),
    )


def add_rows(
    moments: PairMoments,
    x: Float64[Tensor, "image dim_x"],
    y: Float64[Tensor, "image dim_y"],
) -> None:
    """Add the moments of rows, in place: a new d x d matrix would cost more than the product."""
    p, q = x.square().sum(dim=1), y.square().sum(dim=1)
    moments.count.add_(len(x))
    moments.cross.addmm_(x.mT, y)
    moments.sum_x.add_(x.sum(dim=0))
    moments.sum_y.add_(y.sum(dim=0))
    moments.sum_p.add_(p.sum())
    moments.sum_q.add_(q.sum())
    moments.sum_pq.add_(p @ q)
    moments.sum_qx.add_(q @ x)
    moments.sum_py.add_(p @ y)


def shift_moments(
    moments: PairMoments, offset_x: Float[Tensor, " dim"], offset_y: Float[Tensor, " dim"]
) -> PairMoments:
    """Moments of the same images about the old references plus the offsets."""
    m, n = moments, moments.count
    a, b = offset_x, offset_y
    aa, bb = a @ a, b @ b
    sum_p = m.sum_p - 2 * (a @ m.sum_x) + n * aa
    sum_q = m.sum_q - 2 * (b @ m.sum_y) + n * bb
    # Σ q' x' with q' = q − 2 b·y + bb and x' = x − a, and its mirror image.
    of_qx = m.sum_qx - 2 * (m.cross @ b) + bb * m.sum_x
    of_py = m.sum_py - 2 * (a @ m.cross) + aa * m.sum_y
    return PairMoments(
        count=n,
        cross=m.cross - torch.outer(m.sum_x, b) - torch.outer(a, m.sum_y) + n * torch.outer(a, b),
        sum_x=m.sum_x - n * a,
        sum_y=m.sum_y - n * b,
        sum_p=sum_p,
        sum_q=sum_q,
        sum_pq=(m.sum_pq - 2 * (b @ m.sum_py) + bb * m.sum_p) - 2 * (a @ of_qx) + aa * sum_q,
        sum_qx=of_qx - sum_q * a,
        sum_py=of_py - sum_p * b,
    )


def compute_covariance_traces(
    blocks: PairMoments, kept: Float[Tensor, "union block"]
) -> Float[Tensor, " union"]:
    """Σ_images ⟨x − mean x, y − mean y⟩ of unions of blocks: numerators of variance shares."""
    traces = blocks.cross.diagonal(dim1=1, dim2=2).sum(dim=1)
    sums_x, sums_y = kept @ blocks.sum_x, kept @ blocks.sum_y
    return kept @ traces - (sums_x * sums_y).sum(dim=1) / (kept @ blocks.count)
