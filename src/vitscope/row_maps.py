"""Maps of one attention row: what each token wrote on it, beside its raw attention.

Source: Lappe & Giese (NeurIPS 2025), eq. 3, token by token; Kobayashi et al. (EMNLP 2020) for norms
of value-weighted contributions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.layout import TokenLayout
from vitscope.ledger import Ledger
from vitscope.short_repr import ShortRepr
from vitscope.trace import ClsTrace


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RowMaps(ShortRepr):
    """One number per token, for a batch of images, on the CPU."""

    layout: TokenLayout
    attention: Float[Tensor, "batch head token"]  # a_h[i], the raw attention row
    contribution_norm: Float[Tensor, "batch token"]  # ‖c_i‖
    # ⟨c_i, r⟩ / ‖r‖²; the shares of all tokens, skip and bias sum to 1
    share: Float[Tensor, "batch token"]
    head_share: Float[Tensor, "batch head token"]  # the same per head

    def on_grid(self, values: Float[Tensor, "*batch token"]) -> Float[Tensor, "*batch row column"]:
        """Arrange the patch values of a map on the patch grid."""
        patches = self.layout.groups["patches"]
        of_patches = values[..., patches.start : patches.stop]
        return of_patches.reshape(*of_patches.shape[:-1], *self.layout.grid)


def make_row_maps(trace: ClsTrace, ledger: Ledger, images: Sequence[int] | None = None) -> RowMaps:
    """Decompose a row into single tokens: c_i = γ ∘ W_O · concat_h(a_h[i] v_h[i])."""
    chosen = slice(None) if images is None else list(images)
    weighted, weight = _weigh(trace, ledger, chosen)
    written = weighted.transpose(1, 2).flatten(2) @ weight.mT
    head_share = _share_along(ledger.residual_total[chosen], weighted, weight)
    attention = trace.logits[chosen].to(weighted.dtype).softmax(dim=-1)
    return RowMaps(
        layout=trace.layout,
        attention=attention.cpu(),
        contribution_norm=written.norm(dim=-1).cpu(),
        share=head_share.sum(dim=1).cpu(),
        head_share=head_share.cpu(),
    )


def map_shares_along(
    trace: ClsTrace, ledger: Ledger, direction: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch head token"]:
    """Signed shares ⟨c_i, d⟩ / ‖d‖² of each token's contribution along a given direction d."""
    weighted, weight = _weigh(trace, ledger, slice(None))
    return _share_along(direction.to(weight.dtype), weighted, weight).cpu()


def _weigh(
    trace: ClsTrace, ledger: Ledger, chosen: slice | list[int]
) -> tuple[Float[Tensor, "batch head token head_dim"], Float[Tensor, "dim values"]]:
    # a_h[i] v_h[i], and γ ∘ W_O.
    dtype, tail = ledger.contributions.dtype, trace.tail
    weight = tail.weight.to(dtype)
    if tail.scale is not None:
        weight = weight * tail.scale.to(dtype).unsqueeze(1)
    attention = trace.logits[chosen].to(dtype).softmax(dim=-1)
    return attention.unsqueeze(-1) * trace.values[chosen].to(dtype), weight


def _share_along(
    direction: Float[Tensor, "batch dim"],
    weighted: Float[Tensor, "batch head token head_dim"],
    weight: Float[Tensor, "dim values"],
) -> Float[Tensor, "batch head token"]:
    # Project the direction into each head's value space, so that no per-head token vectors are
    # formed.
    d = direction.to(weighted.device)
    batch, heads, _, head_dim = weighted.shape
    worth = (d @ weight).reshape(batch, heads, head_dim)
    return torch.einsum("bhnd,bhd->bhn", weighted, worth) / (d * d).sum(dim=-1)[:, None, None]
